package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/medway-lb/medway/coordinator/internal/operation"
	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/state"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
	"github.com/medway-lb/medway/proto/medway/v1/medwayv1connect"
)

// move is a planned switchover that a person wants.
type move struct {
	operator
	from, to string
	force    []string
	drain    bool
	within   time.Duration
}

func (m *move) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&m.to, "to", "", "the `site` that should take the traffic")
	cmd.Flags().StringVar(&m.from, "from", "", "the `site` that has the traffic now; refused where it is another one")
	m.forceFlag(cmd)
	cmd.Flags().BoolVar(&m.drain, "drain", false, "then give the old site's backends no new connections until they are empty")
	cmd.Flags().DurationVar(&m.within, "drain-within", 0, "for how `long` at most; the default is the coordinator's")
	sites := completer(m.tool, 0, sitesOf)
	for _, flag := range []string{"to", "from"} {
		_ = cmd.RegisterFlagCompletionFunc(flag, sites)
	}
	cmd.ValidArgsFunction = completer(m.tool, 1, allVIPs)
}

func (m *move) forceFlag(cmd *cobra.Command) {
	cmd.Flags().StringSliceVar(&m.force, "force", nil, "`checks` of the preflight to override, separated by commas; it needs a --reason")
	var names []string
	for _, name := range plan.Forceable {
		names = append(names, string(name))
	}
	completeWith(cmd, "force", names...)
}

// sitesOf are the sites of the VIPs that are named, or of all.
func sitesOf(h *picture, args []string) []string {
	names := map[string]bool{}
	for vip, v := range h.VIPs {
		if len(args) == 0 || slices.Contains(args, vip) {
			maps.Copy(names, keysOf(v.Groups))
		}
	}
	return slices.Sorted(maps.Keys(names))
}

func (m *move) request(vip string) *medwayv1.SwitchRequest {
	r := &medwayv1.SwitchRequest{Vip: vip, From: m.from, To: m.to, Reason: m.author.Reason, Force: m.force, Drain: m.drain}
	if m.within != 0 {
		r.DrainWithin = m.within.String()
	}
	return r
}

// needsFrom refuses an order that does not say what it rests on.
func (m *move) needsFrom() error {
	if m.from == "" {
		return errors.New("flag --from: missing: expected the site that has the traffic now")
	}
	return nil
}

func preflight(t *tool) *cobra.Command {
	m := move{operator: operator{tool: t}}
	cmd := &cobra.Command{
		Use:   "preflight VIP --from SITE --to SITE",
		Short: "Look whether a planned switchover would be carried out",
		Long: `Look whether a planned switchover would be carried out: a line for each check, and for
each that is not passed what is wrong, where, and how to mend it (docs/switchover.md).

Exit status: 0 it would; 1 an error; 4 it would be refused.`,
		Example: `  medwayctl preflight sip-1 --from dc1 --to dc2`,
		Args:    exactlyOne("a VIP"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := errors.Join(m.onlyByCoordinator("preflight"), m.form.check(), m.needsFrom()); err != nil {
				return err
			}
			return m.preflight(cmd, args[0])
		},
	}
	m.flags(cmd)
	_ = cmd.MarkFlagRequired("to")
	m.form.flag(cmd)
	cmd.Flags().StringVar(&m.author.Reason, "reason", "", "`why`, which --force needs")
	return cmd
}

// preflight shows the checks, and returns an error where they refuse.
func (m *move) preflight(cmd *cobra.Command, vip string) error {
	answer, err := ask(cmd.Context(), m.tool, true, medwayv1connect.CoordinatorClient.Preflight, m.request(vip))
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	err = m.form.write(out, answer, func() error { return writeChecks(out, answer.Checks) })
	if err == nil && !answer.Ok {
		err = &refusedError{&medwayv1.Refusal{Checks: map[string]*medwayv1.Checks{vip: {Checks: answer.Checks}}}}
	}
	return err
}

func switchVIP(t *tool) *cobra.Command {
	m, w := move{operator: operator{tool: t}}, waiting{}
	cmd := &cobra.Command{
		Use:   "switch VIP --from SITE --to SITE",
		Short: "Move a VIP's traffic to another site",
		Long: `Have a coordinator carry out a planned switchover: it looks first whether that would
work (medwayctl preflight), puts the target, and follows until the new site has the
traffic alone. What is not taken over in time goes back by itself. --force overrides
checks by name, and needs a --reason. With --dry-run it only looks.

With --watch it shows the steps, and the connections at both sites, until the end.
Ctrl-C stops watching, not the switchover: medwayctl watch VIP goes on with it, and
medwayctl cancel VIP has it go back.

With --etcd, when no coordinator lives: put the target, as etcdctl put
/medway/v1/target_state/VIP SITE does, after looking whether the site is one of the
VIP's and, with --from, whether the traffic is where it is thought to be; and note it in
the history. Nothing is checked, a lock stays, and nothing takes it back: a site that
can't serve does not get the traffic, and medwayctl status says what it waits for.
--watch then follows until a node of the new site is active and none of another site
is, as far as nodes that hold their lease tell.

Exit status: 0 begun, with --watch done, or it is the target already; 1 an error; 2 with
--dry-run: it would be done; 3 it is under way, and --watch has not seen its end; 4 the
preflight refuses, nothing was written; 5 it has ended otherwise: it failed, or was
cancelled.`,
		Example: `  medwayctl switch sip-1 --from dc1 --to dc2 --reason "power work in dc1" --watch`,
		Args:    exactlyOne("a VIP"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := w.check(cmd, "watch", m.dryRun); err != nil {
				return err
			}
			if m.etcd {
				return m.put(cmd, args[0], w)
			}
			if err := cmp.Or(m.check(cmd), m.needsFrom()); err != nil {
				return err
			}
			return m.begin(cmd, args[0], w)
		},
	}
	m.operator.flags(cmd)
	m.flags(cmd)
	_ = cmd.MarkFlagRequired("to")
	w.flags(cmd, "watch", "follow until the new site is active")
	return cmd
}

// begin has a coordinator begin it.
func (m *move) begin(cmd *cobra.Command, vip string, w waiting) error {
	if m.dryRun {
		return cmp.Or(m.preflight(cmd, vip), errDiffers)
	}
	record, err := ask(cmd.Context(), m.tool, false, medwayv1connect.CoordinatorClient.Switch, m.request(vip))
	if err != nil {
		return m.refused(err)
	}
	if w.on {
		if m.form.forPeople() {
			fmt.Fprintf(m.out, "%s: %s -> %s begins\n", vip, record.From, record.To)
		}
		return m.followSwitchover(cmd, vip, record.Id, done, w.limit)
	}
	return m.form.write(m.out, record, func() error {
		_, err := fmt.Fprintf(m.out, "%s: %s -> %s begins; to follow it: medwayctl watch %s\n", vip, record.From, record.To, vip)
		return err
	})
}

// refused shows what stands in the way, to people.
func (m *move) refused(err error) error {
	var r *refusedError
	if !errors.As(err, &r) {
		return err
	}
	if shown := m.form.write(m.out, r.Refusal, func() error { return r.show(m.out) }); shown != nil {
		return shown
	}
	return err
}

// put is the switchover without a coordinator.
func (m *move) put(cmd *cobra.Command, vip string, w waiting) error {
	if len(m.force) > 0 {
		return errors.New("flag --force: with --etcd nothing is checked that could be overridden")
	}
	if m.drain || m.within != 0 {
		return errors.New("flag --drain: with --etcd nobody waits until backends are empty: expected medwayctl backend drain")
	}
	_, err := m.change(cmd, nil, func(have *operation.Contents) (*operation.Change, error) {
		return operation.Switch(have, vip, m.from, m.to)
	})
	if err != nil || !w.on {
		return err
	}
	return m.until(cmd.Context(), w.limit, showing(m.progress(cmd)), func(p *picture) (string, bool, error) {
		return switched(p, vip, m.to)
	})
}

// switched looks how far a switchover is: it is done when a node of the new site
// announces a MED at or below the line, and no living node of another one does.
func switched(p *picture, vip, to string) (line string, done bool, err error) {
	e := p.Entries[state.Key{Kind: state.KindTarget, A: vip}.String()]
	if now := strings.TrimSpace(string(e.Value)); now != to {
		return "", false, fmt.Errorf("somebody else has changed the target to %s", state.Quote(now))
	}
	line, done = progress(p.Said, living(p), vip, to, plan.LadderOf(p.Snapshot, vip).Active)
	return line, done, nil
}

// progress is what all nodes do for a VIP, on one line, and whether its traffic is
// in the site that it should be in.
func progress(nodes []*medwayv1.Status, alive map[string]bool, vip, to string, top uint32) (line string, done bool) {
	var parts []string
	there, elsewhere := false, false
	for _, n := range nodes {
		for _, v := range n.Vips {
			if v.Vip != vip {
				continue
			}
			text := n.Node + " " + v.Role
			if v.Med != nil {
				text += fmt.Sprintf(" %d", *v.Med)
			}
			carries := v.Med != nil && *v.Med <= top
			switch {
			case !alive[n.Node]:
				text += " (silent)"
			case n.Site == to:
				there = there || carries && v.Target == to
			case carries:
				elsewhere = true
				if v.Target == to {
					text += ": " + v.Reason
				}
			}
			parts = append(parts, text)
		}
	}
	if len(parts) == 0 {
		return "no node has said anything of it", false
	}
	return strings.Join(parts, ", "), there && !elsewhere
}

func evacuate(t *tool) *cobra.Command {
	m, w := move{operator: operator{tool: t}}, waiting{}
	cmd := &cobra.Command{
		Use:   "evacuate SITE",
		Short: "Move the traffic of all VIPs away from a site",
		Long: `Have a coordinator move all VIPs that have the site as their target to other sites, each
by a planned switchover of its own. If one of them does not pass its preflight none is
moved. Without --to each goes to the first of its other sites that passes.

Ctrl-C stops watching, not the evacuation: medwayctl watch --evacuation SITE goes on
with it, and medwayctl cancel --evacuation SITE has what is under way go back.

Exit status: 0 begun, with --watch all VIPs are moved; 1 an error; 3 it is under way, and
--watch has not seen its end; 4 a preflight refuses, nothing was written; 5 it has ended,
and not all VIPs are moved.`,
		Example: `  medwayctl evacuate dc1 --reason "power work" --watch`,
		Args:    exactlyOne("a site"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := cmp.Or(m.onlyByCoordinator("evacuate"), w.check(cmd, "watch", false), m.check(cmd)); err != nil {
				return err
			}
			record, err := ask(cmd.Context(), t, false, medwayv1connect.CoordinatorClient.Evacuate, &medwayv1.EvacuateRequest{
				Site: args[0], To: m.to, Reason: m.author.Reason, Force: m.force,
			})
			if err != nil {
				return m.refused(err)
			}
			if w.on {
				if m.form.forPeople() {
					fmt.Fprintf(m.out, "%s: %d VIPs are moved away\n", args[0], len(record.Moves))
				}
				return m.followEvacuation(cmd, args[0], record.Id, done, w.limit)
			}
			return m.form.write(m.out, record, func() error {
				_, err := fmt.Fprintf(m.out, "%[1]s: %[2]d VIPs are moved away; to follow it: medwayctl watch --evacuation %[1]s\n", args[0], len(record.Moves))
				return err
			})
		},
	}
	m.reasonFlag(cmd)
	m.form.flag(cmd)
	m.forceFlag(cmd)
	w.flags(cmd, "watch", "follow until all VIPs are moved")
	cmd.Flags().StringVar(&m.to, "to", "", "the `site` that should take all of them")
	_ = cmd.RegisterFlagCompletionFunc("to", completer(t, 0, func(p *picture, _ []string) []string { return sitesOf(p, nil) }))
	cmd.ValidArgsFunction = completer(t, 1, func(p *picture, _ []string) []string { return sitesOf(p, nil) })
	return cmd
}

// concerned is a VIP's switchover, or a site's evacuation.
type concerned struct{ vip, evacuation string }

func (c *concerned) flag(cmd *cobra.Command, t *tool) {
	cmd.Flags().StringVar(&c.evacuation, "evacuation", "", "that of this `site`, in place of a VIP's switchover")
	_ = cmd.RegisterFlagCompletionFunc("evacuation", completer(t, 0, func(p *picture, _ []string) []string {
		return slices.Sorted(maps.Keys(p.evacuations))
	}))
	cmd.ValidArgsFunction = completer(t, 1, func(p *picture, _ []string) []string {
		return slices.Sorted(maps.Keys(p.switchovers))
	})
}

// take takes the argument; none is allowed where nothing is.
func (c *concerned) take(args []string, nothing bool) error {
	n := len(args)
	if c.evacuation != "" {
		n++
	}
	if n > 1 || n == 0 && !nothing {
		return errors.New("expected a VIP or --evacuation SITE, and not both")
	}
	c.vip = strings.Join(args, "")
	return nil
}

func cancelMove(t *tool) *cobra.Command {
	o, w, c := operator{tool: t}, waiting{}, concerned{}
	cmd := &cobra.Command{
		Use:   "cancel VIP | --evacuation SITE",
		Short: "Have a switchover or an evacuation go back",
		Long: `Have a planned switchover go back to the site that it came from, at whatever step it is;
or begin no more switchovers of an evacuation, and have those under way go back. Those
that are over stay.

Exit status: 0 it is ordered, with --watch it is back; 1 an error, or nothing is under
way; 3 it goes back, and --watch has not seen its end; 5 it ended otherwise.`,
		Example: `  medwayctl cancel sip-1 --reason "they have postponed it" --watch`,
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := cmp.Or(o.onlyByCoordinator("cancel"), c.take(args, false), w.check(cmd, "watch", false), o.check(cmd)); err != nil {
				return err
			}
			// Asked twice is asked once.
			var err error
			if c.vip != "" {
				_, err = ask(cmd.Context(), t, true, medwayv1connect.CoordinatorClient.Cancel, &medwayv1.CancelRequest{Vip: c.vip, Reason: o.author.Reason})
			} else {
				_, err = ask(cmd.Context(), t, true, medwayv1connect.CoordinatorClient.CancelEvacuation, &medwayv1.CancelEvacuationRequest{Site: c.evacuation, Reason: o.author.Reason})
			}
			if err != nil {
				return err
			}
			if w.on {
				return o.follow(cmd, c, cancelled, w.limit)
			}
			return o.tell(&medwayv1.ChangeResponse{Done: cmp.Or(c.vip, c.evacuation) + ": goes back"})
		},
	}
	o.reasonFlag(cmd)
	o.form.flag(cmd)
	c.flag(cmd, t)
	w.flags(cmd, "watch", "follow until it is back")
	return cmd
}

func watch(t *tool) *cobra.Command {
	o, c := operator{tool: t}, concerned{}
	w := waiting{on: true}
	cmd := &cobra.Command{
		Use:   "watch [VIP | --evacuation SITE]",
		Short: "Follow a switchover or an evacuation until its end, or all that changes",
		Long: `Follow the planned switchover of a VIP, or the evacuation of a site, until its end.
Without either show each key that changes in etcd, until Ctrl-C; that takes a coordinator,
and goes on with the next one where it is lost.

Exit status: 0 it is done; 1 an error; 3 its end was not seen (Ctrl-C, --timeout); 5 it
ended otherwise: it failed, or was cancelled.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := cmp.Or(c.take(args, true), w.check(cmd, "watch", false), o.check(cmd)); err != nil {
				return err
			}
			if c != (concerned{}) {
				return o.follow(cmd, c, done, w.limit)
			}
			if err := o.onlyByCoordinator("watch without a VIP"); err != nil {
				return err
			}
			return o.changes(cmd)
		},
	}
	o.form.flag(cmd)
	c.flag(cmd, t)
	cmd.Flags().DurationVar(&w.limit, "timeout", 0, "how long it may take; 0s: no end")
	return cmd
}

// changes shows each key that changes, until the command is interrupted.
func (o *operator) changes(cmd *cobra.Command) error {
	ctx := cmd.Context()
	for {
		err := listen(ctx, o.tool, true, medwayv1connect.CoordinatorClient.Watch, &medwayv1.WatchRequest{}, func(c *medwayv1.WatchResponse) error {
			if c.Key == "" {
				return nil // it begins
			}
			return o.form.writeLine(o.out, c, func() error {
				value := "deleted"
				if c.Value != nil {
					value = state.Line(*c.Value)
				}
				_, err := fmt.Fprintf(o.out, "%d  %s  %s\n", c.Revision, state.Printable(c.Key), value)
				return err
			})
		})
		switch {
		case ctx.Err() != nil:
			return nil
		case !errors.Is(err, errBroken):
			return err
		}
		fmt.Fprintln(cmd.ErrOrStderr(), "medwayctl: the stream broke off and begins anew: what changed meanwhile is not shown")
	}
}
