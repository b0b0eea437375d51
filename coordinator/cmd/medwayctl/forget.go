package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// routersKeep is how long routers hold a dead host's routes with the agent's
// defaults: hold time and graceful restart time.
const routersKeep = 9*time.Second + 120*time.Second

// errDeclined ends what a person did not confirm.
var errDeclined = errors.New("not confirmed: nothing was written")

// forgetting is one run of forget.
type forgetting struct {
	operation
	node, aliveKey string
	delete, yes    bool
	keep           time.Duration
	in             io.Reader
	client         *store.Client
}

func forget(c *connection) *cobra.Command {
	f := forgetting{operation: operation{connection: c}}
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
			f.node, f.in = args[0], cmd.InOrStdin()
			f.aliveKey = state.Key{Kind: state.KindAlive, A: f.node}.String()
			return f.do(cmd, f.run)
		},
	}
	f.flags(cmd)
	_ = cmd.MarkFlagRequired("reason")
	cmd.Flags().BoolVar(&f.delete, "delete", false, "remove all that is stored of the node: it is gone for good")
	cmd.Flags().BoolVar(&f.yes, "yes", false, "you have looked: no router has a route of the node's")
	cmd.Flags().DurationVar(&f.keep, "routers-keep", routersKeep, "how long routers keep the routes of a dead host")
	cmd.ValidArgsFunction = completer(c, 1, func(h *contents, _ []string) []string {
		return slices.DeleteFunc(nodeNames(h.Snapshot, h.nodes), func(n string) bool { return h.has(state.Key{Kind: state.KindAlive, A: n}) })
	})
	return cmd
}

func (f *forgetting) run(ctx context.Context, client *store.Client, have *contents) error {
	f.client = client
	if state.CheckName(f.node) != nil || !slices.Contains(nodeNames(have.Snapshot, have.nodes), f.node) && len(f.keys(have)) == 0 {
		return fmt.Errorf("node %s does not exist", state.Quote(f.node))
	}
	if _, alive := have.entries[f.aliveKey]; alive {
		return f.lives()
	}
	all := f.changes(have)
	switch {
	case len(all) == 0:
		fmt.Fprintf(f.out, "%s: nothing of it stands in anybody's way\n", f.node)
		return nil
	case f.dryRun:
		for _, c := range all {
			f.show(have, c)
		}
		return errDiffers
	}
	if err := f.watch(ctx); err != nil {
		return err
	}
	// They may have changed meanwhile, such as by a person.
	have, err := f.load(ctx, client)
	if err != nil {
		return err
	}
	return f.write(ctx, have)
}

func (f *forgetting) lives() error {
	return fmt.Errorf("node %s lives (%s exists): nothing was written; to take it out of service use medwayctl node drain %s, "+
		"and a host that was switched off is dead when its lease has run out", f.node, f.aliveKey, f.node)
}

// keys are those that are the node's own, but for its sign of life.
func (f *forgetting) keys(have *contents) (keys []string) {
	for _, kind := range []state.Kind{state.KindNode, state.KindJoined, state.KindDrain} {
		if k := (state.Key{Kind: kind, A: f.node}); have.has(k) {
			keys = append(keys, k.String())
		}
	}
	if key := state.StatusPrefix + f.node; have.entries[key].Key != "" {
		keys = append(keys, key)
	}
	return keys
}

// claims are the keys of the node's claims.
func (f *forgetting) claims(have *contents) (keys []string) {
	prefix := state.Key{Kind: state.KindClaim, A: f.node}.String() + "/"
	for key := range have.entries {
		if strings.HasPrefix(key, prefix) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

// changes are what is left to do, claims first: as long as one of them is left,
// the node is known.
func (f *forgetting) changes(have *contents) (all []change) {
	none := state.Encode(&medwayv1.Claim{Med: state.NoMED.String()})
	c := change{}
	next := func() {
		if len(c.puts)+len(c.deletes) > 0 {
			c.guards = append(c.guards, store.Guard{Key: f.aliveKey})
			all = append(all, c)
		}
		c = change{}
	}
	for _, key := range f.claims(have) {
		if f.delete {
			c.delete(have, key)
		} else if k, err := state.ParseKey(key); err == nil {
			if claim := have.Claims[state.ClaimKey{Node: k.A, VIP: k.B}]; claim.MED == state.NoMED && !claim.Malformed {
				continue
			}
			c.put(have, k, none)
		}
		if len(c.guards) >= store.MaxOps-8 { // room for the last ones and the event
			next()
		}
	}
	joined := state.Key{Kind: state.KindJoined, A: f.node}
	_, isNode := have.Nodes[f.node]
	switch {
	case f.delete:
		for _, key := range f.keys(have) {
			c.delete(have, key)
		}
	case isNode && plan.Joins(have.Snapshot, f.node):
		// It can't write its claims anew (PROTOCOL R13).
		c.guard(have, state.Key{Kind: state.KindEpoch}.String())
		c.put(have, joined, []byte(have.Epoch.Word))
	}
	next()
	return all
}

// watch sees to it that the node stays dead for as long as routers keep its
// routes, and has a person say that none does.
func (f *forgetting) watch(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var follower sync.WaitGroup
	defer follower.Wait()
	defer cancel(nil)
	watching := make(chan struct{})
	follower.Go(func() {
		first := sync.OnceFunc(func() { close(watching) })
		// It sees each change, so a node that comes back for a moment, too.
		_ = f.client.Follow(ctx, state.Key{Kind: state.KindAlive}.String()+"/", func(u store.Update) {
			defer first()
			if slices.ContainsFunc(u.Put, func(e store.Entry) bool { return e.Key == f.aliveKey }) {
				cancel(f.lives())
			}
		})
	})
	select {
	case <-ctx.Done():
		return f.ended(ctx)
	case <-watching:
	}
	end := time.Now().Add(f.keep)
	fmt.Fprintf(f.out, "%s: is dead; watches that it stays so for %s, until no router has its routes any more\n", f.node, f.keep)
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for told := time.Now(); f.client.Fresh().Before(end); {
		select {
		case <-ctx.Done():
			return f.ended(ctx)
		case <-f.client.Refreshed():
		case <-ticker.C:
		}
		if left := time.Until(end); time.Since(told) >= 10*time.Second {
			text := fmt.Sprintf("%s left", left.Round(time.Second))
			if time.Since(f.client.Fresh()) > f.timeout {
				text = "etcd can't be reached, waits for it"
			}
			fmt.Fprintf(f.out, "%s: %s\n", f.node, text)
			told = time.Now()
		}
	}
	if err := f.confirm(ctx); err != nil {
		return err
	}
	return f.ended(ctx)
}

// ended is why a watch came to its end before its time, nil where it did not.
func (f *forgetting) ended(ctx context.Context) error {
	switch cause := context.Cause(ctx); {
	case cause == nil:
		return nil
	case errors.Is(cause, context.Canceled):
		return errDeclined
	default:
		return cause
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
Type the node's name to forget it: `, f.node)
	line := make(chan string, 1)
	go func() { // a read of a terminal can't be interrupted
		text, _ := bufio.NewReader(f.in).ReadString('\n')
		line <- strings.TrimSpace(text)
	}()
	select {
	case <-ctx.Done():
		return f.ended(ctx)
	case text := <-line:
		if text != f.node {
			return errDeclined
		}
		return nil
	}
}

// write makes the changes; each of them fails if the node lives again.
func (f *forgetting) write(ctx context.Context, have *contents) error {
	all := f.changes(have)
	written := 0
	for i, c := range all {
		var event *medwayv1.Event
		if i == len(all)-1 {
			event = &medwayv1.Event{What: "forget " + f.node}
			if f.delete {
				event.What = "delete " + f.node
			}
		}
		if _, err := f.commit(ctx, f.client, have, c, "", event); err != nil {
			return fmt.Errorf("%d keys were written before: %w", written, err)
		}
		written += len(c.puts) + len(c.deletes)
	}
	if f.delete {
		fmt.Fprintf(f.out, "%s: deleted, keys removed: %d\n", f.node, written)
		fmt.Fprintf(f.out, "note: its user in etcd is there yet: medwayctl init-etcd --prune, with all who stay\n")
		return nil
	}
	fmt.Fprintf(f.out, "%s: forgotten, keys written: %d\n", f.node, written)
	return nil
}
