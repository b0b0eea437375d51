package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

func unlock(c *connection) *cobra.Command {
	o := operation{connection: c}
	cmd := &cobra.Command{
		Use:   "unlock VIP",
		Short: "Allow one automatic switchover again",
		Long: `Remove the lock that an automatic switchover left: from the VIP's settling time on
it may switch by itself again, once. The target stays as it is: put it back first,
if that is wanted.

Exit status: 0 done; 1 an error, or it is not locked; 2 with --dry-run: something
would be written.`,
		Args: exactlyOne("a VIP"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.do(cmd, func(ctx context.Context, client *store.Client, have *contents) error {
				vip, key := args[0], state.Key{Kind: state.KindLock, A: args[0]}
				if !have.has(key) {
					return cmp.Or(have.checkVIP(vip), fmt.Errorf("VIP %s is not locked", state.Quote(vip)))
				}
				was := have.Locks[vip]
				var ch change
				ch.delete(have, key.String())
				if _, err := o.commit(ctx, client, have, ch, vip, &medwayv1.Event{What: "unlock"}); err != nil {
					return err
				}
				fmt.Fprintf(o.out, "%s: unlocked, target %s; it was locked: %s\n", vip, orDash(have.Targets[vip].Site), state.Line(describe(was)))
				if have.Paused(vip) {
					fmt.Fprintln(o.out, "note: it is paused, so nothing is switched automatically yet")
				}
				return nil
			})
		},
	}
	o.flags(cmd)
	cmd.ValidArgsFunction = completer(c, 1, func(h *contents, _ []string) []string { return slices.Sorted(maps.Keys(h.Locks)) })
	return cmd
}

// pauseTarget is the key of a pause, and the words for what it concerns.
func pauseTarget(args []string, all bool) (key state.Key, vip, what string, err error) {
	switch {
	case all == (len(args) == 1):
		return key, "", "", errors.New("expected a VIP or --all, and not both")
	case all:
		return state.Key{Kind: state.KindPauseAll}, "", "all VIPs", nil
	}
	return state.Key{Kind: state.KindPause, A: args[0]}, args[0], args[0], nil
}

func pause(c *connection) *cobra.Command {
	o, all := operation{connection: c}, false
	cmd := &cobra.Command{
		Use:   "pause VIP | --all",
		Short: "Switch nothing automatically for now",
		Long: `Forbid automatic switchover of a VIP, or of all, until medwayctl resume: for planned
work. People switch as before, and nodes of one site stand in for each other.

Exit status: 0 done, or paused already; 1 an error; 2 with --dry-run: something would
be written.`,
		Example: `  medwayctl pause --all --reason "work on the line between the sites"`,
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			key, vip, what, err := pauseTarget(args, all)
			if err != nil {
				return err
			}
			return o.do(cmd, func(ctx context.Context, client *store.Client, have *contents) error {
				if !all {
					if err := have.checkVIP(vip); err != nil {
						return err
					}
				}
				if err := have.checkSchema(slices.Sorted(maps.Keys(have.Nodes))...); err != nil {
					return err
				}
				if was, ok := have.Pauses[vip]; ok && !was.Malformed {
					fmt.Fprintf(o.out, "%s: paused already: %s\n", what, describeOrder(was))
					return nil
				}
				var ch change
				ch.put(have, key, state.Encode(&medwayv1.Pause{Since: time.Now().UTC().Format(time.RFC3339), Reason: o.reason, By: o.by}))
				revision, err := o.commit(ctx, client, have, ch, vip, &medwayv1.Event{What: "pause"})
				if err != nil {
					return err
				}
				fmt.Fprintf(o.out, "%s: paused from revision %d on\n", what, revision)
				return nil
			})
		},
	}
	o.flags(cmd)
	_ = cmd.MarkFlagRequired("reason")
	cmd.Flags().BoolVar(&all, "all", false, "all VIPs, those of the future too")
	cmd.ValidArgsFunction = completer(c, 1, allVIPs)
	return cmd
}

func resume(c *connection) *cobra.Command {
	o, all := operation{connection: c}, false
	cmd := &cobra.Command{
		Use:   "resume VIP | --all",
		Short: "Take a pause back",
		Long: `Take a pause back. --all takes back the one of all VIPs; those of single VIPs stay.

Exit status: 0 done; 1 an error, or it is not paused; 2 with --dry-run: something
would be written.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			key, vip, what, err := pauseTarget(args, all)
			if err != nil {
				return err
			}
			return o.do(cmd, func(ctx context.Context, client *store.Client, have *contents) error {
				if !have.has(key) {
					if all {
						return errors.New("there is no pause of all VIPs")
					}
					return cmp.Or(have.checkVIP(vip), fmt.Errorf("VIP %s is not paused", state.Quote(vip)))
				}
				was := have.Pauses[vip]
				var ch change
				ch.delete(have, key.String())
				if _, err := o.commit(ctx, client, have, ch, vip, &medwayv1.Event{What: "resume"}); err != nil {
					return err
				}
				fmt.Fprintf(o.out, "%s: resumed; paused %s\n", what, describeOrder(was))
				if rest := pausedStill(have, vip); rest != "" {
					fmt.Fprintln(o.out, "note: paused still: "+rest)
				}
				return nil
			})
		},
	}
	o.flags(cmd)
	cmd.Flags().BoolVar(&all, "all", false, "the pause of all VIPs")
	cmd.ValidArgsFunction = completer(c, 1, func(h *contents, _ []string) []string { return slices.Sorted(maps.Keys(h.Pauses)) })
	return cmd
}

// pausedStill names the pauses that concern what was resumed and stay.
func pausedStill(have *contents, resumed string) string {
	if resumed != "" {
		if _, all := have.Pauses[""]; all {
			return "all VIPs"
		}
		return ""
	}
	return shortList(slices.DeleteFunc(slices.Sorted(maps.Keys(have.Pauses)), func(vip string) bool { return vip == "" }))
}
