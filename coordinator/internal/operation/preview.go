package operation

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/reconcile"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// NodeChange is one object of one node's kernel.
type NodeChange struct {
	Node          string
	Op            reconcile.Op
	Object        string
	Before, After string
}

// maxStay leaves room in a transaction for what it writes.
const maxStay = store.MaxOps / 2

// Expect refuses where an object is not of the revision that whoever asks has seen, by
// key below /medway/v1/; 0: the key must not exist. They must be among the objects.
func (a *Applying) Expect(revisions map[string]int64) error {
	differs := map[string]bool{} // of those in the documents
	for _, o := range a.Objects {
		differs[o.Key.String()] = false
	}
	for _, o := range a.Differs {
		differs[o.Key.String()] = true
	}
	a.stay = nil
	for _, key := range slices.Sorted(maps.Keys(revisions)) {
		changes, ours := differs[state.Prefix+key]
		if !ours {
			return state.FieldError{Field: "revisions", Found: "key " + state.Quote(key), Expected: "the key of one of the documents, below " + state.Prefix}
		}
		if !changes {
			a.stay = append(a.stay, store.Guard{Key: state.Prefix + key, ModRevision: revisions[key]})
		}
		if is := a.have.Entries[state.Prefix+key].ModRevision; is != revisions[key] {
			return refuse(ErrConflict, "%s is of revision %d, expected %d: somebody else changed it: look again", state.Printable(state.Prefix+key), is, revisions[key])
		}
	}
	if n := len(a.stay); n > maxStay {
		return state.FieldError{
			Field: "revisions", Found: fmt.Sprintf("%d keys of objects that are stored as wanted already", n),
			Expected: fmt.Sprintf("at most %d, which each transaction looks at", maxStay),
		}
	}
	return nil
}

// Answer is what would be written, and what that changes.
func (a *Applying) Answer() *medwayv1.ApplyResponse {
	out := &medwayv1.ApplyResponse{Notices: a.Notices}
	for _, o := range a.Differs {
		c := &medwayv1.ObjectChange{Key: strings.TrimPrefix(o.Key.String(), state.Prefix), After: string(o.Value)}
		if was, found := a.Stored(o); found {
			before := strings.ToValidUTF8(string(was), "\ufffd")
			c.Before = &before
		}
		out.Changes = append(out.Changes, c)
	}
	for _, c := range a.Preview() {
		out.Preview = append(out.Preview, &medwayv1.NodeChange{Node: c.Node, Op: c.Op.String(), Object: c.Object, Before: c.Before, After: c.After})
	}
	return out
}

// Preview is what the objects change in the kernels of nodes, by node. What only a
// node's own file knows, such as its uplink, changes nothing in it.
func (a *Applying) Preview() (out []NodeChange) {
	cache := state.NewCache()
	for _, e := range a.have.intent() {
		cache.Put(e.Key, e.Value, e.ModRevision, e.Lease)
	}
	for _, o := range a.Differs {
		cache.Put(o.Key.String(), o.Value, a.have.Revision+1, 0)
	}
	after := cache.Snapshot()
	for _, name := range slices.Sorted(maps.Keys(after.Nodes)) {
		n := after.Nodes[name]
		self := plan.Self{Name: name, Site: n.Site, Group: n.Group, IPv4: n.IPv4, IPv6: n.IPv6}
		is, will := plan.KernelOf(a.have.Snapshot, self), plan.KernelOf(after, self)
		out = append(out, diff(name, is.Sysctls, will.Sysctls)...)
		out = append(out, diff(name, is.Links, will.Links)...)
		out = append(out, diff(name, is.Addresses, will.Addresses)...)
		out = append(out, diff(name, is.Routes, will.Routes)...)
		out = append(out, diff(name, is.Neighbors, will.Neighbors)...)
		out = append(out, diff(name, is.Chains, will.Chains)...)
		out = append(out, diff(name, is.Jumps, will.Jumps)...)
		out = append(out, diff(name, is.Services, will.Services)...)
		out = append(out, diff(name, is.Destinations, will.Destinations)...)
		out = append(out, diff(name, is.Daemons, will.Daemons)...)
		out = append(out, diff(name, is.Timeouts, will.Timeouts)...)
	}
	return out
}

func diff[K reconcile.Key, V comparable](node string, is, will map[K]V) (out []NodeChange) {
	for _, c := range reconcile.Diff(will, is, nil) {
		d := NodeChange{Node: node, Op: c.Op, Object: c.Key.String()}
		if c.Op != reconcile.Create {
			d.Before = words(c.Old)
		}
		if c.Op != reconcile.Delete {
			d.After = words(c.New)
		}
		out = append(out, d)
	}
	return out
}

// words are a value in the names of the plan.
func words(value any) string {
	if _, nothing := value.(struct{}); nothing {
		return ""
	}
	return strings.Trim(fmt.Sprintf("%+v", value), "{}")
}
