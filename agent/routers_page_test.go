package agent

import (
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	"github.com/medway-lb/medway/agent/internal/bgp"
	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/state"
)

func doc(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile("../docs/routers/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestRoutersPageAgent: the page's part of agent.yaml is taken, as what the
// page's routers expect.
func TestRoutersPageAgent(t *testing.T) {
	top, _, _ := strings.Cut(goodConfig, "bgp:\n")
	c, _, err := load(t, top+doc(t, "agent.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	want := []bgp.Neighbor{{
		Address: netip.MustParseAddr("192.0.2.1"), AS: 64500, HoldTime: 9 * time.Second, TTLSecurity: true,
		BFD: &bgp.BFD{Interval: 150 * time.Millisecond, Multiplier: 3}, GracefulRestart: 120 * time.Second,
	}}
	if diff := cmp.Diff(want, c.speaker(nil).Neighbors, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
}

// TestRoutersPageVIP: the page's VIP bears the communities that the page's
// routers act on.
func TestRoutersPageVIP(t *testing.T) {
	text, err := yaml.YAMLToJSON([]byte(doc(t, "vip.yaml")))
	if err != nil {
		t.Fatal(err)
	}
	object, err := state.ParseObject(text)
	if err != nil {
		t.Fatal(err)
	}
	c := state.NewCache()
	c.Put(object.Key.String(), object.Value, 1, 0)
	s := c.Snapshot()
	for med, want := range map[state.MED][]uint32{50: nil, 100: nil, 101: nil, 110: {64500<<16 | 101}, 520: {64500<<16 | 102}, 900: {64500<<16 | 103}} {
		routes := plan.Announcements(s, "sip-1", plan.Decision{MED: med})
		if len(routes) != 2 {
			t.Fatalf("%d routes, expected one for each address: %v", len(routes), s.Faults)
		}
		for _, r := range routes {
			if diff := cmp.Diff(want, r.Communities); diff != "" {
				t.Errorf("MED %s: %s", med, diff)
			}
		}
	}
}
