package plan

import (
	"fmt"
	"maps"
	"net/netip"
	"time"
)

// Host is everything that medway wants one LVS host's kernel to hold. Each
// field is one table of one adapter: key to desired value, and every value is
// comparable, so that one generic diff serves them all.
type Host struct {
	Sysctls      map[Sysctl]string
	Links        map[LinkName]Link
	Addresses    map[Address]struct{}
	Routes       map[Route]struct{}
	Neighbors    map[Neighbor]MAC
	Chains       map[Chain]Rules
	Jumps        map[Jump]struct{}
	Services     map[ServiceKey]Service
	Destinations map[DestinationKey]Destination
	Daemons      map[SyncRole]SyncDaemon
	Timeouts     map[TimeoutName]time.Duration
	// Segment are the VIPs of a node in ARP mode. Which of them the host has at the
	// moment is not the plan's to say, and never is one on medway0: the kernel would
	// answer for it on every device.
	Segment map[netip.Addr]bool
	// Own are the node's own addresses, of which the host has to have those that its
	// file names: without, there is no next hop of that family and no way to its
	// backends. They are not medway's to set.
	Own map[netip.Addr]bool
	// Kept are services that stay as they are, with their destinations,
	// because what they should be is not known.
	Kept map[ServiceKey]bool
}

// ChainsOf returns the chains of one family.
func (h Host) ChainsOf(f Family) map[Chain]Rules {
	out := maps.Clone(h.Chains)
	maps.DeleteFunc(out, func(c Chain, _ Rules) bool { return c.Family != f })
	return out
}

// JumpsOf returns the jumps of one family.
func (h Host) JumpsOf(f Family) map[Jump]struct{} {
	out := maps.Clone(h.Jumps)
	maps.DeleteFunc(out, func(j Jump, _ struct{}) bool { return j.Family != f })
	return out
}

// Sysctl is a kernel parameter in the dotted form of sysctl(8), for example
// "net.ipv4.vs.sync_threshold". A dot inside an interface name is written as a
// slash, as sysctl(8) does.
type Sysctl string

func (s Sysctl) String() string { return "sysctl " + string(s) }

// LinkName is the name of a network device, 15 bytes at most (IFNAMSIZ).
type LinkName string

func (l LinkName) String() string { return "link " + string(l) }

// LinkKind is a device type, in the word that `ip link add type` takes.
type LinkKind string

// The device types that medway makes. Both tunnels carry IPv4, which sync
// messages are: IPIP in IPv4, IP6Tnl (of mode ipip6) in IPv6.
const (
	Dummy  LinkKind = "dummy"
	Veth   LinkKind = "veth"
	IPIP   LinkKind = "ipip"
	IP6Tnl LinkKind = "ip6tnl"
)

// Link is a network device. All of medway's devices are administratively up.
type Link struct {
	Kind LinkKind
	// MTU in bytes; 0 leaves the kernel's choice.
	MTU int
	// MAC of the device; the zero value leaves the kernel's choice.
	MAC MAC
	// Peer is the name of the other end; Veth only. The pair is one object:
	// the peer has no entry of its own.
	Peer LinkName
	// Local and Remote are the outer addresses, TTL the outer time to live (hop
	// limit); tunnels only. TTL is never 0 there: 0 inherits the inner TTL,
	// which is 1 for sync messages (ip-tunnel(8)).
	Local, Remote netip.Addr
	TTL           uint8
}

// MAC is an Ethernet address.
type MAC [6]byte

func (m MAC) String() string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

// Address is an address on a device. VIPs are host prefixes on medway0.
type Address struct {
	Link   LinkName
	Prefix netip.Prefix
}

func (a Address) String() string { return fmt.Sprintf("address %s dev %s", a.Prefix, string(a.Link)) }

// VIPAddress is where a VIP stands.
func VIPAddress(vip netip.Addr) Address { return Address{VIPLink, host(vip)} }

// Route is a route of scope link in the main table, bearing medway's own
// protocol number.
type Route struct {
	Prefix netip.Prefix
	Link   LinkName
}

func (r Route) String() string { return fmt.Sprintf("route %s dev %s", r.Prefix, string(r.Link)) }

// Neighbor is a permanent neighbour entry.
type Neighbor struct {
	Link LinkName
	Addr netip.Addr
}

func (n Neighbor) String() string { return fmt.Sprintf("neigh %s dev %s", n.Addr, string(n.Link)) }

// Family is a family of addresses, for what the kernel has once for each.
type Family string

// The families, in nft's words.
const (
	IPv4 Family = "ip"
	IPv6 Family = "ip6"
)

// FamilyOf is the family of an address.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

// Tables is the program that sets a family's rules: iptables(8) or ip6tables(8).
func (f Family) Tables() string { return string(f) + "tables" }

// Chain names a chain of medway's own in a table of iptables or ip6tables.
type Chain struct {
	Family Family
	// Table is "filter", "mangle" or "raw".
	Table string
	Name  string
}

func (c Chain) String() string {
	return fmt.Sprintf("chain %s -t %s (%s)", c.Name, c.Table, c.Family.Tables())
}

// Rules are a chain's rules, one a line, in the exact form that
// `iptables -S CHAIN` prints them without the leading "-A CHAIN ".
type Rules string

// Jump is the rule in a built-in chain, without any match, that leads to a
// chain of medway's own. It stands first in the built-in chain, so that no
// rule of the operator's opens what medway closes.
type Jump struct {
	Family          Family
	Table, From, To string
}

func (j Jump) String() string {
	return fmt.Sprintf("jump %s -> %s -t %s (%s)", j.From, j.To, j.Table, j.Family.Tables())
}

// Protocol is a transport protocol in ipvsadm's word.
type Protocol string

// The protocols that IPVS balances for medway.
const (
	TCP Protocol = "tcp"
	UDP Protocol = "udp"
)

// ServiceKey identifies an IPVS virtual service.
type ServiceKey struct {
	Protocol Protocol
	Addr     netip.Addr
	Port     uint16
}

func (k ServiceKey) String() string {
	return fmt.Sprintf("service %s %s", k.Protocol, netip.AddrPortFrom(k.Addr, k.Port))
}

// Service is the configuration of an IPVS virtual service.
type Service struct {
	// Scheduler is the kernel's name, for example "sed".
	Scheduler string
	// Persistence is the persistence timeout; 0 is none.
	Persistence time.Duration
	// Engine is the persistence engine, in ipvsadm's word; "" is none. Its
	// templates are synced with what they go by (tried on Linux 6.1 with "sip" and
	// Call-IDs of up to 250 bytes), so a dialogue keeps its backend on another node.
	Engine string
	// OnePacket schedules every datagram by itself (ipvsadm --ops); UDP only. Such
	// connections are never synced (ip_vs_sync_conn in net/netfilter/ipvs/
	// ip_vs_sync.c), but the templates that they make are. Without it, the first
	// datagram from an address and port decides for all that follow from there,
	// whatever their Call-ID.
	OnePacket bool
}

// DestinationKey identifies a destination (real server) of a service.
type DestinationKey struct {
	Service ServiceKey
	Addr    netip.Addr
	Port    uint16
}

func (k DestinationKey) String() string {
	return fmt.Sprintf("%s -> %s", k.Service, netip.AddrPortFrom(k.Addr, k.Port))
}

// Destination is the configuration of a destination in tunnel mode (ipip, or
// IPv6 in IPv6 for an IPv6 service).
type Destination struct {
	Weight uint16
	// Upper and Lower are the connection thresholds of ipvsadm -x and -y;
	// 0 is none.
	Upper, Lower uint32
}

// SyncRole is the role of an IPVS sync daemon, in ipvsadm's word.
type SyncRole string

// Both daemons run on every LVS host at once.
const (
	Master SyncRole = "master"
	Backup SyncRole = "backup"
)

func (r SyncRole) String() string { return "sync daemon " + string(r) }

// SyncDaemon is the configuration of an IPVS sync daemon.
type SyncDaemon struct {
	Interface LinkName
	// ID is the syncid, 0 to 255.
	ID uint8
	// MaxLen is the longest sync message in bytes.
	MaxLen uint16
	Group  netip.Addr
	Port   uint16
	TTL    uint8
}

// TimeoutName is one of the three timeouts of `ipvsadm --set`.
type TimeoutName string

// The timeouts of IPVS connections, whole seconds each.
const (
	TimeoutTCP    TimeoutName = "tcp"
	TimeoutTCPFin TimeoutName = "tcpfin"
	TimeoutUDP    TimeoutName = "udp"
)

func (t TimeoutName) String() string { return "timeout " + string(t) }

// Announcement is one route to announce to every BGP neighbour.
type Announcement struct {
	Prefix netip.Prefix
	// MED is always sent (RFC 4271, 5.1.4).
	MED uint32
	// Communities in the form of RFC 1997, AS in the upper 16 bits.
	Communities []uint32
	// Prepend is how many times our AS is added to the path.
	Prepend int
}
