package link

import (
	"net"
	"net/netip"
	"strings"

	"github.com/medway-lb/medway/pkg/plan"
	"github.com/vishvananda/netlink"
)

// may says whether a device of a name and a type is medway's.
func may(name plan.LinkName, kind plan.LinkKind) bool {
	switch {
	case name == plan.VIPLink:
		return kind == plan.Dummy
	case name == plan.SyncLink:
		return kind == plan.Veth
	case strings.HasPrefix(string(name), plan.TunnelPrefix):
		return kind == plan.IPIP || kind == plan.IP6Tnl
	}
	return false
}

// device returns what to ask the kernel for to get a link.
func device(name plan.LinkName, l plan.Link) netlink.Link {
	a := netlink.NewLinkAttrs()
	a.Name, a.MTU, a.Flags = string(name), l.MTU, net.FlagUp
	if l.MAC != (plan.MAC{}) {
		a.HardwareAddr = l.MAC[:]
	}
	switch l.Kind {
	case plan.Veth:
		return &netlink.Veth{LinkAttrs: a, PeerName: string(l.Peer)}
	case plan.IPIP:
		return &netlink.Iptun{
			LinkAttrs: a,
			Local:     l.Local.AsSlice(),
			Remote:    l.Remote.AsSlice(),
			Ttl:       l.TTL,
			// What ip-tunnel(8) sets by default. The kernel wants it with an
			// explicit TTL.
			PMtuDisc: 1,
			// IPv4 in IPv4 only, the default of ip-link(8); 0 would be "any".
			Proto: ipProtoIPIP,
		}
	case plan.IP6Tnl:
		return &netlink.Ip6tnl{
			LinkAttrs: a,
			Local:     l.Local.AsSlice(),
			Remote:    l.Remote.AsSlice(),
			Ttl:       l.TTL,
			// "encaplimit none": the option takes 8 bytes of every packet, and
			// routers may drop what bears options (RFC 7872).
			Flags: ignoreEncapLimit,
			Proto: ipProtoIPIP, // mode ipip6
		}
	}
	return &netlink.Dummy{LinkAttrs: a}
}

const (
	// ipProtoIPIP is IPPROTO_IPIP (ip(7)).
	ipProtoIPIP = 4
	// ignoreEncapLimit is IP6_TNL_F_IGN_ENCAP_LIMIT (linux/ip6_tunnel.h).
	ignoreEncapLimit = 1
	// external marks a tunnel without ends of its own, which can't be given any.
	external = ", external"
)

// planned returns a device as plan says it. What plan.Link has no word for,
// and medway wants otherwise, is added to the kind, so that it differs from
// any wanted link and an operator reads why.
func planned(d netlink.Link, peer netlink.Link) plan.Link {
	a := d.Attrs()
	l := plan.Link{Kind: plan.LinkKind(d.Type()), MTU: a.MTU}
	if a.Flags&net.FlagUp == 0 {
		l.Kind += ", down"
	}
	if len(a.HardwareAddr) == len(l.MAC) {
		copy(l.MAC[:], a.HardwareAddr)
	}
	switch d := d.(type) {
	case *netlink.Veth:
		if peer == nil {
			break
		}
		l.Peer = plan.LinkName(peer.Attrs().Name)
		if peer.Attrs().Flags&net.FlagUp == 0 {
			l.Kind += ", peer down"
		}
		if peer.Attrs().MTU != a.MTU {
			l.Kind += ", peer with another MTU"
		}
	case *netlink.Iptun:
		// Four bytes of link-layer "address" are the tunnel's local end.
		l.MAC = plan.MAC{}
		l.Local, l.Remote, l.TTL = addr(d.Local), addr(d.Remote), d.Ttl
		if d.PMtuDisc == 0 {
			l.Kind += ", nopmtudisc"
		}
		if d.FlowBased {
			l.Kind += external
		}
		if d.Proto != ipProtoIPIP {
			l.Kind += ", not of mode ipip"
		}
	case *netlink.Ip6tnl:
		l.Local, l.Remote, l.TTL = addr(d.Local), addr(d.Remote), d.Ttl
		if d.Flags&ignoreEncapLimit == 0 {
			l.Kind += ", with an encaplimit"
		}
		if d.FlowBased {
			l.Kind += external
		}
		if d.Proto != ipProtoIPIP {
			l.Kind += ", not of mode ipip6"
		}
	}
	return l
}

// peerOf returns the other end of a veth pair, nil if it is in another
// namespace or d is no veth. Indices are those of one namespace: without the
// check of NetNsID a stranger's device could be taken for it.
func peerOf(d netlink.Link, byIndex map[int]netlink.Link) netlink.Link {
	if d.Type() != string(plan.Veth) || d.Attrs().NetNsID >= 0 {
		return nil
	}
	return byIndex[d.Attrs().ParentIndex]
}

// endpoints are the outer addresses of a tunnel; invalid for other devices.
func endpoints(d netlink.Link) (local, remote netip.Addr) {
	switch d := d.(type) {
	case *netlink.Iptun:
		return addr(d.Local), addr(d.Remote)
	case *netlink.Ip6tnl:
		return addr(d.Local), addr(d.Remote)
	}
	return netip.Addr{}, netip.Addr{}
}

func addr(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func prefix(n *net.IPNet) netip.Prefix {
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addr(n.IP), bits)
}
