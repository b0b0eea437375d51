package lab

import (
	"fmt"
	"net/netip"
)

// A Link is a cable between two nodes.
type Link struct {
	A, B End
	// WAN marks a cable between sites, the one that is given a delay.
	WAN bool
}

// An End is one end of a cable.
type End struct {
	Node string
	// Dev is the interface's name there.
	Dev string
	// Addr is not valid for a bridge port.
	Addr netip.Prefix
	// Bridge is the bridge that the end is a port of.
	Bridge string
}

const lanBridge = "lan"

// Links lists all cables of the topology.
func (t Topology) Links() []Link {
	links := []Link{{
		A: End{Node: Transit, Dev: "clients", Addr: netip.PrefixFrom(transitAddr, clientNet.Bits())},
		B: End{Node: Clients, Dev: "eth0", Addr: netip.PrefixFrom(ClientAddr, clientNet.Bits())},
	}}
	for i, s := range t.Sites {
		links = append(links,
			Link{
				A: End{Node: Transit, Dev: s.Edge(), Addr: netip.PrefixFrom(s.transitSide(), 30)},
				B: End{Node: s.Edge(), Dev: "transit", Addr: netip.PrefixFrom(s.transitSide().Next(), 30)},
			},
			Link{
				A: End{Node: s.Edge(), Dev: "witness", Addr: netip.PrefixFrom(s.witnessSide(), 30)},
				B: End{Node: Witness, Dev: s.Edge(), Addr: netip.PrefixFrom(s.witnessSide().Next(), 30)},
			})
		for _, h := range s.Hosts() {
			links = append(links, Link{
				A: End{Node: s.Edge(), Dev: h.Name, Bridge: lanBridge},
				B: End{Node: h.Name, Dev: "eth0", Addr: netip.PrefixFrom(h.Addr, 24)},
			})
		}
		for _, o := range t.Sites[i+1:] {
			links = append(links, Link{
				A:   End{Node: s.Edge(), Dev: "wan-" + o.Name, Addr: netip.PrefixFrom(wanSide(s, o), 30)},
				B:   End{Node: o.Edge(), Dev: "wan-" + s.Name, Addr: netip.PrefixFrom(wanSide(o, s), 30)},
				WAN: true,
			})
		}
	}
	return links
}

// Link finds the cable between two nodes, whichever is named first.
func (t Topology) Link(a, b string) (Link, error) {
	for _, l := range t.Links() {
		if l.A.Node == a && l.B.Node == b || l.A.Node == b && l.B.Node == a {
			return l, nil
		}
	}
	return Link{}, fmt.Errorf("no link between %s and %s", a, b)
}

// transitSide is the provider's address on the link to the site; the edge has the next one.
func (s Site) transitSide() netip.Addr {
	return netip.AddrFrom4([4]byte{192, 0, 2, byte(4*s.Number + 1)})
}

// witnessSide is the edge's address on the link to the witness, which has the next one.
func (s Site) witnessSide() netip.Addr {
	return netip.AddrFrom4([4]byte{10, 255, 0, byte(4*s.Number + 1)})
}

// wanSide is the address of s on its link to o.
func wanSide(s, o Site) netip.Addr {
	last := byte(1)
	if s.Number > o.Number {
		last = 2
	}
	low, high := min(s.Number, o.Number), max(s.Number, o.Number)
	return netip.AddrFrom4([4]byte{10, 255, byte(10*low + high), last})
}
