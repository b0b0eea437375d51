package ipvs

import (
	"fmt"
	"math"
	"net/netip"
	"strings"
	"time"

	moby "github.com/moby/ipvs"
	"golang.org/x/sys/unix"

	"github.com/medway-lb/medway/pkg/plan"
)

const (
	// IP_VS_SVC_F_* of linux include/uapi/linux/ip_vs.h. The kernel sets
	// flagHashed by itself.
	flagPersistent = 0x1
	flagHashed     = 0x2
	flagOnePacket  = 0x4

	tunIPIP = 0 // IP_VS_CONN_F_TUNNEL_TYPE_IPIP

	// maxTime is ipvsadm's own limit (MAX_TIMEOUT); the kernel multiplies by
	// its tick rate in 32 bits and would wrap not far above.
	maxTime = 31 * 24 * time.Hour

	// minBackupMaxLen: the kernel raises a backup's maxlen to it without a
	// word (linux net/netfilter/ipvs/ip_vs_sync.c, start_sync_thread), which
	// would read as a difference for ever.
	minBackupMaxLen = 1024

	// maxThreshold: Linux 6.1.x answers EINVAL above it, in NEW_DEST and
	// SET_DEST (tried); ipvsadm has the same limit.
	maxThreshold = math.MaxInt32

	// maxName is IP_VS_SCHEDNAME_MAXLEN, and IP_VS_PENAME_MAXLEN, less the
	// closing NUL.
	maxName = 15
)

func familyOf(a netip.Addr) uint16 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// checkAddr refuses addresses that the kernel would give back in another form.
func checkAddr(a netip.Addr) error {
	if !a.IsValid() || a.Is4In6() || a.Zone() != "" {
		return fmt.Errorf("%q is no plain IPv4 or IPv6 address", a)
	}
	return nil
}

func checkTime(name string, d, least time.Duration) error {
	if d%time.Second != 0 || d < least || d > maxTime {
		return fmt.Errorf("%s %s is not a number of whole seconds from %s to %s", name, d, least, maxTime)
	}
	return nil
}

// serviceKeyToLib fills what identifies a service.
func serviceKeyToLib(k plan.ServiceKey) (*moby.Service, error) {
	if err := checkAddr(k.Addr); err != nil {
		return nil, err
	}
	s := &moby.Service{
		AddressFamily: familyOf(k.Addr),
		Address:       k.Addr.AsSlice(),
		Port:          k.Port,
		// A mask of one client; the kernel takes it as a bit mask for IPv4
		// and as a prefix length for IPv6, and refuses 0 there.
		Netmask: math.MaxUint32,
	}
	if k.Addr.Is6() {
		s.Netmask = 128
	}
	switch k.Protocol {
	case plan.TCP:
		s.Protocol = unix.IPPROTO_TCP
	case plan.UDP:
		s.Protocol = unix.IPPROTO_UDP
	default:
		return nil, fmt.Errorf("protocol %q is neither tcp nor udp", k.Protocol)
	}
	return s, nil
}

func serviceToLib(k plan.ServiceKey, v plan.Service) (*moby.Service, error) {
	s, err := serviceKeyToLib(k)
	if err != nil {
		return nil, err
	}
	if err := checkName("scheduler", v.Scheduler); err != nil {
		return nil, err
	}
	if err := checkTime("persistence", v.Persistence, 0); err != nil {
		return nil, err
	}
	if v.Engine != "" {
		if err := checkName("persistence engine", v.Engine); err != nil {
			return nil, err
		}
		if v.Persistence == 0 {
			return nil, fmt.Errorf("persistence engine %q without persistence has no effect", v.Engine)
		}
	}
	if v.OnePacket && k.Protocol != plan.UDP {
		return nil, fmt.Errorf("one-packet scheduling is for udp")
	}
	s.SchedName, s.PEName = v.Scheduler, v.Engine
	if v.OnePacket {
		s.Flags = flagOnePacket
	}
	if v.Persistence != 0 {
		s.Flags |= flagPersistent
		s.Timeout = uint32(v.Persistence / time.Second)
	}
	return s, nil
}

func checkName(what, name string) error {
	if name == "" || len(name) > maxName || strings.ContainsAny(name, " \x00") {
		return fmt.Errorf("%s %q is not a name of 1 to %d bytes", what, name, maxName)
	}
	return nil
}

// serviceKeyToPlan is false for what medway never makes: firewall-mark
// services and other protocols.
func serviceKeyToPlan(s *moby.Service) (plan.ServiceKey, bool) {
	addr, ok := netip.AddrFromSlice(s.Address)
	if s.FWMark != 0 || !ok {
		return plan.ServiceKey{}, false
	}
	k := plan.ServiceKey{Addr: addr, Port: s.Port}
	switch s.Protocol {
	case unix.IPPROTO_TCP:
		k.Protocol = plan.TCP
	case unix.IPPROTO_UDP:
		k.Protocol = plan.UDP
	default:
		return plan.ServiceKey{}, false
	}
	return k, true
}

// serviceToPlan marks a service that has an option which medway doesn't set
// (another netmask, one-packet on TCP...) by spelling it out
// behind the scheduler: no wanted scheduler has a space, so the diff sees the
// difference and an edit removes the option.
func serviceToPlan(k plan.ServiceKey, s *moby.Service) plan.Service {
	v := plan.Service{Scheduler: s.SchedName, Engine: s.PEName, OnePacket: s.Flags&flagOnePacket != 0}
	if s.Flags&flagPersistent != 0 {
		v.Persistence = time.Duration(s.Timeout) * time.Second
	}
	flags := s.Flags &^ flagHashed
	plain, err := serviceToLib(k, v)
	if err != nil || plain.Flags != flags || plain.Netmask != s.Netmask {
		v.Scheduler += fmt.Sprintf(" flags=%#x netmask=%#x pe=%s", flags, s.Netmask, s.PEName)
	}
	return v
}

// destinationKeyToLib fills what identifies a destination.
func destinationKeyToLib(k plan.DestinationKey) (*moby.Service, *moby.Destination, error) {
	s, err := serviceKeyToLib(k.Service)
	if err != nil {
		return nil, nil, err
	}
	if err := checkAddr(k.Addr); err != nil {
		return nil, nil, err
	}
	return s, &moby.Destination{
		AddressFamily:   familyOf(k.Addr),
		Address:         k.Addr.AsSlice(),
		Port:            k.Port,
		ConnectionFlags: moby.ConnectionFlagTunnel,
	}, nil
}

func destinationToLib(k plan.DestinationKey, v plan.Destination) (*moby.Service, *moby.Destination, error) {
	s, d, err := destinationKeyToLib(k)
	if err != nil {
		return nil, nil, err
	}
	if s.AddressFamily != d.AddressFamily {
		return nil, nil, fmt.Errorf("the destination is not of the service's address family")
	}
	if v.Lower > v.Upper {
		return nil, nil, fmt.Errorf("lower threshold %d is above the upper %d", v.Lower, v.Upper)
	}
	if v.Upper > maxThreshold {
		return nil, nil, fmt.Errorf("upper threshold %d is above %d", v.Upper, maxThreshold)
	}
	d.Weight = int(v.Weight)
	d.UpperThreshold, d.LowerThreshold = v.Upper, v.Lower
	return s, d, nil
}

func destinationKeyToPlan(of plan.ServiceKey, d *moby.Destination) (plan.DestinationKey, bool) {
	addr, ok := netip.AddrFromSlice(d.Address)
	return plan.DestinationKey{Service: of, Addr: addr, Port: d.Port}, ok
}

// destinationToPlan reports a destination that isn't in plain ipip tunnel mode,
// or whose weight medway can't have set, with a lower threshold above the
// upper. The kernel never holds that (ERANGE in ip_vs_add_dest and
// ip_vs_edit_dest, linux net/netfilter/ipvs/ip_vs_ctl.c) and no plan can want
// it: so the diff sees a difference, and an edit puts all in order.
func destinationToPlan(d *destination) plan.Destination {
	tunnel := d.ConnectionFlags&moby.ConnectionFlagFwdMask == moby.ConnectionFlagTunnel && d.tunType == tunIPIP
	if !tunnel || d.Weight < 0 || d.Weight > math.MaxUint16 {
		return plan.Destination{Upper: 0, Lower: math.MaxUint32}
	}
	return plan.Destination{Weight: uint16(d.Weight), Upper: d.UpperThreshold, Lower: d.LowerThreshold}
}

var roleStates = map[plan.SyncRole]uint32{plan.Master: stateMaster, plan.Backup: stateBackup}

func roleToState(r plan.SyncRole) (daemon, error) {
	state, ok := roleStates[r]
	if !ok {
		return daemon{}, fmt.Errorf("role %q is neither master nor backup", r)
	}
	return daemon{state: state}, nil
}

// daemonToKernel refuses what the kernel would silently replace by a default
// or clamp, because it would then be restarted on every run.
func daemonToKernel(r plan.SyncRole, v plan.SyncDaemon) (daemon, error) {
	d, err := roleToState(r)
	if err != nil {
		return daemon{}, err
	}
	// 65535 less the IP and UDP headers, to which the kernel clamps.
	longest := uint16(math.MaxUint16 - 20 - 8)
	if v.Group.Is6() {
		longest = math.MaxUint16 - 40 - 8
	}
	switch {
	case v.Interface == "" || len(v.Interface) >= unix.IFNAMSIZ:
		return daemon{}, fmt.Errorf("interface %q is not a name of 1 to %d bytes", string(v.Interface), unix.IFNAMSIZ-1)
	case checkAddr(v.Group) != nil || !v.Group.IsMulticast():
		return daemon{}, fmt.Errorf("group %q is no multicast address", v.Group)
	case v.Port == 0 || v.TTL == 0 || v.MaxLen == 0:
		return daemon{}, fmt.Errorf("port %d, ttl %d and maxlen %d must all be given", v.Port, v.TTL, v.MaxLen)
	case v.MaxLen > longest:
		return daemon{}, fmt.Errorf("maxlen %d is above %d", v.MaxLen, longest)
	case r == plan.Backup && v.MaxLen < minBackupMaxLen:
		return daemon{}, fmt.Errorf("maxlen %d of a backup is below %d", v.MaxLen, minBackupMaxLen)
	}
	d.ifn, d.id, d.maxLen = string(v.Interface), uint32(v.ID), v.MaxLen
	d.group, d.port, d.ttl = v.Group, v.Port, v.TTL
	return d, nil
}

// daemonToPlan gives a daemon that is deaf, or has a syncid that medway can't
// have set, the maxlen 0, which differs from every wanted value.
func daemonToPlan(d daemon) (plan.SyncRole, plan.SyncDaemon) {
	role := plan.Master
	if d.state == stateBackup {
		role = plan.Backup
	}
	v := plan.SyncDaemon{
		Interface: plan.LinkName(d.ifn), ID: uint8(d.id), MaxLen: d.maxLen,
		Group: d.group, Port: d.port, TTL: d.ttl,
	}
	if d.deaf || d.id > math.MaxUint8 {
		v.MaxLen = 0
	}
	return role, v
}

// timeoutToLib leaves the other two at 0, which the kernel takes as "keep".
func timeoutToLib(n plan.TimeoutName, d time.Duration) (*moby.Config, error) {
	if err := checkTime("value", d, time.Second); err != nil {
		return nil, err
	}
	switch n {
	case plan.TimeoutTCP:
		return &moby.Config{TimeoutTCP: d}, nil
	case plan.TimeoutTCPFin:
		return &moby.Config{TimeoutTCPFin: d}, nil
	case plan.TimeoutUDP:
		return &moby.Config{TimeoutUDP: d}, nil
	}
	return nil, fmt.Errorf("there is no timeout of that name")
}

func timeoutsToPlan(c *moby.Config) map[plan.TimeoutName]time.Duration {
	return map[plan.TimeoutName]time.Duration{
		plan.TimeoutTCP:    c.TimeoutTCP,
		plan.TimeoutTCPFin: c.TimeoutTCPFin,
		plan.TimeoutUDP:    c.TimeoutUDP,
	}
}
