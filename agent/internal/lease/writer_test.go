package lease

import (
	"fmt"
	"testing"
	"time"

	"github.com/medway-lb/medway/pkg/store"
	"github.com/medway-lb/medway/pkg/store/etcdtest"
)

// TestCommitTriesTheRestOneByOne: writes travel together, and one that fails takes
// none of the others along (PROTOCOL R14). Each is told its outcome once.
func TestCommitTriesTheRestOneByOne(t *testing.T) {
	const patience = time.Minute
	url, _ := etcdtest.Start(t, "http")
	client, err := store.Open(store.Config{Endpoints: []string{url}})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if ok, _, err := client.Commit(t.Context(), nil, []store.Put{{Key: "/t/owner", Value: []byte("x")}, {Key: "/t/gone", Value: []byte("x")}}, nil); !ok || err != nil {
		t.Fatal(ok, err)
	}
	owner, _, err := client.Get(t.Context(), "/t/owner")
	if err != nil {
		t.Fatal(err)
	}

	type told struct {
		i int
		Outcome
	}
	outcomes := make(chan told, 1000)
	var writes []Write
	add := func(w Write) {
		i := len(writes)
		w.Done = func(o Outcome) { outcomes <- told{i, o} }
		writes = append(writes, w)
	}
	// Of three batches, one write of the first fails, and none of the others.
	const fails = 5
	for i := range 2*batch + 10 {
		key := fmt.Sprintf("/t/claim-%03d", i)
		guards := []store.Guard{{Key: key}, {Key: "/t/owner", ModRevision: owner.ModRevision}}
		if i == fails {
			guards[1].ModRevision++
		}
		add(Write{Guards: guards, Puts: []store.Put{{Key: key, Value: []byte("x")}}})
	}
	add(Write{Guards: []store.Guard{{Key: "/t/gone", ModRevision: owner.ModRevision}}, Delete: "/t/gone"})
	add(Write{Puts: []store.Put{{Key: "/t/a", Value: []byte("x")}, {Key: "/t/b", Value: []byte("x")}}})
	Commit(t.Context(), client, patience, writes)

	revisions, seen := map[int64]int{}, map[int]bool{}
	for range writes {
		select {
		case o := <-outcomes:
			if seen[o.i] {
				t.Errorf("write %d is told twice", o.i)
			}
			seen[o.i] = true
			if o.Err != nil || o.Committed == (o.i == fails) {
				t.Errorf("write %d: %+v", o.i, o.Outcome)
			}
			if o.Committed {
				revisions[o.Revision]++
			}
		case <-time.After(patience):
			t.Fatalf("%d of %d outcomes", len(seen), len(writes))
		}
	}
	if n := len(revisions); n != batch-1+3 {
		t.Errorf("%d transactions, expected one for each other write of the first batch, and three", n)
	}
	entries, _, err := client.List(t.Context(), "/t/")
	if err != nil || len(entries) != 2*batch+10-1+1+2 {
		t.Errorf("%d keys, %v", len(entries), err)
	}
	for _, e := range entries {
		if e.Key == "/t/gone" || e.Key == fmt.Sprintf("/t/claim-%03d", fails) {
			t.Errorf("%s is there", e.Key)
		}
	}
}
