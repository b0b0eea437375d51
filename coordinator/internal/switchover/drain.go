package switchover

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/medway-lb/medway/coordinator/internal/operation"
	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// drainBatch is how many drains are put or taken back at a time: two times as many fit
// into a transaction, beside the record, a target and an event.
const drainBatch = 50

const drainPrefix = state.Prefix + string(state.KindBackendDrain) + "/"

// backendKey is a backend by its name in a record.
func backendKey(name string) state.BackendKey {
	pool, backend, _ := strings.Cut(name, "/")
	return state.BackendKey{Pool: pool, Name: backend}
}

// drain has the old site's backends get no new connections, waits until those that they
// have are over, and then takes the drains back: they are backups from there on.
func (s *stepper) drain(late bool) {
	step := s.r.Steps[len(s.r.Steps)-1]
	if step.Ended == "" {
		guards, short := s.others()
		if short == "" && !late && s.blacklist(guards) {
			return
		}
		wait := s.occupied()
		switch {
		case short != "":
			s.note("given up: " + short)
		case wait == "":
			s.note("the backends of " + s.r.From + " are empty")
		case late:
			s.note("given up in time: " + wait)
		default:
			s.r.WaitsFor = wait
			return
		}
	}
	s.finish()
}

// others guard that each of the VIP's pools has a backend elsewhere that takes new
// connections; short is which one has none.
func (s *stepper) others() (guards []store.Guard, short string) {
	for _, pool := range plan.PoolsOf(s.Snapshot, s.vip) {
		var names []string
		for k, b := range s.Backends {
			if k.Pool == pool && b.Site != s.r.From && s.drains[k] == 0 {
				names = append(names, k.Name)
			}
		}
		if len(names) == 0 {
			return nil, "pool " + pool + " has no backend outside of " + s.r.From + " that is not drained"
		}
		key := operation.BackendDrainKey(state.BackendKey{Pool: pool, Name: slices.Min(names)}).String()
		guards = append(guards, store.Guard{Key: key})
	}
	return guards, ""
}

// blacklist puts drains of the old site's backends that nobody drains, and tells whether
// there were any. One that a person has taken back since stays so. The guards are those
// of others.
func (s *stepper) blacklist(guards []store.Guard) bool {
	n := 0
	for _, k := range s.oldBackends() {
		name := k.Pool + "/" + k.Name
		if s.drains[k] != 0 || slices.Contains(s.r.Drained, name) || n == drainBatch {
			continue
		}
		n++
		key := operation.BackendDrainKey(k).String()
		s.c.guards = append(s.c.guards, store.Guard{Key: key})
		s.c.puts = append(s.c.puts, store.Put{Key: key, Value: state.Encode(&medwayv1.BackendDrain{
			Since: s.now.UTC().Format(time.RFC3339), Reason: "switchover of " + s.vip + " to " + s.r.To, By: s.r.By, Switchover: s.r.Id,
		})})
		s.r.Drained = append(s.r.Drained, name)
	}
	if n > 0 {
		s.c.guards = append(s.c.guards, guards...)
	}
	return n > 0
}

// release takes drains back that this switchover has put, as many as go at a time, and
// only those that are still its own.
func (s *stepper) release() {
	n := min(len(s.r.Drained), drainBatch)
	for _, name := range s.r.Drained[:n] {
		k := backendKey(name)
		key := operation.BackendDrainKey(k).String()
		// Where it is not there it may only not have been seen yet: the guard tells.
		s.c.guards = append(s.c.guards, store.Guard{Key: key, ModRevision: s.drains[k]})
		if d, readable := s.BackendDrains[k]; s.drains[k] != 0 && (!readable || d.Switchover == s.r.Id) {
			s.c.deletes = append(s.c.deletes, key)
		}
	}
	s.r.Drained = s.r.Drained[n:]
}

// oldBackends are those of the VIP's pools in the site that it has left, sorted.
func (s *stepper) oldBackends() []state.BackendKey {
	pools := plan.PoolsOf(s.Snapshot, s.vip)
	var out []state.BackendKey
	for k, b := range s.Backends {
		if b.Site == s.r.From && slices.Contains(pools, k.Pool) {
			out = append(out, k)
		}
	}
	slices.SortFunc(out, func(a, b state.BackendKey) int { return strings.Compare(a.Pool+"/"+a.Name, b.Pool+"/"+b.Name) })
	return out
}

// occupied is what keeps the old site's backends from being empty, "" for nothing. The
// nodes that carry the VIPs of their pools tell, once they know of the drains: what
// others know by sync ends there later.
func (s *stepper) occupied() (wait string) {
	known := int64(0) // when the drains were all there
	for _, name := range s.r.Drained {
		k := backendKey(name)
		known = max(known, s.drains[k])
	}
	old := s.oldBackends()
	most, told := uint64(0), false
	for _, n := range s.carriers() {
		o := s.observed[n]
		switch {
		case o.Backends == nil:
			return n + " does not tell how many connections backends have: telemetry.listen in its file"
		case o.Revision < known:
			return n + " has not told that it knows of the drains"
		}
		told = true
		sum := uint64(0)
		for _, k := range old {
			sum += o.Backends[k]
		}
		most = max(most, sum)
	}
	switch {
	case !told:
		return "no node carries the VIP"
	case most > 0:
		return fmt.Sprintf("%d connections at the backends of %s", most, s.r.From)
	}
	return ""
}

// carriers are the living nodes that carry the VIP, or another one of its pools.
func (s *stepper) carriers() (out []string) {
	pools := plan.PoolsOf(s.Snapshot, s.vip)
	for _, vip := range slices.Sorted(maps.Keys(s.VIPs)) {
		shares := slices.ContainsFunc(plan.PoolsOf(s.Snapshot, vip), func(p string) bool { return slices.Contains(pools, p) })
		if !shares {
			continue
		}
		line := state.MED(plan.LadderOf(s.Snapshot, vip).Active)
		for _, n := range plan.NodesOf(s.Snapshot, vip) {
			v, told := s.observed[n].VIPs[vip]
			if _, alive := s.Alive[n]; alive && told && v.MED != state.NoMED && v.MED <= line {
				out = append(out, n)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
