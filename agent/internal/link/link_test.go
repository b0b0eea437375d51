package link

import (
	"context"
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/reconcile"
	"github.com/vishvananda/netlink"
	"pgregory.net/rapid"
)

// tables is what a Kernel and a Fake have in common.
type tables interface {
	Links(map[plan.LinkName]plan.Link) reconcile.Table[plan.LinkName, plan.Link]
	Addresses() reconcile.Table[plan.Address, struct{}]
	Routes() reconcile.Table[plan.Route, struct{}]
	Neighbors() reconcile.Table[plan.Neighbor, plan.MAC]
	Changes() uint64
}

var (
	_ tables = (*Kernel)(nil)
	_ tables = (*Fake)(nil)
)

func run(ctx context.Context, k tables, h plan.Host) reconcile.Report {
	return reconcile.Run(ctx,
		reconcile.Bind(k.Links(h.Links), h.Links, nil),
		reconcile.Bind(k.Addresses(), h.Addresses, nil),
		reconcile.Bind(k.Routes(), h.Routes, nil),
		reconcile.Bind(k.Neighbors(), h.Neighbors, nil))
}

// anyHost draws a state that medway could want. Few values, so that states
// collide: tunnels trade endpoints, routes move between devices.
func anyHost(ipip bool) *rapid.Generator[plan.Host] {
	return rapid.Custom(func(t *rapid.T) plan.Host {
		h := plan.Host{
			Links:     make(map[plan.LinkName]plan.Link),
			Addresses: make(map[plan.Address]struct{}),
			Routes:    make(map[plan.Route]struct{}),
			Neighbors: make(map[plan.Neighbor]plan.MAC),
		}
		mac := rapid.SampledFrom([]plan.MAC{{}, plan.SyncMAC, {2, 0, 0, 0, 0, 9}})
		var devices []plan.LinkName
		if rapid.Bool().Draw(t, "vips") {
			h.Links[plan.VIPLink] = plan.Link{Kind: plan.Dummy, MTU: anyMTU(t), MAC: mac.Draw(t, "mac")}
			for i := range rapid.IntRange(0, 4).Draw(t, "vip count") {
				h.Addresses[plan.Address{Link: plan.VIPLink, Prefix: host("203.0.113.%d", 10+i)}] = struct{}{}
			}
			for i := range rapid.IntRange(0, 2).Draw(t, "IPv6 VIPs") {
				h.Addresses[plan.Address{Link: plan.VIPLink, Prefix: host("2001:db8::%d", 10+i)}] = struct{}{}
			}
		}
		if rapid.Bool().Draw(t, "sync") {
			l := plan.Link{Kind: plan.Veth, MTU: anyMTU(t), MAC: mac.Draw(t, "mac"), Peer: plan.SyncPeerLink}
			h.Links[plan.SyncLink] = l
			devices = append(devices, plan.SyncLink, plan.SyncPeerLink)
			own := rapid.IntRange(1, 3).Draw(t, "sync address")
			h.Addresses[plan.Address{Link: plan.SyncLink, Prefix: netip.MustParsePrefix(fmt.Sprintf("169.254.9.%d/24", own))}] = struct{}{}
			for i := range rapid.IntRange(0, 2).Draw(t, "neighbours") {
				h.Neighbors[plan.Neighbor{Link: plan.SyncPeerLink, Addr: host("169.254.0.%d", i).Addr()}] = plan.MAC{2, 0, 0, 0, 0, byte(own)}
			}
		}
		if ipip {
			devices = append(devices, drawTunnels(t, h)...)
		}
		for i := range 4 {
			if len(devices) > 0 && rapid.Bool().Draw(t, "route") {
				h.Routes[plan.Route{Prefix: host("169.254.7.%d", i), Link: rapid.SampledFrom(devices).Draw(t, "dev")}] = struct{}{}
			}
		}
		return h
	})
}

func drawTunnels(t *rapid.T, h plan.Host) []plan.LinkName {
	var names []plan.LinkName
	remotes := rapid.Permutation([]int{1, 2, 3, 4}).Draw(t, "remotes")
	for i := range rapid.IntRange(0, 3).Draw(t, "tunnels") {
		name := plan.LinkName(fmt.Sprintf("mw-dc2-lvs-%d", i))
		h.Links[name] = plan.Link{
			Kind: plan.IPIP, MTU: anyMTU(t), TTL: uint8(rapid.IntRange(63, 64).Draw(t, "ttl")),
			Local:  host("192.0.2.%d", rapid.IntRange(1, 2).Draw(t, "local")).Addr(),
			Remote: host("198.51.100.%d", remotes[i]).Addr(),
		}
		if rapid.Bool().Draw(t, "over IPv6") {
			l := h.Links[name]
			l.Kind = plan.IP6Tnl
			l.Local = host("2001:db8:1::%d", rapid.IntRange(1, 2).Draw(t, "local")).Addr()
			l.Remote = host("2001:db8:2::%d", remotes[i]).Addr()
			h.Links[name] = l
		}
		names = append(names, name)
	}
	return names
}

func anyMTU(t *rapid.T) int { return rapid.SampledFrom([]int{0, 1400, 1480}).Draw(t, "mtu") }

func host(format string, args ...any) netip.Prefix {
	a := netip.MustParseAddr(fmt.Sprintf(format, args...))
	return netip.PrefixFrom(a, a.BitLen())
}

func TestRandomWalk(t *testing.T) {
	f := NewFake()
	rapid.Check(t, func(t *rapid.T) {
		h := anyHost(true).Draw(t, "host")
		if r := run(t.Context(), f, h); r.Err() != nil {
			t.Fatalf("%v\n%s", r.Err(), f)
		}
		before := f.Changes()
		if r := run(t.Context(), f, h); r.Err() != nil || len(r.Done) > 0 || f.Changes() != before {
			t.Fatalf("second run: %+v\n%s", r, f)
		}
		if d := cmp.Diff(h.Routes, f.routes); d != "" {
			t.Fatalf("routes: %s", d)
		}
	})
}

func TestFakePrintsAsIP(t *testing.T) {
	f := NewFake()
	h := plan.Host{
		Links: map[plan.LinkName]plan.Link{
			plan.VIPLink:  {Kind: plan.Dummy, MTU: 1500},
			plan.SyncLink: {Kind: plan.Veth, MTU: 1500, MAC: plan.SyncMAC, Peer: plan.SyncPeerLink},
		},
		Addresses: map[plan.Address]struct{}{{Link: plan.VIPLink, Prefix: host("203.0.113.10")}: {}},
		Routes:    map[plan.Route]struct{}{{Prefix: host("169.254.0.1"), Link: plan.SyncPeerLink}: {}},
		Neighbors: map[plan.Neighbor]plan.MAC{{Link: plan.SyncPeerLink, Addr: plan.ReinjectGateway}: plan.SyncMAC},
	}
	if err := run(t.Context(), f, h).Err(); err != nil {
		t.Fatal(err)
	}
	want := `medway0 UNKNOWN 00:00:00:00:00:00 mtu 1500
sync01@sync01p UP 02:6d:77:00:00:01 mtu 1500
sync01p@sync01 UP mtu 1500
medway0 203.0.113.10/32
169.254.0.1/32 dev sync01p proto 109 scope link
169.254.0.1 dev sync01p lladdr 02:6d:77:00:00:01 PERMANENT
`
	if d := cmp.Diff(want, f.String()); d != "" {
		t.Error(d)
	}
}

// What goes to the library and comes back is the same link.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		for name, l := range anyHost(true).Draw(t, "host").Links {
			var peer netlink.Link
			if l.Kind == plan.Veth {
				peer = device(l.Peer, plan.Link{Kind: plan.Veth, MTU: l.MTU})
			}
			if d := cmp.Diff(l, planned(device(name, l), peer), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
				t.Fatalf("%s: %s", name, d)
			}
		}
	})
}

func TestDownDiffersFromAnyWantedLink(t *testing.T) {
	l := plan.Link{Kind: plan.Dummy, MTU: 1500}
	d := device(plan.VIPLink, l)
	d.Attrs().Flags = 0
	if got := planned(d, nil); got == l || got.Kind != "dummy, down" {
		t.Errorf("a device that is down reads as %+v", got)
	}
}

func TestOthersNamesAreRefused(t *testing.T) {
	want := map[plan.LinkName]plan.Link{
		"eth0":       {Kind: plan.Dummy},
		plan.VIPLink: {Kind: plan.Veth, Peer: "x"},
		"mw-x":       {Kind: plan.Dummy},
	}
	f := NewFake()
	if r := run(t.Context(), f, plan.Host{Links: want}); len(r.Failed) != len(want) {
		t.Errorf("failed: %v", r.Failed)
	}
}
