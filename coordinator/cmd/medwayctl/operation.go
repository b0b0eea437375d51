package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/user"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// errNotYet ends a command whose change is made, and whose effect did not come in
// the time that it was waited for.
var errNotYet = errors.New("what was written stands, but is not carried out yet")

// contents is all that is stored, typed, with the keys as they stand.
type contents struct {
	*state.Snapshot
	nodes   []*medwayv1.Status
	entries map[string]store.Entry
}

// has tells whether a key exists, whatever its value.
func (h *contents) has(k state.Key) bool {
	_, found := h.entries[k.String()]
	return found
}

// operation is a change that a person makes: who, why, or whether only to look.
type operation struct {
	*connection
	by, reason string
	dryRun     bool
	out        io.Writer
}

// flags adds the flags that all changes have; those that take a reason have
// --reason.
func (o *operation) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.by, "by", person(), "`who` does it, for the history")
	cmd.Flags().StringVar(&o.reason, "reason", "", "`why`, for others and for the history")
	cmd.Flags().BoolVar(&o.dryRun, "dry-run", false, "show what would be written and write nothing")
	completeWith(cmd, "by")
	completeWith(cmd, "reason")
}

// person is whoever runs the tool; behind sudo that is not root.
func person() string {
	if name := os.Getenv("SUDO_USER"); name != "" {
		return name
	}
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return "unknown"
}

// check looks at the flags; the words in them are stored.
func (o *operation) check(cmd *cobra.Command) error {
	// One that must be given must say something.
	if f := cmd.Flag("reason"); f.Changed && strings.TrimSpace(o.reason) == "" && f.Annotations[cobra.BashCompOneRequiredFlag] != nil {
		return fmt.Errorf("flag --reason: value %s: expected a few words", state.Quote(o.reason))
	}
	for _, f := range []struct{ name, value string }{{"--by", o.by}, {"--reason", o.reason}} {
		if len(f.value) > 200 || state.Line(f.value) != f.value {
			return fmt.Errorf("flag %s: value %s: expected at most 200 bytes of text that can be printed", f.name, state.Quote(f.value))
		}
	}
	if o.by == "" {
		return errors.New("flag --by: expected a name")
	}
	return nil
}

// do checks, reads all that is stored, and has the change made.
func (o *operation) do(cmd *cobra.Command, f func(context.Context, *store.Client, *contents) error) error {
	if err := o.check(cmd); err != nil {
		return err
	}
	o.out = cmd.OutOrStdout()
	client, err := o.open()
	if err != nil {
		return err
	}
	defer client.Close()
	have, err := o.load(cmd.Context(), client)
	if err != nil {
		return err
	}
	return f(cmd.Context(), client, have)
}

func (o *operation) load(ctx context.Context, client *store.Client) (*contents, error) {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	return load(ctx, client)
}

// change is what one transaction does, if every key in it is still as it was read.
type change struct {
	guards  []store.Guard
	puts    []store.Put
	deletes []string
}

func (c *change) guard(have *contents, key string) {
	c.guards = append(c.guards, store.Guard{Key: key, ModRevision: have.entries[key].ModRevision})
}

func (c *change) put(have *contents, key state.Key, value []byte) {
	c.guard(have, key.String())
	c.puts = append(c.puts, store.Put{Key: key.String(), Value: value})
}

func (c *change) delete(have *contents, key string) {
	c.guard(have, key)
	c.deletes = append(c.deletes, key)
}

// commit makes a change, together with its event in the history of a VIP, "" for
// all. A nil event is none. With --dry-run it shows the change.
func (o *operation) commit(ctx context.Context, client *store.Client, have *contents, c change, vip string, event *medwayv1.Event) (revision int64, err error) {
	if o.dryRun {
		o.show(have, c)
		return 0, errDiffers
	}
	var keys []string
	for _, g := range c.guards {
		keys = append(keys, g.Key)
	}
	if event != nil {
		event.By, event.Reason = o.by, o.reason
		key, value := state.EncodeEvent(vip, time.Now(), event)
		c.guards = append(c.guards, store.Guard{Key: key})
		c.puts = append(c.puts, store.Put{Key: key, Value: value})
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	committed, revision, err := client.Commit(ctx, c.guards, c.puts, c.deletes)
	switch {
	case err != nil && !errors.Is(err, store.ErrRefused):
		return 0, fmt.Errorf("it is not known whether this was written, look with medwayctl status: %w", err)
	case err != nil:
		return 0, err
	case !committed:
		return 0, fmt.Errorf("nothing was written: somebody else changed %s at the same time: look again with medwayctl status", shortList(keys))
	}
	return revision, nil
}

// show tells what a change would do, key by key.
func (o *operation) show(have *contents, c change) {
	for _, key := range c.deletes {
		fmt.Fprintf(o.out, "- %s\n", state.Printable(key))
	}
	for _, p := range c.puts {
		mark := "+"
		if _, found := have.entries[p.Key]; found {
			mark = "~"
		}
		fmt.Fprintf(o.out, "%s %s: %s\n", mark, state.Printable(p.Key), p.Value)
	}
}

// shortList names a few and counts the rest.
func shortList(names []string) string {
	const most = 5
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}

// checkVIP says whether a VIP is in the plan.
func (h *contents) checkVIP(name string) error {
	if _, ok := h.VIPs[name]; ok {
		return nil
	}
	if h.has(state.Key{Kind: state.KindVIP, A: name}) {
		return fmt.Errorf("VIP %q: its key can't be read: see medwayctl status", name)
	}
	return fmt.Errorf("VIP %s does not exist", state.Quote(name))
}

// checkSchema holds back a kind of key that a node doesn't know.
func (h *contents) checkSchema(nodes ...string) error {
	const since = 3 // drains and pauses
	for _, name := range nodes {
		if n := h.Nodes[name]; n.Schema < since {
			return fmt.Errorf("node %s knows schema %d, expected %d: upgrade its agent first", name, n.Schema, since)
		}
	}
	return nil
}

// ableIn tells whether a node of a site, other than the one named, could take a
// VIP's traffic.
func (h *contents) ableIn(site, vip, other string) bool {
	return slices.ContainsFunc(h.NodesOf(site, h.VIPs[vip].Groups[site]), func(n string) bool {
		return n != other && plan.Able(h.Snapshot, n, vip)
	})
}

// ableAnywhere is ableIn of all sites.
func (h *contents) ableAnywhere(vip, other string) bool {
	for site := range h.VIPs[vip].Groups {
		if h.ableIn(site, vip, other) {
			return true
		}
	}
	return false
}

// describeOrder is a drain or a pause in words.
func describeOrder(o state.Order) string {
	if o.Malformed {
		return "why can't be read"
	}
	return describe(state.Lock{Since: o.Since, By: o.By, Reason: o.Reason})
}

// nodeNames are all nodes that anything is known of.
func nodeNames(s *state.Snapshot, nodes []*medwayv1.Status) []string {
	names := map[string]bool{}
	for _, of := range []map[string]bool{keysOf(s.Nodes), keysOf(s.Alive), keysOf(s.Drains), keysOf(s.Joined)} {
		maps.Copy(names, of)
	}
	for k := range s.Claims {
		names[k.Node] = true
	}
	for _, n := range nodes {
		names[n.Node] = true
	}
	return slices.Sorted(maps.Keys(names))
}

func keysOf[V any](m map[string]V) map[string]bool {
	out := map[string]bool{}
	for k := range m {
		out[k] = true
	}
	return out
}

// completer offers the shell names that etcd has, for an argument or a flag.
func completer(c *connection, most int, names func(h *contents, args []string) []string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if most > 0 && len(args) >= most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completionTime)
		defer cancel()
		client, err := c.open()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer client.Close()
		have, err := load(ctx, client)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		// What nodes say may hold anything, and a shell would obey it.
		rest := slices.DeleteFunc(names(have, args), func(name string) bool { return slices.Contains(args, name) || state.CheckName(name) != nil })
		return rest, cobra.ShellCompDirectiveNoFileComp
	}
}

func allVIPs(h *contents, _ []string) []string { return vipNames(h.Snapshot, h.nodes) }

func allNodes(h *contents, _ []string) []string { return nodeNames(h.Snapshot, h.nodes) }

// waiting is how a command waits for what it has written to be carried out.
type waiting struct {
	on    bool
	limit time.Duration
}

func (w *waiting) flags(cmd *cobra.Command, name, what string) {
	cmd.Flags().BoolVar(&w.on, name, false, what)
	cmd.Flags().DurationVar(&w.limit, "timeout", 0, "how long --"+name+" may take; 0s: no end")
}

func (w *waiting) check(cmd *cobra.Command, name string, dryRun bool) error {
	switch {
	case w.limit < 0:
		return fmt.Errorf("flag --timeout: value %s: expected 0s or more", w.limit)
	case cmd.Flags().Changed("timeout") && !w.on:
		return fmt.Errorf("flag --timeout: value %s: expected --%s beside it", w.limit, name)
	case w.on && dryRun:
		return fmt.Errorf("flag --%s: nothing is written with --dry-run, so there is nothing to wait for", name)
	}
	return nil
}

// pollInterval is how often etcd is looked at; nodes write their status once a
// second at most.
const pollInterval = 500 * time.Millisecond

// until looks again and again until it sees what is waited for, and shows each
// line that is new. That etcd can't be reached ends nothing.
func (o *operation) until(ctx context.Context, limit time.Duration, look func(context.Context) (line string, done bool, err error)) error {
	began, last := time.Now(), ""
	var over <-chan time.Time
	if limit > 0 {
		over = time.After(limit)
	}
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		one, cancel := context.WithTimeout(ctx, o.timeout)
		line, done, err := look(one)
		cancel()
		if err != nil && !store.Disconnected(err) && ctx.Err() == nil {
			return err
		}
		if err != nil {
			line = "etcd can't be reached"
		}
		if line != last && ctx.Err() == nil {
			fmt.Fprintf(o.out, "%5.1fs  %s\n", time.Since(began).Seconds(), state.Line(line))
			last = line
		}
		if done && err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errNotYet
		case <-over:
			return fmt.Errorf("%w: waited %s: %s", errNotYet, limit, state.Line(last))
		case <-ticker.C:
		}
	}
}

// statuses is what nodes said last, by node, without those that can't be read.
func statuses(ctx context.Context, client *store.Client) ([]*medwayv1.Status, error) {
	entries, _, err := client.List(ctx, state.StatusPrefix)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", state.StatusPrefix, err)
	}
	var out []*medwayv1.Status
	for _, e := range entries {
		if s, err := state.DecodeStatus(e.Value); err == nil {
			out = append(out, s)
		}
	}
	return out, nil
}

// living are the nodes that hold their lease.
func living(ctx context.Context, client *store.Client) (map[string]bool, error) {
	prefix := state.Key{Kind: state.KindAlive}.String() + "/"
	entries, _, err := client.List(ctx, prefix)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", prefix, err)
	}
	out := map[string]bool{}
	for _, e := range entries {
		if e.Lease != 0 {
			out[strings.TrimPrefix(e.Key, prefix)] = true
		}
	}
	return out, nil
}
