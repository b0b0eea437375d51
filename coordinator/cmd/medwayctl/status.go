package main

import (
	"cmp"
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
	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/state"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

func status(t *tool) *cobra.Command {
	var output form
	cmd := &cobra.Command{
		Use:   "status [VIP...]",
		Short: "Show what every node does for every VIP",
		Long: `Show what every node says of every VIP, or of those named: its role, the MED that it
announces and why, its connections, the packets a second (PPS) of established ones, its
BGP sessions, whether the VIP may switch by itself (AUTO: on, off,
locked or paused), and all that is wrong with keys and nodes.

Exit status: 0 also where something is wrong; 1 if nothing could be read.`,
		RunE: func(cmd *cobra.Command, vips []string) error {
			if err := output.check(); err != nil {
				return err
			}
			ctx := cmd.Context()
			// It takes its time where a member is silent: let that not add up.
			members := make(chan []state.Fault, 1)
			go func() {
				ctx, cancel := context.WithTimeout(ctx, t.timeout)
				defer cancel()
				members <- t.membersFaults(ctx)
			}()
			have, err := t.look(ctx)
			if err != nil {
				return err
			}
			have.Faults = slices.Concat(have.Faults, <-members)
			known := vipNames(have.Snapshot, have.Said)
			for _, vip := range vips {
				if !slices.Contains(known, vip) {
					return fmt.Errorf("VIP %q does not exist", vip)
				}
			}
			out := cmd.OutOrStdout()
			return output.write(out, documentOf(have, vips), func() error { return writeTable(out, have, vips, time.Now()) })
		},
	}
	output.flag(cmd)
	cmd.ValidArgsFunction = completer(t, 0, allVIPs)
	return cmd
}

// membersFaults looks at etcd's members, where it is known here which these are.
func (t *tool) membersFaults(ctx context.Context) []state.Fault {
	if !t.etcd {
		return nil
	}
	return t.members(ctx, time.Now())
}

func writeTable(out io.Writer, p *picture, only []string, now time.Time) error {
	s, nodes := p.Snapshot, p.Said
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "VIP\tTARGET\tAUTO\tSITE\tNODE\tOWNER\tROLE\tMED\tCLAIM\tACTIVE\tINACT\tPPS\tBGP\tNODE STATE")
	var why, locks []string
	for _, vip := range vipNames(s, nodes) {
		if len(only) > 0 && !slices.Contains(only, vip) {
			continue
		}
		served := false
		for _, n := range nodes {
			for _, v := range n.Vips {
				if v.Vip != vip {
					continue
				}
				served = true
				med, pps := "-", "-"
				if v.Med != nil {
					med = fmt.Sprint(*v.Med)
				}
				if v.PacketsPerSecond != nil {
					pps = fmt.Sprint(*v.PacketsPerSecond)
				}
				_, alive := s.Alive[n.Node]
				said, last := heard(alive), ""
				if !alive {
					last = ", when last heard of"
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", cell(vip), target(s, vip, v.Target), automatic(s, vip),
					cell(n.Site), cell(n.Node), owns(s, n, vip), said(cell(v.Role)), said(med), said(cell(v.Claim)), said(v.ActiveConnections),
					said(v.InactiveConnections), said(pps), said(sessions(n)), nodeState(s, n, now))
				why = append(why, fmt.Sprintf("%s on %s%s: %s", vip, n.Node, last, v.Reason))
			}
		}
		if !served {
			fmt.Fprintf(w, "%s\t%s\t%s\t-\t-\t-\t-\t-\t-\t-\t-\t-\t-\tno node\n", cell(vip), target(s, vip, s.Targets[vip].Site), automatic(s, vip))
			why = append(why, vip+": no agent of its groups has reported yet: "+groups(s.VIPs[vip]))
		}
		if l, locked := s.Locks[vip]; locked {
			locks = append(locks, vip+": "+operation.DescribeLock(l))
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	section(out, "Why", why)
	section(out, "Nothing moves for VIPs of these nodes: they have not joined the epoch, which is new after a restore of etcd", notJoined(s))
	section(out, "Planned switchovers under way (medwayctl watch)", underWay(p, only))
	section(out, "Locks (nothing is switched automatically until medwayctl unlock VIP)", locks)
	section(out, "Paused (nothing is switched automatically until medwayctl resume)", pauses(s, only))
	section(out, "Drained (announces nothing until medwayctl node undrain NODE)", drains(s))
	section(out, "Drained backends (no new connections until medwayctl backend undrain POOL/BACKEND)", backendDrains(s))
	section(out, "Cold (connections were lost: stands back until it has caught up)", cold(s))
	section(out, "Nodes", nodeNotes(s, nodes))
	section(out, "Faults", faults(s, nodes))
	section(out, "Notices", notices(s))
	return nil
}

// underWay are the planned switchovers and evacuations that are not over.
func underWay(p *picture, only []string) (lines []string) {
	for _, site := range slices.Sorted(maps.Keys(p.evacuations)) {
		if e := p.evacuations[site]; e.Result == "" {
			lines = append(lines, fmt.Sprintf("evacuation of %s, by %s: %s", site, e.By, cmp.Or(e.WaitsFor, "begins")))
		}
	}
	for _, vip := range slices.Sorted(maps.Keys(p.switchovers)) {
		if r := p.switchovers[vip]; r.Result == "" && (len(only) == 0 || slices.Contains(only, vip)) {
			lines = append(lines, fmt.Sprintf("%s: %s to %s, by %s: %s: %s", vip, r.From, r.To, r.By, r.Step, cmp.Or(r.WaitsFor, "goes on")))
		}
	}
	return lines
}

// heard shows what a node says; of one that is silent in parentheses, since it may be
// so no more.
func heard(alive bool) func(value any) string {
	return func(value any) string {
		text := fmt.Sprint(value)
		if alive || text == "-" {
			return text
		}
		return "(" + text + ")"
	}
}

// automatic says whether a VIP may switch by itself now.
func automatic(s *state.Snapshot, vip string) string {
	_, locked := s.Locks[vip]
	switch v, known := s.VIPs[vip]; {
	case !known:
		return "-"
	case !v.Automatic.Enabled:
		return "off"
	case locked:
		return "locked"
	case s.Paused(vip):
		return "paused"
	}
	return "on"
}

// owns says whether a node answers for a VIP in its site.
func owns(s *state.Snapshot, n *medwayv1.Status, vip string) string {
	if o, ok := s.Owner(n.Site, vip); ok && o.Node == n.Node {
		return "yes"
	}
	return "-"
}

// unjoined are the nodes that have not put the epoch of the store (PROTOCOL R13).
func unjoined(s *state.Snapshot) (names []string) {
	if s.Epoch.Revision == 0 {
		return nil // nobody has put one yet
	}
	for _, name := range slices.Sorted(maps.Keys(s.Nodes)) {
		if s.Epoch.Word == "" || plan.Joins(s, name) {
			names = append(names, name)
		}
	}
	return names
}

func notJoined(s *state.Snapshot) (lines []string) {
	for _, name := range unjoined(s) {
		line := fmt.Sprintf("%s: is in epoch %s, not in %s", name, orDash(s.Joined[name]), orDash(s.Epoch.Word))
		if _, alive := s.Alive[name]; !alive {
			line += "; it is silent: start its agent, or medwayctl forget " + name
		}
		lines = append(lines, line)
	}
	return lines
}

// pauses are that of all VIPs and those of some.
func pauses(s *state.Snapshot, only []string) (lines []string) {
	for _, vip := range slices.Sorted(maps.Keys(s.Pauses)) {
		what := vip
		if vip == "" {
			what = "all VIPs"
		} else if len(only) > 0 && !slices.Contains(only, vip) {
			continue
		}
		lines = append(lines, what+": "+operation.DescribeOrder(s.Pauses[vip]))
	}
	return lines
}

func drains(s *state.Snapshot) (lines []string) {
	for _, name := range slices.Sorted(maps.Keys(s.Drains)) {
		lines = append(lines, name+": "+operation.DescribeOrder(s.Drains[name]))
	}
	return lines
}

func backendDrains(s *state.Snapshot) (lines []string) {
	for k, d := range s.BackendDrains {
		lines = append(lines, k.Pool+"/"+k.Name+": "+operation.DescribeOrder(d.Order))
	}
	slices.Sort(lines)
	return lines
}

func cold(s *state.Snapshot) (lines []string) {
	for _, name := range slices.Sorted(maps.Keys(s.Alive)) {
		if a := s.Alive[name]; a.Cold {
			lines = append(lines, fmt.Sprintf("%s: its agent runs since %s", name, a.Since.UTC().Format(time.RFC3339)))
		}
	}
	return lines
}

// nodeNotes are what a person should know of a node beside its VIPs.
func nodeNotes(s *state.Snapshot, nodes []*medwayv1.Status) []string {
	var out []string
	oldest, newest := uint32(0), uint32(0)
	for _, n := range s.Nodes {
		newest = max(newest, n.Schema)
		if oldest == 0 || n.Schema < oldest {
			oldest = n.Schema
		}
	}
	if oldest != newest {
		for _, name := range slices.Sorted(maps.Keys(s.Nodes)) {
			out = append(out, fmt.Sprintf("%s knows schema %d (version %s)", name, s.Nodes[name].Schema, orDash(s.Nodes[name].Version)))
		}
	}
	for _, n := range nodes {
		if n.FromDisk != "" {
			out = append(out, fmt.Sprintf("%s acts on its snapshot on disk, saved %s", n.Node, n.FromDisk))
		}
		if d := n.GetDrift(); d.GetMended() > 0 {
			text := fmt.Sprintf("%s put right %d changes that somebody else made, the last at %s", n.Node, d.Mended, orDash(d.At))
			if len(d.Last) > 0 {
				text += ": " + d.Last[0]
			}
			out = append(out, text)
		}
	}
	return out
}

// notices are what is in force, and should be looked at.
func notices(s *state.Snapshot) []string {
	var out []string
	for _, f := range s.Faults {
		if f.Notice {
			out = append(out, fmt.Sprintf("%s: %s", f.Key, f.Reason))
		}
	}
	return out
}

// sessions is "up/all" of a node's BGP sessions.
func sessions(n *medwayv1.Status) string {
	up := 0
	for _, session := range n.Sessions {
		if session.Established {
			up++
		}
	}
	return fmt.Sprintf("%d/%d", up, len(n.Sessions))
}

// nodeState says whether a node lives, and what keeps it from its work; what it
// said last may be old.
func nodeState(s *state.Snapshot, n *medwayv1.Status, now time.Time) string {
	text := lives(s, n, now)
	if s.Alive[n.Node].Cold {
		text += ", cold"
	}
	if _, drained := s.Drains[n.Node]; drained {
		text += ", drained"
	}
	return text
}

func lives(s *state.Snapshot, n *medwayv1.Status, now time.Time) string {
	if _, alive := s.Alive[n.Node]; alive {
		return "alive"
	}
	if t, err := time.Parse(time.RFC3339, n.Updated); err == nil {
		return fmt.Sprintf("silent, last word %s ago", now.Sub(t).Round(time.Second))
	}
	return "silent"
}

// faults are those of the keys, and what the nodes report beyond them: a node of
// an older schema refuses what is right here, and one with a last good value what
// is only unwise for who has none.
func faults(s *state.Snapshot, nodes []*medwayv1.Status) []string {
	var out []string
	type fault struct{ subject, reason string }
	shown := map[fault]bool{}
	for _, f := range s.Faults {
		shown[fault{f.Key, f.Reason}] = true
		if !f.Notice {
			out = append(out, fmt.Sprintf("%s: %s", f.Key, f.Reason))
		}
	}
	for _, n := range nodes {
		_, alive := s.Alive[n.Node]
		for _, f := range n.Faults {
			ofKey := strings.HasPrefix(f.Subject, state.Prefix)
			stale := ofKey && !alive // the key may have changed since
			if shown[fault{f.Subject, f.Reason}] || stale || f.Subject == state.Prefix {
				continue
			}
			out = append(out, fmt.Sprintf("%s: %s: %s", n.Node, f.Subject, f.Reason))
		}
		for _, session := range n.Sessions {
			if !session.Established {
				out = append(out, fmt.Sprintf("%s: BGP session with %s is down since %s: %s", n.Node, session.Neighbor, session.Since, cmp.Or(session.Error, "connecting")))
			}
		}
	}
	return out
}

func section(out io.Writer, title string, lines []string) {
	if len(lines) == 0 {
		return
	}
	fmt.Fprintf(out, "\n%s\n", title)
	for _, line := range lines {
		// What nodes and keys say may hold anything; a terminal must not obey it.
		fmt.Fprintf(out, "  %s\n", state.Line(line))
	}
}

// target is the site that a node acts on, which is not that of the key where the
// key's value is wrong.
func target(s *state.Snapshot, vip, site string) string {
	key := state.Key{Kind: state.KindTarget, A: vip}.String()
	if slices.ContainsFunc(s.Faults, func(f state.Fault) bool { return f.Key == key && !f.Notice }) {
		return cell(site) + " (key is wrong)"
	}
	return cell(site)
}

// groups lists a VIP's groups with their sites.
func groups(v state.VIP) string {
	var out []string
	for _, site := range slices.Sorted(maps.Keys(v.Groups)) {
		out = append(out, v.Groups[site]+" in "+site)
	}
	return strings.Join(out, ", ")
}

// cell is a value in a table.
func cell(text string) string { return orDash(state.Printable(text)) }

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// vipNames lists the VIPs that are stored and those that nodes serve: a value
// that was spoiled is served on.
func vipNames(s *state.Snapshot, nodes []*medwayv1.Status) []string {
	names := map[string]bool{}
	for name := range s.VIPs {
		names[name] = true
	}
	for _, n := range nodes {
		for _, v := range n.Vips {
			names[v.Vip] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}
