package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"math"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
	"github.com/medway-lb/medway/proto/medway/v1/medwayv1connect"
)

// eventDocument is an event in `history -o json`.
type eventDocument struct {
	VIP    string    `json:"vip"` // "" is all
	At     time.Time `json:"at"`
	What   string    `json:"what,omitempty"`
	From   string    `json:"from,omitempty"`
	To     string    `json:"to,omitempty"`
	By     string    `json:"by,omitempty"`
	Reason string    `json:"reason,omitempty"`
	// Error says what is wrong with the key or its value.
	Error string `json:"error,omitempty"`
}

func history(t *tool) *cobra.Command {
	var output form
	var last int
	cmd := &cobra.Command{
		Use:   "history [VIP]",
		Short: "Show what was done: switchovers, locks, pauses, drains",
		Long: `Show what was done to every VIP, or to one and to all of them together (such as the
drain of a node), the newest last: automatic switchovers, and what people did with
medwayctl. What was done with etcdctl leaves no trace here.

Exit status: 0 also where there is nothing; 1 if nothing could be read.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := output.check(); err != nil {
				return err
			}
			if last < 0 {
				return fmt.Errorf("flag --last: value %d: expected 0 or more", last)
			}
			vip := ""
			if len(args) > 0 {
				if err := state.CheckName(args[0]); err != nil {
					return fmt.Errorf("VIP: %w", err)
				}
				vip = args[0]
			}
			list, err := t.history(cmd.Context(), vip, last)
			if err == nil && vip != "" && len(list) == 0 {
				err = t.mustExist(cmd.Context(), vip)
			}
			if err != nil {
				return err
			}
			return output.write(cmd.OutOrStdout(), list, func() error { return writeEvents(cmd.OutOrStdout(), list) })
		},
	}
	output.flag(cmd)
	cmd.Flags().IntVarP(&last, "last", "n", 50, "how many of the newest; 0: all")
	cmd.ValidArgsFunction = completer(t, 1, allVIPs)
	return cmd
}

// history is what was done to a VIP, or with "" to everything: the newest ones, 0 is all.
func (t *tool) history(ctx context.Context, vip string, last int) ([]eventDocument, error) {
	if !t.etcd {
		if last == 0 {
			last = math.MaxInt32
		}
		answer, err := ask(ctx, t, true, medwayv1connect.CoordinatorClient.GetHistory, &medwayv1.GetHistoryRequest{Vip: vip, Last: uint32(last)})
		return told(answer), err
	}
	ctx, cancel := context.WithTimeout(ctx, t.timeout)
	defer cancel()
	client, err := t.store()
	if err != nil {
		return nil, err
	}
	prefixes := []string{state.HistoryPrefix}
	if vip != "" {
		prefixes = []string{state.HistoryOf(vip), state.HistoryOf("")}
	}
	var entries []store.Entry
	for _, prefix := range prefixes {
		more, _, err := client.List(ctx, prefix)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", prefix, err)
		}
		entries = append(entries, more...)
	}
	list := events(entries)
	if last > 0 && len(list) > last {
		list = list[len(list)-last:]
	}
	return list, nil
}

// told are the events that a coordinator tells of.
func told(answer *medwayv1.GetHistoryResponse) []eventDocument {
	list := []eventDocument{}
	for _, e := range answer.GetEvents() {
		at, _ := time.Parse(time.RFC3339Nano, e.Event.GetAt())
		list = append(list, eventDocument{
			VIP: e.Vip, At: at, What: e.Event.GetWhat(), From: e.Event.GetFrom(), To: e.Event.GetTo(), By: e.Event.GetBy(), Reason: e.Event.GetReason(),
		})
	}
	return list
}

func (t *tool) mustExist(ctx context.Context, vip string) error {
	have, err := t.look(ctx)
	if err == nil && !have.Has(state.Key{Kind: state.KindVIP, A: vip}) {
		err = fmt.Errorf("VIP %s does not exist, and has no history", state.Quote(vip))
	}
	return err
}

// events are those of the entries, the newest last. One that can't be read is
// there all the same.
func events(entries []store.Entry) []eventDocument {
	list := []eventDocument{}
	for _, e := range entries {
		vip, at, err := state.ParseHistoryKey(e.Key)
		if err != nil {
			list = append(list, eventDocument{Error: err.Error()})
			continue
		}
		d := eventDocument{VIP: vip, At: at}
		if event, err := state.DecodeEvent(e.Value); err != nil {
			d.Error = err.Error()
		} else {
			d.What, d.From, d.To, d.By, d.Reason = event.What, event.From, event.To, event.By, event.Reason
		}
		list = append(list, d)
	}
	slices.SortStableFunc(list, func(a, b eventDocument) int { return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.VIP, b.VIP)) })
	return list
}

func writeEvents(out io.Writer, list []eventDocument) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "TIME\tVIP\tWHAT\tFROM\tTO\tBY\tREASON")
	for _, e := range list {
		at, vip := "-", "-"
		if !e.At.IsZero() {
			at, vip = e.At.Format(time.RFC3339), cmp.Or(e.VIP, "(all)")
		}
		if e.Error != "" {
			fmt.Fprintf(w, "%s\t%s\tcan't be read: %s\n", at, vip, state.Line(e.Error))
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", at, vip, cell(e.What), cell(e.From), cell(e.To), cell(e.By), orDash(state.Line(e.Reason)))
	}
	return w.Flush()
}
