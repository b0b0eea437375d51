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
	"github.com/medway-lb/medway/pkg/store"
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
}

func forget(c *connection) *cobra.Command {
	f := forgetting{operator: operator{connection: c}}
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
			return f.do(cmd, f.run)
		},
	}
	f.flags(cmd)
	_ = cmd.MarkFlagRequired("reason")
	cmd.Flags().BoolVar(&f.Delete, "delete", false, "remove all that is stored of the node: it is gone for good")
	cmd.Flags().BoolVar(&f.yes, "yes", false, "you have looked: no router has a route of the node's")
	cmd.Flags().DurationVar(&f.keep, "routers-keep", operation.RoutersKeep, "how long routers keep the routes of a dead host")
	cmd.ValidArgsFunction = completer(c, 1, func(h *operation.Contents, _ []string) []string {
		return slices.DeleteFunc(operation.NodeNames(h.Snapshot, h.Said), func(n string) bool { return h.Has(state.Key{Kind: state.KindAlive, A: n}) })
	})
	return cmd
}

func (f *forgetting) run(ctx context.Context, client *store.Client, have *operation.Contents) error {
	all, err := f.Changes(have)
	switch {
	case err != nil:
		return err
	case len(all) == 0:
		fmt.Fprintf(f.out, "%s: nothing of it stands in anybody's way\n", f.Node)
		return nil
	case f.dryRun:
		return f.show(all...)
	}
	if err := f.Watch(ctx, client, f.keep, f.report(), f.confirm); err != nil {
		if errors.Is(err, context.Canceled) {
			return errDeclined
		}
		return err
	}
	// They may have changed meanwhile, such as by a person.
	if have, err = f.load(ctx, client); err != nil {
		return err
	}
	if all, err = f.Changes(have); err != nil {
		return err
	}
	return f.write(ctx, client, all)
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
		fmt.Fprintf(f.out, "%s: %s\n", f.Node, text)
	}
}

// confirm asks a person to see what nobody can see from here.
func (f *forgetting) confirm(ctx context.Context) error {
	if f.yes {
		return nil
	}
	fmt.Fprintf(f.out, `Look at every router that has sessions with %[1]s: if one of them still has a route from
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

func (f *forgetting) write(ctx context.Context, client *store.Client, all []*operation.Change) error {
	written, err := f.Write(ctx, client, all, f.author, f.timeout)
	if err != nil {
		return err
	}
	if f.Delete {
		fmt.Fprintf(f.out, "%s: deleted, keys removed: %d\n", f.Node, written)
		fmt.Fprintf(f.out, "note: its user in etcd is there yet: medwayctl init-etcd --prune, with all who stay\n")
		return nil
	}
	fmt.Fprintf(f.out, "%s: forgotten, keys written: %d\n", f.Node, written)
	return nil
}
