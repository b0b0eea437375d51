package state

import (
	"cmp"
	"net/netip"
	"strconv"
	"time"
)

// Settings are the defaults for all nodes.
type Settings struct {
	Sync           Sync
	NormaliseAfter time.Duration
	Settle         time.Duration
	ResyncInterval time.Duration
	Timeouts       Timeouts
	Sysctls        map[string]string
	// LongestKeepalive is the longest silence of a phone; Parity the percentage of
	// another node's connections that counts as all.
	LongestKeepalive time.Duration
	Parity           uint32
}

// Sync configures the IPVS sync daemons.
type Sync struct {
	ID        uint8
	Group     netip.Addr
	Port      uint16
	MaxLength uint16 // 0: derived from TunnelMTU
	TunnelMTU int
}

// Timeouts of IPVS connections, whole seconds each.
type Timeouts struct {
	TCP, TCPFin, UDP time.Duration
}

// Ladder is the MED of each role; PROTOCOL "The MED ladder".
type Ladder struct {
	Force, Step, Active, Unconfirmed, Standby, Backup, SiteStep, LastResort uint32
}

// VIP is a set of addresses that switch together.
type VIP struct {
	Addresses    []netip.Addr
	Services     []Service
	Groups       map[string]string // site to group
	Announcement Announcement
	Automatic    Automatic
	Ownership    Ownership
}

// Automatic is when a backup site becomes the target by itself.
type Automatic struct {
	Enabled bool
	Share   uint32  // percent of the VIP's packets
	Floor   float64 // packets a second
	For     time.Duration
	Settle  time.Duration
}

// Ownership is which node of a site should own the VIP there.
type Ownership struct {
	Preference []string // nodes, most preferred first
	Preempt    bool
}

// Announcement is how a VIP's routes are announced.
type Announcement struct {
	Communities []uint32 // RFC 1997, sorted
	// Prefixes are the routes; empty: a host route for each address.
	Prefixes []netip.Prefix
	// Ladder is the VIP's own; nil: that of all.
	Ladder *Ladder
	// Routes holds what an operator set for a rung.
	Routes map[Rung]Route
}

// Rung is a place on the MED ladder, in the ladder's own word.
type Rung string

// The rungs, best first.
const (
	RungForce       Rung = "force"
	RungActive      Rung = "active"
	RungUnconfirmed Rung = "unconfirmed"
	RungStandby     Rung = "standby"
	RungBackup      Rung = "backup"
	RungLastResort  Rung = "last_resort"
)

// Rungs are all rungs, best first.
var Rungs = []Rung{RungForce, RungActive, RungUnconfirmed, RungStandby, RungBackup, RungLastResort}

// Route is what a route bears besides its MED.
type Route struct {
	Communities []uint32 // RFC 1997, sorted
	Prepend     int
}

// Service is a virtual service of a VIP.
type Service struct {
	Protocol    string // "tcp" or "udp"
	Port        uint16
	Pool        string
	Persistence time.Duration // 0: none
	Engine      string        // persistence engine: "" or "sip"
	OnePacket   bool
	Scheduler   string // "": the pool's
}

// Pool is a set of backends, and how connections are spread over them.
type Pool struct {
	Scheduler     string // "": SchedulerOf says
	Local, Remote uint16 // weights
	Upper, Lower  uint32 // connection thresholds; 0: none
}

// SchedulerOf is the IPVS scheduler of a service whose backends are the pool's.
func (p Pool) SchedulerOf(s Service) string {
	byProtocol := "sed"
	if s.Protocol == "udp" {
		byProtocol = "wrr"
	}
	return cmp.Or(s.Scheduler, p.Scheduler, byProtocol)
}

// Backend is one SBC, with an address of one family or of both.
type Backend struct {
	Site       string
	IPv4, IPv6 netip.Addr
	// Drained is set in snapshots: new connections go to others.
	Drained bool
}

// Address is the backend's address of the family of a VIP's address; invalid
// where it has none.
func (b Backend) Address(of netip.Addr) netip.Addr {
	if of.Is4() {
		return b.IPv4
	}
	return b.IPv6
}

// BackendKey identifies a backend.
type BackendKey struct {
	Pool, Name string
}

// Node is what an LVS host is.
type Node struct {
	MachineID   string
	Site, Group string
	IPv4, IPv6  netip.Addr // one of them at least is valid
	SyncAddress netip.Addr
	Version     string
	Schema      uint32 // the newest that the node understands
}

// Alive is a node's sign of life, under its lease.
type Alive struct {
	Since       time.Time
	BootID      string
	BGPSessions uint32
	Cold        bool
	Unable      []string // VIPs that the node can't serve, sorted
}

// Target is the site that should take a VIP's traffic. Revision is that of
// the last good value.
type Target struct {
	Site     string
	Revision int64
}

// Lock forbids automatic switchover of a VIP while it exists.
type Lock struct {
	Since    time.Time
	Reason   string
	From, To string // sites; "" where not said
	By       string
	// Malformed is true where no value that could be read is known. It locks
	// all the same.
	Malformed bool
}

// Epoch is the word that marks a store since it was restored last. Revision is
// the mod revision of the key as it stands, for guards.
type Epoch struct {
	Word     string // "" where no good value is known
	Revision int64
}

// Order is a person's word that stays in force until it is taken back: a drain
// or a pause.
type Order struct {
	Since      time.Time
	Reason, By string
	// Malformed is true where no value that could be read is known.
	Malformed bool
}

// BackendDrain is the order that a backend gets no new connections.
type BackendDrain struct {
	Order
	Switchover string // the id of the one that put it; "": a person
}

// OwnerKey identifies the ownership of a VIP inside a site.
type OwnerKey struct {
	Site, VIP string
}

// Owner is the node that answers for a VIP inside its site. Revision is the
// mod revision of its key, the fencing token. Node is "" where the value is
// malformed.
type Owner struct {
	Node     string
	Revision int64
	Lease    int64
}

// ClaimKey identifies a node's claim on a VIP.
type ClaimKey struct {
	Node, VIP string
}

// MED is a MED, or NoMED.
type MED int64

// NoMED stands for "none": above the line, or not announced.
const NoMED MED = -1

func (m MED) String() string {
	if m == NoMED {
		return "none"
	}
	return strconv.FormatInt(int64(m), 10)
}

// Claim is the lowest MED at or below the line that a node may be announcing:
// the last good value. Revision is the mod revision of the key as it stands,
// for guards.
type Claim struct {
	MED      MED
	Revision int64
	// Malformed is true where the key as it stands does not parse.
	Malformed bool
	// Bad is true where moreover no good value is known: it may stand for any
	// MED.
	Bad bool
}

// Fault is a key whose value, or whose place in the plan, is wrong. The last
// good value, where there is one, stays in force. Both texts are printable; Key
// is that of etcd as long as it is one of the layout.
type Fault struct {
	Key, Reason string
	// Notice is true where the value is in force all the same, and a person
	// should look at it.
	Notice bool
}

// Snapshot is everything at one revision. It is never changed once made.
type Snapshot struct {
	Revision int64
	Settings Settings
	Ladder   Ladder
	VIPs     map[string]VIP
	Pools    map[string]Pool
	Backends map[BackendKey]Backend
	Targets  map[string]Target
	Locks    map[string]Lock
	Nodes    map[string]Node
	Alive    map[string]Alive
	Owners   map[OwnerKey]Owner
	Claims   map[ClaimKey]Claim
	Epoch    Epoch
	Joined   map[string]string // node to the epoch under which it wrote its claims
	Drains   map[string]Order  // by node
	Pauses   map[string]Order  // by VIP; "" is all
	// BackendDrains are those that there are, whether the backend exists or not.
	BackendDrains map[BackendKey]BackendDrain
	Faults        []Fault // sorted by key

	// What a cache adds, to find things fast; nil in a snapshot made by hand.
	index  *index
	claims map[string][]NodeClaim // by VIP
}

// DefaultSettings are in force while the key is absent, field by field.
func DefaultSettings() Settings {
	return Settings{
		Sync: Sync{
			ID: 10, Group: netip.MustParseAddr("224.0.0.81"), Port: 8848, TunnelMTU: 1480,
		},
		NormaliseAfter: 60 * time.Second,
		Settle:         time.Second,
		ResyncInterval: 10 * time.Second,
		Timeouts:       Timeouts{TCP: 900 * time.Second, TCPFin: 120 * time.Second, UDP: 300 * time.Second},
		Sysctls:        map[string]string{},

		LongestKeepalive: 300 * time.Second,
		Parity:           90,
	}
}

// DefaultAutomatic holds what a VIP that switches automatically leaves unset.
func DefaultAutomatic() Automatic {
	return Automatic{Share: 50, Floor: 200, For: 10 * time.Second, Settle: 60 * time.Second}
}

// DefaultLadder is in force while the key is absent, field by field.
func DefaultLadder() Ladder {
	return Ladder{
		Force: 50, Step: 5, Active: 100, Unconfirmed: 101,
		Standby: 110, Backup: 500, SiteStep: 20, LastResort: 900,
	}
}

// Paused says whether nothing may be switched automatically for a VIP.
func (s *Snapshot) Paused(vip string) bool {
	_, one := s.Pauses[vip]
	_, all := s.Pauses[""]
	return one || all
}

// Owner returns the owner of a VIP inside a site. A key without a lease, or
// with a malformed value, counts as absent: a put by hand takes it off its
// lease.
func (s *Snapshot) Owner(site, vip string) (Owner, bool) {
	o := s.Owners[OwnerKey{site, vip}]
	return o, o.Lease != 0 && o.Node != ""
}
