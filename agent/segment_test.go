package agent

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/medway-lb/medway/agent/internal/arp"
	"github.com/medway-lb/medway/agent/internal/local"
	"github.com/medway-lb/medway/pkg/plan"
)

// fakeSegment holds what it is told to, and prints it.
type fakeSegment struct {
	mu      sync.Mutex
	changed chan struct{}
	holds   map[netip.Addr]arp.Hold
	heard   map[netip.Addr]arp.Heard
	down    string
	broken  error
}

func (s *fakeSegment) Look() (arp.View, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := arp.View{Up: s.down == "", Down: s.down, Has: map[netip.Addr]bool{}, Heard: maps.Clone(s.heard)}
	for a, h := range s.holds {
		v.Has[a] = h.Hold
	}
	return v, nil
}

func (s *fakeSegment) Set(want map[netip.Addr]arp.Hold, life time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if life < time.Second {
		return fmt.Errorf("a lifetime of %s", life)
	}
	s.holds = maps.Clone(want)
	return s.broken
}

func (s *fakeSegment) Changed() <-chan struct{} { return s.changed }
func (s *fakeSegment) Close()                   {}

func (s *fakeSegment) change(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
	poke(s.changed)
}

// state prints the addresses that are held, each with "+" where it is announced.
func (s *fakeSegment) state() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for a, h := range s.holds {
		switch {
		case h.Announce:
			out = append(out, a.String()+"+")
		case h.Hold:
			out = append(out, a.String())
		}
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// newOnSegment is a node in ARP mode that runs, and is the owner of VIP v.
func newOnSegment(t *testing.T) (*node, *fakeSegment) {
	t.Helper()
	n := newNode(t)
	s := &fakeSegment{changed: make(chan struct{}, 1)}
	n.config.ARP, n.config.BGP = &ARP{}, BGP{}
	h := n.host()
	h.segment = func(device string) (segment, error) {
		if device != "eth0" {
			t.Errorf("device %q", device)
		}
		return s, nil
	}
	n.agent, n.stop = run(t, n.config, h)
	n.holds(s, "203.0.113.10+")
	return n, s
}

func (n *node) holds(s *fakeSegment, want string) {
	n.t.Helper()
	eventually(n.t, "holds "+want, func() bool { return s.state() == want })
}

func TestOnASegmentTheOwnerHoldsItsVIPs(t *testing.T) {
	n, s := newOnSegment(t)
	eventually(t, "says so", func() bool {
		v := n.vip()
		return v.Role == string(plan.Active) && v.Med == nil && v.Claim == "none"
	})
	eventually(t, "a sign of life that counts the segment as its session", func() bool {
		return strings.Contains(string(n.get("alive/dc1-lvs-a").Value), `"bgp_sessions":1`)
	})
	if n.speaker.isStarted() {
		t.Error("BGP was started")
	}
	if got := n.kernel.addresses(); got != "203.0.113.10" { // those of the plan's VIPs, ready
		t.Errorf("the kernel serves %q", got)
	}
	if n.kernel.host.Links[plan.VIPLink] != (plan.Link{}) || len(n.kernel.host.Segment) != 1 {
		t.Errorf("the kernel's plan: %v, %v", n.kernel.host.Links, n.kernel.host.Segment)
	}
	var text strings.Builder
	status, err := n.socket().Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := status.Print(&text, time.Now()); err != nil || !strings.Contains(text.String(), "ARP      segment eth0: established") {
		t.Errorf("%v\n%s", err, text.String())
	}

	t.Log("another VIP, which takes the first one's address over, and the first one leaves")
	n.put("vips/w", vipValue("203.0.113.11"), "target_state/w", "dc1")
	n.holds(s, "203.0.113.10+, 203.0.113.11+")
	n.put("vips/w", vipValue("203.0.113.11", "203.0.113.12"))
	n.holds(s, "203.0.113.10+, 203.0.113.11+, 203.0.113.12+")
	n.delete("vips/v")
	n.holds(s, "203.0.113.11+, 203.0.113.12+")
	eventually(t, "its ownership is given up, and the kernel's part goes", func() bool {
		return n.get("owners/dc1/v").ModRevision == 0 && n.kernel.addresses() == "203.0.113.11, 203.0.113.12"
	})
}

func TestOnASegmentWithoutEtcd(t *testing.T) {
	n, s := newOnSegment(t)
	n.etcd.kill()
	n.holds(s, "203.0.113.10") // silent once its lease is over
	n.stays("keeps the address", func() bool { return s.state() == "203.0.113.10" })
	vip := netip.MustParseAddr("203.0.113.10")
	s.change(func() {
		s.heard = map[netip.Addr]arp.Heard{vip: {At: time.Now(), MAC: plan.MAC{2, 0, 0, 0, 0, 9}}}
	})
	n.holds(s, "")
	n.stays("takes nothing over", func() bool { return s.state() == "" })
	n.etcd.start(t)
	n.holds(s, "203.0.113.10+") // nobody else owns it
}

func TestOnASegmentWithdrawAndResume(t *testing.T) {
	n, s := newOnSegment(t)
	if _, err := n.socket().Withdraw(t.Context(), local.Order{VIP: "v", Reason: "a new kernel"}); err != nil {
		t.Fatal(err)
	}
	if err := n.socket().AwaitWithdrawn(t.Context(), "v"); err != nil {
		t.Fatal(err)
	}
	n.holds(s, "")
	eventually(t, "gives the ownership up", func() bool { return n.get("owners/dc1/v").ModRevision == 0 })
	if _, err := n.socket().Resume(t.Context(), "v"); err != nil {
		t.Fatal(err)
	}
	n.holds(s, "203.0.113.10+")
}

func TestOnASegmentWhatIsWrongIsShown(t *testing.T) {
	n, s := newOnSegment(t)
	vip := netip.MustParseAddr("203.0.113.10")
	s.change(func() {
		s.heard = map[netip.Addr]arp.Heard{vip: {At: time.Now(), MAC: plan.MAC{2, 0, 0, 0, 0, 9}}}
		s.broken = errors.New("no luck")
	})
	eventually(t, "another host", func() bool { return n.fault("segment", "02:00:00:00:00:09, announced 203.0.113.10") })
	eventually(t, "what fails", func() bool { return n.fault("segment", "no luck") })
	n.stays("the owner goes on", func() bool { return s.state() == "203.0.113.10+" })
	s.change(func() { s.down = "no carrier" })
	eventually(t, "no carrier", func() bool {
		sessions := n.status().Sessions
		return len(sessions) == 1 && !sessions[0].Established && sessions[0].Neighbor == "segment eth0" && sessions[0].Error == "no carrier"
	})
}

func TestARPTakesThePlaceOfBGP(t *testing.T) {
	bgp := goodConfig[strings.Index(goodConfig, "bgp:"):strings.Index(goodConfig, "lease_ttl:")]
	for _, test := range []struct {
		name, in string
		device   string   // "": refused
		expect   []string // in the refusal
	}{
		{"the uplink", "arp: {}\n", "eth0", nil},
		{"another device", "arp: {interface: eth1.7}\n", "eth1.7", nil},
		{"both", bgp + "arp: {interface: eth1}\n", "", []string{":17:1: field arp: value \"eth1\"", "either \"arp\" or \"bgp\", not both"}},
		{"neither", "", "", []string{"field bgp.neighbors: missing", "at least one router, or \"arp\" in place of \"bgp\""}},
		{"no device's name", "arp: {interface: \"eth 0\"}\n", "", []string{":11:7: field arp.interface: value \"eth 0\"", "the segment's network device"}},
		{"medway's own device", "arp: {interface: medway0}\n", "", []string{"field arp.interface: value \"medway0\"", "not one that medway makes"}},
		{"an unknown field", "arp: {device: eth0}\n", "", []string{":11:7: field arp.device: unknown: expected one of interface"}},
	} {
		c, _, err := load(t, strings.Replace(goodConfig, bgp, test.in, 1))
		if test.device != "" {
			if err != nil || c.self().Segment != test.device {
				t.Errorf("%s: device %q, %v", test.name, c.self().Segment, err)
			}
			continue
		}
		for _, want := range test.expect {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v\nexpected %q", test.name, err, want)
			}
		}
	}
	_, _, err := load(t, strings.NewReplacer(bgp, "arp: {}\n", "lease_ttl: 7s", "lease_ttl: 2s").Replace(goodConfig))
	if err == nil || !strings.Contains(err.Error(), `field lease_ttl: value "2s": expected at least 3s with "arp"`) {
		t.Error(err)
	}
	if _, err := os.Stat("../docs/arp.md"); err != nil {
		t.Error("the page that Config names: ", err)
	}
}
