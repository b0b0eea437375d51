package switchover

import (
	"testing"
	"time"

	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"
)

// FuzzRecord: whatever somebody puts in a record's place, a step is refused or
// made: it ends, and writes no other keys than the VIP's own, and no target but a site's.
func FuzzRecord(f *testing.F) {
	for _, value := range []string{
		`{"id":"x","from":"dc1","to":"dc2","step":"force","steps":[{"name":"force"}],"target_revision":"10"}`,
		`{"id":"x","from":"dc1","to":"dc2","step":"verify","steps":[{"name":"verify","began":"?"}],"cancel":{}}`,
		`{"id":"x","from":"dc1","to":"dc2","step":"return","steps":[{"name":"return"}],"deadline":"1970-01-01T00:00:00Z"}`,
		`{"id":"x","moves":[{"vip":"v","to":"dc2","target_revision":"10"}]}`, `{}`, `null`, `[`, `{"steps":[null]}`,
	} {
		f.Add("v", []byte(value))
	}
	f.Add("v/../w", []byte(`{"id":"x","from":"dc1","to":"dc2","result":"done"}`))
	now := time.Unix(1000, 0)
	rate := 5.0
	w := world{
		Snapshot: &state.Snapshot{
			Revision: 20, VIPs: map[string]state.VIP{"v": {Groups: map[string]string{"dc1": "g", "dc2": "g"}}},
			Targets: map[string]state.Target{"v": {Site: "dc2", Revision: 10}},
			Nodes:   map[string]state.Node{"a": {Site: "dc1", Group: "g"}, "b": {Site: "dc2", Group: "g"}},
			Alive:   map[string]state.Alive{"a": {}, "b": {}},
		},
		standing: map[string]int64{"v": 10}, now: now,
		observed: map[string]plan.Observed{
			"a": {At: now, Revision: 15, VIPs: map[string]plan.ObservedVIP{"v": {MED: 500, Target: "dc2", Rate: &rate}}},
			"b": {At: now, Revision: 15, VIPs: map[string]plan.ObservedVIP{"v": {MED: 50, Target: "dc2", Rate: &rate}}},
		},
	}
	w.limits.setDefaults()
	f.Fuzz(func(t *testing.T, vip string, value []byte) {
		if r, err := DecodeEvacuation(store.Entry{Key: EvacuationKey("dc1"), Value: value, ModRevision: 10}); err == nil {
			e := New(Config{Store: &store.Client{}})
			if all, ok := e.evacuate("dc1", evacuation{r, 10}, nil, w); ok && (len(all.puts) > store.MaxOps || len(all.guards) > store.MaxOps) {
				t.Errorf("%d puts and %d guards", len(all.puts), len(all.guards))
			}
		}
		r, err := Decode(store.Entry{Key: Key(vip), Value: value, ModRevision: 10})
		if err != nil {
			return
		}
		c := advance(vip, record{r, 10}, w)
		if c == nil {
			return
		}
		if c.target != "" && c.target != r.From {
			t.Errorf("puts target %q", c.target)
		}
		if again, err := Decode(store.Entry{Key: Key(vip), Value: state.Encode(c.record), ModRevision: 11}); err != nil {
			t.Errorf("what it writes can't be read: %v: %v", err, again)
		}
	})
}
