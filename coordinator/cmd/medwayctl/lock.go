package main

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/medway-lb/medway/coordinator/internal/operation"
	"github.com/medway-lb/medway/pkg/store"
)

func unlock(c *connection) *cobra.Command {
	o := operator{connection: c}
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
			return o.do(cmd, func(ctx context.Context, client *store.Client, have *operation.Contents) error {
				change, err := operation.Unlock(have, args[0])
				_, err = o.make(ctx, client, change, err)
				return err
			})
		},
	}
	o.flags(cmd)
	cmd.ValidArgsFunction = completer(c, 1, func(h *operation.Contents, _ []string) []string { return slices.Sorted(maps.Keys(h.Locks)) })
	return cmd
}

// pauseTarget is the VIP that a pause concerns, "" for all.
func pauseTarget(args []string, all bool) (vip string, err error) {
	switch {
	case all == (len(args) == 1):
		return "", errors.New("expected a VIP or --all, and not both")
	case all:
		return "", nil
	}
	return args[0], nil
}

func pause(c *connection) *cobra.Command {
	o, all := operator{connection: c}, false
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
			vip, err := pauseTarget(args, all)
			if err != nil {
				return err
			}
			return o.do(cmd, func(ctx context.Context, client *store.Client, have *operation.Contents) error {
				change, err := operation.Pause(have, vip, o.author, time.Now())
				_, err = o.make(ctx, client, change, err)
				return err
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
	o, all := operator{connection: c}, false
	cmd := &cobra.Command{
		Use:   "resume VIP | --all",
		Short: "Take a pause back",
		Long: `Take a pause back. --all takes back the one of all VIPs; those of single VIPs stay.

Exit status: 0 done; 1 an error, or it is not paused; 2 with --dry-run: something
would be written.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			vip, err := pauseTarget(args, all)
			if err != nil {
				return err
			}
			return o.do(cmd, func(ctx context.Context, client *store.Client, have *operation.Contents) error {
				change, err := operation.Resume(have, vip)
				_, err = o.make(ctx, client, change, err)
				return err
			})
		},
	}
	o.flags(cmd)
	cmd.Flags().BoolVar(&all, "all", false, "the pause of all VIPs")
	cmd.ValidArgsFunction = completer(c, 1, func(h *operation.Contents, _ []string) []string { return slices.Sorted(maps.Keys(h.Pauses)) })
	return cmd
}
