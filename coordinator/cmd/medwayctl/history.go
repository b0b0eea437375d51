package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"math"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/medway-lb/medway/coordinator/internal/operation"
	"github.com/medway-lb/medway/pkg/state"

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
	// Address is from where it was asked of a coordinator.
	Address string `json:"from_address,omitempty"`
	// Result is why nothing was done; "": it was done.
	Result string `json:"result,omitempty"`
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
				vip = args[0]
				if err := state.CheckName(vip); err != nil {
					return fmt.Errorf("VIP: %w", err)
				}
			}
			list, err := t.history(cmd.Context(), vip, last)
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
		list := []eventDocument{}
		for r := (&medwayv1.GetHistoryRequest{Vip: vip}); ; {
			r.Last = math.MaxUint32
			if last > 0 {
				r.Last = uint32(last - len(list))
			}
			page, err := ask(ctx, t, true, medwayv1connect.CoordinatorClient.GetHistory, r)
			if err != nil {
				return nil, err
			}
			list = append(told(page), list...)
			if r.PageToken = page.NextPageToken; r.PageToken == "" || last > 0 && len(list) >= last {
				return list, nil
			}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, t.timeout)
	defer cancel()
	client, err := t.store()
	if err != nil {
		return nil, err
	}
	all, err := operation.OpenHistory(ctx, client, vip)
	if err != nil {
		return nil, err
	}
	if err := all.CheckVIP(ctx); err != nil {
		return nil, err
	}
	page, _, err := all.Page(ctx, operation.Mark{}, last)
	return events(page), err
}

// told are the events that a coordinator tells of.
func told(answer *medwayv1.GetHistoryResponse) []eventDocument {
	list := []eventDocument{}
	for _, e := range answer.GetEvents() {
		at, _ := time.Parse(time.RFC3339Nano, e.Event.GetAt())
		list = append(list, eventDocument{
			VIP: e.Vip, At: at, What: e.Event.GetWhat(), From: e.Event.GetFrom(), To: e.Event.GetTo(), By: e.Event.GetBy(), Reason: e.Event.GetReason(),
			Address: e.Event.GetFromAddress(), Result: e.Event.GetResult(),
		})
	}
	return list
}

// events are those of a page. One that can't be read is there all the same.
func events(page []operation.Past) []eventDocument {
	list := []eventDocument{}
	for _, p := range page {
		d := eventDocument{VIP: p.VIP, At: p.At}
		if p.Err != nil {
			d.Error = p.Err.Error()
		} else {
			d.What, d.From, d.To, d.By, d.Reason = p.Event.What, p.Event.From, p.Event.To, p.Event.By, p.Event.Reason
			d.Address, d.Result = p.Event.FromAddress, p.Event.Result
		}
		list = append(list, d)
	}
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
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", at, vip, cell(e.What), cell(e.From), cell(e.To), cell(e.By), orDash(state.Line(joined(e.Reason, e.Result))))
	}
	return w.Flush()
}

// joined is a reason with what came of it.
func joined(reason, result string) string {
	if reason == "" || result == "" {
		return reason + result
	}
	return reason + ": " + result
}
