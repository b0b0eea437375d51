package main

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/medway-lb/medway/coordinator/internal/operation"
	"github.com/medway-lb/medway/pkg/state"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
	"github.com/medway-lb/medway/proto/medway/v1/medwayv1connect"
)

func backend(t *tool) *cobra.Command {
	cmd := &cobra.Command{
		Use: "backend", Short: "Take a backend out of service and back", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(drainBackend(t), undrainBackend(t))
	return cmd
}

func drainBackend(t *tool) *cobra.Command {
	o, force := operator{tool: t}, false
	cmd := &cobra.Command{
		Use:   "drain POOL/BACKEND",
		Short: "Give a backend no new connections",
		Long: `Have every node give a backend weight 0, until medwayctl backend undrain: new
connections go elsewhere, and those that it has go on. The last backend of a pool that is
not drained is drained with --force only, which needs a --reason.

Exit status: 0 done, or drained already; 1 an error; 2 with --dry-run: something would be
written.`,
		Example: `  medwayctl backend drain sbc/dc1-sbc1 --reason "new release"`,
		Args:    exactlyOne("a backend"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if force && strings.TrimSpace(o.author.Reason) == "" {
				return errors.New("flag --force: expected a --reason beside it")
			}
			return o.changeBackend(cmd, args[0], medwayv1connect.CoordinatorClient.DrainBackend, force, func(have *operation.Contents, k state.BackendKey) (*operation.Change, error) {
				return operation.DrainBackend(have, k, o.author, force, time.Now())
			})
		},
	}
	o.flags(cmd)
	cmd.Flags().BoolVar(&force, "force", false, "drain the last one of its pool too; it needs a --reason")
	cmd.ValidArgsFunction = completer(t, 1, func(h *picture, _ []string) []string { return backendNames(h.Backends) })
	return cmd
}

func undrainBackend(t *tool) *cobra.Command {
	o := operator{tool: t}
	cmd := &cobra.Command{
		Use:   "undrain POOL/BACKEND",
		Short: "Give a backend new connections again",
		Long: `Take a drain back: the backend has the weight that its pool says.

Exit status: 0 done; 1 an error, or it is not drained; 2 with --dry-run: something would
be written.`,
		Args: exactlyOne("a backend"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.changeBackend(cmd, args[0], medwayv1connect.CoordinatorClient.UndrainBackend, false, operation.UndrainBackend)
		},
	}
	o.flags(cmd)
	cmd.ValidArgsFunction = completer(t, 1, func(h *picture, _ []string) []string { return backendNames(h.BackendDrains) })
	return cmd
}

// changeBackend has something done to the backend of a name such as "sbc/dc1-sbc1".
func (o *operator) changeBackend(cmd *cobra.Command, name string, m method[medwayv1.BackendRequest, medwayv1.ChangeResponse], force bool,
	do func(*operation.Contents, state.BackendKey) (*operation.Change, error),
) error {
	k := state.BackendKey{}
	var whole bool
	if k.Pool, k.Name, whole = strings.Cut(name, "/"); !whole || k.Pool == "" || k.Name == "" {
		return flagError(state.FieldError{Field: "backend", Found: "value " + state.Quote(name), Expected: "POOL/BACKEND"})
	}
	asked := func(ctx context.Context) (*medwayv1.ChangeResponse, error) {
		return ask(ctx, o.tool, o.dryRun, m, &medwayv1.BackendRequest{Pool: k.Pool, Backend: k.Name, Reason: o.author.Reason, DryRun: o.dryRun, Force: force})
	}
	_, err := o.change(cmd, asked, func(have *operation.Contents) (*operation.Change, error) { return do(have, k) })
	return err
}

func backendNames[V any](backends map[state.BackendKey]V) (names []string) {
	for k := range maps.Keys(backends) {
		names = append(names, k.Pool+"/"+k.Name)
	}
	slices.Sort(names)
	return names
}
