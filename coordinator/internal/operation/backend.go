package operation

import (
	"maps"
	"slices"
	"time"

	"github.com/medway-lb/medway/pkg/state"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// BackendDrainKey is where the order to drain a backend is stored.
func BackendDrainKey(k state.BackendKey) state.Key {
	return state.Key{Kind: state.KindBackendDrain, A: k.Pool, B: k.Name}
}

// DrainBackend has a backend get no new connections; those that it has go on. The last
// one of its pool is drained only by force: new connections would be refused.
func DrainBackend(have *Contents, k state.BackendKey, author Author, force bool, now time.Time) (*Change, error) {
	name := k.Pool + "/" + k.Name
	if _, ok := have.Backends[k]; !ok {
		return nil, Unknown("backend", name, "backend %s does not exist", state.Quote(name))
	}
	if err := have.checkSchema(state.BackendDrainSchema, slices.Sorted(maps.Keys(have.Nodes))...); err != nil {
		return nil, err
	}
	key := BackendDrainKey(k)
	// One of a switchover is replaced: a person's outlasts it.
	if was, ok := have.BackendDrains[k]; ok && was.Switchover == "" {
		return &Change{Already: name + ": drained already: " + DescribeOrder(was.Order), Since: have.Entries[key.String()].ModRevision}, nil
	}
	c := &Change{event: &medwayv1.Event{What: "drain " + name}, done: fromThen(name + ": drained")}
	switch other := undrained(have, k); {
	case other != "":
		// It stays so meanwhile: of two who drain the last two at once one succeeds.
		c.guard(have, BackendDrainKey(state.BackendKey{Pool: k.Pool, Name: other}).String())
	case !force:
		return nil, refuse(ErrPrecondition, "backend %s is the last one of pool %s that is not drained: new connections would be refused; "+
			"undrain another one first, or force it with a reason", name, k.Pool)
	default:
		c.note("no backend of pool %s is left: new connections are refused", k.Pool)
	}
	c.put(have, key, state.Encode(&medwayv1.BackendDrain{Since: now.UTC().Format(time.RFC3339), Reason: author.Reason, By: author.By}))
	return c, nil
}

// undrained is another backend of the same pool that gets new connections, the first by
// name; "" where there is none.
func undrained(have *Contents, than state.BackendKey) (first string) {
	for k, b := range have.Backends {
		if k.Pool == than.Pool && k != than && !b.Drained && (first == "" || k.Name < first) {
			first = k.Name
		}
	}
	return first
}

// UndrainBackend takes a drain back.
func UndrainBackend(have *Contents, k state.BackendKey) (*Change, error) {
	key, name := BackendDrainKey(k), k.Pool+"/"+k.Name
	if !have.Has(key) {
		return nil, refuse(ErrPrecondition, "backend %s is not drained", state.Quote(name))
	}
	was, ok := have.BackendDrains[k]
	was.Malformed = !ok
	c := &Change{
		event: &medwayv1.Event{What: "undrain " + name},
		done:  saying("%s: back in service; it was drained: %s", name, DescribeOrder(was.Order)),
	}
	c.delete(have, key.String())
	return c, nil
}
