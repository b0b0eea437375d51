package link

import (
	"context"
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/medway-lb/medway/agent/internal/link/nstest"
	"github.com/medway-lb/medway/pkg/plan"
	"pgregory.net/rapid"
)

// ipLink, ipAddr: the parts of `ip -json` output that the tests look at.
type ipLink struct {
	Name  string   `json:"ifname"`
	Peer  string   `json:"link"`
	Flags []string `json:"flags"`
	MTU   int      `json:"mtu"`
	MAC   string   `json:"address"`
	Info  struct {
		Kind string `json:"info_kind"`
		Data struct {
			Proto, Local, Remote string
			TTL, HopLimit        int
			PMTUDisc             bool
			EncapLimit           any `json:"encap_limit"`
		} `json:"info_data"`
	} `json:"linkinfo"`
	Addrs []struct {
		Family, Local, Scope string
		Bits                 int `json:"prefixlen"`
		Deprecated           bool
	} `json:"addr_info"`
	Dst, Dev, LLAddr string
	Scope            string
}

func ip(t nstest.TB, args ...string) []ipLink {
	t.Helper()
	var list []ipLink
	out := nstest.Run(t, "ip", append([]string{"-json", "-details"}, args...)...)
	if strings.TrimSpace(out) == "" {
		return nil
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatalf("ip %v: %v: %s", args, err, out)
	}
	return list
}

// seen is what ip(8) shows of medway's, in plan's terms.
func seen(t nstest.TB, want plan.Host) plan.Host {
	t.Helper()
	h := plan.Host{
		Links:     make(map[plan.LinkName]plan.Link),
		Addresses: make(map[plan.Address]struct{}),
		Routes:    make(map[plan.Route]struct{}),
		Neighbors: make(map[plan.Neighbor]plan.MAC),
	}
	for _, d := range ip(t, "address") {
		name := plan.LinkName(d.Name)
		if name != plan.SyncPeerLink && !may(name, plan.LinkKind(d.Info.Kind)) {
			continue
		}
		if !slices.Contains(d.Flags, "UP") {
			t.Fatalf("%s is not up: %v", name, d.Flags)
		}
		for _, a := range d.Addrs {
			if a.Scope == "global" {
				if a.Family == "inet6" && !a.Deprecated {
					t.Fatalf("%s may become the source of the host's own connections", a.Local)
				}
				p := netip.PrefixFrom(netip.MustParseAddr(a.Local), a.Bits)
				h.Addresses[plan.Address{Link: name, Prefix: p}] = struct{}{}
			}
		}
		if name == plan.SyncPeerLink {
			if w := want.Links[plan.SyncLink]; d.MTU != w.MTU && w.MTU != 0 {
				t.Fatalf("%s has mtu %d", name, d.MTU)
			}
			continue
		}
		h.Links[name] = compared(linkOf(t, d), want.Links[name])
	}
	for _, r := range ip(t, "-4", "route", "show", "proto", "109") {
		if r.Scope != "link" {
			t.Fatalf("route to %s has scope %s", r.Dst, r.Scope)
		}
		h.Routes[plan.Route{Prefix: host("%s", r.Dst), Link: plan.LinkName(r.Dev)}] = struct{}{}
	}
	if _, ok := want.Links[plan.SyncLink]; ok {
		for _, n := range ip(t, "-4", "neigh", "show", "dev", "sync01p", "nud", "permanent") {
			h.Neighbors[plan.Neighbor{Link: plan.SyncPeerLink, Addr: netip.MustParseAddr(n.Dst)}] = mac(n.LLAddr)
		}
	}
	return h
}

func linkOf(t nstest.TB, d ipLink) plan.Link {
	t.Helper()
	l := plan.Link{Kind: plan.LinkKind(d.Info.Kind), MTU: d.MTU}
	switch l.Kind {
	case plan.Dummy:
		l.MAC = mac(d.MAC)
	case plan.Veth:
		l.MAC, l.Peer = mac(d.MAC), plan.LinkName(d.Peer)
	case plan.IPIP:
		i := d.Info.Data
		l.Local, l.Remote, l.TTL = netip.MustParseAddr(i.Local), netip.MustParseAddr(i.Remote), uint8(i.TTL)
		if i.Proto != "ipip" || !i.PMTUDisc {
			t.Fatalf("%s is %+v", d.Name, i)
		}
	case plan.IP6Tnl:
		i := d.Info.Data
		l.Local, l.Remote, l.TTL = netip.MustParseAddr(i.Local), netip.MustParseAddr(i.Remote), uint8(max(i.TTL, i.HopLimit))
		if out := nstest.Run(t, "ip", "-d", "link", "show", d.Name); !strings.Contains(out, "ip6tnl ipip6 ") || !strings.Contains(out, "encaplimit none") {
			t.Fatalf("%s", out)
		}
	}
	return l
}

func mac(s string) plan.MAC {
	var m plan.MAC
	for i, part := range strings.Split(s, ":") {
		b := strings.Index("0123456789abcdef", part[:1])<<4 | strings.Index("0123456789abcdef", part[1:])
		m[i%len(m)] = byte(b)
	}
	return m
}

var byValue = cmp.Options{
	cmpopts.EquateEmpty(),
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

// test is a *testing.T or a *rapid.T.
type test interface {
	nstest.TB
	Context() context.Context
}

// agrees runs k to h, compares with ip(8), and runs it again.
func agrees(t test, k *Kernel, h plan.Host) {
	t.Helper()
	if err := run(t.Context(), k, h).Err(); err != nil {
		t.Fatalf("first run: %v", err)
	}
	if d := cmp.Diff(h, seen(t, h), byValue); d != "" {
		t.Fatalf("wanted -, ip shows +:\n%s", d)
	}
	before := k.Changes()
	if r := run(t.Context(), k, h); r.Err() != nil || len(r.Done) > 0 || k.Changes() != before {
		t.Fatalf("second run: %+v, %d requests", r, k.Changes()-before)
	}
}

func kernel(t *testing.T, needs ...nstest.Need) *Kernel {
	t.Helper()
	nstest.Enter(t, needs...)
	k, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	return k
}

// sample is one of everything, as on a real host.
func sample() plan.Host {
	return plan.Host{
		Links: map[plan.LinkName]plan.Link{
			plan.VIPLink:   {Kind: plan.Dummy},
			plan.SyncLink:  {Kind: plan.Veth, MTU: 1480, MAC: plan.SyncMAC, Peer: plan.SyncPeerLink},
			"mw-dc2-lvs-a": {Kind: plan.IPIP, MTU: 1480, TTL: 64, Local: host("192.0.2.1").Addr(), Remote: host("192.0.2.2").Addr()},
			"mw-dc2-lvs-b": {Kind: plan.IPIP, MTU: 1480, TTL: 64, Local: host("192.0.2.1").Addr(), Remote: host("192.0.2.3").Addr()},
			"mw-dc2-lvs-c": {Kind: plan.IP6Tnl, MTU: 1460, TTL: 64, Local: host("2001:db8:1::11").Addr(), Remote: host("2001:db8:2::13").Addr()},
		},
		Addresses: map[plan.Address]struct{}{
			{Link: plan.VIPLink, Prefix: host("203.0.113.10")}:                       {},
			{Link: plan.VIPLink, Prefix: host("2001:db8:10::10")}:                    {},
			{Link: plan.SyncLink, Prefix: netip.MustParsePrefix("169.254.128.5/32")}: {},
		},
		Routes: map[plan.Route]struct{}{
			{Prefix: host("169.254.0.1"), Link: plan.SyncPeerLink}: {},
			{Prefix: host("169.254.7.9"), Link: "mw-dc2-lvs-a"}:    {},
			{Prefix: host("169.254.7.10"), Link: "mw-dc2-lvs-b"}:   {},
			{Prefix: host("169.254.7.11"), Link: "mw-dc2-lvs-c"}:   {},
		},
		Neighbors: map[plan.Neighbor]plan.MAC{{Link: plan.SyncPeerLink, Addr: plan.ReinjectGateway}: plan.SyncMAC},
	}
}

func TestKernelSample(t *testing.T) {
	k := kernel(t, nstest.Dummy, nstest.IPIP, nstest.IP6Tnl)
	agrees(t, k, sample())
	agrees(t, k, plan.Host{})
}

// What anyone may do to a device while medway runs is mended in one run, with
// what rested on it.
func TestKernelMendsDrift(t *testing.T) {
	k := kernel(t, nstest.Dummy, nstest.IPIP, nstest.IP6Tnl)
	for _, damage := range []string{
		"link set medway0 down",
		"link set sync01 down",
		"link set sync01p down",
		"link set sync01p mtu 1300",
		"link set sync01 address 02:00:00:00:00:77",
		"link del sync01p",
		"link set mw-dc2-lvs-a down",
		"link set mw-dc2-lvs-a mtu 1300",
		"link set mw-dc2-lvs-a type ipip local 192.0.2.1 remote 192.0.2.77 ttl inherit",
		"link set mw-dc2-lvs-a type ipip local 192.0.2.1 remote 192.0.2.2 ttl inherit nopmtudisc",
		"link del mw-dc2-lvs-a",
		"link del medway0",
		"link set mw-dc2-lvs-c mtu 1300",
		"link set mw-dc2-lvs-c type ip6tnl local 2001:db8:1::11 remote 2001:db8:2::99 mode ipip6 encaplimit none hoplimit 64",
		"link set mw-dc2-lvs-c type ip6tnl local 2001:db8:1::11 remote 2001:db8:2::13 mode ip6ip6 encaplimit none hoplimit 64",
		"link set mw-dc2-lvs-c type ip6tnl local 2001:db8:1::11 remote 2001:db8:2::13 mode ipip6 encaplimit 4 hoplimit 1",
		"link del mw-dc2-lvs-c",
		"link add mw-old6 type ip6tnl local 2001:db8:1::11 remote 2001:db8:2::14 mode ip6ip6",
		"address del 2001:db8:10::10/128 dev medway0",
		"address add 2001:db8:10::99/128 dev medway0",
		"address flush dev medway0",
		"link add mw-old type ipip local 192.0.2.9 remote 192.0.2.10",
		"link add mw-any type ipip local 192.0.2.9",
		"address del 203.0.113.10/32 dev medway0",
		"address add 203.0.113.99/32 dev medway0",
		"route del 169.254.7.9/32 dev mw-dc2-lvs-a proto 109",
		"route replace 169.254.7.9/32 dev sync01p proto 109",
		"route add 169.254.7.99/32 dev sync01p proto 109",
		"neigh flush dev sync01p nud permanent",
		"neigh replace 169.254.0.1 dev sync01p lladdr 02:00:00:00:00:78 nud permanent",
		"neigh add 169.254.0.3 dev sync01p lladdr 02:00:00:00:00:78 nud permanent",
	} {
		agrees(t, k, sample())
		nstest.Run(t, "ip", strings.Fields(damage)...)
		before := k.Changes()
		agrees(t, k, sample())
		if k.Changes() == before {
			t.Errorf("ip %s: not noticed", damage)
		}
	}
}

// Changes are made in place: the device, known by its index, is the same.
func TestKernelChangesInPlace(t *testing.T) {
	k := kernel(t, nstest.Dummy, nstest.IPIP, nstest.IP6Tnl)
	h := sample()
	agrees(t, k, h)
	before := nstest.Run(t, "sh", "-c", "ip -o link | cut -d: -f1,2")
	a := h.Links["mw-dc2-lvs-a"]
	a.TTL, a.MTU, a.Remote = 65, 1400, host("192.0.2.44").Addr()
	s := h.Links[plan.SyncLink]
	s.MTU, s.MAC[5] = 1400, 0x55
	c := h.Links["mw-dc2-lvs-c"]
	c.TTL, c.MTU, c.Remote = 65, 1400, host("2001:db8:2::44").Addr()
	h.Links["mw-dc2-lvs-a"], h.Links["mw-dc2-lvs-c"], h.Links[plan.SyncLink] = a, c, s
	agrees(t, k, h)
	after := nstest.Run(t, "sh", "-c", "ip -o link | cut -d: -f1,2")
	if d := cmp.Diff(before, after); d != "" {
		t.Error(d)
	}
}

// Two tunnels that trade their endpoints can't be changed one by one.
func TestKernelTunnelsTradeEndpoints(t *testing.T) {
	k := kernel(t, nstest.Dummy, nstest.IPIP, nstest.IP6Tnl)
	h := sample()
	agrees(t, k, h)
	h.Links["mw-dc2-lvs-a"], h.Links["mw-dc2-lvs-b"] = h.Links["mw-dc2-lvs-b"], h.Links["mw-dc2-lvs-a"]
	agrees(t, k, h)
}

// A peer that gains or loses IPv4 gets a tunnel of the other kind under the
// same name, with its route.
func TestKernelTunnelChangesItsKind(t *testing.T) {
	k := kernel(t, nstest.Dummy, nstest.IPIP, nstest.IP6Tnl)
	h := sample()
	agrees(t, k, h)
	a, c := h.Links["mw-dc2-lvs-a"], h.Links["mw-dc2-lvs-c"]
	for range 2 {
		a, c = c, a
		h.Links["mw-dc2-lvs-a"], h.Links["mw-dc2-lvs-c"] = a, c
		agrees(t, k, h)
	}
}

// The new address is the second of its subnet, and the kernel deletes it, and
// the routes, together with the first.
func TestKernelRenumbersWithinASubnet(t *testing.T) {
	k := kernel(t)
	nstest.Run(t, "sysctl", "-w", "net.ipv4.conf.all.promote_secondaries=0", "net.ipv4.conf.default.promote_secondaries=0")
	h := plan.Host{
		Links:  map[plan.LinkName]plan.Link{plan.SyncLink: {Kind: plan.Veth, Peer: plan.SyncPeerLink}},
		Routes: map[plan.Route]struct{}{{Prefix: host("169.254.7.9"), Link: plan.SyncLink}: {}},
	}
	for _, a := range []string{"169.254.9.1/24", "169.254.9.2/24", "169.254.9.3/24"} {
		h.Addresses = map[plan.Address]struct{}{{Link: plan.SyncLink, Prefix: netip.MustParsePrefix(a)}: {}}
		agrees(t, k, h)
	}
	h.Addresses = nil
	agrees(t, k, h)
}

func TestKernelLeavesStrangersAlone(t *testing.T) {
	k := kernel(t)
	for _, c := range []string{
		"link add mw-theirs type veth peer name mw-theirs2",
		"link set mw-theirs up",
		"address add 10.9.9.1/24 dev mw-theirs",
		"route add 10.9.8.0/24 dev mw-theirs proto static",
		"route add 10.9.7.0/24 dev mw-theirs proto 109 table 77",
		"neigh add 10.9.9.2 dev mw-theirs lladdr 02:00:00:00:00:78 nud permanent",
		"address add 2001:db8:9::1/64 dev mw-theirs nodad",
		"-6 route add 2001:db8:8::/64 dev mw-theirs proto static",
		"-6 route add 2001:db8:7::/64 dev mw-theirs proto 109 table 77",
		"neigh add 2001:db8:9::2 dev mw-theirs lladdr 02:00:00:00:00:78 nud permanent",
	} {
		nstest.Run(t, "ip", strings.Fields(c)...)
	}
	show := "ip -o -d link show; ip -o address; ip route show table all; ip -6 route show table all; ip neigh show nud permanent"
	before := nstest.Run(t, "sh", "-c", show)
	if r := run(t.Context(), k, plan.Host{}); r.Err() != nil || k.Changes() != 0 {
		t.Errorf("changed something: %+v", r)
	}
	if d := cmp.Diff(before, nstest.Run(t, "sh", "-c", show)); d != "" {
		t.Error(d)
	}
}

// What others put on medway's own devices is theirs, but for addresses of the
// VIPs' device, which are VIPs: routes and neighbours by protocol and state.
func TestKernelLeavesOthersObjectsOnItsDevices(t *testing.T) {
	k := kernel(t, nstest.Dummy, nstest.IPIP, nstest.IP6Tnl)
	agrees(t, k, sample())
	for _, c := range []string{
		"route add 10.9.8.0/24 dev mw-dc2-lvs-a proto static",
		"route add 10.9.7.0/24 dev sync01p proto bird",
		"-6 route add 2001:db8:8::/64 dev sync01p proto static",
	} {
		nstest.Run(t, "ip", strings.Fields(c)...)
	}
	show := "ip route show proto static; ip route show proto bird; ip -6 route show proto static"
	before := nstest.Run(t, "sh", "-c", show)
	agrees(t, k, sample())
	h := sample()
	delete(h.Addresses, plan.VIPAddress(host("203.0.113.10").Addr()))
	agrees(t, k, h)
	if d := cmp.Diff(before, nstest.Run(t, "sh", "-c", show)); d != "" || strings.Count(before, "\n") != 3 {
		t.Error(before, d)
	}
}

func TestKernelRefusesConflicts(t *testing.T) {
	k := kernel(t)
	nstest.Run(t, "ip", "link", "add", "mw-a", "type", "veth", "peer", "name", "sync01p")
	nstest.Run(t, "ip", "link", "set", "mw-a", "up")
	nstest.Run(t, "ip", "route", "add", "10.9.8.1/32", "dev", "mw-a", "proto", "static")
	ipip := plan.Link{Kind: plan.IPIP, TTL: 64, Local: host("192.0.2.1").Addr(), Remote: host("192.0.2.2").Addr()}
	veth := plan.Link{Kind: plan.Veth, Peer: plan.SyncPeerLink}
	for want, h := range map[string]plan.Host{
		"link mw-a exists and is a veth":   {Links: map[plan.LinkName]plan.Link{"mw-a": ipip}},
		"peer link sync01p exists already": {Links: map[plan.LinkName]plan.Link{plan.SyncLink: veth}},
		"not medway's: ":                   {Routes: map[plan.Route]struct{}{{Prefix: host("10.9.8.1"), Link: "mw-a"}: {}}},
		"not a device on which": {
			Addresses: map[plan.Address]struct{}{{Prefix: host("10.0.0.1"), Link: "eth9"}: {}}},
	} {
		if err := run(t.Context(), k, h).Err(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
	nstest.Run(t, "ip", "link", "show", "dev", "mw-a", "type", "veth")
	nstest.Run(t, "ip", "route", "get", "10.9.8.1")
}

func TestKernelRandomWalk(t *testing.T) {
	k := kernel(t, nstest.Dummy, nstest.IPIP, nstest.IP6Tnl)
	nstest.Steps(t, 25)
	rapid.Check(t, func(t *rapid.T) { agrees(t, k, anyHost(true).Draw(t, "host")) })
}
