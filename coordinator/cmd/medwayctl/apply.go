package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/medway-lb/medway/coordinator/internal/operation"
	"github.com/medway-lb/medway/pkg/intent"
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
	have, err := operation.Load(ctx, client)
	if err != nil {
		return err
	}
	a, err := operation.Apply(have, objects, store.Hosts(c.endpoints))
	if err != nil {
		return err
	}
	for _, o := range a.Objects {
		was, found := a.Stored(o)
		writeDiff(out, o, was, found)
	}
	for _, notice := range a.Notices {
		fmt.Fprintln(out, "note:", notice)
	}
	if dryRun || len(a.Differs) == 0 {
		fmt.Fprintf(out, "%d of %d objects differ\n", len(a.Differs), len(objects))
		if len(a.Differs) > 0 {
			return errDiffers
		}
		return nil
	}
	revision, err := a.Write(ctx, client, operation.Author{})
	if err == nil {
		fmt.Fprintf(out, "%d of %d objects written at revision %d\n", len(a.Differs), len(objects), revision)
	}
	return err
}
