package local

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/medway-lb/medway/pkg/state"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// Print writes a status for people. Routers and the kernel have a word in it, and
// a terminal must not obey them.
func (s Status) Print(out io.Writer, now time.Time) error {
	var text bytes.Buffer
	if err := s.print(&text, now); err != nil {
		return err
	}
	for line := range strings.Lines(text.String()) {
		if _, err := fmt.Fprintln(out, state.Line(strings.TrimSuffix(line, "\n"))); err != nil {
			return err
		}
	}
	return nil
}

func (s Status) print(out io.Writer, now time.Time) error {
	node, err := state.DecodeStatus(s.Node)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "Node\t%s, site %s, version %s\n", node.Node, node.Site, node.Version)
	fmt.Fprintf(w, "Acts on\t%s\n", s.Snapshot.words(now))
	for _, n := range node.Sessions {
		title := "BGP"
		if strings.HasPrefix(n.Neighbor, "segment ") {
			title = "ARP"
		}
		fmt.Fprintf(w, "%s\t%s\n", title, sessionWords(n, now))
	}
	if d := node.GetDrift(); d.GetMended() > 0 {
		fmt.Fprintf(w, "Drift\t%d changes of others mended, the last at %s\n", d.Mended, d.At)
	}
	for _, by := range s.Withdrawn { // also VIPs that have left the plan since
		fmt.Fprintf(w, "Withdrawn\t%s\n", strings.TrimSpace(by.VIP+" since "+by.Since.Format(time.RFC3339)+" "+by.Reason))
	}
	section := func(title, columns string) { fmt.Fprintf(w, "\n%s\n  %s\n", title, columns) }
	section("VIPs", "VIP\tROLE\tMED\tCLAIM\tTARGET\tACTIVE\tINACT\tWHY")
	for _, v := range node.Vips {
		med := "-"
		if v.Med != nil {
			med = fmt.Sprint(*v.Med)
		}
		fmt.Fprintf(w, "  %s\t%s\t%s\t%s\t%s\t%d\t%d\t%s\n", v.Vip, v.Role, med, dash(v.Claim), dash(v.Target),
			v.ActiveConnections, v.InactiveConnections, v.Reason)
	}
	section("Routes", "VIP\tPREFIX\tMED\tPREPEND\tCOMMUNITIES")
	for _, r := range s.Routes {
		fmt.Fprintf(w, "  %s\t%s\t%d\t%d\t%s\n", r.VIP, r.Prefix, r.MED, r.Prepend, dash(strings.Join(r.Communities, " ")))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(node.Faults) > 0 {
		fmt.Fprintln(out, "\nFaults")
	}
	for _, f := range node.Faults {
		fmt.Fprintf(out, "  %s: %s\n", f.Subject, f.Reason)
	}
	if last := node.GetDrift().GetLast(); len(last) > 0 {
		fmt.Fprintf(out, "\nDrift, newest first\n  %s\n", strings.Join(last, "\n  "))
	}
	return nil
}

func (s Snapshot) words(now time.Time) string {
	text := "nothing yet: etcd has not answered, and no snapshot on disk is used"
	switch s.Source {
	case FromEtcd:
		text = fmt.Sprintf("etcd, revision %d", s.Revision)
		if s.Confirmed != nil {
			text += ", confirmed " + Age(now.Sub(*s.Confirmed)) + " ago"
		}
		if !s.Fresh && s.NotTaken == "" {
			text += ": can't be reached, nothing moves"
		}
	case FromDisk:
		text = fmt.Sprintf("the snapshot on disk, revision %d", s.Revision)
		if s.Saved != nil {
			text += fmt.Sprintf(", saved %s ago (%s)", Age(now.Sub(*s.Saved)), s.Saved.Format(time.RFC3339))
		}
	}
	if s.NotTaken != "" {
		text += "; etcd's store is not taken: " + s.NotTaken
	}
	return text
}

func sessionWords(s *medwayv1.Session, now time.Time) string {
	text := s.Neighbor + ": "
	if s.Established {
		text += "established"
	} else {
		text += "down"
	}
	if t, err := time.Parse(time.RFC3339, s.Since); err == nil {
		text += " for " + Age(now.Sub(t))
	}
	if !s.Established && s.Error != "" {
		text += ": " + s.Error
	}
	return text
}

// Age is a length of time in the two units that matter.
func Age(d time.Duration) string {
	switch d = max(d, 0); {
	case d < 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	case d < time.Hour:
		return d.Round(time.Second).String()
	case d < 48*time.Hour:
		return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
	}
	hours := int(d.Round(time.Hour) / time.Hour)
	return fmt.Sprintf("%dd%dh", hours/24, hours%24)
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
