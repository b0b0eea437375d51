package link

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/reconcile"
)

func TestShowLink(t *testing.T) {
	tunnel := plan.Link{
		Kind: plan.IPIP, MTU: 1480, TTL: 64, Local: netip.MustParseAddr("10.1.0.11"), Remote: netip.MustParseAddr("10.2.0.11"),
	}
	veth := plan.Link{Kind: plan.Veth, Peer: "sync01p", MAC: plan.SyncMAC}
	with := func(l plan.Link, change func(*plan.Link)) plan.Link { change(&l); return l }
	const remake = "ip link del mw-b; ip link add mw-b mtu 1480 type ipip local 10.1.0.11 remote 10.2.0.11 ttl 64 mode ipip; ip link set mw-b up"
	for _, test := range []struct {
		name     plan.LinkName
		old, new plan.Link
		want     string
	}{
		{"medway0", plan.Link{}, plan.Link{Kind: plan.Dummy}, "ip link add medway0 type dummy; ip link set medway0 up"},
		{"sync01", plan.Link{}, veth, "ip link add sync01 address 02:6d:77:00:00:01 type veth peer name sync01p; ip link set sync01 up; ip link set sync01p up"},
		{"mw-b", plan.Link{}, tunnel, strings.TrimPrefix(remake, "ip link del mw-b; ")},
		{"mw-b", tunnel, plan.Link{}, "ip link del mw-b"},
		{"mw-b", with(tunnel, func(l *plan.Link) { l.MTU = 1400 }), tunnel, "ip link set mw-b mtu 1480 up"},
		{"mw-b", with(tunnel, func(l *plan.Link) { l.TTL = 0 }), tunnel, "ip link set mw-b type ipip local 10.1.0.11 remote 10.2.0.11 ttl 64 pmtudisc mode ipip"},
		{"mw-b", with(tunnel, func(l *plan.Link) { l.Kind += ", nopmtudisc" }), tunnel, "ip link set mw-b type ipip local 10.1.0.11 remote 10.2.0.11 ttl 64 pmtudisc mode ipip"},
		{"mw-b", with(tunnel, func(l *plan.Link) { l.Kind += ", down" }), tunnel, "ip link set mw-b up"},
		{"mw-b", with(tunnel, func(l *plan.Link) { l.Kind += ", external" }), tunnel, remake},
		{"sync01", with(veth, func(l *plan.Link) { l.Kind += ", peer down" }), veth, "ip link set sync01p up"},
		{"sync01", with(veth, func(l *plan.Link) { l.Peer = "" }), veth, "ip link del sync01; ip link add sync01 address 02:6d:77:00:00:01 type veth peer name sync01p; ip link set sync01 up; ip link set sync01p up"},
	} {
		c := reconcile.Change[plan.LinkName, plan.Link]{Op: reconcile.Update, Key: test.name, Old: test.old, New: test.new}
		if test.old == (plan.Link{}) {
			c.Op = reconcile.Create
		} else if test.new == (plan.Link{}) {
			c.Op = reconcile.Delete
		}
		e := reconcile.Edit{Text: links{}.Show(c), Op: c.Op}
		if e.String() != test.want {
			t.Errorf("%s from %+v: %s\nexpected %s", test.name, test.old, e, test.want)
		}
	}
}

// Kernel and fake say the same.
func TestShowTheRest(t *testing.T) {
	h := plan.Host{
		Links:     map[plan.LinkName]plan.Link{plan.SyncLink: {Kind: plan.Veth, Peer: plan.SyncPeerLink}},
		Addresses: map[plan.Address]struct{}{{Link: plan.SyncLink, Prefix: netip.MustParsePrefix("169.254.7.1/32")}: {}},
		Routes:    map[plan.Route]struct{}{{Prefix: netip.MustParsePrefix("169.254.0.1/32"), Link: plan.SyncPeerLink}: {}},
		Neighbors: map[plan.Neighbor]plan.MAC{{Link: plan.SyncPeerLink, Addr: plan.ReinjectGateway}: plan.SyncMAC},
	}
	f := NewFake()
	var got []string
	for _, want := range []plan.Host{h, {}} {
		for _, e := range run(t.Context(), f, want).Done {
			got = append(got, e.Table+": "+e.String())
		}
	}
	slices.Sort(got)
	if d := cmp.Diff([]string{
		"address: ip addr add 169.254.7.1/32 dev sync01",
		"address: ip addr del 169.254.7.1/32 dev sync01",
		"link: ip link add sync01 type veth peer name sync01p; ip link set sync01 up; ip link set sync01p up",
		"link: ip link del sync01",
		"neighbor: ip neigh del 169.254.0.1 dev sync01p",
		"neighbor: ip neigh replace 169.254.0.1 lladdr 02:6d:77:00:00:01 dev sync01p nud permanent",
		"route: ip route add 169.254.0.1/32 dev sync01p proto 109 scope link",
		"route: ip route del 169.254.0.1/32 dev sync01p proto 109 scope link",
	}, got); d != "" {
		t.Error(d)
	}
}
