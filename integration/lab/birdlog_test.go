package lab

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// The log was written by BIRD 2.0.12 during a switchover by hand.
func TestParseBirdLog(t *testing.T) {
	f, err := os.Open("testdata/transit.log")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var got []string
	for _, e := range ParseBirdLog(f, "transit") {
		if e.Prefix != netip.PrefixFrom(VIP, 32) || e.Router != "transit" {
			t.Errorf("event %+v", e)
		}
		got = append(got, fmt.Sprintf("%s %s %s %d", e.Time.Format("05.000"), e.Kind, e.Session, e.MED))
	}
	want := []string{
		"23.641 received dc2-edge 500", "23.641 best dc2-edge 500", "23.641 received dc1-edge 100", "23.641 best dc1-edge 100",
		"25.617 received dc2-edge 50", "25.617 best dc2-edge 50", "26.003 received dc1-edge 500",
		"26.370 received dc2-edge 100", "26.370 best dc2-edge 100",
		"26.684 withdrawn dc2-edge -1", "26.684 best dc1-edge 500",
		"57.828 withdrawn dc1-edge -1", "57.828 lost  -1", "57.828 received dc1-edge 100", "57.828 best dc1-edge 100",
		"09.325 withdrawn dc1-edge -1", "09.325 lost  -1",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

func TestParseBirdLogAddresses(t *testing.T) {
	line := "2026-11-22 17:21:23.641 <INFO> medway best router=dc1-edge session=dc2-edge prefix=203.0.113.10/32 med=50 nexthop=10.255.12.2 from=10.255.12.2\n"
	got := ParseBirdLog(strings.NewReader(line), "")
	want := []RouteEvent{{
		Time: time.Date(2026, 11, 22, 17, 21, 23, 641e6, time.Local), Router: "dc1-edge", Kind: RouteBest, Session: "dc2-edge",
		Prefix: netip.PrefixFrom(VIP, 32), MED: 50, NextHop: netip.MustParseAddr("10.255.12.2"), From: netip.MustParseAddr("10.255.12.2"),
	}}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
}

// Lines stay in their order where the clock was set, forwards and then back.
func TestParseBirdLogOfAClockThatWasSet(t *testing.T) {
	const best = " <INFO> medway best router=transit session=dc2-edge prefix=203.0.113.10/32 med=50 nexthop=10.255.12.2 from=10.255.12.2\n"
	events := ParseBirdLog(strings.NewReader(
		"2026-11-22 17:00:00.000"+best+"2026-11-22 18:00:05.000"+best+"2026-11-22 17:00:10.000 <INFO> Reconfigured\n"+"2026-11-22 17:00:11.000"+best), "")
	var got []string
	for _, e := range events {
		got = append(got, e.Time.Format(time.TimeOnly))
	}
	if diff := cmp.Diff([]string{"16:00:05", "17:00:10", "17:00:11"}, got); diff != "" {
		t.Errorf("times (-want +got):\n%s", diff)
	}
}

// What the table sends out, other prefixes and broken lines are no events.
func TestParseBirdLogIgnores(t *testing.T) {
	for _, line := range []string{
		"", "2026-11-22", "<INFO> medway best",
		"2026-11-22 17:21:26.683 <TRACE> dc1-edge.ipv4 < removed 203.0.113.10/32 0L 13G unicast",
		"2026-11-22 17:21:26.683 <TRACE> transit.ipv4 > removed [sole] 198.51.100.0/24 0L 13G unicast",
		"2026-11-22 17:21:26.683 <TRACE> dc1-edge.ipv4 > removed [sole]",
		"2026-11-22 17:21:26.683 <INFO> Started",
	} {
		if got := ParseBirdLog(strings.NewReader(line), "r"); len(got) > 0 {
			t.Errorf("%q: %+v", line, got)
		}
	}
}

func TestFollowRoutes(t *testing.T) {
	l := testLab(t, Options{})
	log := l.BirdLog(Transit)
	if err := os.MkdirAll(filepath.Dir(log), 0o755); err != nil {
		t.Fatal(err)
	}
	line := "2026-11-22 17:21:23.641 <INFO> medway best router=transit session=dc2-edge prefix=203.0.113.10/32 med=%d nexthop=192.0.2.10 from=192.0.2.10\n"
	write := func(s string) {
		t.Helper()
		f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString(s); err != nil {
			t.Fatal(err)
		}
	}
	write(fmt.Sprintf(line, 1))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	events, err := l.FollowRoutes(ctx, Transit)
	if err != nil {
		t.Fatal(err)
	}
	two := fmt.Sprintf(line, 2)
	write(two[:50]) // a line may be seen half written
	write(two[50:] + fmt.Sprintf(line, 3))
	for _, want := range []int{2, 3} {
		if e := <-events; e.MED != want {
			t.Fatalf("event %+v, want MED %d", e, want)
		}
	}
	cancel()
	if e, open := <-events; open {
		t.Errorf("event %+v after the end", e)
	}
}
