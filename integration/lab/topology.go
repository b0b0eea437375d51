package lab

import (
	"fmt"
	"net/netip"
	"slices"
)

// Numbers of the plan. The VIP, the clients and all IPv6 networks are documentation
// addresses.
const (
	OperatorAS = 65001

	VIPName  = "sip-1"
	Transit  = "transit"
	Transit2 = "transit2"
	Clients  = "clients"
	Clients2 = "clients2"
	Witness  = "witness"
)

var (
	// VIP is the address that phones call.
	VIP = netip.MustParseAddr("203.0.113.10")
	// VIP6 is the same service's IPv6 address: the two switch together.
	VIP6 = netip.MustParseAddr("2001:db8:10::10")

	vipNet  = netip.MustParsePrefix("203.0.113.0/24")
	vipNet6 = netip.MustParsePrefix("2001:db8:10::/48")
)

// A Topology is what the lab is made of. Adding a host to a site is one line in
// Default; so is a site, or a provider.
type Topology struct {
	Providers []Provider
	Sites     []Site
	// WitnessNumber is the witness's place in the plan 10.<number>.0.0/24.
	WitnessNumber int
}

// A Provider is a transit network: a router with a link to every site's edge, and a
// host with phones behind it.
type Provider struct {
	// Router and Clients are names of nodes.
	Router, Clients string
	AS              int
	// Net and Net6 are the phones' networks: the router has the first address, the
	// clients have the tenth (IPv6: ::10).
	Net, Net6 netip.Prefix
	// IgnoresMED makes the provider one that picks a site by the length of AS paths,
	// which the edges make out of the roles' communities.
	IgnoresMED bool
}

// The providers that there are.
var (
	transit1 = Provider{
		Router: Transit, Clients: Clients, AS: 64500,
		Net: netip.MustParsePrefix("198.51.100.0/24"), Net6: netip.MustParsePrefix("2001:db8:c1::/64"),
	}
	transit2 = Provider{
		Router: Transit2, Clients: Clients2, AS: 64501,
		Net: netip.MustParsePrefix("192.0.2.0/24"), Net6: netip.MustParsePrefix("2001:db8:c2::/64"),
		IgnoresMED: true,
	}
)

// A Site is one data centre, 10.<Number>.0.0/24 and 2001:db8:<Number>::/64 behind its
// edge router.
type Site struct {
	Name   string
	Number int
	LVS    []Host
	SBC    []Host
}

// A Host is one machine on a site's network: node name <site>-<Name>, addresses
// 10.<site number>.0.<Last> and 2001:db8:<site number>::<Last>, with the same digits.
type Host struct {
	Name string
	Last int
}

// Default is two sites with two LVS hosts and two backends each, and two providers.
func Default() Topology {
	return Topology{
		Providers: []Provider{transit1, transit2},
		Sites: []Site{
			{Name: "dc1", Number: 1, LVS: lvsHosts(2), SBC: sbcHosts(2)},
			{Name: "dc2", Number: 2, LVS: lvsHosts(2), SBC: sbcHosts(2)},
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
	// Site is empty for providers, their clients and the witness.
	Site string
	Addr netip.Addr
	// Addr6 is not valid for the witness.
	Addr6 netip.Addr
}

// The provider's addresses on the network of its clients.
func (p Provider) routerAddr() (v4, v6 netip.Addr) { return nth(p.Net, 1), nth(p.Net6, 1) }
func (p Provider) clientAddr() (v4, v6 netip.Addr) { return nth(p.Net, 10), nth(p.Net6, 0x10) }

// Edge is the node name of the site's router.
func (s Site) Edge() string { return s.Name + "-edge" }

// Group is the name of the site's group of LVS hosts.
func (s Site) Group() string { return s.Name + "-edge1" }

// Addr is the address 10.<site>.0.<last>.
func (s Site) Addr(last int) netip.Addr { return siteAddr(s.Number, last) }

// Addr6 is the address 2001:db8:<site>::<last>.
func (s Site) Addr6(last int) netip.Addr { return addr6(s.Number, 0, last) }

// LAN is the site's IPv4 network.
func (s Site) LAN() netip.Prefix { return netip.PrefixFrom(siteAddr(s.Number, 0), 24) }

// LAN6 is the site's IPv6 network.
func (s Site) LAN6() netip.Prefix { return netip.PrefixFrom(addr6(s.Number, 0, 0), 64) }

// Hosts lists the machines on the site's network, without its router.
func (s Site) Hosts() []Node {
	node := func(name string, role Role, last int) Node {
		return Node{s.Name + "-" + name, role, s.Name, s.Addr(last), s.Addr6(last)}
	}
	nodes := []Node{node("etcd", RoleEtcd, 5)}
	for _, h := range s.LVS {
		nodes = append(nodes, node(h.Name, RoleLVS, h.Last))
	}
	for _, h := range s.SBC {
		nodes = append(nodes, node(h.Name, RoleSBC, h.Last))
	}
	return nodes
}

// WitnessAddr is the address of the witness, reachable over both sites.
func (t Topology) WitnessAddr() netip.Addr { return siteAddr(t.WitnessNumber, 5) }

// Nodes lists every node, routers first.
func (t Topology) Nodes() []Node {
	nodes := []Node{{Name: Witness, Role: RoleEtcd, Addr: t.WitnessAddr()}}
	for _, p := range t.Providers {
		router, router6 := p.routerAddr()
		clients, clients6 := p.clientAddr()
		nodes = append(nodes, Node{p.Router, RoleTransit, "", router, router6}, Node{p.Clients, RoleClients, "", clients, clients6})
	}
	for _, s := range t.Sites {
		nodes = append(nodes, Node{s.Edge(), RoleEdge, s.Name, s.Addr(1), s.Addr6(1)})
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

// Provider finds a provider by its router's name.
func (t Topology) Provider(router string) (Provider, bool) {
	i := slices.IndexFunc(t.Providers, func(p Provider) bool { return p.Router == router })
	if i < 0 {
		return Provider{}, false
	}
	return t.Providers[i], true
}

// gateway is the router that a provider's clients or a site's host send to.
func (t Topology) gateway(n Node) (v4, v6 netip.Addr) {
	if site, ok := t.Site(n.Site); ok {
		return site.Addr(1), site.Addr6(1)
	}
	i := slices.IndexFunc(t.Providers, func(p Provider) bool { return p.Clients == n.Name })
	return t.Providers[i].routerAddr()
}

// Routers lists the nodes that run BIRD.
func (t Topology) Routers() []string {
	var names []string
	for _, p := range t.Providers {
		names = append(names, p.Router)
	}
	for _, s := range t.Sites {
		names = append(names, s.Edge())
	}
	return names
}

// Validate refuses plans whose names or addresses collide.
func (t Topology) Validate() error {
	if len(t.Providers) == 0 || len(t.Sites) == 0 {
		return fmt.Errorf("%d providers and %d sites: one of each is the least", len(t.Providers), len(t.Sites))
	}
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

// addr6 is 2001:db8:<net>:<subnet>::<last>, each number with its decimal digits, so
// that it can be seen which IPv4 address it belongs to.
func addr6(net, subnet, last int) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("2001:db8:%d:%d::%d", net, subnet, last))
}

// nth is the address of a network with this number for a host.
func nth(p netip.Prefix, host byte) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	b[len(b)-1] = host
	a, _ := netip.AddrFromSlice(b)
	return a
}
