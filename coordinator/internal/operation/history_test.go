package operation

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"
	"github.com/medway-lb/medway/pkg/store/etcdtest"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

func open(t *testing.T) *store.Client {
	t.Helper()
	url, _ := etcdtest.Start(t, "http")
	client, err := store.Open(store.Config{Endpoints: []string{url}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

// fill writes events of a VIP, one a minute up to an end.
func fill(t *testing.T, client *store.Client, vip string, n int, end time.Time) {
	t.Helper()
	for some := range slices.Chunk(make([]bool, n), store.MaxOps) {
		var puts []store.Put
		for range some {
			n--
			key, value := state.EncodeEvent(vip, end.Add(-time.Duration(n)*time.Minute), &medwayv1.Event{What: fmt.Sprint("event ", n)})
			puts = append(puts, store.Put{Key: key, Value: value})
		}
		if ok, _, err := client.Commit(t.Context(), nil, puts, nil); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
}

// TestPages: whatever the pages' length, together they are the whole, each event once,
// also where several are of one moment.
func TestPages(t *testing.T) {
	client, end := open(t), time.Date(2026, 11, 25, 3, 0, 0, 0, time.UTC)
	for _, vip := range []string{"a", "a-b", "b", ""} {
		fill(t, client, vip, 5, end)
	}
	if _, _, err := client.Commit(t.Context(), nil, []store.Put{{Key: "/medway/history/a/yesterday", Value: []byte("{}")}}, nil); err != nil {
		t.Fatal(err)
	}
	words := func(page []Past) (out []string) {
		for _, p := range page {
			out = append(out, fmt.Sprintf("%s %s %s %v", p.VIP, p.Stamp(), p.Event.GetWhat(), p.Err))
		}
		return out
	}
	h, err := OpenHistory(t.Context(), client, "")
	if err != nil {
		t.Fatal(err)
	}
	all, next, err := h.Page(t.Context(), Mark{}, 0)
	if err != nil || len(all) != 21 || next != (Mark{}) || all[0].Err == nil || all[20].Event.What != "event 0" {
		t.Fatalf("%d events, next %v, %v", len(all), next, err)
	}
	for most := 1; most < 22; most++ {
		var got []string
		for before := (Mark{}); ; {
			page, next, err := h.Page(t.Context(), before, most)
			if err != nil {
				t.Fatal(err)
			}
			got = append(words(page), got...)
			if next == (Mark{}) {
				break
			}
			if before, err = ParseMark(next.String()); err != nil || before != next {
				t.Fatal(before, next, err)
			}
		}
		if !slices.Equal(got, words(all)) {
			t.Errorf("pages of %d:\n%s", most, strings.Join(got, "\n"))
		}
	}
	var since []Past
	for p, err := range h.Since(t.Context(), end.Add(-time.Minute)) {
		if err != nil {
			t.Fatal(err)
		}
		since = append(since, p)
	}
	if !slices.Equal(words(since), words(all[13:])) {
		t.Errorf("since: %q", words(since))
	}
	for _, text := range []string{"a", "a/b", "/medway/history/a/2026-11-25T03:00:00.000000000Z", "A/2026-11-25T03:00:00.000000000Z"} {
		if _, err := ParseMark(text); err == nil {
			t.Errorf("mark %q is taken", text)
		}
	}
}

// TestTrim: two coordinators trim while an agent writes; what is left is the newest of
// each VIP, what is no event's key, and all that the agent wrote.
func TestTrim(t *testing.T) {
	client, now := open(t), time.Now()
	fill(t, client, "a", 350, now)
	fill(t, client, "b", 10, now)
	fill(t, client, "", 3, now.Add(-48*time.Hour))
	const strange = "/medway/history/a/yesterday"
	if _, _, err := client.Commit(t.Context(), nil, []store.Put{{Key: strange, Value: []byte("{}")}}, nil); err != nil {
		t.Fatal(err)
	}
	keep := Trimming{Newest: 100, Age: 24 * time.Hour}
	var all sync.WaitGroup
	for range 2 {
		all.Go(func() {
			for none := 0; none < 2; { // once it may be the other's batch
				n, err := keep.Once(t.Context(), client, now)
				if err != nil || n > trimBatch {
					t.Error(n, err)
					return
				}
				if none++; n > 0 {
					none = 0
				}
			}
		})
	}
	const written = 50
	all.Go(func() {
		for i := range written {
			key, value := state.EncodeEvent("a", now.Add(time.Duration(i)*time.Second), &medwayv1.Event{What: "automatic switchover"})
			if ok, _, err := client.Commit(t.Context(), []store.Guard{{Key: key}}, []store.Put{{Key: key, Value: value}}, nil); i > 0 && (!ok || err != nil) {
				t.Error(ok, err)
			}
		}
	})
	all.Wait()
	for n := 1; n > 0; {
		var err error
		if n, err = keep.Once(t.Context(), client, now); err != nil {
			t.Fatal(err)
		}
	}
	h, err := OpenHistory(t.Context(), client, "")
	if err != nil {
		t.Fatal(err)
	}
	left, _, err := h.Page(t.Context(), Mark{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	for _, p := range left {
		switch {
		case p.Err != nil:
			count["?"]++
		case p.Event.What == "automatic switchover":
			count["written"]++
		}
		count[p.VIP]++
	}
	// The first one of the agent's is of the moment of the last one that was there.
	if count["a"] != 100 || count["b"] != 10 || count["?"] != 1 || count["written"] != written-1 || count[""] != 1 {
		t.Errorf("left are %v", count)
	}
	if n, err := keep.Once(t.Context(), client, now.AddDate(2, 0, 0)); n != 0 || err != nil {
		t.Errorf("a clock that is years ahead: %d deleted, %v", n, err)
	}
	if n, err := (Trimming{}).Once(t.Context(), client, now.Add(1e6*time.Hour)); n != 0 || err != nil {
		t.Errorf("without limits it deletes %d, %v", n, err)
	}
}
