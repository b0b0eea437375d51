// Package sysctl sets kernel parameters (sysctl(8)).
package sysctl

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync/atomic"

	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/reconcile"
)

// Root is where the kernel shows its parameters. What stands under net/ there
// belongs to the network namespace of the thread that opens it.
const Root = "/proc/sys"

// Kernel is the table of the parameters that it was asked for.
type Kernel struct {
	root    string
	keys    []plan.Sysctl
	changes atomic.Uint64
}

// New returns the table of keys under root, which is Root outside tests.
// The kernel has thousands of parameters: only these are read.
func New(root string, keys []plan.Sysctl) *Kernel { return &Kernel{root: root, keys: keys} }

// Changes counts the writes so far.
func (k *Kernel) Changes() uint64 { return k.changes.Load() }

// Read returns the parameters that exist, with runs of white space made one
// space. One that doesn't exist is left out, so that the rest is still set and
// Apply says for this one what is missing.
func (k *Kernel) Read(context.Context) (map[plan.Sysctl]string, error) {
	have := make(map[plan.Sysctl]string, len(k.keys))
	for _, key := range k.keys {
		v, err := k.get(key)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return nil, err
		default:
			have[key] = v
		}
	}
	return have, nil
}

// Apply writes one parameter. Deletions do nothing: the value that was there
// before medway is not known.
func (k *Kernel) Apply(_ context.Context, c reconcile.Change[plan.Sysctl, string]) error {
	if c.Op == reconcile.Delete {
		return nil
	}
	if err := k.set(c.Key, c.New); err != nil {
		return err
	}
	// Some handlers clamp a value without an error; unseen it would be
	// written at every run for ever.
	got, err := k.get(c.Key)
	if err != nil {
		return err
	}
	if got != normal(c.New) {
		return fmt.Errorf("%s: wrote %q, the kernel made it %q", c.Key, c.New, got)
	}
	return nil
}

func (k *Kernel) get(key plan.Sysctl) (string, error) {
	root, err := os.OpenRoot(k.root)
	if err != nil {
		return "", err
	}
	defer root.Close()
	b, err := root.ReadFile(path(key))
	if err != nil {
		return "", explain(root, key, err)
	}
	return normal(string(b)), nil
}

func (k *Kernel) set(key plan.Sysctl, value string) error {
	root, err := os.OpenRoot(k.root)
	if err != nil {
		return err
	}
	defer root.Close()
	// Without O_CREATE: a parameter exists or it doesn't.
	f, err := root.OpenFile(path(key), os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return explain(root, key, err)
	}
	k.changes.Add(1)
	_, err = f.WriteString(value + "\n")
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("%s: the kernel refuses %q: %w", key, value, err)
	}
	return nil
}
