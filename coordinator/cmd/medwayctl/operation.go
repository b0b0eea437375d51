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
	*tool
	author operation.Author
	dryRun bool
	form   form
	out    io.Writer
}

// flags adds the flags that all changes have; those that take a reason have
// --reason.
func (o *operator) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.author.By, "by", person(), "with --etcd: `who` does it, for the history; a coordinator knows by the token")
	o.reasonFlag(cmd)
	cmd.Flags().BoolVar(&o.dryRun, "dry-run", false, "show what would be written and write nothing")
	completeWith(cmd, "by")
	o.form.flag(cmd)
}

func (o *operator) reasonFlag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.author.Reason, "reason", "", "`why`, for others and for the history")
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
	o.out = cmd.OutOrStdout()
	// One that must be given must say something.
	if f := cmd.Flag("reason"); f != nil && f.Changed && strings.TrimSpace(o.author.Reason) == "" && f.Annotations[cobra.BashCompOneRequiredFlag] != nil {
		return fmt.Errorf("flag --reason: value %s: expected a few words", state.Quote(o.author.Reason))
	}
	author := o.author
	switch by := cmd.Flag("by"); {
	case by != nil && o.etcd:
	case by != nil && by.Changed:
		return errors.New("flag --by: a coordinator knows by the token who you are: expected --etcd beside it")
	default:
		author.By = "whose token it is"
	}
	return errors.Join(o.form.check(), flagError(author.Check()))
}

// asked has a coordinator make a change.
type asked = func(context.Context) (*medwayv1.ChangeResponse, error)

// change has a change made by a coordinator, or makes it on etcd, and tells.
func (o *operator) change(cmd *cobra.Command, ask asked, make func(*operation.Contents) (*operation.Change, error)) (*medwayv1.ChangeResponse, error) {
	if err := o.check(cmd); err != nil {
		return nil, err
	}
	if o.etcd {
		ask = func(ctx context.Context) (*medwayv1.ChangeResponse, error) { return o.onEtcd(ctx, make) }
	}
	answer, err := ask(cmd.Context())
	if err != nil {
		return nil, err
	}
	return answer, o.tell(answer)
}

// onEtcd is what a coordinator does with a change.
func (o *operator) onEtcd(ctx context.Context, make func(*operation.Contents) (*operation.Change, error)) (*medwayv1.ChangeResponse, error) {
	have, err := o.look(ctx)
	if err != nil {
		return nil, err
	}
	c, err := make(have.Contents)
	if err != nil {
		return nil, flagError(err)
	}
	answer := &medwayv1.ChangeResponse{Notes: c.Notes}
	switch {
	case c.Already != "":
		answer.Done, answer.Revision = c.Already, c.Since
	case o.dryRun:
		answer.Diff = c.Diff()
	default:
		ctx, cancel := context.WithTimeout(ctx, o.timeout)
		defer cancel()
		if answer.Revision, err = c.Commit(ctx, o.client, o.author); err != nil {
			return nil, err
		}
		answer.Done = c.Done(answer.Revision)
	}
	return answer, nil
}

// tell shows what a change has done, or would do.
func (o *operator) tell(answer *medwayv1.ChangeResponse) error {
	err := o.form.write(o.out, answer, func() error {
		for _, line := range answer.Diff {
			fmt.Fprintln(o.out, state.Line(line))
		}
		if answer.Done != "" {
			fmt.Fprintln(o.out, state.Line(answer.Done))
		}
		for _, note := range answer.Notes {
			fmt.Fprintln(o.out, "note:", state.Line(note))
		}
		return nil
	})
	if err == nil && answer.Done == "" {
		return errDiffers
	}
	return err
}

// progress is where it is shown how something goes on: not in what a program reads.
func (o *operator) progress(cmd *cobra.Command) io.Writer {
	if o.form.forPeople() {
		return cmd.OutOrStdout()
	}
	return cmd.ErrOrStderr()
}

// argument are fields that a person gives without a flag.
var argument = map[string]string{"vip": "VIP", "site": "site", "node": "node", "backend": "backend"}

// flagError names a field that a person gave by its flag.
func flagError(err error) error {
	f := state.FieldError{}
	if !errors.As(err, &f) {
		return err
	}
	name, _, _ := strings.Cut(f.Field, "[")
	f.Field = ""
	if what, ok := argument[name]; ok {
		return fmt.Errorf("%s: %w", what, f)
	}
	return fmt.Errorf("flag --%s: %w", strings.ReplaceAll(name, "_", "-"), f)
}

func keysOf[V any](m map[string]V) map[string]bool {
	out := map[string]bool{}
	for k := range m {
		out[k] = true
	}
	return out
}

// completer offers the shell names that are there, for an argument or a flag.
func completer(t *tool, most int, names func(p *picture, args []string) []string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if most > 0 && len(args) >= most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completionTime)
		defer cancel()
		defer t.close()
		have, err := t.look(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		// What nodes say may hold anything, and a shell would obey it.
		rest := slices.DeleteFunc(names(have, args), func(name string) bool { return slices.Contains(args, name) || state.CheckName(name) != nil })
		return rest, cobra.ShellCompDirectiveNoFileComp
	}
}

func allVIPs(h *picture, _ []string) []string { return vipNames(h.Snapshot, h.Said) }

func allNodes(h *picture, _ []string) []string {
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

// unreachable says of an error that nobody could be asked.
func unreachable(err error) bool {
	var none *unreachableError
	return store.Disconnected(err) || errors.As(err, &none)
}

// until looks again and again until it sees what is waited for, and shows each
// line that is new. That nobody can be asked ends nothing.
func (t *tool) until(ctx context.Context, limit time.Duration, show display, seen func(*picture) (line string, done bool, err error)) error {
	looking, cancel := ctx, context.CancelFunc(func() {})
	if limit > 0 {
		looking, cancel = context.WithTimeout(ctx, limit)
	}
	defer cancel()
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	defer show.close()
	for last := ""; ; {
		line, done := "", false
		p, err := t.look(looking)
		if err == nil {
			line, done, err = seen(p)
		}
		switch {
		case err == nil:
		case looking.Err() != nil:
			line = last
		case !unreachable(err):
			return err
		case t.etcd:
			line = "etcd can't be reached"
		default:
			line = "no coordinator can be reached"
		}
		last = state.Line(line)
		if looking.Err() == nil {
			show.line(last)
		}
		if done {
			return nil
		}
		select {
		case <-looking.Done():
			if ctx.Err() != nil {
				return errNotYet
			}
			return fmt.Errorf("%w: waited %s: %s", errNotYet, limit, last)
		case <-ticker.C:
		}
	}
}

// living are the nodes that hold their lease.
func living(p *picture) map[string]bool { return keysOf(p.Alive) }
