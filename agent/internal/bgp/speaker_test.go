package bgp

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/medway-lb/medway/pkg/plan"
)

const (
	vip1 = "192.0.2.1/32"
	vip2 = "192.0.2.2/32"
)

func ann(prefix string, med uint32, communities ...uint32) plan.Announcement {
	return plan.Announcement{Prefix: netip.MustParsePrefix(prefix), MED: med, Communities: communities}
}

// bring starts a speaker with two VIPs and waits until all routers have them.
func bring(t *testing.T, l *lab) *speaker {
	t.Helper()
	s := newSpeaker(t, l.ns, l.config())
	s.set(ann(vip1, 100, 65000<<16|7), ann(vip2, 100, 65000<<16|7))
	s.start(false)
	took := eventually(t, 20*time.Second, "all sessions established and flushed", s.flushed)
	t.Logf("FIGURE first session up and flushed %v after Start", took)
	for _, r := range l.routers {
		eventually(t, 2*time.Second, "both VIPs at the router", func() bool { return r.has(vip1) && r.has(vip2) })
	}
	return s
}

func TestAnnounceChangeWithdraw(t *testing.T) {
	r := &router{as: 65001}
	l := newLab(t, r)
	s := bring(t, l)
	if !r.has(vip1, "BGP.origin: IGP", "BGP.as_path: 65000\n", "BGP.next_hop: 10.77.0.2", "BGP.med: 100", "BGP.community: (65000,7)") {
		t.Fatalf("route:\n%s", r.route(vip1))
	}
	updates, withdraws := r.counters()

	begin := time.Now()
	s.set(ann(vip1, 50, 65000<<16|7), ann(vip2, 100, 65000<<16|7))
	eventually(t, 5*time.Second, "MED 50 at the router", func() bool { return r.has(vip1, "BGP.med: 50\n") })
	t.Logf("FIGURE MED change seen in BIRD %v after Set was called", time.Since(begin))
	eventually(t, 5*time.Second, "flushed", s.flushed)
	t.Logf("FIGURE MED change acknowledged %v after Set was called", time.Since(begin))
	if u, w := r.counters(); u != updates+1 || w != withdraws {
		t.Errorf("a MED change made %d updates and %d withdrawals, want 1 and 0", u-updates, w-withdraws)
	}

	s.set(ann(vip2, 100, 65000<<16|7), ann(vip1, 50, 65000<<16|7)) // the same set
	s.set(ann(vip2, 100, 65000<<16|7))
	eventually(t, 5*time.Second, "VIP 1 withdrawn", func() bool { return !r.has(vip1) })
	if u, w := r.counters(); u != updates+1 || w != withdraws+1 {
		t.Errorf("the same set and a withdrawal made %d updates and %d withdrawals, want 0 and 1", u-updates-1, w-withdraws)
	}
	eventually(t, 5*time.Second, "flushed", s.flushed)
	if !r.has(vip2) {
		t.Error("VIP 2 went too")
	}

	prepended := ann(vip2, 100)
	prepended.Prepend = 2
	s.set(prepended)
	eventually(t, 5*time.Second, "prepends", func() bool { return r.has(vip2, "BGP.as_path: 65000 65000 65000\n") })
	eventually(t, 5*time.Second, "flushed", s.flushed)
	if r.has(vip2, "BGP.community") {
		t.Errorf("the community stayed:\n%s", r.route(vip2))
	}
}

// Prepends are for external neighbours: to an internal one a path with our own
// AS is a loop.
func TestTwoRouters(t *testing.T) {
	external, internal := &router{as: 65001}, &router{as: 65000}
	l := newLab(t, external, internal)
	s := bring(t, l)
	for _, prepend := range []int{2, 32, 0, 1} {
		a := ann(vip1, 0)
		a.Prepend = prepend
		s.set(a, ann(vip2, 4294967295))
		path := strings.Repeat(" 65000", 1+prepend)
		eventually(t, 5*time.Second, "the new path", func() bool {
			return external.has(vip1, "BGP.med: 0\n", "BGP.as_path:"+path+"\n") && external.has(vip2, "BGP.med: 4294967295\n", "BGP.as_path: 65000\n")
		})
		if external.has(vip1, "BGP.local_pref: 1") && !external.has(vip1, "BGP.local_pref: 100\n") {
			t.Errorf("local preference left our AS:\n%s", external.route(vip1))
		}
		eventually(t, 5*time.Second, "flushed", s.flushed)
		for prefix, med := range map[string]string{vip1: "0", vip2: "4294967295"} {
			if !internal.has(prefix, "BGP.as_path: \n", "BGP.local_pref: 100\n", "BGP.next_hop: 10.77.0.2", "BGP.med: "+med+"\n") {
				t.Errorf("internal route:\n%s", internal.route(prefix))
			}
		}
	}
	// Neither router's own route came in or went on to the other.
	if a := s.do(request{Op: "sessions"}); a.Routes != 2 {
		t.Errorf("GoBGP holds %d routes, want our own 2", a.Routes)
	}
	for _, r := range l.routers {
		if r.has("203.0.113.0/24") {
			t.Errorf("a router's route was passed on:\n%s", r.route("203.0.113.0/24"))
		}
	}
}

const vip6 = "2001:db8::1/128"

// Both families over either, each with our own address of the family as next
// hop.
func TestFamilies(t *testing.T) {
	for name, r := range map[string]*router{
		"external over IPv4": {as: 65001}, "internal over IPv4": {as: 65000},
		"external over IPv6": {as: 65001, six: true, graceful: 30 * time.Second}, "internal over IPv6": {as: 65000, six: true},
		"secured over IPv6": {as: 65001, six: true, password: "secret", ttl: true, bfd: &BFD{Interval: 150 * time.Millisecond, Multiplier: 3}},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, r)
			s := newSpeaker(t, l.ns, l.config())
			six := ann(vip6, 100, 65000<<16|7)
			six.Prepend = 1
			s.set(ann(vip1, 100), six)
			s.start(false)
			eventually(t, 20*time.Second, "flushed", s.flushed)
			path := " 65000 65000\n"
			if r.as == 65000 {
				path = " \n"
			}
			eventually(t, 2*time.Second, "both VIPs", func() bool {
				return r.has(vip1, "BGP.med: 100\n", "BGP.next_hop: 10.77.0.2") &&
					r.has(vip6, "BGP.med: 100\n", "BGP.next_hop: fd77::2", "BGP.community: (65000,7)", "BGP.as_path:"+path)
			})
			s.set(ann(vip1, 100), ann(vip6, 500))
			eventually(t, 5*time.Second, "the IPv6 VIP's new MED", func() bool { return r.has(vip6, "BGP.med: 500\n") })
			s.set(ann(vip1, 100))
			eventually(t, 5*time.Second, "the IPv6 VIP withdrawn", func() bool { return !r.has(vip6) })
			eventually(t, 5*time.Second, "flushed", s.flushed)
			if r.bfd != nil {
				eventually(t, 10*time.Second, "BFD is up", func() bool { return contains(r.birdc("show bfd sessions"), " Up ") })
			}
		})
	}
}

// An IPv6-only host has no default for the router id, and speaks IPv6 alone.
func TestIPv6Only(t *testing.T) {
	r := &router{as: 65001, six: true}
	l := newLab(t, r)
	cfg := l.config()
	cfg.LocalAddress, cfg.RouterID = netip.Addr{}, netip.MustParseAddr("192.0.2.77")
	s := newSpeaker(t, l.ns, cfg)
	s.set(ann(vip6, 100))
	s.start(false)
	eventually(t, 20*time.Second, "flushed", s.flushed)
	eventually(t, 2*time.Second, "the VIP", func() bool { return r.has(vip6, "BGP.next_hop: fd77::2") })
}

func TestFourOctetAS(t *testing.T) {
	r := &router{as: 4200000001, host: "4200000000"}
	l := newLab(t, r)
	cfg := l.config()
	cfg.AS = 4200000000
	s := newSpeaker(t, l.ns, cfg)
	a := ann(vip1, 100)
	a.Prepend = 2
	s.set(a)
	s.start(false)
	eventually(t, 20*time.Second, "flushed", s.flushed)
	eventually(t, 5*time.Second, "the path", func() bool {
		return r.has(vip1, "BGP.as_path: 4200000000 4200000000 4200000000\n")
	})
}

func TestPasswordAndTTLSecurity(t *testing.T) {
	r := &router{as: 65001, password: "secret", ttl: true}
	bring(t, newLab(t, r))
}

// One side alone doesn't do: neither a password, nor a TTL of 255.
func TestPasswordOrTTLSecurityMissing(t *testing.T) {
	for name, test := range map[string]struct {
		router router
		ours   func(*Neighbor)
		want   string
	}{
		"our password":     {router{as: 65001}, func(n *Neighbor) { n.Password = "secret" }, "a wrong MD5 password looks the same"},
		"another password": {router{as: 65001, password: "secret"}, func(n *Neighbor) { n.Password = "Secret" }, "a wrong MD5 password looks the same"},
		"the router's":     {router{as: 65001, password: "secret"}, func(n *Neighbor) { n.Password = "" }, "i/o timeout"},
		"our TTL security": {router{as: 65001}, func(n *Neighbor) { n.TTLSecurity = true }, "one without TTL security at its end looks the same"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, &test.router)
			cfg := l.config()
			test.ours(&cfg.Neighbors[0])
			s := newSpeaker(t, l.ns, cfg)
			s.start(false)
			eventually(t, 30*time.Second, "the reason is told", func() bool { return contains(s.sessions()[0].LastError, test.want) })
			t.Log(s.sessions()[0].LastError)
		})
	}
}

// An external router behind another: with multihop only.
func TestMultihop(t *testing.T) {
	far := netip.MustParseAddr("10.78.0.9")
	hop, r := &router{as: 65001}, &router{as: 65002, extra: " multihop 2;\n", ip: far}
	l := newLab(t, hop, r)
	run(t, "ip -n "+r.ns+" addr add 10.78.0.9/32 dev lo")
	// Through the other router, so that there is a hop in between.
	run(t, "ip -n "+l.ns+" route add 10.78.0.9/32 via 10.77.0.11")
	run(t, "ip -n "+hop.ns+" route add 10.78.0.9/32 via 10.77.0.12")
	run(t, "ip netns exec "+hop.ns+" sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.eth0.send_redirects=0")
	r.start()
	cfg := l.config()
	cfg.Neighbors = cfg.Neighbors[1:]
	direct := newSpeaker(t, l.ns, cfg)
	direct.start(false)
	eventually(t, 10*time.Second, "no way at TTL 1", func() bool { return direct.sessions()[0].LastError != "" })
	t.Log(direct.sessions()[0].LastError)
	direct.stop(false)
	cfg.Neighbors[0].Multihop = 2
	s := newSpeaker(t, l.ns, cfg)
	s.set(ann(vip1, 100))
	s.start(false)
	eventually(t, 20*time.Second, "flushed", s.flushed)
	eventually(t, 5*time.Second, "the route", func() bool { return r.has(vip1, "BGP.next_hop: 10.77.0.2") })
}

func TestRouterRestart(t *testing.T) {
	for name, r := range map[string]*router{
		"external": {as: 65001}, "internal": {as: 65000},
		"graceful":     {as: 65001, graceful: 30 * time.Second},
		"graceful bfd": {as: 65001, graceful: 30 * time.Second, bfd: &BFD{Interval: 150 * time.Millisecond, Multiplier: 3}},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, r)
			s := bring(t, l)
			for range 3 {
				r.kill()
				lost := eventually(t, 15*time.Second, "the session is lost", func() bool { return !s.sessions()[0].Established })
				r.start()
				took := eventually(t, 30*time.Second, "the routes are back", func() bool { return r.has(vip1) && r.has(vip2) })
				t.Logf("FIGURE router killed: loss seen after %v; routes back %v after it runs again", lost, took)
				eventually(t, 5*time.Second, "flushed", s.flushed)
			}
		})
	}
}

// A router that stays away for longer: not the first attempt to connect counts.
func TestRouterAway(t *testing.T) {
	r := &router{as: 65001}
	l := newLab(t, r)
	s := bring(t, l)
	run(t, "ip -n "+r.ns+" link set eth0 down")
	s.set(ann(vip1, 500), ann(vip2, 100, 65000<<16|7))
	// Written, but never acknowledged: pending as long as the session lasts.
	held := eventually(t, 15*time.Second, "the hold time ends the session", func() bool {
		n := s.sessions()[0]
		if n.Established && !n.Pending {
			t.Fatal("not pending, although the router can't have it")
		}
		return !n.Established
	})
	t.Logf("FIGURE silent router: session lost after %v (hold time 9 s): %s", held, s.sessions()[0].LastError)
	holds(t, 12*time.Second, "no session", func() bool { return !s.sessions()[0].Established })
	run(t, "ip -n "+r.ns+" link set eth0 up")
	took := eventually(t, 60*time.Second, "the new route", func() bool { return r.has(vip1, "BGP.med: 500\n") })
	t.Logf("FIGURE routes back %v after the link, which was down for 20 s", took)
	eventually(t, 5*time.Second, "flushed", s.flushed)
}

// Both routers vanish at once without a word, which also tries GoBGP's BFD and
// its peers' deletion against each other (see awaitBFD).
func TestSilence(t *testing.T) {
	bfd := &BFD{Interval: 150 * time.Millisecond, Multiplier: 3}
	l := newLab(t, &router{as: 65001, graceful: 30 * time.Second, bfd: bfd}, &router{as: 65001, bfd: bfd})
	s := bring(t, l)
	bfdUp := func() bool {
		for _, r := range l.routers {
			if !contains(r.birdc("show bfd sessions"), " Up ") {
				return false
			}
		}
		return true
	}
	link := func(state string) {
		for _, r := range l.routers {
			run(t, "ip -n "+r.ns+" link set eth0 "+state)
		}
	}
	for range 3 {
		eventually(t, 10*time.Second, "BFD is up", bfdUp)
		link("down")
		lost := eventually(t, 8*time.Second, "BFD ends the sessions", func() bool {
			all := s.sessions()
			return !all[0].Established && !all[1].Established
		})
		t.Logf("FIGURE BFD 150 ms x 3: sessions lost after %v: %s", lost, s.sessions()[0].LastError)
		link("up")
		took := eventually(t, 30*time.Second, "flushed again", s.flushed)
		t.Logf("FIGURE flushed again %v after the link", took)
	}
}

func TestGracefulStop(t *testing.T) {
	r := &router{as: 65001, graceful: 30 * time.Second}
	l := newLab(t, r)
	s := bring(t, l)
	s.stop(true)
	eventually(t, 5*time.Second, "the session ends", func() bool { return !r.established() })
	holds(t, time.Second, "the router keeps both routes", func() bool { return r.has(vip1) && r.has(vip2) })
	// The next process: the same routes, nothing in between.
	_, withdraws := r.counters()
	again := newSpeaker(t, l.ns, l.config())
	again.set(ann(vip1, 100), ann(vip2, 100))
	again.start(true)
	took := eventually(t, 20*time.Second, "flushed again", func() bool {
		if !r.has(vip1) || !r.has(vip2) {
			t.Fatal("a route went during the planned restart")
		}
		return again.flushed()
	})
	t.Logf("FIGURE planned restart: flushed %v after Start", took)
	if _, w := r.counters(); w != withdraws {
		t.Errorf("%d withdrawals during the planned restart", w-withdraws)
	}
}

// With one of two routers away, a planned restart doesn't keep the other
// waiting for GoBGP's default of 360 s.
func TestGracefulRestartOneRouterAway(t *testing.T) {
	r1 := &router{as: 65001, graceful: 30 * time.Second}
	r2 := &router{as: 65001, graceful: 30 * time.Second}
	l := newLab(t, r1, r2)
	s := bring(t, l)
	s.stop(true)
	r2.kill()
	again := newSpeaker(t, l.ns, l.config())
	again.set(ann(vip1, 500))
	again.start(true)
	took := eventually(t, 20*time.Second, "flushed to router 1", func() bool {
		n := again.sessions()[0]
		return n.Established && !n.Pending
	})
	t.Logf("FIGURE planned restart with another router down: flushed %v after Start", took)
	eventually(t, 2*time.Second, "the new set, and nothing stale", func() bool { return r1.has(vip1, "BGP.med: 500\n") && !r1.has(vip2) })
}

// A planned stop waits until routers have what was set last: they keep it.
func TestGracefulStopWaitsForTheLastRoutes(t *testing.T) {
	r := &router{as: 65001, graceful: 30 * time.Second}
	l := newLab(t, r)
	s := bring(t, l)
	set := many(5000, 500)
	s.set(set...)
	s.stop(true)
	eventually(t, 5*time.Second, "the session ends", func() bool { return !r.established() })
	eventually(t, 5*time.Second, "the router has read it all", func() bool {
		return strings.Count(r.birdc("show route where bgp_med=500"), "unicast") == len(set)
	})
}

func TestHardStop(t *testing.T) {
	r := &router{as: 65001, graceful: 30 * time.Second}
	l := newLab(t, r)
	s := bring(t, l)
	begin := time.Now()
	s.stop(false)
	eventually(t, 2*time.Second, "the routes go", func() bool { return !r.has(vip1) && !r.has(vip2) })
	t.Logf("FIGURE stop with Cease: routes gone after %v", time.Since(begin))
}

func TestWrongAS(t *testing.T) {
	r := &router{as: 65001}
	l := newLab(t, r)
	cfg := l.config()
	cfg.Neighbors[0].AS = 65009
	s := newSpeaker(t, l.ns, cfg)
	s.start(false)
	eventually(t, 10*time.Second, "the reason is told", func() bool {
		return contains(s.sessions()[0].LastError, "bad peer as")
	})
	t.Log(s.sessions()[0].LastError)
}
