package bgp

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
)

// rss is the memory of the speaker's process, in MB.
func (s *speaker) rss() int {
	s.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "VmRSS:")
	var kb int
	if _, err := fmt.Sscan(rest, &kb); err != nil {
		s.t.Fatal(err)
	}
	return kb / 1024
}

var exportedLine = regexp.MustCompile(`Export updates:\s+\d+\s+\d+\s+\d+\s+---\s+(\d+)`)

// exported is how many routes BIRD has sent us.
func (r *router) exported() (n int) {
	r.t.Helper()
	if m := exportedLine.FindStringSubmatch(r.birdc("show protocols all lvs")); m != nil {
		_, _ = fmt.Sscan(m[1], &n)
	}
	return n
}

// TestFlood: a router that sends a large table changes nothing of what we
// announce, neither to it nor to others.
func TestFlood(t *testing.T) {
	const routes = 100_000
	flood, other := &router{as: 65001, flood: routes}, &router{as: 65001}
	l := newLab(t, flood, other)
	s := newSpeaker(t, l.ns, l.config())
	s.set(ann(vip1, 100), ann(vip2, 100))
	s.start(false)
	before := s.rss()
	took := eventually(t, 60*time.Second, "all has been sent", func() bool { return flood.exported() > routes })
	t.Logf("FIGURE %d routes sent by the router %v after Start", routes, took)
	s.set(ann(vip1, 50), ann(vip2, 100))
	took = eventually(t, 20*time.Second, "a MED change goes through", func() bool {
		return s.flushed() && flood.has(vip1, "BGP.med: 50\n") && other.has(vip1, "BGP.med: 50\n")
	})
	t.Logf("FIGURE MED change seen %v after Set, in the flood", took)
	holds(t, 10*time.Second, "the sessions, longer than the hold time", func() bool { return s.flushed() })
	t.Logf("FIGURE memory %d MB before, %d MB with %d routes refused", before, s.rss(), routes)
	if a := s.do(request{Op: "sessions"}); a.Routes != 2 {
		t.Errorf("GoBGP holds %d routes, want our own 2", a.Routes)
	}
	if other.has("100.64.0.0/32") {
		t.Error("a router's route was passed on")
	}
}

// TestMaxPrefixes: one that goes on beyond all reason is shut out; the others
// are not concerned.
func TestMaxPrefixes(t *testing.T) {
	flood, other := &router{as: 65001, flood: 2000, graceful: 30 * time.Second}, &router{as: 65001}
	l := newLab(t, flood, other)
	cfg := l.config()
	cfg.Neighbors[0].MaxPrefixes = 1000
	s := newSpeaker(t, l.ns, cfg)
	s.set(ann(vip1, 100))
	s.start(false)
	eventually(t, 20*time.Second, "the reason is told", func() bool {
		n := s.sessions()[0]
		return !n.Established && contains(n.LastError, "sent more routes than max_prefixes, 1000: closed for 5m0s")
	})
	holds(t, 5*time.Second, "it stays closed", func() bool { return !s.sessions()[0].Established })
	eventually(t, 20*time.Second, "the other router's session", func() bool { return s.sessions()[1].Established && other.has(vip1) })
	if flood.has(vip1) {
		t.Error("the router keeps our route")
	}
}
