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
		`{"id":"x","from":"dc1","to":"dc2","step":"drain","steps":[{"name":"drain"}],"target_revision":"10","drain":{"within":"1h"},"drained":["sbc/b1","sbc/b2"]}`,
		`{"id":"x","from":"dc1","to":"dc2","step":"drain","steps":[{"name":"drain","ended":"?"}],"target_revision":"10","drain":{"within":"1h"},"drained":["sbc/b1","sbc/../x"]}`,
		`{"id":"x","from":"dc1","to":"dc2","step":"drain","steps":[{"name":"drain"}],"cancel":{},"drain":{},"drained":["a/b","a/b"]}`,
		`{"id":"x","moves":[{"vip":"v","to":"dc2","target_revision":"10"}]}`, `{}`, `null`, `[`, `{"steps":[null]}`,
	} {
		f.Add("v", []byte(value))
	}
	f.Add("v/../w", []byte(`{"id":"x","from":"dc1","to":"dc2","result":"done"}`))
	now := time.Unix(1000, 0)
	rate := 5.0
	w := world{
		Snapshot: &state.Snapshot{
			Revision: 20, VIPs: map[string]state.VIP{"v": {Groups: map[string]string{"dc1": "g", "dc2": "g"}, Services: []state.Service{{Pool: "sbc"}}}},
			Backends:      map[state.BackendKey]state.Backend{{Pool: "sbc", Name: "b1"}: {Site: "dc1", Drained: true}, {Pool: "sbc", Name: "b3"}: {Site: "dc1"}},
			BackendDrains: map[state.BackendKey]state.BackendDrain{{Pool: "sbc", Name: "b1"}: {Switchover: "x"}},
			Targets:       map[string]state.Target{"v": {Site: "dc2", Revision: 10}},
			Nodes:         map[string]state.Node{"a": {Site: "dc1", Group: "g"}, "b": {Site: "dc2", Group: "g"}},
			Alive:         map[string]state.Alive{"a": {}, "b": {}},
		},
		standing: map[string]int64{"v": 10}, now: now, drains: map[state.BackendKey]int64{{Pool: "sbc", Name: "b1"}: 12},
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
		all := c.write(vip, now)
		if len(all.guards)+2 > store.MaxOps || len(all.puts)+len(all.deletes) > store.MaxOps {
			t.Errorf("%d guards, %d puts and %d deletes", len(all.guards), len(all.puts), len(all.deletes))
		}
		for _, key := range c.deletes {
			if key != drainPrefix+"sbc/b1" || r.Id != "x" {
				t.Errorf("switchover %q deletes %q", r.Id, key)
			}
		}
		for _, p := range c.puts {
			if p.Key != drainPrefix+"sbc/b3" {
				t.Errorf("puts %q", p.Key)
			}
		}
		if again, err := Decode(store.Entry{Key: Key(vip), Value: state.Encode(c.record), ModRevision: 11}); err != nil {
			t.Errorf("what it writes can't be read: %v: %v", err, again)
		}
	})
}
