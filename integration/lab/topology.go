package lab

import (
	"fmt"
	"net/netip"
	"slices"
)

// Numbers of the plan. The VIP and the clients are documentation addresses.
const (
	OperatorAS = 65001
	TransitAS  = 64500

	VIPName = "sip-1"
	Transit = "transit"
	Clients = "clients"
	Witness = "witness"
)

var (
	// VIP is the address that phones call.
	VIP = netip.MustParseAddr("203.0.113.10")

	vipNet      = netip.MustParsePrefix("203.0.113.0/24")
	clientNet   = netip.MustParsePrefix("198.51.100.0/24")
	transitAddr = netip.MustParseAddr("198.51.100.1")
	// ClientAddr is where calls come from.
	ClientAddr = netip.MustParseAddr("198.51.100.10")
)

// A Topology is what the lab is made of. Adding a host to a site is one line in
// Default; so is a site.
type Topology struct {
	Sites []Site
	// WitnessNumber is the witness's place in the plan 10.<number>.0.0/24.
	WitnessNumber int
}

// A Site is one data centre, 10.<Number>.0.0/24 behind its edge router.
type Site struct {
	Name   string
	Number int
	LVS    []Host
	SBC    []Host
}

// A Host is one machine on a site's network: node name <site>-<Name>, address
// 10.<site number>.0.<Last>.
type Host struct {
	Name string
	Last int
}

// Default is two sites with one LVS host and two backends each.
func Default() Topology {
	return Topology{
		Sites: []Site{
			{Name: "dc1", Number: 1, LVS: lvsHosts(1), SBC: sbcHosts(2)},
			{Name: "dc2", Number: 2, LVS: lvsHosts(1), SBC: sbcHosts(2)},
		},
		WitnessNumber: 3,
	}
}

// WithLVS gives every site n LVS hosts: lvs-a at .11, lvs-b at .12 and so on.
func (t Topology) WithLVS(n int) Topology {
	t.Sites = slices.Clone(t.Sites)
	for i := range t.Sites {
		t.Sites[i].LVS = lvsHosts(n)
	}
	return t
}

func lvsHosts(n int) []Host {
	hosts := make([]Host, n)
	for i := range hosts {
		hosts[i] = Host{Name: "lvs-" + string(rune('a'+i)), Last: 11 + i}
	}
	return hosts
}

func sbcHosts(n int) []Host {
	hosts := make([]Host, n)
	for i := range hosts {
		hosts[i] = Host{Name: fmt.Sprintf("sbc%d", i+1), Last: 21 + i}
	}
	return hosts
}

// Role is what a node is for.
type Role string

// The roles of nodes.
const (
	RoleClients Role = "clients"
	RoleTransit Role = "transit"
	RoleEdge    Role = "edge"
	RoleLVS     Role = "lvs"
	RoleSBC     Role = "sbc"
	RoleEtcd    Role = "etcd"
)

// A Node is one namespace of the lab.
type Node struct {
	Name string
	Role Role
	// Site is empty for clients, transit and witness.
	Site string
	Addr netip.Addr
}

// Edge is the node name of the site's router.
func (s Site) Edge() string { return s.Name + "-edge" }

// Group is the name of the site's group of LVS hosts.
func (s Site) Group() string { return s.Name + "-edge1" }

// Addr is the address 10.<site>.0.<last>.
func (s Site) Addr(last int) netip.Addr { return siteAddr(s.Number, last) }

// LAN is the site's network.
func (s Site) LAN() netip.Prefix { return netip.PrefixFrom(siteAddr(s.Number, 0), 24) }

// Hosts lists the machines on the site's network, without its router.
func (s Site) Hosts() []Node {
	nodes := []Node{{s.Name + "-etcd", RoleEtcd, s.Name, s.Addr(5)}}
	for _, h := range s.LVS {
		nodes = append(nodes, Node{s.Name + "-" + h.Name, RoleLVS, s.Name, s.Addr(h.Last)})
	}
	for _, h := range s.SBC {
		nodes = append(nodes, Node{s.Name + "-" + h.Name, RoleSBC, s.Name, s.Addr(h.Last)})
	}
	return nodes
}

// WitnessAddr is the address of the witness, reachable over both sites.
func (t Topology) WitnessAddr() netip.Addr { return siteAddr(t.WitnessNumber, 5) }

// Nodes lists every node, routers first.
func (t Topology) Nodes() []Node {
	nodes := []Node{
		{Transit, RoleTransit, "", transitAddr},
		{Clients, RoleClients, "", ClientAddr},
		{Witness, RoleEtcd, "", t.WitnessAddr()},
	}
	for _, s := range t.Sites {
		nodes = append(nodes, Node{s.Edge(), RoleEdge, s.Name, s.Addr(1)})
		nodes = append(nodes, s.Hosts()...)
	}
	return nodes
}

// Role lists the nodes that have the role.
func (t Topology) Role(role Role) []Node {
	return slices.DeleteFunc(t.Nodes(), func(n Node) bool { return n.Role != role })
}

// Node finds a node by name.
func (t Topology) Node(name string) (Node, bool) {
	for _, n := range t.Nodes() {
		if n.Name == name {
			return n, true
		}
	}
	return Node{}, false
}

// Site finds a site by name.
func (t Topology) Site(name string) (Site, bool) {
	i := slices.IndexFunc(t.Sites, func(s Site) bool { return s.Name == name })
	if i < 0 {
		return Site{}, false
	}
	return t.Sites[i], true
}

// Routers lists the nodes that run BIRD.
func (t Topology) Routers() []string {
	names := []string{Transit}
	for _, s := range t.Sites {
		names = append(names, s.Edge())
	}
	return names
}

// Validate refuses plans whose names or addresses collide.
func (t Topology) Validate() error {
	names, addrs := map[string]bool{}, map[netip.Addr]string{}
	for _, n := range t.Nodes() {
		// A node's name is also the name of a bridge port: 15 bytes at most.
		if len(n.Name) > 15 {
			return fmt.Errorf("node %s: name longer than an interface name can be (15)", n.Name)
		}
		if names[n.Name] {
			return fmt.Errorf("node %s: defined twice", n.Name)
		}
		if other, taken := addrs[n.Addr]; taken {
			return fmt.Errorf("node %s: address %s is %s's", n.Name, n.Addr, other)
		}
		names[n.Name], addrs[n.Addr] = true, n.Name
	}
	numbers := map[int]bool{t.WitnessNumber: true}
	for _, s := range t.Sites {
		if s.Number < 1 || s.Number > 9 || numbers[s.Number] {
			return fmt.Errorf("site %s: number %d is taken or not in 1 to 9", s.Name, s.Number)
		}
		numbers[s.Number] = true
	}
	return nil
}

func siteAddr(number, last int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(number), 0, byte(last)})
}
