package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"github.com/medway-lb/medway/coordinator/internal/operation"
	"github.com/medway-lb/medway/pkg/intent"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
	"github.com/medway-lb/medway/proto/medway/v1/medwayv1connect"
)

// errDiffers ends a --dry-run where something would be written.
var errDiffers = errors.New("what is stored differs")

func apply(t *tool) *cobra.Command {
	var paths []string
	a := applying{tool: t}
	cmd := &cobra.Command{
		Use:   "apply -f FILE|DIR|-",
		Short: "Load VIPs, pools, backends and settings from YAML files",
		Long: `Load objects from a YAML file, from all *.yaml and *.yml files of a directory, or
with "-" from standard input, after checking every one of them, by itself and
beside what is stored: if one is wrong, all that is wrong is said and nothing is
written. An object is replaced as a whole. What is in etcd and not in the files
stays; delete it with etcdctl del. (A VIP that is deleted ends its calls.)

With --dry-run it shows what would change in etcd, and in the kernel of every node.
--revision refuses where somebody has changed an object since you looked: medwayctl
show tells of which revision it is.

Exit status: 0 done, or with --dry-run nothing to do; 1 an error; 2 with
--dry-run: something would be written.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			objects, err := intent.Read(paths, cmd.InOrStdin())
			if err == nil {
				err = a.form.check()
			}
			if err != nil {
				return err
			}
			return a.run(cmd.Context(), objects, cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringArrayVarP(&paths, "filename", "f", nil, "`file` or directory to load, or - for standard input; may be repeated")
	cmd.Flags().BoolVar(&a.dryRun, "dry-run", false, "show the difference and write nothing")
	cmd.Flags().StringToInt64Var(&a.revisions, "revision", nil, "refuse unless an object is of this revision: `KEY=NUMBER`, such as vips/sip-1=4711; 0: unless it is new")
	a.form.flag(cmd)
	completeWith(cmd, "revision")
	_ = cmd.MarkFlagRequired("filename")
	return cmd
}

// applying is one run of apply.
type applying struct {
	*tool
	form      form
	dryRun    bool
	revisions map[string]int64
}

// run writes what differs, in transactions that fail if someone else has changed one
// of their objects in between.
func (a *applying) run(ctx context.Context, objects []intent.Object, out io.Writer) error {
	have, err := a.look(ctx)
	if err != nil {
		return err
	}
	// Here too where a coordinator does it: errors have the places of these files.
	wanted, err := operation.Apply(have.Contents, objects, a.reserved())
	if err != nil {
		return err
	}
	answer, err := a.have(ctx, wanted)
	if err != nil {
		return err
	}
	err = a.form.write(out, answer, func() error { return a.tell(out, wanted, answer) })
	if err == nil && a.dryRun && len(answer.Changes) > 0 {
		return errDiffers
	}
	return err
}

// reserved are addresses that no VIP may have; a coordinator knows its own.
func (a *applying) reserved() map[netip.Addr]string {
	if a.etcd {
		return store.Hosts(a.endpoints)
	}
	return nil
}

// have has it done by a coordinator, or does it on etcd.
func (a *applying) have(ctx context.Context, wanted *operation.Applying) (*medwayv1.ApplyResponse, error) {
	if !a.etcd {
		var documents [][]byte
		for _, o := range wanted.Objects {
			documents = append(documents, o.JSON())
		}
		return ask(ctx, a.tool, a.dryRun, medwayv1connect.CoordinatorClient.Apply, &medwayv1.ApplyRequest{
			Documents: string(bytes.Join(documents, []byte("\n---\n"))), Revisions: a.revisions, DryRun: a.dryRun,
		})
	}
	if err := wanted.Expect(a.revisions); err != nil {
		return nil, flagError(err)
	}
	answer := wanted.Answer()
	if a.dryRun || len(wanted.Differs) == 0 {
		return answer, nil
	}
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	var err error
	answer.Revision, err = wanted.Write(ctx, a.client, operation.Author{})
	return answer, err
}

func (a *applying) tell(out io.Writer, wanted *operation.Applying, answer *medwayv1.ApplyResponse) error {
	changes := map[string]*medwayv1.ObjectChange{}
	for _, c := range answer.Changes {
		changes[state.Prefix+c.Key] = c
	}
	for _, o := range wanted.Objects {
		was, found := o.Value, true // it stays as it is
		if c := changes[o.Key.String()]; c != nil {
			was, found = []byte(c.GetBefore()), c.Before != nil
		}
		writeDiff(out, o, was, found)
	}
	for _, notice := range answer.Notices {
		fmt.Fprintln(out, "note:", state.Line(notice))
	}
	if a.dryRun {
		section(out, "In the kernels of nodes", preview(answer.Preview))
	}
	if answer.Revision == 0 {
		fmt.Fprintf(out, "%d of %d objects differ\n", len(answer.Changes), len(wanted.Objects))
		return nil
	}
	fmt.Fprintf(out, "%d of %d objects written at revision %d\n", len(answer.Changes), len(wanted.Objects), answer.Revision)
	return nil
}

// preview is a line for each object of a node's kernel.
func preview(changes []*medwayv1.NodeChange) (lines []string) {
	for _, c := range changes {
		line := map[string]string{"create": "+", "update": "~", "delete": "-"}[c.Op] + " " + c.Node + ": " + c.Object
		switch c.Op {
		case "update":
			line += ": " + c.Before + " -> " + c.After
		case "create":
			line += " " + c.After
		}
		lines = append(lines, strings.TrimSpace(line))
	}
	return lines
}
