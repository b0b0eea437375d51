package sysctl

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/reconcile"
)

// Fake is a kernel in memory, with the parameters that it was given.
type Fake struct {
	values  map[plan.Sysctl]string
	keys    []plan.Sysctl
	changes uint64
}

// NewFake returns a kernel that has values, as a table of keys.
func NewFake(values map[plan.Sysctl]string, keys []plan.Sysctl) *Fake {
	return &Fake{values: maps.Clone(values), keys: keys}
}

// Changes counts the writes so far.
func (f *Fake) Changes() uint64 { return f.changes }

// Read is as Kernel.Read.
func (f *Fake) Read(context.Context) (map[plan.Sysctl]string, error) {
	have := make(map[plan.Sysctl]string, len(f.keys))
	for _, key := range f.keys {
		if v, ok := f.values[key]; ok {
			have[key] = v
		}
	}
	return have, nil
}

// Apply is as Kernel.Apply.
func (f *Fake) Apply(_ context.Context, c reconcile.Change[plan.Sysctl, string]) error {
	if c.Op == reconcile.Delete {
		return nil
	}
	if _, ok := f.values[c.Key]; !ok {
		return fmt.Errorf("%s is missing", c.Key)
	}
	f.changes++
	f.values[c.Key] = normal(c.New)
	return nil
}

// String prints as `sysctl -a`.
func (f *Fake) String() string {
	var b strings.Builder
	for _, key := range slices.Sorted(maps.Keys(f.values)) {
		fmt.Fprintf(&b, "%s = %s\n", string(key), f.values[key])
	}
	return b.String()
}
