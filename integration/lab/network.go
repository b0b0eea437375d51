package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// handles are netlink sockets, one in each namespace.
type handles struct {
	ns map[string]netns.NsHandle
	nl map[string]*netlink.Handle
}

func (l *Lab) openHandles(nodes ...string) (*handles, error) {
	h := &handles{ns: map[string]netns.NsHandle{}, nl: map[string]*netlink.Handle{}}
	for _, node := range nodes {
		ns, err := netns.GetFromName(l.Namespace(node))
		if err != nil {
			h.close()
			return nil, fmt.Errorf("namespace of %s: %w", node, err)
		}
		h.ns[node] = ns
		if h.nl[node], err = netlink.NewHandleAt(ns); err != nil {
			h.close()
			return nil, fmt.Errorf("netlink in %s: %w", node, err)
		}
	}
	return h, nil
}

func (h *handles) close() {
	for _, nl := range h.nl {
		nl.Close()
	}
	for _, ns := range h.ns {
		ns.Close()
	}
}

// buildNetwork makes sysctls, bridges, cables, addresses and routes, in that order:
// an interface takes over its namespace's defaults when it is made.
func (l *Lab) buildNetwork() error {
	var names []string
	for _, n := range l.topo.Nodes() {
		names = append(names, n.Name)
	}
	h, err := l.openHandles(names...)
	if err != nil {
		return err
	}
	defer h.close()

	for _, n := range l.topo.Nodes() {
		if err := l.writeSysctls(n.Name, baseSysctls(n)); err != nil {
			return err
		}
		if err := setUp(h.nl[n.Name], "lo"); err != nil {
			return fmt.Errorf("%s: %w", n.Name, err)
		}
	}
	for _, s := range l.topo.Sites {
		if err := addBridge(h.nl[s.Edge()], netip.PrefixFrom(s.Addr(1), 24), netip.PrefixFrom(s.Addr6(1), 64)); err != nil {
			return fmt.Errorf("%s: %w", s.Edge(), err)
		}
	}
	for _, link := range l.topo.Links() {
		if err := h.addCable(link, l.opts.WANDelay); err != nil {
			return fmt.Errorf("link %s to %s: %w", link.A.Node, link.B.Node, err)
		}
	}
	if err := addAddress(h.nl[Witness], "lo", netip.PrefixFrom(l.topo.WitnessAddr(), 32)); err != nil {
		return err
	}
	for _, n := range l.topo.Nodes() {
		if err := l.setRoutes(h.nl[n.Name], n); err != nil {
			return fmt.Errorf("routes of %s: %w", n.Name, err)
		}
	}
	return nil
}

// baseSysctls are the settings that the network itself needs. An LVS host gets none:
// those are its agent's to make.
func baseSysctls(n Node) map[string]string {
	if n.Role == RoleLVS {
		return nil
	}
	values := roleSysctls(n)
	// A link-local address could not be used for a second, nor a neighbour be asked for.
	values["net/ipv6/conf/default/accept_dad"] = "0"
	return values
}

func roleSysctls(n Node) map[string]string {
	switch {
	case n.Role == RoleEdge || n.Role == RoleTransit:
		return map[string]string{
			"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1",
			// Backends answer by their own site's edge, whoever got the question.
			"net/ipv4/conf/all/rp_filter": "0", "net/ipv4/conf/default/rp_filter": "0",
			"net/ipv4/conf/all/send_redirects": "0", "net/ipv4/conf/default/send_redirects": "0",
		}
	case n.Role == RoleSBC:
		return map[string]string{
			"net/ipv4/conf/all/rp_filter": "0", "net/ipv4/conf/default/rp_filter": "0",
			// The VIP is on this host, but only the LVS answers ARP for it.
			"net/ipv4/conf/all/arp_ignore": "1", "net/ipv4/conf/all/arp_announce": "2",
		}
	case n.Name == Witness:
		return map[string]string{
			"net/ipv4/conf/all/rp_filter": "0", "net/ipv4/conf/default/rp_filter": "0",
			// Its routes over one edge give way to those over the other when the cable is cut.
			"net/ipv4/conf/all/ignore_routes_with_linkdown": "1", "net/ipv4/conf/default/ignore_routes_with_linkdown": "1",
		}
	}
	return map[string]string{}
}

func (l *Lab) writeSysctls(node string, values map[string]string) error {
	if len(values) == 0 {
		return nil
	}
	return l.Inside(node, func() error {
		var errs []error
		for key, value := range values {
			if err := os.WriteFile(filepath.Join("/proc/sys", key), []byte(value), 0o644); err != nil {
				errs = append(errs, fmt.Errorf("%s: sysctl %s: %w", node, strings.ReplaceAll(key, "/", "."), err))
			}
		}
		return errors.Join(errs...)
	})
}

func addBridge(nl *netlink.Handle, addrs ...netip.Prefix) error {
	// One of its own: else it is the lowest of its ports', changes with them, and hosts would
	// send to the old one until they ask again.
	mac := net.HardwareAddr{0x02, 0x6d, 0x77, 0, 1, 1}
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: lanBridge, HardwareAddr: mac}}
	if err := nl.LinkAdd(br); err != nil {
		return fmt.Errorf("add bridge: %w", err)
	}
	for _, addr := range addrs {
		if err := addAddress(nl, lanBridge, addr); err != nil {
			return err
		}
	}
	return setUp(nl, lanBridge)
}

func (h *handles) addCable(link Link, wanDelay time.Duration) error {
	veth := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: link.A.Dev, Namespace: netlink.NsFd(h.ns[link.A.Node])},
		PeerName:      link.B.Dev,
		PeerNamespace: netlink.NsFd(h.ns[link.B.Node]),
	}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("add veth: %w", err)
	}
	for _, end := range []End{link.A, link.B} {
		if err := configureEnd(h.nl[end.Node], end); err != nil {
			return fmt.Errorf("%s: %w", end.Node, err)
		}
		if link.WAN && wanDelay > 0 {
			if err := addDelay(h.nl[end.Node], end.Dev, wanDelay); err != nil {
				return fmt.Errorf("%s: delay on %s (needs the module sch_netem): %w", end.Node, end.Dev, err)
			}
		}
	}
	return nil
}

func configureEnd(nl *netlink.Handle, end End) error {
	for _, addr := range []netip.Prefix{end.Addr, end.Addr6} {
		if !addr.IsValid() {
			continue
		}
		if err := addAddress(nl, end.Dev, addr); err != nil {
			return err
		}
	}
	if end.Bridge != "" {
		port, err := nl.LinkByName(end.Dev)
		if err != nil {
			return err
		}
		br, err := nl.LinkByName(end.Bridge)
		if err != nil {
			return err
		}
		if err := nl.LinkSetMaster(port, br); err != nil {
			return fmt.Errorf("make %s a bridge port: %w", end.Dev, err)
		}
	}
	return setUp(nl, end.Dev)
}

func addDelay(nl *netlink.Handle, dev string, delay time.Duration) error {
	link, err := nl.LinkByName(dev)
	if err != nil {
		return err
	}
	attrs := netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT}
	return nl.QdiscAdd(netlink.NewNetem(attrs, netlink.NetemQdiscAttrs{
		Latency: uint32(delay.Microseconds()),
		Limit:   100000,
	}))
}

// setRoutes gives a node its routes; it may be called again after a cut. Routers get
// theirs from BIRD.
func (l *Lab) setRoutes(nl *netlink.Handle, n Node) error {
	switch {
	case n.Name == Witness:
		return l.witnessRoutes(nl)
	case n.Role == RoleEdge || n.Role == RoleTransit:
		return nil
	}
	via, via6 := l.topo.gateway(n)
	r, r6 := route{to: defaultNet, via: via, dev: "eth0"}, route{to: defaultNet6, via: via6, dev: "eth0"}
	if n.Role == RoleSBC {
		// Full-size packets must fit the tunnel: 1500 bytes less 20 of its own, 40 over IPv6.
		r.advMSS, r6.advMSS = 1440, 1400
	}
	return errors.Join(replaceRoute(nl, r), replaceRoute(nl, r6))
}

// witnessRoutes reaches each site over its own edge, or else over another's.
func (l *Lab) witnessRoutes(nl *netlink.Handle) error {
	for _, to := range l.topo.Sites {
		for _, over := range l.topo.Sites {
			metric := 20
			if over.Name == to.Name {
				metric = 10
			}
			err := replaceRoute(nl, route{
				to: to.LAN(), via: over.witnessSide(), dev: over.Edge(),
				src: l.topo.WitnessAddr(), metric: metric,
			})
			if err != nil && !errors.Is(err, unix.ENETDOWN) && !errors.Is(err, unix.ENETUNREACH) {
				return err
			}
		}
	}
	return nil
}

var defaultNet, defaultNet6 = netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")

type route struct {
	to             netip.Prefix
	via, src       netip.Addr
	dev            string
	metric, advMSS int
}

func replaceRoute(nl *netlink.Handle, r route) error {
	link, err := nl.LinkByName(r.dev)
	if err != nil {
		return err
	}
	nr := &netlink.Route{
		LinkIndex: link.Attrs().Index, Dst: ipNet(r.to), Gw: net.IP(r.via.AsSlice()),
		Priority: r.metric, AdvMSS: r.advMSS,
	}
	if r.src.IsValid() {
		nr.Src = net.IP(r.src.AsSlice())
	}
	if err := nl.RouteReplace(nr); err != nil {
		return fmt.Errorf("%s via %s: %w", r.to, r.via, err)
	}
	return nil
}

func addAddress(nl *netlink.Handle, dev string, addr netip.Prefix) error {
	link, err := nl.LinkByName(dev)
	if err != nil {
		return fmt.Errorf("interface %s: %w", dev, err)
	}
	// Nobody else can have the address: there is nothing to detect, and it can be used at once.
	flags := 0
	if addr.Addr().Is6() {
		flags = unix.IFA_F_NODAD
	}
	if err := nl.AddrReplace(link, &netlink.Addr{IPNet: ipNet(addr), Flags: flags}); err != nil {
		return fmt.Errorf("address %s on %s: %w", addr, dev, err)
	}
	return nil
}

func setUp(nl *netlink.Handle, dev string) error {
	link, err := nl.LinkByName(dev)
	if err != nil {
		return fmt.Errorf("interface %s: %w", dev, err)
	}
	if err := nl.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", dev, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
