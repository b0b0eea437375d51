package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/medway-lb/medway/coordinator/internal/operation"
	"github.com/medway-lb/medway/pkg/state"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
	"github.com/medway-lb/medway/proto/medway/v1/medwayv1connect"
)

// errDeclined ends what a person did not confirm.
var errDeclined = errors.New("not confirmed: nothing was written")

// forgetting is one run of forget.
type forgetting struct {
	operator
	operation.Forgetting
	yes  bool
	keep time.Duration
	in   io.Reader
	said io.Writer // what is said meanwhile
}

func forget(t *tool) *cobra.Command {
	f := forgetting{operator: operator{tool: t}}
	cmd := &cobra.Command{
		Use:   "forget NODE",
		Short: "Let go of what a dead node may still announce",
		Long: `A node that died leaves its claims: others stay below the MEDs in them, since routers
may still hold its routes. For a host that won't come back soon, forget sets them to
"none", so that the others go back to the MEDs of the ladder; and it counts the node
as having joined after a restore of etcd. With --delete the node goes altogether: its
claims, its keys nodes/NODE, joined/NODE and node_drains/NODE and its status, and with
them the other nodes' tunnels to it.

NEVER forget a node that lives and is only cut off from etcd: two sites may then have
the same MED. forget refuses while the node holds its lease; it watches for as long as
routers keep a dead host's routes (--routers-keep, the BGP hold time plus the graceful
restart time of the node's sessions), counted from now, because etcd does not tell
since when it is dead; and it asks whether you have looked at the routers.

Exit status: 0 done, or nothing to do; 1 an error; 2 with --dry-run: something would be
written.`,
		Example: `  medwayctl forget dc1-lvs-a --reason "board is broken, host is off"
  medwayctl forget dc1-lvs-a --reason "host was sold" --delete`,
		Args: exactlyOne("a node"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if f.keep < time.Second {
				return fmt.Errorf("flag --routers-keep: value %s: expected 1s or more", f.keep)
			}
			f.Node, f.in = args[0], cmd.InOrStdin()
			if err := f.check(cmd); err != nil {
				return err
			}
			return f.run(cmd.Context(), f.progress(cmd))
		},
	}
	f.flags(cmd)
	_ = cmd.MarkFlagRequired("reason")
	cmd.Flags().BoolVar(&f.Delete, "delete", false, "remove all that is stored of the node: it is gone for good")
	cmd.Flags().BoolVar(&f.yes, "yes", false, "you have looked: no router has a route of the node's")
	cmd.Flags().DurationVar(&f.keep, "routers-keep", operation.RoutersKeep, "how long routers keep the routes of a dead host")
	cmd.ValidArgsFunction = completer(t, 1, func(h *picture, _ []string) []string {
		return slices.DeleteFunc(operation.NodeNames(h.Snapshot, h.Said), func(n string) bool { return h.Has(state.Key{Kind: state.KindAlive, A: n}) })
	})
	return cmd
}

func (f *forgetting) run(ctx context.Context, progress io.Writer) error {
	have, err := f.look(ctx)
	if err != nil {
		return err
	}
	all, err := f.Changes(have.Contents)
	switch {
	case err != nil:
		return err
	case len(all) == 0:
		return f.tell(&medwayv1.ChangeResponse{Done: f.Node + ": nothing of it stands in anybody's way"})
	case f.dryRun:
		answer := &medwayv1.ChangeResponse{}
		for _, c := range all {
			answer.Diff = append(answer.Diff, c.Diff()...)
		}
		return f.tell(answer)
	}
	f.said = progress
	var written int
	if f.etcd {
		written, err = f.byItself(ctx)
	} else {
		written, err = f.asked(ctx)
	}
	if err != nil {
		return err
	}
	answer := &medwayv1.ChangeResponse{Done: fmt.Sprintf("%s: forgotten, keys written: %d", f.Node, written)}
	if f.Delete {
		answer.Done = fmt.Sprintf("%s: deleted, keys removed: %d", f.Node, written)
		answer.Notes = []string{"its user in etcd is there yet: medwayctl init-etcd --prune, with all who stay"}
	}
	return f.tell(answer)
}

func (f *forgetting) byItself(ctx context.Context) (written int, err error) {
	if err := f.Watch(ctx, f.client, f.keep, f.report(), f.confirm); err != nil {
		if errors.Is(err, context.Canceled) {
			return 0, errDeclined
		}
		return 0, err
	}
	// They may have changed meanwhile, such as by a person.
	have, err := f.look(ctx)
	if err != nil {
		return 0, err
	}
	all, err := f.Changes(have.Contents)
	if err != nil {
		return 0, err
	}
	return f.Write(ctx, f.client, all, f.author, f.timeout)
}

// asked has a coordinator do it, which watches only once a person has looked.
func (f *forgetting) asked(ctx context.Context) (written int, err error) {
	if err := f.confirm(ctx); err != nil {
		if errors.Is(err, context.Canceled) {
			return 0, errDeclined
		}
		return 0, err
	}
	report, done := f.report(), false
	err = listen(ctx, f.tool, false, medwayv1connect.CoordinatorClient.Forget, &medwayv1.ForgetRequest{
		Node: f.Node, Reason: f.author.Reason, Delete: f.Delete, RoutersChecked: true, RoutersKeep: f.keep.String(),
	}, func(answer *medwayv1.ForgetResponse) error {
		if answer.Written != nil {
			written, done = int(*answer.Written), true
			return nil
		}
		left, _ := time.ParseDuration(answer.Left)
		report(left, true)
		return nil
	})
	if err == nil && !done {
		err = errBroken
	}
	if errors.Is(err, errBroken) {
		err = fmt.Errorf("%w: it is not known whether anything was written: do it again", err)
	}
	return written, err
}

// report tells how a watch goes.
func (f *forgetting) report() func(left time.Duration, reached bool) {
	first := true
	return func(left time.Duration, reached bool) {
		text := fmt.Sprintf("%s left", left.Round(time.Second))
		switch {
		case first:
			text = fmt.Sprintf("is dead; watches that it stays so for %s, until no router has its routes any more", f.keep)
		case !reached:
			text = "etcd can't be reached, waits for it"
		}
		first = false
		fmt.Fprintf(f.said, "%s: %s\n", f.Node, text)
	}
}

// confirm asks a person to see what nobody can see from here.
func (f *forgetting) confirm(ctx context.Context) error {
	if f.yes {
		return nil
	}
	fmt.Fprintf(f.said, `Look at every router that has sessions with %[1]s: if one of them still has a route from
it, or if the host may live and be cut off from etcd, stop here. Otherwise two sites may get
the same MED, and calls of the VIPs may be lost.
Type the node's name to forget it: `, f.Node)
	line := make(chan string, 1)
	go func() { // a read of a terminal can't be interrupted
		text, _ := bufio.NewReader(f.in).ReadString('\n')
		line <- strings.TrimSpace(text)
	}()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case text := <-line:
		if text != f.Node {
			return errDeclined
		}
		return nil
	}
}
