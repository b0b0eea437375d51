package integration

import (
	"fmt"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/medway-lb/medway/integration/drill"
	"github.com/medway-lb/medway/integration/lab"
)

// bfdSession is a line of `show bfd sessions`: address, device, state, since when.
var bfdSession = regexp.MustCompile(`(?m)^(\S+)\s+\S+\s+Up\s+(\S+)`)

// TestLabBFD: BFD between edges and LVS hosts stands a switchover and back on this machine, and tells
// of a host that falls silent long before the hold time is over.
func TestLabBFD(t *testing.T) {
	need(t)
	l, err := lab.Up(t.Context(), lab.Options{
		Dir: "/run/medway-test", BinDir: programs(), WANDelay: 5 * time.Millisecond, Progress: t.Output(),
		Prefix: "mwt-", Transient: true, Timeout: 3 * time.Minute, BFD: time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			agentLogs(t, l)
		}
		if err := l.Down(); err != nil {
			t.Error(err)
		}
	})
	eventually := func(what string, limit time.Duration, try func() error) time.Duration {
		t.Helper()
		begin := time.Now()
		if err := drill.Until(t.Context(), limit, try); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		return time.Since(begin)
	}
	// sessions are those that are up, with the time since when.
	sessions := func(edge string) []string {
		t.Helper()
		out, err := l.Birdc(edge, "show bfd sessions")
		if err != nil {
			t.Fatal(err)
		}
		return bfdSession.FindAllString(out, -1)
	}
	before := map[string][]string{}
	for _, edge := range []string{"dc1-edge", "dc2-edge"} {
		eventually("BFD of "+edge, time.Minute, func() error {
			established := 0
			states, err := l.Sessions(edge)
			for _, n := range l.Topology().Role(lab.RoleLVS) {
				if states[n.Name] == "Established" {
					established++
				}
			}
			if before[edge] = sessions(edge); err == nil && (established == 0 || len(before[edge]) != established) {
				err = fmt.Errorf("%d of %d sessions have BFD", len(before[edge]), established)
			}
			return err
		})
	}

	for _, site := range []string{"dc2", "dc1"} {
		if err := l.SetTarget(t.Context(), lab.VIPName, site); err != nil {
			t.Fatal(err)
		}
		eventually("switch to "+site, 2*time.Minute, func() error {
			if m := med(t, l, site); m != 100 {
				return fmt.Errorf("%s has MED %d, expected 100", site, m)
			}
			return nil
		})
	}
	for edge, want := range before {
		if got := sessions(edge); !slices.Equal(got, want) {
			t.Errorf("BFD of %s was lost: %q, then %q", edge, want, got)
		}
	}

	const host = "dc1-lvs-a"
	is := func(up bool) func() error {
		return func() error {
			states, err := l.Sessions("dc1-edge")
			if err == nil && (states[host] == "Established") != up {
				err = fmt.Errorf("the session with %s: %s", host, states[host])
			}
			return err
		}
	}
	if err := l.Blackhole(t.Context(), "dc1-edge", host); err != nil {
		t.Fatal(err)
	}
	// The hold time is 90 s.
	t.Logf("FIGURE BFD 1 s x 3: silent host missed after %v", eventually("the silent host's session ends", 45*time.Second, is(false)))
	if err := l.Unblackhole(t.Context(), "dc1-edge", host); err != nil {
		t.Fatal(err)
	}
	t.Logf("FIGURE session back after %v", eventually("the host is back", time.Minute, is(true)))
}
