package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/medway-lb/medway/coordinator/internal/operation"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

func node(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use: "node", Short: "Take a node out of service and back, and list all nodes", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(drain(c), undrain(c), listNodes(c))
	return cmd
}

func drain(c *connection) *cobra.Command {
	o, w := operator{connection: c}, waiting{}
	cmd := &cobra.Command{
		Use:   "drain NODE",
		Short: "Take a node out of service",
		Long: `Have a node give its VIPs to other nodes and then announce nothing, over restarts
too, until medwayctl node undrain. Calls go on: other nodes announce first.

With --wait it follows until the node announces nothing. A node that does not
hold its lease may announce yet (it may be cut off from etcd alone), so its end
is not seen: medway-agent withdraw on the host itself works without etcd.

Exit status: 0 done, or drained already; 1 an error; 2 with --dry-run: something
would be written; 3 the drain is in force, and --wait has not seen its end.`,
		Example: `  medwayctl node drain dc1-lvs-a --reason "new kernel" --wait --timeout 5m`,
		Args:    exactlyOne("a node"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := w.check(cmd, "wait", o.dryRun); err != nil {
				return err
			}
			return o.do(cmd, func(ctx context.Context, client *store.Client, have *operation.Contents) error {
				change, err := operation.Drain(have, args[0], o.author, time.Now())
				revision, err := o.make(ctx, client, change, err)
				if err != nil || !w.on {
					return err
				}
				return o.until(ctx, w.limit, func(ctx context.Context) (string, bool, error) {
					return drained(ctx, client, args[0], revision)
				})
			})
		},
	}
	o.flags(cmd)
	w.flags(cmd, "wait", "follow until the node announces nothing")
	cmd.ValidArgsFunction = completer(c, 1, allNodes)
	return cmd
}

// drained looks how far a drained node is, as it says itself. What it said before
// it knew of the drain does not count.
func drained(ctx context.Context, client *store.Client, name string, since int64) (line string, done bool, err error) {
	_, ordered, err := client.Get(ctx, operation.DrainKey(name).String())
	if err != nil {
		return "", false, err
	}
	if !ordered {
		return "", false, fmt.Errorf("node %s: somebody took the drain back", name)
	}
	alive, err := living(ctx, client)
	if err != nil {
		return "", false, err
	}
	entry, found, err := client.Get(ctx, state.StatusPrefix+name)
	if err != nil {
		return "", false, err
	}
	status, bad := state.DecodeStatus(entry.Value)
	switch {
	case !alive[name]:
		return name + " does not hold its lease: it is dead, or cut off and may announce yet", false, nil
	case !found || bad != nil:
		return name + " has not said yet what it announces", false, nil
	case status.Revision < since:
		return fmt.Sprintf("%s acts on revision %d, and not yet on %d", name, status.Revision, since), false, nil
	}
	var waits []string
	for _, v := range status.Vips {
		// The claim goes when routers have taken the withdrawal (PROTOCOL R3).
		if v.Med != nil || v.Claim != "none" && v.Claim != "-" && v.Claim != "" {
			waits = append(waits, fmt.Sprintf("%s %s: %s", v.Vip, v.Role, v.Reason))
		}
	}
	if len(waits) == 0 {
		return name + " announces nothing", true, nil
	}
	return fmt.Sprintf("%s announces %d of %d VIPs: %s", name, len(waits), len(status.Vips), waits[0]), false, nil
}

func undrain(c *connection) *cobra.Command {
	o := operator{connection: c}
	cmd := &cobra.Command{
		Use:   "undrain NODE",
		Short: "Take a node back into service",
		Long: `Take a drain back: the node announces its VIPs again. It takes their traffic back by
itself only where they have ownership.preempt.

Exit status: 0 done; 1 an error, or it is not drained; 2 with --dry-run: something
would be written.`,
		Args: exactlyOne("a node"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.do(cmd, func(ctx context.Context, client *store.Client, have *operation.Contents) error {
				change, err := operation.Undrain(have, args[0])
				_, err = o.make(ctx, client, change, err)
				return err
			})
		},
	}
	o.flags(cmd)
	cmd.ValidArgsFunction = completer(c, 1, func(h *operation.Contents, _ []string) []string { return slices.Sorted(maps.Keys(h.Drains)) })
	return cmd
}

// nodeDocument is a node in `node list -o json`.
type nodeDocument struct {
	Node       string         `json:"node"`
	Site       string         `json:"site"`
	Group      string         `json:"group"`
	Version    string         `json:"version"`
	AliveSince *time.Time     `json:"alive_since,omitempty"` // none: it does not hold its lease
	LastWord   string         `json:"last_word,omitempty"`
	Cold       bool           `json:"cold"`
	Unable     []string       `json:"unable,omitempty"` // VIPs that it can't serve
	Drain      *orderDocument `json:"drain,omitempty"`
	Sessions   string         `json:"bgp_sessions"` // established/all
	Owns       []string       `json:"owns"`

	state string
}

func listNodes(c *connection) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "Show every node: where it is, whether it lives, what it owns",
		Long: `Show every node: where it is, its version, BGP sessions, whether it is cold (its
connection table was lost and has not caught up) or drained, the VIPs that it owns
in its site, and since when it lives.

Exit status: 0 also where nodes are silent; 1 if etcd could not be read.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), c.timeout)
			defer cancel()
			snapshot, nodes, err := read(ctx, c)
			if err != nil {
				return err
			}
			list := nodeList(snapshot, nodes, time.Now())
			if output == "json" {
				return writeDocument(cmd.OutOrStdout(), list)
			}
			return writeNodes(cmd.OutOrStdout(), list)
		},
	}
	outputFlag(cmd, &output)
	return cmd
}

func nodeList(s *state.Snapshot, nodes []*medwayv1.Status, now time.Time) []nodeDocument {
	said := map[string]*medwayv1.Status{}
	for _, n := range nodes {
		said[n.Node] = n
	}
	list := []nodeDocument{}
	for _, name := range operation.NodeNames(s, nodes) {
		n, status := s.Nodes[name], said[name]
		d := nodeDocument{Node: name, Site: n.Site, Group: n.Group, Version: n.Version, Sessions: "-", Owns: []string{}}
		if status == nil {
			status = &medwayv1.Status{Node: name}
		} else {
			d.Sessions, d.LastWord = sessions(status), status.Updated
		}
		if alive, ok := s.Alive[name]; ok {
			d.AliveSince, d.Cold, d.Unable = &alive.Since, alive.Cold, alive.Unable
			d.state = "alive since " + alive.Since.UTC().Format(time.RFC3339)
		} else {
			d.state = lives(s, status, now)
		}
		if o, ok := s.Drains[name]; ok {
			d.Drain = newOrderDocument(o)
		}
		for k := range s.Owners {
			if o, ok := s.Owner(k.Site, k.VIP); ok && o.Node == name {
				d.Owns = append(d.Owns, k.VIP)
			}
		}
		slices.Sort(d.Owns)
		list = append(list, d)
	}
	return list
}

func writeNodes(out io.Writer, list []nodeDocument) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NODE\tSITE\tGROUP\tVERSION\tBGP\tCOLD\tDRAINED\tOWNS\tSTATE")
	for _, n := range list {
		cold, drained, owns := "-", "-", strings.Join(n.Owns, ",")
		if n.Cold {
			cold = "cold"
		}
		if n.Drain != nil {
			drained = "drained"
		}
		if len(n.Owns) > 3 {
			owns = fmt.Sprintf("%d VIPs", len(n.Owns))
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", cell(n.Node), cell(n.Site), cell(n.Group), cell(n.Version),
			n.Sessions, cold, drained, orDash(owns), n.state)
	}
	return w.Flush()
}

// outputFlag is -o of the commands that show something.
func outputFlag(cmd *cobra.Command, output *string) {
	cmd.Flags().StringVarP(output, "output", "o", "table", "table or json")
	completeWith(cmd, "output", "table", "json")
}

func checkOutput(output string) error {
	if output != "table" && output != "json" {
		return fmt.Errorf("flag --output: value %q: expected table or json", output)
	}
	return nil
}

func writeDocument(out io.Writer, d any) error {
	text, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "%s\n", text)
	return err
}
