package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/medway-lb/medway/coordinator/internal/operation"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// errNotYet ends a command whose change is made, and whose effect did not come in
// the time that it was waited for.
var errNotYet = errors.New("what was written stands, but is not carried out yet")

// operator is a person who makes a change: who, why, or whether only to look.
type operator struct {
	*connection
	author operation.Author
	dryRun bool
	out    io.Writer
}

// flags adds the flags that all changes have; those that take a reason have
// --reason.
func (o *operator) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.author.By, "by", person(), "`who` does it, for the history")
	cmd.Flags().StringVar(&o.author.Reason, "reason", "", "`why`, for others and for the history")
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
func (o *operator) check(cmd *cobra.Command) error {
	// One that must be given must say something.
	if f := cmd.Flag("reason"); f.Changed && strings.TrimSpace(o.author.Reason) == "" && f.Annotations[cobra.BashCompOneRequiredFlag] != nil {
		return fmt.Errorf("flag --reason: value %s: expected a few words", state.Quote(o.author.Reason))
	}
	return flagError(o.author.Check())
}

// do checks, reads all that is stored, and has the change made.
func (o *operator) do(cmd *cobra.Command, f func(context.Context, *store.Client, *operation.Contents) error) error {
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

func (o *operator) load(ctx context.Context, client *store.Client) (*operation.Contents, error) {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	return operation.Load(ctx, client)
}

// make has a change made, or shown with --dry-run.
func (o *operator) make(ctx context.Context, client *store.Client, c *operation.Change, err error) (revision int64, _ error) {
	if err != nil {
		return 0, flagError(err)
	}
	if c.Already != "" {
		fmt.Fprintln(o.out, c.Already)
		return c.Since, nil
	}
	if o.dryRun {
		err = o.show(c)
	} else {
		ctx, cancel := context.WithTimeout(ctx, o.timeout)
		defer cancel()
		if revision, err = c.Commit(ctx, client, o.author); err != nil {
			return 0, err
		}
		fmt.Fprintln(o.out, c.Done(revision))
	}
	for _, note := range c.Notes {
		fmt.Fprintln(o.out, "note:", note)
	}
	return revision, err
}

// show tells what changes would do, key by key.
func (o *operator) show(all ...*operation.Change) error {
	for _, c := range all {
		for _, line := range c.Diff() {
			fmt.Fprintln(o.out, line)
		}
	}
	return errDiffers
}

// flagError names a field that a person gave by its flag.
func flagError(err error) error {
	if f := (state.FieldError{}); errors.As(err, &f) {
		name := f.Field
		f.Field = ""
		return fmt.Errorf("flag --%s: %w", name, f)
	}
	return err
}

func keysOf[V any](m map[string]V) map[string]bool {
	out := map[string]bool{}
	for k := range m {
		out[k] = true
	}
	return out
}

// completer offers the shell names that etcd has, for an argument or a flag.
func completer(c *connection, most int, names func(h *operation.Contents, args []string) []string) cobra.CompletionFunc {
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
		have, err := operation.Load(ctx, client)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		// What nodes say may hold anything, and a shell would obey it.
		rest := slices.DeleteFunc(names(have, args), func(name string) bool { return slices.Contains(args, name) || state.CheckName(name) != nil })
		return rest, cobra.ShellCompDirectiveNoFileComp
	}
}

func allVIPs(h *operation.Contents, _ []string) []string { return vipNames(h.Snapshot, h.Said) }

func allNodes(h *operation.Contents, _ []string) []string {
	return operation.NodeNames(h.Snapshot, h.Said)
}

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
func (o *operator) until(ctx context.Context, limit time.Duration, look func(context.Context) (line string, done bool, err error)) error {
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
