package ipvs

import (
	"context"
	"net/netip"
	"time"

	"pgregory.net/rapid"

	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/reconcile"
)

// run brings k to the wanted state, as the agent does.
func run(k *Kernel, want plan.Host) reconcile.Report {
	return reconcile.Run(context.Background(),
		reconcile.Bind(k.Services(), want.Services, nil),
		reconcile.Bind(k.Destinations(), want.Destinations, nil),
		reconcile.Bind(k.Daemons(), want.Daemons, nil),
		reconcile.Bind(k.Timeouts(), want.Timeouts, func(plan.TimeoutName) bool { return false }),
	)
}

// tester is what *testing.T and *rapid.T have in common here.
type tester interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// settle runs twice and insists that the second run sends no change.
func settle(t tester, k *Kernel, want plan.Host) {
	t.Helper()
	if err := run(k, want).Err(); err != nil {
		t.Fatal(err)
	}
	before := k.Changes()
	second := run(k, want)
	if err := second.Err(); err != nil {
		t.Fatal(err)
	}
	if n := k.Changes() - before; n != 0 || len(second.Done) != 0 {
		t.Fatalf("the second run sent %d changes: %v", n, second.Done)
	}
}

func apply[K reconcile.Key, V comparable](t reconcile.Table[K, V], op reconcile.Op, key K, v V) error {
	return t.Apply(context.Background(), reconcile.Change[K, V]{Op: op, Key: key, New: v})
}

var (
	sipTCP  = plan.ServiceKey{Protocol: plan.TCP, Addr: netip.MustParseAddr("203.0.113.10"), Port: 5060}
	sipUDP6 = plan.ServiceKey{Protocol: plan.UDP, Addr: netip.MustParseAddr("2001:db8::10"), Port: 5060}
	local   = plan.DestinationKey{Service: sipTCP, Addr: netip.MustParseAddr("10.1.0.21"), Port: 5060}
	remote  = plan.DestinationKey{Service: sipTCP, Addr: netip.MustParseAddr("10.2.0.21"), Port: 5060}
	local6  = plan.DestinationKey{Service: sipUDP6, Addr: netip.MustParseAddr("2001:db8:1::21"), Port: 5060}
	group4  = netip.MustParseAddr("224.0.0.81")
	group6  = netip.MustParseAddr("ff02::81")
	sed     = plan.Service{Scheduler: "sed"}
)

// example is a small host with every kind of object.
func example() plan.Host {
	return plan.Host{
		Services: map[plan.ServiceKey]plan.Service{
			sipTCP:  {Scheduler: "sed", Persistence: 5 * time.Minute},
			sipUDP6: {Scheduler: "sed", Persistence: time.Minute, Engine: "sip", OnePacket: true},
		},
		Destinations: map[plan.DestinationKey]plan.Destination{
			local:  {Weight: 50000},
			remote: {Weight: 2, Upper: 100000, Lower: 75000},
			local6: {Weight: 65535, Upper: 10},
		},
		Daemons: map[plan.SyncRole]plan.SyncDaemon{
			plan.Master: {Interface: "sync01", ID: 1, MaxLen: 1452, Group: group4, Port: 8848, TTL: 1},
			plan.Backup: {Interface: "sync01", ID: 0, MaxLen: 1452, Group: group4, Port: 8848, TTL: 1},
		},
		Timeouts: map[plan.TimeoutName]time.Duration{plan.TimeoutTCP: 2 * time.Hour},
	}
}

const (
	exampleRules = `-A -t 203.0.113.10:5060 -s sed -p 300
-a -t 203.0.113.10:5060 -r 10.1.0.21:5060 -i -w 50000 --tun-type ipip
-a -t 203.0.113.10:5060 -r 10.2.0.21:5060 -i -w 2 --tun-type ipip
-A -u [2001:db8::10]:5060 -s sed -p 60 --pe sip -o
-a -u [2001:db8::10]:5060 -r [2001:db8:1::21]:5060 -i -w 65535 --tun-type ipip
`
	exampleDaemons = `master sync daemon (mcast=sync01, syncid=1, maxlen=1452, group=224.0.0.81, port=8848, ttl=1)
backup sync daemon (mcast=sync01, syncid=0, maxlen=1452, group=224.0.0.81, port=8848, ttl=1)
`
	exampleTimeouts = "Timeout (tcp tcpfin udp): 7200 120 300\n"
)

// The universe of the random hosts is small, so that two of them share objects.
var (
	vips     = []netip.Addr{sipTCP.Addr, netip.MustParseAddr("203.0.113.200"), sipUDP6.Addr, netip.MustParseAddr("2001:db8:ffff::1")}
	servers4 = []netip.Addr{local.Addr, remote.Addr, netip.MustParseAddr("10.200.0.1")}
	servers6 = []netip.Addr{local6.Addr, netip.MustParseAddr("2001:db8:2::21"), netip.MustParseAddr("fd00::1")}
	ports    = []uint16{5060, 5061, 65535}
)

func genServiceKey() *rapid.Generator[plan.ServiceKey] {
	return rapid.Custom(func(t *rapid.T) plan.ServiceKey {
		return plan.ServiceKey{
			Protocol: rapid.SampledFrom([]plan.Protocol{plan.TCP, plan.UDP}).Draw(t, "protocol"),
			Addr:     rapid.SampledFrom(vips).Draw(t, "vip"),
			Port:     rapid.SampledFrom(ports).Draw(t, "port"),
		}
	})
}

func genService(protocol plan.Protocol) *rapid.Generator[plan.Service] {
	return rapid.Custom(func(t *rapid.T) plan.Service {
		s := plan.Service{
			Scheduler:   rapid.SampledFrom([]string{"sed", "wlc", "rr"}).Draw(t, "scheduler"),
			Persistence: time.Duration(rapid.SampledFrom([]int{0, 0, 1, 300, 31 * 86400}).Draw(t, "persistence")) * time.Second,
		}
		if s.Persistence != 0 {
			s.Engine = rapid.SampledFrom([]string{"", "sip"}).Draw(t, "engine")
		}
		s.OnePacket = protocol == plan.UDP && rapid.Bool().Draw(t, "one packet")
		return s
	})
}

func genDestination() *rapid.Generator[plan.Destination] {
	return rapid.Custom(func(t *rapid.T) plan.Destination {
		upper := rapid.Uint32Range(0, maxThreshold).Draw(t, "upper")
		return plan.Destination{
			Weight: rapid.Uint16().Draw(t, "weight"),
			Upper:  upper,
			Lower:  rapid.Uint32Range(0, upper).Draw(t, "lower"),
		}
	})
}

func genDaemon() *rapid.Generator[plan.SyncDaemon] {
	return rapid.Custom(func(t *rapid.T) plan.SyncDaemon {
		return plan.SyncDaemon{
			Interface: rapid.SampledFrom([]plan.LinkName{"sync01", "sync01p"}).Draw(t, "interface"),
			ID:        rapid.Uint8().Draw(t, "id"),
			MaxLen:    rapid.Uint16Range(minBackupMaxLen, 65535-48).Draw(t, "maxlen"),
			Group:     rapid.SampledFrom([]netip.Addr{group4, group6}).Draw(t, "group"),
			Port:      rapid.Uint16Range(1, 65535).Draw(t, "port"),
			TTL:       rapid.Uint8Range(1, 255).Draw(t, "ttl"),
		}
	})
}

func genHost() *rapid.Generator[plan.Host] {
	return rapid.Custom(func(t *rapid.T) plan.Host {
		h := plan.Host{
			Services:     make(map[plan.ServiceKey]plan.Service),
			Destinations: make(map[plan.DestinationKey]plan.Destination),
			Daemons:      rapid.MapOf(rapid.SampledFrom([]plan.SyncRole{plan.Master, plan.Backup}), genDaemon()).Draw(t, "daemons"),
			Timeouts: rapid.MapOf(
				rapid.SampledFrom([]plan.TimeoutName{plan.TimeoutTCP, plan.TimeoutTCPFin, plan.TimeoutUDP}),
				rapid.Custom(func(t *rapid.T) time.Duration {
					return time.Duration(rapid.IntRange(1, 31*86400).Draw(t, "seconds")) * time.Second
				})).Draw(t, "timeouts"),
		}
		for _, key := range rapid.SliceOfN(genServiceKey(), 0, 8).Draw(t, "services") {
			h.Services[key] = genService(key.Protocol).Draw(t, "service")
			servers := servers4
			if key.Addr.Is6() {
				servers = servers6
			}
			for _, a := range servers {
				if rapid.Bool().Draw(t, "used") {
					port := rapid.SampledFrom(ports).Draw(t, "port")
					h.Destinations[plan.DestinationKey{Service: key, Addr: a, Port: port}] = genDestination().Draw(t, "destination")
				}
			}
		}
		return h
	})
}
