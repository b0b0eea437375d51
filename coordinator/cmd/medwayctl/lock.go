package main

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/medway-lb/medway/coordinator/internal/operation"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
	"github.com/medway-lb/medway/proto/medway/v1/medwayv1connect"
)

func unlock(t *tool) *cobra.Command {
	o := operator{tool: t}
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
			_, err := o.change(cmd, o.vipAsked(medwayv1connect.CoordinatorClient.Unlock, args[0]), func(have *operation.Contents) (*operation.Change, error) {
				return operation.Unlock(have, args[0])
			})
			return err
		},
	}
	o.flags(cmd)
	cmd.ValidArgsFunction = completer(t, 1, func(h *picture, _ []string) []string { return slices.Sorted(maps.Keys(h.Locks)) })
	return cmd
}

// vipAsked is a request that concerns a VIP, or with "" all.
func (o *operator) vipAsked(m method[medwayv1.VIPRequest, medwayv1.ChangeResponse], vip string) asked {
	return func(ctx context.Context) (*medwayv1.ChangeResponse, error) {
		return ask(ctx, o.tool, o.dryRun, m, &medwayv1.VIPRequest{Vip: vip, All: vip == "", Reason: o.author.Reason, DryRun: o.dryRun})
	}
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

func pause(t *tool) *cobra.Command {
	o, all := operator{tool: t}, false
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
			_, err = o.change(cmd, o.vipAsked(medwayv1connect.CoordinatorClient.Pause, vip), func(have *operation.Contents) (*operation.Change, error) {
				return operation.Pause(have, vip, o.author, time.Now())
			})
			return err
		},
	}
	o.flags(cmd)
	_ = cmd.MarkFlagRequired("reason")
	cmd.Flags().BoolVar(&all, "all", false, "all VIPs, those of the future too")
	cmd.ValidArgsFunction = completer(t, 1, allVIPs)
	return cmd
}

func resume(t *tool) *cobra.Command {
	o, all := operator{tool: t}, false
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
			_, err = o.change(cmd, o.vipAsked(medwayv1connect.CoordinatorClient.Resume, vip), func(have *operation.Contents) (*operation.Change, error) {
				return operation.Resume(have, vip)
			})
			return err
		},
	}
	o.flags(cmd)
	cmd.Flags().BoolVar(&all, "all", false, "the pause of all VIPs")
	cmd.ValidArgsFunction = completer(t, 1, func(h *picture, _ []string) []string { return slices.Sorted(maps.Keys(h.Pauses)) })
	return cmd
}
