package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"github.com/medway-lb/medway/pkg/intent"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"
)

// errDiffers ends a --dry-run where something would be written.
var errDiffers = errors.New("what is stored differs")

func apply(c *connection) *cobra.Command {
	var paths []string
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "apply -f FILE|DIR|-",
		Short: "Load VIPs, pools, backends and settings from YAML files",
		Long: `Load objects from a YAML file, from all *.yaml and *.yml files of a directory, or
with "-" from standard input, after checking every one of them, by itself and
beside what is stored: if one is wrong, all that is wrong is said and nothing is
written. An object is replaced as a whole. What is in etcd and not in the files
stays; delete it with etcdctl del. (A VIP that is deleted ends its calls.)

Exit status: 0 done, or with --dry-run nothing to do; 1 an error; 2 with
--dry-run: something would be written.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			objects, err := intent.Read(paths, cmd.InOrStdin())
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), c.timeout)
			defer cancel()
			return applyObjects(ctx, c, objects, dryRun, cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringArrayVarP(&paths, "filename", "f", nil, "`file` or directory to load, or - for standard input; may be repeated")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "show the difference and write nothing")
	_ = cmd.MarkFlagRequired("filename")
	return cmd
}

// applyObjects writes what differs, in transactions that fail if someone else
// has changed one of their objects in between.
func applyObjects(ctx context.Context, c *connection, objects []intent.Object, dryRun bool, out io.Writer) error {
	client, err := c.open()
	if err != nil {
		return err
	}
	defer client.Close()
	entries, revision, err := client.List(ctx, state.Prefix)
	if err != nil {
		return fmt.Errorf("read %s: %w", state.Prefix, err)
	}
	notices, err := intent.Check(entries, revision, objects, store.Hosts(c.endpoints))
	if err != nil {
		return err
	}
	stored := map[string]store.Entry{}
	for _, e := range entries {
		stored[e.Key] = e
	}
	// What others name comes before those that name it.
	slices.SortStableFunc(objects, func(a, b intent.Object) int { return slices.Index(order, a.Key.Kind) - slices.Index(order, b.Key.Kind) })
	var changed []intent.Object
	for _, o := range objects {
		have, found := stored[o.Key.String()]
		if !found || !bytes.Equal(have.Value, o.Value) {
			changed = append(changed, o)
		}
		writeDiff(out, o, have.Value, found)
	}
	for _, notice := range notices {
		fmt.Fprintln(out, "note:", notice)
	}
	if dryRun || len(changed) == 0 {
		fmt.Fprintf(out, "%d of %d objects differ\n", len(changed), len(objects))
		if len(changed) > 0 {
			return errDiffers
		}
		return nil
	}
	return writeObjects(ctx, client, changed, stored, len(objects), out)
}

// order is that in which kinds are written.
var order = []state.Kind{state.KindSettings, state.KindLadder, state.KindPool, state.KindBackend, state.KindVIP}

// maxBatch keeps a transaction below etcd's limit of 1.5 MiB.
const maxBatch = 1 << 20

// writeObjects writes in as few transactions as etcd's limits allow: one, for
// up to 128 objects.
func writeObjects(ctx context.Context, client *store.Client, objects []intent.Object, stored map[string]store.Entry, all int, out io.Writer) error {
	written, last := 0, int64(0)
	for written < len(objects) {
		var guards []store.Guard
		var puts []store.Put
		size := 0
		for _, o := range objects[written:] {
			key := o.Key.String()
			size += 2*len(key) + len(o.Value)
			if len(puts) == store.MaxOps || len(puts) > 0 && size > maxBatch {
				break
			}
			guards = append(guards, store.Guard{Key: key, ModRevision: stored[key].ModRevision})
			puts = append(puts, store.Put{Key: key, Value: o.Value})
		}
		committed, revision, err := client.Commit(ctx, guards, puts, nil)
		state := fmt.Sprintf("%d of %d objects were written", written, len(objects))
		switch {
		case err != nil:
			return fmt.Errorf("%s: write: %w", state, err)
		case !committed:
			return fmt.Errorf("%s: someone else changed an object at the same time: look again with --dry-run", state)
		}
		written += len(puts)
		last = revision
	}
	fmt.Fprintf(out, "%d of %d objects written at revision %d\n", written, all, last)
	return nil
}
