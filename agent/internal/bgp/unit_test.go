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

func TestValidate(t *testing.T) {
	for name, spoil := range map[string]func(*Config){
		"no AS":               func(c *Config) { c.AS = 0 },
		"router id":           func(c *Config) { c.RouterID = netip.MustParseAddr("::1") },
		"local address":       func(c *Config) { c.LocalAddress = netip.Addr{} },
		"twice":               func(c *Config) { c.Neighbors = append(c.Neighbors, c.Neighbors[0]) },
		"IPv6 without local":  func(c *Config) { c.Neighbors[0].Address = netip.MustParseAddr("fd00::1") },
		"hold time":           func(c *Config) { c.Neighbors[0].HoldTime = 2 * time.Second },
		"fractions":           func(c *Config) { c.Neighbors[0].HoldTime = 3500 * time.Millisecond },
		"keepalive":           func(c *Config) { c.Neighbors[0].Keepalive = 9 * time.Second },
		"restart time":        func(c *Config) { c.Neighbors[0].GracefulRestart = 4096 * time.Second },
		"BFD interval":        func(c *Config) { c.Neighbors[0].BFD = &BFD{Interval: time.Millisecond, Multiplier: 3} },
		"BFD multiplier":      func(c *Config) { c.Neighbors[0].BFD = &BFD{Interval: time.Second} },
		"no neighbour's AS":   func(c *Config) { c.Neighbors[0].AS = 0 },
		"no neighbour":        func(c *Config) { c.Neighbors[0].Address = netip.Addr{} },
		"unspecified address": func(c *Config) { c.LocalAddress = netip.IPv4Unspecified() },
	} {
		c := loopbackConfig()
		if _, err := New(c, zaptest.NewLogger(t)); err != nil {
			t.Fatal(err)
		}
		spoil(&c)
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

// What Set puts into a path is what is read back from the UPDATE that an
// external neighbour gets: the same with our own AS added once.
func TestParseUpdate(t *testing.T) {
	c := loopbackConfig()
	c.LocalAddress6 = netip.MustParseAddr("::1")
	for _, prefix := range []string{vip1, "2001:db8::1/128"} {
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
		for _, a := range p.Attrs {
			if path, ok := a.(*bgp.PathAttributeAsPath); ok {
				path.Value = append(path.Value, bgp.NewAs4PathParam(bgp.BGP_ASPATH_ATTR_TYPE_SEQ, []uint32{c.AS}))
			}
		}
		u := parseUpdate(nlri, nil, p.Attrs)
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
