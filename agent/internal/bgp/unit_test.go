package bgp

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"go.uber.org/goleak"
	"go.uber.org/zap/zaptest"
	"pgregory.net/rapid"

	"github.com/medway-lb/medway/pkg/plan"
)

func contains(text, part string) bool {
	return strings.Contains(strings.ToLower(text), strings.ToLower(part))
}

func loopbackConfig() Config {
	return Config{
		AS:           65000,
		RouterID:     netip.MustParseAddr("127.0.0.1"),
		LocalAddress: netip.MustParseAddr("127.0.0.1"),
		Neighbors:    []Neighbor{{Address: netip.MustParseAddr("127.7.7.7"), AS: 65001, GracefulRestart: 30 * time.Second}},
	}
}

func TestFaults(t *testing.T) {
	if faults := loopbackConfig().Faults(); len(faults) > 0 {
		t.Fatal(faults)
	}
	bfd := &BFD{Interval: time.Second, Multiplier: 3}
	for name, test := range map[string]struct {
		spoil func(c *Config, n *Neighbor)
		want  string
	}{
		"no AS":               {func(c *Config, _ *Neighbor) { c.AS = 0 }, `as: value "0"`},
		"AS_TRANS":            {func(c *Config, _ *Neighbor) { c.AS = 23456 }, `as: value "23456"`},
		"router id":           {func(c *Config, _ *Neighbor) { c.RouterID = netip.MustParseAddr("::1") }, `router_id: value "::1": expected an IPv4 address`},
		"unspecified address": {func(c *Config, _ *Neighbor) { c.LocalAddress = netip.IPv4Unspecified() }, `local address: value "0.0.0.0"`},
		"twice":               {func(c *Config, n *Neighbor) { c.Neighbors = append(c.Neighbors, *n) }, `neighbors[1].address: value "127.7.7.7": expected a router that is not there twice`},
		"IPv6 without local":  {func(_ *Config, n *Neighbor) { n.Address = netip.MustParseAddr("fd00::1") }, "neighbors[0].address: value \"fd00::1\": expected an IPv4 address, as addresses.ipv6 is not set"},
		"IPv4 without local": {func(c *Config, _ *Neighbor) {
			c.LocalAddress, c.LocalAddress6, c.RouterID = netip.Addr{}, netip.IPv6Loopback(), netip.MustParseAddr("192.0.2.1")
		}, "expected an IPv6 address, as addresses.ipv4 is not set"},
		"no router id": {func(c *Config, n *Neighbor) {
			c.LocalAddress, c.LocalAddress6, c.RouterID, n.Address = netip.Addr{}, netip.IPv6Loopback(), netip.Addr{}, netip.MustParseAddr("fd00::1")
		}, `router_id: value ""`},
		"hold time":      {func(_ *Config, n *Neighbor) { n.HoldTime = 2 * time.Second }, `neighbors[0].hold_time: value "2s": expected whole seconds from 3s`},
		"fractions":      {func(_ *Config, n *Neighbor) { n.HoldTime = 3500 * time.Millisecond }, `hold_time: value "3.5s"`},
		"keepalive":      {func(_ *Config, n *Neighbor) { n.Keepalive = 9 * time.Second }, `keepalive: value "9s"`},
		"restart time":   {func(_ *Config, n *Neighbor) { n.GracefulRestart = 4096 * time.Second }, `graceful_restart: value "1h8m16s"`},
		"BFD interval":   {func(_ *Config, n *Neighbor) { n.BFD = &BFD{Interval: time.Millisecond, Multiplier: 3} }, `bfd.interval: value "1ms"`},
		"BFD multiplier": {func(_ *Config, n *Neighbor) { n.BFD = &BFD{Interval: time.Second} }, `bfd.multiplier: value "0"`},
		"neighbour's AS": {func(_ *Config, n *Neighbor) { n.AS = 0 }, `neighbors[0].as: value "0"`},
		"neighbour":      {func(_ *Config, n *Neighbor) { n.Address = netip.Addr{} }, `neighbors[0].address: value ""`},
		"link-local": {func(c *Config, n *Neighbor) {
			c.LocalAddress6, n.Address = netip.IPv6Loopback(), netip.MustParseAddr("fe80::1%eth0")
		}, "not a link-local one"},
		"multicast":         {func(_ *Config, n *Neighbor) { n.Address = netip.MustParseAddr("224.0.0.5") }, `address: value "224.0.0.5"`},
		"password":          {func(_ *Config, n *Neighbor) { n.Password = strings.Repeat("x", 81) }, `password_file: value "81 bytes": expected a password of at most 80 bytes`},
		"multihop 1":        {func(_ *Config, n *Neighbor) { n.Multihop = 1 }, `multihop: value "1": expected 2 to 255`},
		"multihop internal": {func(c *Config, n *Neighbor) { n.Multihop, n.AS = 2, c.AS }, `multihop: value "2": expected none`},
		"multihop and GTSM": {func(_ *Config, n *Neighbor) { n.Multihop, n.TTLSecurity = 2, true }, "none with ttl_security"},
		"multihop and BFD":  {func(_ *Config, n *Neighbor) { n.Multihop, n.BFD = 2, bfd }, "none with bfd"},
	} {
		c := loopbackConfig()
		test.spoil(&c, &c.Neighbors[0])
		faults := c.Faults()
		if len(faults) != 1 || !strings.Contains(faults[0].Error(), test.want) {
			t.Errorf("%s: %v, expected %s", name, faults, test.want)
		}
		if _, err := New(c, zaptest.NewLogger(t)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestSetRefuses(t *testing.T) {
	s, err := New(loopbackConfig(), zaptest.NewLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	negative := ann(vip1, 1)
	negative.Prepend = -1
	for name, set := range map[string][]plan.Announcement{
		"twice":     {ann(vip1, 1), ann(vip1, 2)},
		"host bits": {ann("192.0.2.1/24", 1)},
		"IPv6":      {ann("2001:db8::1/128", 1)},
		"prepend":   {negative},
		"nothing":   {{}},
	} {
		if err := s.Set(t.Context(), set); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if len(s.want) != 0 {
		t.Errorf("a refused set changed something: %v", s.want)
	}
}

// The changes applied to what is had make what is wanted.
func TestChanges(t *testing.T) {
	gen := rapid.MapOf(rapid.IntRange(1, 6), rapid.Uint32Range(0, 2))
	rapid.Check(t, func(t *rapid.T) {
		have, want := asRoutes(gen.Draw(t, "have")), asRoutes(gen.Draw(t, "want"))
		add, withdraw := changes(have, want)
		for _, a := range add {
			if old, ok := have[a.Prefix]; ok && equal(old, a) {
				t.Fatalf("%v is not a change", a)
			}
			have[a.Prefix] = a
		}
		for _, p := range withdraw {
			if _, ok := have[p]; !ok {
				t.Fatalf("%v was not there", p)
			}
			delete(have, p)
		}
		if diff := cmp.Diff(want, have, cmp.Comparer(equal), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
			t.Fatal(diff)
		}
	})
}

func asRoutes(m map[int]uint32) routes {
	r := routes{}
	for i, med := range m {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 32)
		r[p] = plan.Announcement{Prefix: p, MED: med}
	}
	return r
}

// What is read back from the UPDATE that a neighbour gets is what Set was given.
func TestParseUpdate(t *testing.T) {
	c := loopbackConfig()
	c.LocalAddress6 = netip.MustParseAddr("::1")
	for _, prefix := range []string{vip1, vip6} {
		want := ann(prefix, 7, 1, 2)
		want.Prepend = 2
		p, err := c.path(want)
		if err != nil {
			t.Fatal(err)
		}
		var nlri []bgp.PathNLRI // IPv6 has it in MP_REACH_NLRI
		if want.Prefix.Addr().Is4() {
			nlri = []bgp.PathNLRI{{NLRI: p.Nlri}}
		}
		path := bgp.NewAs4PathParam(bgp.BGP_ASPATH_ATTR_TYPE_SEQ, []uint32{c.AS, c.AS, c.AS})
		u := parseUpdate(nlri, nil, append(p.Attrs, bgp.NewPathAttributeAsPath([]bgp.AsPathParamInterface{path})))
		if len(u.announced) != 1 || !equal(u.announced[0], want) || len(u.withdrawn) > 0 || u.endOfRIB {
			t.Errorf("%v became %+v", want, u)
		}
		u = parseUpdate(nil, []bgp.PathNLRI{{NLRI: p.Nlri}}, nil)
		if len(u.announced) > 0 || len(u.withdrawn) != 1 || u.withdrawn[0] != want.Prefix || u.endOfRIB {
			t.Errorf("the withdrawal of %v became %+v", want, u)
		}
	}
	if u := parseUpdate(nil, nil, nil); !u.endOfRIB || u.family != bgp.RF_IPv4_UC {
		t.Errorf("the End-of-RIB of IPv4 became %+v", u)
	}
}

func TestUnacknowledged(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Skip("SKIPPED: needs", address)
		}
		defer l.Close()
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		local, remote := c.LocalAddr().(*net.TCPAddr).AddrPort(), c.RemoteAddr().(*net.TCPAddr).AddrPort()
		queues, err := unacknowledged(local.Addr().Is6())
		if err != nil {
			t.Fatal(err)
		}
		if n, ok := queues[newConnection(local, remote)]; !ok || n != 0 {
			t.Errorf("%s: queue %d, found %v", address, n, ok)
		}
	}
}

// Everything that Start starts ends with Stop, also where nobody answers.
func TestStartStop(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	s, err := New(loopbackConfig(), zaptest.NewLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Set(t.Context(), []plan.Announcement{ann(vip1, 100)}); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context(), false); err == nil {
		t.Error("started twice")
	}
	if err := s.Set(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	eventually(t, 10*time.Second, "the refused connection is told", func() bool { return contains(s.Sessions()[0].LastError, "refused") })
	if err := s.Stop(ctx, true); err != nil {
		t.Fatal(err)
	}
	if err := s.Stop(ctx, true); err != nil {
		t.Errorf("a second Stop: %v", err)
	}
	if err := s.Set(ctx, nil); err == nil {
		t.Error("Set after Stop")
	}
}
