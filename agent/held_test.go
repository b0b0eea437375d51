package agent

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/medway-lb/medway/pkg/plan"
)

func TestCompareSaysHowMuchTheKernelHolds(t *testing.T) {
	one, two := netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("203.0.113.11")
	backend, own := netip.MustParseAddr("10.1.0.21"), netip.MustParseAddr("10.1.0.11")
	service := func(a netip.Addr, port uint16) plan.ServiceKey {
		return plan.ServiceKey{Protocol: plan.TCP, Addr: a, Port: port}
	}
	// Two VIP addresses with two services each, and an address that is no VIP.
	full := func() plan.Host {
		h := plan.Host{
			Addresses:    map[plan.Address]struct{}{{Link: plan.SyncLink, Prefix: netip.MustParsePrefix("169.254.1.1/32")}: {}},
			Services:     map[plan.ServiceKey]plan.Service{},
			Destinations: map[plan.DestinationKey]plan.Destination{},
			Own:          map[netip.Addr]bool{own: true, netip.MustParseAddr("2001:db8:1::11"): true},
		}
		for _, a := range []netip.Addr{one, two} {
			h.Addresses[plan.VIPAddress(a)] = struct{}{}
			for _, port := range []uint16{5060, 5061} {
				h.Services[service(a, port)] = plan.Service{Scheduler: "sed"}
				h.Destinations[plan.DestinationKey{Service: service(a, port), Addr: backend, Port: port}] = plan.Destination{Weight: 5}
			}
		}
		return h
	}
	for _, test := range []struct {
		name   string
		change func(plan.Host)
		want   held
	}{
		{"all", func(plan.Host) {}, whole},
		{"more than is wanted", func(h plan.Host) { h.Services[service(one, 9)] = plan.Service{} }, whole},
		{"the node's own address", func(h plan.Host) { delete(h.Own, own) }, bare},
		{"the node's own address of the other family", func(h plan.Host) { delete(h.Own, netip.MustParseAddr("2001:db8:1::11")) }, whole},
		{"no address", func(h plan.Host) { delete(h.Addresses, plan.VIPAddress(one)) }, absent},
		{"the address on another device", func(h plan.Host) {
			delete(h.Addresses, plan.VIPAddress(one))
			h.Addresses[plan.Address{Link: "lo", Prefix: netip.PrefixFrom(one, 32)}] = struct{}{}
		}, absent},
		{"one service of two", func(h plan.Host) { delete(h.Services, service(one, 5061)) }, absent},
		{"another scheduler", func(h plan.Host) { h.Services[service(one, 5061)] = plan.Service{Scheduler: "rr"} }, bare},
		{"no destination", func(h plan.Host) {
			delete(h.Destinations, plan.DestinationKey{Service: service(one, 5061), Addr: backend, Port: 5061})
		}, bare},
		{"another weight", func(h plan.Host) {
			h.Destinations[plan.DestinationKey{Service: service(one, 5060), Addr: backend, Port: 5060}] = plan.Destination{Weight: 4}
		}, bare},
		{"nothing", func(h plan.Host) { clear(h.Addresses); clear(h.Services); clear(h.Destinations) }, absent},
	} {
		have := full()
		test.change(have)
		want := map[netip.Addr]held{one: test.want, two: whole}
		switch test.name {
		case "nothing":
			want[two] = absent
		case "the node's own address":
			want[two] = bare
		}
		if diff := cmp.Diff(want, compare(full(), have)); diff != "" {
			t.Errorf("%s: %s", test.name, diff)
		}
	}
}

// TestKernelHeld reads back from the real kernel what hands have taken away.
func TestKernelHeld(t *testing.T) {
	d := openInNamespace(t)
	want := plan.KernelOf(cluster(t), thisNode)
	check := func(what string, four, six held) {
		t.Helper()
		got, err := d.held(t.Context(), want)
		if diff := cmp.Diff(map[netip.Addr]held{vip4: four, vip6: six}, got); err != nil || diff != "" {
			t.Errorf("%s: %v %s", what, err, diff)
		}
	}
	check("before the first run", absent, absent)
	mustApply(t, d, want)
	check("as planned", whole, whole)
	shell(t, "ipvsadm -e -t 203.0.113.10:5060 -r 10.1.0.21:5060 -i -w 7")
	check("another weight", bare, whole)
	shell(t, "ipvsadm -D -t [2001:db8:10::10]:5060")
	check("a service gone", bare, absent)
	mustApply(t, d, want)
	check("mended", whole, whole)
	shell(t, "ip addr del 203.0.113.10/32 dev medway0")
	check("an address gone", absent, whole)
	mustApply(t, d, want)

	// Not medway's to mend: said, and what the family carries counts as not served.
	shell(t, "ip addr del 2001:db8:1::11/64 dev eth0")
	check("the host's own address gone", whole, bare)
	report := d.apply(t.Context(), want)
	if err := report.Err(); err == nil || err.Error() != "this host does not have 2001:db8:1::11, which its file names as its own: nothing of that family can be forwarded" {
		t.Errorf("%v, done %v", err, report.Done)
	}
	shell(t, "ip addr add 2001:db8:1::11/64 dev eth0 nodad")
	if report := d.apply(t.Context(), want); report.Err() != nil {
		t.Error(report.Err())
	}
}
