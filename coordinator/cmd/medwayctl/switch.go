package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/medway-lb/medway/coordinator/internal/operation"
	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

func switchVIP(c *connection) *cobra.Command {
	o, w := operator{connection: c}, waiting{}
	var from, to string
	cmd := &cobra.Command{
		Use:   "switch VIP --to SITE",
		Short: "Move a VIP's traffic to another site",
		Long: `Put the target of a VIP, as etcdctl put /medway/v1/target_state/VIP SITE does, after
looking whether the site is one of the VIP's and, with --from, whether the traffic
is where it is thought to be; and note it in the history. A lock stays.

A site that can't serve does not get the traffic: the other one keeps it, and
medwayctl status says what it waits for.

With --watch it follows until a node of the new site is active and none of another
site is, as far as nodes that hold their lease tell.

Exit status: 0 done, or it is the target already; 1 an error; 2 with --dry-run:
something would be written; 3 the target is put, and --watch has not seen the traffic
move.`,
		Example: `  medwayctl switch sip-1 --from dc1 --to dc2 --watch --timeout 1m`,
		Args:    exactlyOne("a VIP"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := w.check(cmd, "watch", o.dryRun); err != nil {
				return err
			}
			return o.do(cmd, func(ctx context.Context, client *store.Client, have *operation.Contents) error {
				change, err := operation.Switch(have, args[0], from, to)
				if _, err := o.make(ctx, client, change, err); err != nil || !w.on {
					return err
				}
				return o.until(ctx, w.limit, func(ctx context.Context) (string, bool, error) {
					return switched(ctx, client, have.Snapshot, args[0], to)
				})
			})
		},
	}
	o.flags(cmd)
	w.flags(cmd, "watch", "follow until the new site is active")
	cmd.Flags().StringVar(&to, "to", "", "the `site` that should take the traffic")
	cmd.Flags().StringVar(&from, "from", "", "refuse unless this is the `site` of the target now")
	_ = cmd.MarkFlagRequired("to")
	sites := completer(c, 0, func(h *operation.Contents, args []string) []string {
		names := map[string]bool{}
		for vip, v := range h.VIPs {
			if len(args) == 0 || slices.Contains(args, vip) {
				maps.Copy(names, keysOf(v.Groups))
			}
		}
		return slices.Sorted(maps.Keys(names))
	})
	for _, flag := range []string{"to", "from"} {
		_ = cmd.RegisterFlagCompletionFunc(flag, sites)
	}
	cmd.ValidArgsFunction = completer(c, 1, allVIPs)
	return cmd
}

// switched looks how far a switchover is: it is done when a node of the new site
// announces a MED at or below the line, and no living node of another one does.
func switched(ctx context.Context, client *store.Client, s *state.Snapshot, vip, to string) (line string, done bool, err error) {
	target, _, err := client.Get(ctx, state.Key{Kind: state.KindTarget, A: vip}.String())
	if err != nil {
		return "", false, err
	}
	if now := strings.TrimSpace(string(target.Value)); now != to {
		return "", false, fmt.Errorf("somebody else has changed the target to %s", state.Quote(now))
	}
	alive, err := living(ctx, client)
	if err != nil {
		return "", false, err
	}
	nodes, err := statuses(ctx, client)
	if err != nil {
		return "", false, err
	}
	line, done = progress(nodes, alive, vip, to, plan.LadderOf(s, vip).Active)
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
