package ipvs

import (
	"fmt"
	"net/netip"
	"time"

	moby "github.com/moby/ipvs"
	"golang.org/x/sys/unix"

	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/reconcile"
)

// Show is as reconcile.Table says.
func (t ServiceTable) Show(c reconcile.Change[plan.ServiceKey, plan.Service]) reconcile.Text {
	options := func(v plan.Service) string {
		s, err := serviceToLib(c.Key, v)
		if err != nil {
			// serviceToPlan spells out behind the scheduler what is odd.
			return "-s " + v.Scheduler
		}
		return serviceOptions(s)
	}
	text := values("service", c, options)
	if s, err := serviceToLib(c.Key, c.New); err == nil && c.Op != reconcile.Delete {
		text.Commands = ipvsadm(c.Op, serviceCommand(verbOf(c.Op), s))
	} else if s, err := serviceKeyToLib(c.Key); err == nil && c.Op == reconcile.Delete {
		text.Commands = ipvsadm(c.Op, serviceCommand(remove, s))
	}
	return text
}

// Show is as reconcile.Table says.
func (t DestinationTable) Show(c reconcile.Change[plan.DestinationKey, plan.Destination]) reconcile.Text {
	options := func(v plan.Destination) string {
		_, d, err := destinationToLib(c.Key, v)
		if err != nil {
			return "not a plain ipip tunnel" // destinationToPlan
		}
		return destinationOptions(d)
	}
	text := values("destination", c, options)
	if s, d, err := destinationToLib(c.Key, c.New); err == nil && c.Op != reconcile.Delete {
		text.Commands = ipvsadm(c.Op, destinationCommand(verbOf(c.Op), s, d))
	} else if s, d, err := destinationKeyToLib(c.Key); err == nil && c.Op == reconcile.Delete {
		text.Commands = ipvsadm(c.Op, destinationCommand(remove, s, d))
	}
	return text
}

// Show is as reconcile.Table says.
func (t DaemonTable) Show(c reconcile.Change[plan.SyncRole, plan.SyncDaemon]) reconcile.Text {
	text := values("sync daemon", c, func(v plan.SyncDaemon) string {
		return daemonOptions(daemon{
			ifn: string(v.Interface), id: uint32(v.ID), maxLen: v.MaxLen, group: v.Group, port: v.Port, ttl: v.TTL,
		})
	})
	d, err := roleToState(c.Key)
	if err == nil && c.Op != reconcile.Create {
		text.Commands = ipvsadm(c.Op, daemonCommand(remove, d))
	}
	if d, err := daemonToKernel(c.Key, c.New); err == nil && c.Op != reconcile.Delete {
		text.Commands = append(text.Commands, ipvsadm(c.Op, daemonCommand(add, d))...)
	}
	return text
}

// Show is as reconcile.Table says.
func (t TimeoutTable) Show(c reconcile.Change[plan.TimeoutName, time.Duration]) reconcile.Text {
	text := values("timeout", c, func(v time.Duration) string { return fmt.Sprint(int(v.Seconds())) })
	if config, err := timeoutToLib(c.Key, c.New); err == nil && c.Op != reconcile.Delete {
		text.Commands = ipvsadm(c.Op, timeoutsCommand(config))
	}
	return text
}

// values says a change's values.
func values[K reconcile.Key, V comparable](table string, c reconcile.Change[K, V], options func(V) string) reconcile.Text {
	text := reconcile.Text{Table: table}
	if c.Op != reconcile.Create {
		text.Old = options(c.Old)
	}
	if c.Op != reconcile.Delete {
		text.New = options(c.New)
	}
	return text
}

func verbOf(op reconcile.Op) verb {
	return map[reconcile.Op]verb{reconcile.Create: add, reconcile.Update: edit, reconcile.Delete: remove}[op]
}

func ipvsadm(op reconcile.Op, arguments string) []reconcile.Command {
	return reconcile.Commands(op, "ipvsadm "+arguments)
}

func addrPort(ip []byte, port uint16) netip.AddrPort {
	a, _ := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(a, port)
}

func serviceName(s *moby.Service) string {
	if s.FWMark != 0 {
		return fmt.Sprintf("-f %d", s.FWMark)
	}
	option := "-t"
	if s.Protocol == unix.IPPROTO_UDP {
		option = "-u"
	}
	return fmt.Sprintf("%s %s", option, addrPort(s.Address, s.Port))
}

func serviceCommand(v verb, s *moby.Service) string {
	line := [...]string{"-A", "-E", "-D"}[v] + " " + serviceName(s)
	if v == remove {
		return line
	}
	return line + " " + serviceOptions(s)
}

func serviceOptions(s *moby.Service) string {
	line := "-s " + s.SchedName
	if s.Flags&flagPersistent != 0 {
		line += fmt.Sprintf(" -p %d", s.Timeout)
	}
	if s.PEName != "" {
		line += " --pe " + s.PEName
	}
	if s.Flags&flagOnePacket != 0 {
		line += " -o"
	}
	return line
}

func destinationCommand(v verb, s *moby.Service, d *moby.Destination) string {
	line := fmt.Sprintf("%s %s -r %s", [...]string{"-a", "-e", "-d"}[v], serviceName(s), addrPort(d.Address, d.Port))
	if v == remove {
		return line
	}
	return line + " " + destinationOptions(d)
}

func destinationOptions(d *moby.Destination) string {
	mode := map[uint32]string{
		moby.ConnectionFlagMasq: "-m", moby.ConnectionFlagTunnel: "-i", moby.ConnectionFlagDirectRoute: "-g",
	}[d.ConnectionFlags&moby.ConnectionFlagFwdMask]
	line := fmt.Sprintf("%s -w %d", mode, d.Weight)
	if d.UpperThreshold != 0 {
		line += fmt.Sprintf(" -x %d", d.UpperThreshold)
	}
	if d.LowerThreshold != 0 {
		line += fmt.Sprintf(" -y %d", d.LowerThreshold)
	}
	return line
}

var roleNames = map[uint32]string{stateMaster: "master", stateBackup: "backup"}

func daemonCommand(v verb, d daemon) string {
	if v == remove {
		return "--stop-daemon " + roleNames[d.state]
	}
	return fmt.Sprintf("--start-daemon %s %s", roleNames[d.state], daemonOptions(d))
}

func daemonOptions(d daemon) string {
	return fmt.Sprintf("--mcast-interface %s --syncid %d --sync-maxlen %d --mcast-group %s --mcast-port %d --mcast-ttl %d",
		d.ifn, d.id, d.maxLen, d.group, d.port, d.ttl)
}

// timeoutsCommand writes 0 for "keep", as ipvsadm reads it.
func timeoutsCommand(c *moby.Config) string {
	return fmt.Sprintf("--set %d %d %d", c.TimeoutTCP/time.Second, c.TimeoutTCPFin/time.Second, c.TimeoutUDP/time.Second)
}
