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
	// Addr is not valid for a bridge port, Addr6 for one of the witness's cables either.
	Addr, Addr6 netip.Prefix
	// Bridge is the bridge that the end is a port of.
	Bridge string
}

const lanBridge = "lan"

// Links lists all cables of the topology.
func (t Topology) Links() []Link {
	var links []Link
	for i, p := range t.Providers {
		router, router6 := p.routerAddr()
		clients, clients6 := p.clientAddr()
		links = append(links, Link{
			A: end(p.Router, "clients", router, p.Net.Bits(), router6),
			B: end(p.Clients, "eth0", clients, p.Net.Bits(), clients6),
		})
		for _, s := range t.Sites {
			there, there6 := s.providerSide(i + 1)
			links = append(links, Link{
				A: end(p.Router, s.Edge(), there, 30, there6),
				B: end(s.Edge(), p.Router, there.Next(), 30, there6.Next()),
			})
		}
	}
	for i, s := range t.Sites {
		links = append(links, Link{
			A: End{Node: s.Edge(), Dev: "witness", Addr: netip.PrefixFrom(s.witnessSide(), 30)},
			B: End{Node: Witness, Dev: s.Edge(), Addr: netip.PrefixFrom(s.witnessSide().Next(), 30)},
		})
		for _, h := range s.Hosts() {
			links = append(links, Link{
				A: End{Node: s.Edge(), Dev: h.Name, Bridge: lanBridge},
				B: end(h.Name, "eth0", h.Addr, 24, h.Addr6),
			})
		}
		for _, o := range t.Sites[i+1:] {
			here, here6 := wanSide(s, o)
			there, there6 := wanSide(o, s)
			links = append(links, Link{
				A:   end(s.Edge(), "wan-"+o.Name, here, 30, here6),
				B:   end(o.Edge(), "wan-"+s.Name, there, 30, there6),
				WAN: true,
			})
		}
	}
	return links
}

// end is one that bears addresses. Every IPv6 network is a /64.
func end(node, dev string, addr netip.Addr, bits int, addr6 netip.Addr) End {
	return End{Node: node, Dev: dev, Addr: netip.PrefixFrom(addr, bits), Addr6: netip.PrefixFrom(addr6, 64)}
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

// providerSide is a provider's address on its link to the site, with the provider's
// place in the plan, from 1; the edge has the next one.
func (s Site) providerSide(provider int) (v4, v6 netip.Addr) {
	return netip.AddrFrom4([4]byte{10, 254, byte(provider), byte(4*s.Number + 1)}), addr6(254, 10*provider+s.Number, 1)
}

// witnessSide is the edge's address on the link to the witness, which has the next one.
func (s Site) witnessSide() netip.Addr {
	return netip.AddrFrom4([4]byte{10, 255, 0, byte(4*s.Number + 1)})
}

// wanSide is the address of s on its link to o.
func wanSide(s, o Site) (v4, v6 netip.Addr) {
	last := 1
	if s.Number > o.Number {
		last = 2
	}
	number := 10*min(s.Number, o.Number) + max(s.Number, o.Number)
	return netip.AddrFrom4([4]byte{10, 255, byte(number), byte(last)}), addr6(255, number, last)
}
