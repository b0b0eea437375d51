package reconcile

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
)

// Key identifies one object of a table. String is what an operator would call
// the object; it also gives the order of changes.
type Key interface {
	comparable
	fmt.Stringer
}

// Op is what a change does to an object.
type Op int

// The operations of a change.
const (
	Create Op = iota + 1
	Update
	Delete
)

func (o Op) String() string {
	switch o {
	case Create:
		return "create"
	case Update:
		return "update"
	case Delete:
		return "delete"
	}
	return fmt.Sprintf("op(%d)", int(o))
}

// Change is one step from what is to what should be. Old is the zero value on
// Create, New on Delete.
type Change[K Key, V comparable] struct {
	Op       Op
	Key      K
	Old, New V
}

// Table is one kind of object that an adapter reads and changes.
//
// Read returns all objects of that kind that medway may own, as they are now;
// nothing remembered. Apply makes one change. It is idempotent: creating what
// exists makes it as wanted, deleting what is missing is no error. Show says in
// the words of the operator's tools what Apply would do to what was read last;
// it asks the kernel nothing. None is called concurrently.
type Table[K Key, V comparable] interface {
	Read(ctx context.Context) (map[K]V, error)
	Apply(ctx context.Context, c Change[K, V]) error
	Show(c Change[K, V]) Text
}

// Text is a change in the words of the operator's tools.
type Text struct {
	// Table is what kind of object changes, in the singular: "service".
	Table string
	// Old and New are the values as the tool's options say them; "" where
	// there is none, or where the key says it all.
	Old, New string
	// Commands make the change when a shell runs them in this order.
	Commands []Command
}

// Command is one command line. Op is what it does to the host, which need not
// be what the whole change does: a chain is updated by rules that come and go.
type Command struct {
	Op   Op
	Line string
}

// Commands returns lines that all do op.
func Commands(op Op, lines ...string) []Command {
	var out []Command
	for _, line := range lines {
		out = append(out, Command{op, line})
	}
	return out
}

// Edit is a change of any table, for people.
type Edit struct {
	Text
	Op  Op
	Key string
}

// String is the commands in one line.
func (e Edit) String() string {
	lines := make([]string, len(e.Commands))
	for i, c := range e.Commands {
		lines[i] = c.Line
	}
	if len(lines) == 0 {
		return e.Op.String() + " " + e.Key
	}
	return strings.Join(lines, "; ")
}

// Diff returns the changes that lead from have to want: creations, then
// updates, then deletions, each in the order of their keys' strings. Only
// objects that owned accepts are deleted; a nil owned accepts all.
func Diff[K Key, V comparable](want, have map[K]V, owned func(K) bool) []Change[K, V] {
	type named struct {
		Change[K, V]
		name string // made once: to compare is to ask for it often
	}
	var found []named
	add := func(c Change[K, V]) { found = append(found, named{c, c.Key.String()}) }
	for k, w := range want {
		h, ok := have[k]
		switch {
		case !ok:
			add(Change[K, V]{Op: Create, Key: k, New: w})
		case h != w:
			add(Change[K, V]{Op: Update, Key: k, Old: h, New: w})
		}
	}
	for k, h := range have {
		if _, ok := want[k]; !ok && (owned == nil || owned(k)) {
			add(Change[K, V]{Op: Delete, Key: k, Old: h})
		}
	}
	slices.SortFunc(found, func(a, b named) int {
		return cmp.Or(cmp.Compare(a.Op, b.Op), cmp.Compare(a.name, b.name))
	})
	var changes []Change[K, V]
	for _, n := range found {
		changes = append(changes, n.Change)
	}
	return changes
}
