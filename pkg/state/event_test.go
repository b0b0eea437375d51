package state

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// TestEventsSortByTime as bytes, whatever the zone and the fraction.
func TestEventsSortByTime(t *testing.T) {
	at := time.Date(2026, 11, 25, 3, 0, 0, 0, time.UTC)
	var keys []string
	for _, later := range []time.Duration{0, 1, 10, 100 * time.Millisecond, time.Second, 10 * time.Hour, 24 * 365 * time.Hour} {
		when := at.Add(later).In(time.FixedZone("", 7200-int(later.Seconds())%7200))
		key := HistoryKey("sip-1", when)
		keys = append(keys, key)
		if vip, back, err := ParseHistoryKey(key); err != nil || vip != "sip-1" || !back.Equal(when) {
			t.Errorf("%s: %q %v %v, expected %v", key, vip, back, err, when)
		}
	}
	if !slices.IsSorted(keys) {
		t.Errorf("not sorted: %q", keys)
	}
	if want := "/medway/history/sip-1/2026-11-25T03:00:00.000000000Z"; keys[0] != want {
		t.Errorf("got %s, want %s", keys[0], want)
	}
}

func TestEventOfAllVIPs(t *testing.T) {
	at := time.Date(2026, 11, 25, 3, 0, 0, 5, time.UTC)
	key := HistoryKey("", at)
	if vip, back, err := ParseHistoryKey(key); key != "/medway/history/-/2026-11-25T03:00:00.000000005Z" || vip != "" || !back.Equal(at) || err != nil {
		t.Errorf("%s: %q %v %v", key, vip, back, err)
	}
}

func TestBadHistoryKeys(t *testing.T) {
	for _, key := range []string{
		"", "/medway/history/", "/medway/history/sip-1", "/medway/history/sip-1/", "/medway/history/sip-1/yesterday",
		"/medway/history/sip-1/2026-11-25T03:00:00Z", "/medway/history/sip-1/2026-11-25T03:00:00.000000000Z/x",
		"/medway/history/Sip/2026-11-25T03:00:00.000000000Z", "/medway/history//2026-11-25T03:00:00.000000000Z",
		"/medway/v1/sip-1/2026-11-25T03:00:00.000000000Z",
	} {
		if _, _, err := ParseHistoryKey(key); err == nil || !strings.Contains(err.Error(), "expected /medway/history/<vip>/<time>") {
			t.Errorf("%q: %v", key, err)
		}
	}
}

func TestEventRoundTrip(t *testing.T) {
	at := time.Date(2026, 11, 25, 3, 0, 0, 5, time.UTC)
	e := &medwayv1.Event{What: "automatic switchover", By: "n2", From: "dc1", To: "dc2", Reason: "80% of 900 packets a second in dc2"}
	key, value := EncodeEvent("sip-1", at, e)
	if key != HistoryKey("sip-1", at) || e.At != "2026-11-25T03:00:00.000000005Z" {
		t.Errorf("key %s, at %s", key, e.At)
	}
	back, err := DecodeEvent(value)
	if diff := cmp.Diff(e, back, protocmp.Transform()); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	if newer, err := DecodeEvent([]byte(`{"what":"unlock","of_tomorrow":[1]}`)); err != nil || newer.What != "unlock" {
		t.Errorf("of a newer writer: %v, %v", newer, err)
	}
	for _, bad := range []string{"", " ", "{", "[]", `{"what":5}`} {
		if e, err := DecodeEvent([]byte(bad)); err == nil {
			t.Errorf("%q: %v", bad, e)
		}
	}
}
