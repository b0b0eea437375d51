package main

import (
	"context"
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

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
	"github.com/medway-lb/medway/proto/medway/v1/medwayv1connect"
)

func node(t *tool) *cobra.Command {
	cmd := &cobra.Command{
		Use: "node", Short: "Take a node out of service and back, and list all nodes", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(drain(t), undrain(t), listNodes(t))
	return cmd
}

func drain(t *tool) *cobra.Command {
	o, w := operator{tool: t}, waiting{}
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
			answer, err := o.change(cmd, o.nodeAsked(medwayv1connect.CoordinatorClient.Drain, args[0]), func(have *operation.Contents) (*operation.Change, error) {
				return operation.Drain(have, args[0], o.author, time.Now())
			})
			if err != nil || !w.on {
				return err
			}
			return o.until(cmd.Context(), w.limit, showing(o.progress(cmd)), func(p *picture) (string, bool, error) {
				return drained(p, args[0], answer.Revision)
			})
		},
	}
	o.flags(cmd)
	w.flags(cmd, "wait", "follow until the node announces nothing")
	cmd.ValidArgsFunction = completer(t, 1, allNodes)
	return cmd
}

// nodeAsked is a request that concerns a node.
func (o *operator) nodeAsked(m method[medwayv1.NodeRequest, medwayv1.ChangeResponse], node string) asked {
	return func(ctx context.Context) (*medwayv1.ChangeResponse, error) {
		return ask(ctx, o.tool, o.dryRun, m, &medwayv1.NodeRequest{Node: node, Reason: o.author.Reason, DryRun: o.dryRun})
	}
}

// drained looks how far a drained node is, as it says itself. What it said before
// it knew of the drain does not count.
func drained(p *picture, name string, since int64) (line string, done bool, err error) {
	if !p.Has(operation.DrainKey(name)) {
		return "", false, fmt.Errorf("node %s: somebody took the drain back", name)
	}
	_, alive := p.Alive[name]
	n := slices.IndexFunc(p.Said, func(s *medwayv1.Status) bool { return s.Node == name })
	switch {
	case !alive:
		return name + " does not hold its lease: it is dead, or cut off and may announce yet", false, nil
	case n < 0:
		return name + " has not said yet what it announces", false, nil
	case p.Said[n].Revision < since:
		return fmt.Sprintf("%s acts on revision %d, and not yet on %d", name, p.Said[n].Revision, since), false, nil
	}
	status := p.Said[n]
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

func undrain(t *tool) *cobra.Command {
	o := operator{tool: t}
	cmd := &cobra.Command{
		Use:   "undrain NODE",
		Short: "Take a node back into service",
		Long: `Take a drain back: the node announces its VIPs again. It takes their traffic back by
itself only where they have ownership.preempt.

Exit status: 0 done; 1 an error, or it is not drained; 2 with --dry-run: something
would be written.`,
		Args: exactlyOne("a node"),
		RunE: func(cmd *cobra.Command, args []string) error {
			_, err := o.change(cmd, o.nodeAsked(medwayv1connect.CoordinatorClient.Undrain, args[0]), func(have *operation.Contents) (*operation.Change, error) {
				return operation.Undrain(have, args[0])
			})
			return err
		},
	}
	o.flags(cmd)
	cmd.ValidArgsFunction = completer(t, 1, func(h *picture, _ []string) []string { return slices.Sorted(maps.Keys(h.Drains)) })
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

func listNodes(t *tool) *cobra.Command {
	var output form
	cmd := &cobra.Command{
		Use:   "list",
		Short: "Show every node: where it is, whether it lives, what it owns",
		Long: `Show every node: where it is, its version, BGP sessions, whether it is cold (its
connection table was lost and has not caught up) or drained, the VIPs that it owns
in its site, and since when it lives.

Exit status: 0 also where nodes are silent; 1 if nothing could be read.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := output.check(); err != nil {
				return err
			}
			have, err := t.look(cmd.Context())
			if err != nil {
				return err
			}
			list := nodeList(have.Snapshot, have.Said, time.Now())
			return output.write(cmd.OutOrStdout(), list, func() error { return writeNodes(cmd.OutOrStdout(), list) })
		},
	}
	output.flag(cmd)
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
