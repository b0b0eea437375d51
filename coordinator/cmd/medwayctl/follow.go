package main

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// The results of switchovers and evacuations.
const (
	done      = "done"
	cancelled = "cancelled"
)

// steps are those of a switchover, in their order, to show how far it is.
var steps = []string{"preflight", "put target", "force", "raise", "normalise", "verify"}

// endedError is a switchover or an evacuation that ended otherwise than it was ordered.
type endedError struct{ what, result, why string }

func (e *endedError) Error() string { return fmt.Sprintf("%s: %s: %s", e.what, e.result, e.why) }

// follow follows what is under way, or was last.
func (o *operator) follow(cmd *cobra.Command, c concerned, want string, limit time.Duration) error {
	p, err := o.look(cmd.Context())
	if err != nil {
		return err
	}
	if c.vip != "" {
		r := p.switchovers[c.vip]
		if r == nil {
			return fmt.Errorf("VIP %q: no planned switchover is known of it", c.vip)
		}
		return o.followSwitchover(cmd, c.vip, r.Id, want, limit)
	}
	r := p.evacuations[c.evacuation]
	if r == nil {
		return fmt.Errorf("site %q: no evacuation is known of it", c.evacuation)
	}
	return o.followEvacuation(cmd, c.evacuation, r.Id, want, limit)
}

// ending is what is known of the end of something that is followed.
type ending struct {
	result, why string
	record      proto.Message
}

func (o *operator) followSwitchover(cmd *cobra.Command, vip, id, want string, limit time.Duration) error {
	return o.toEnd(cmd, vip, want, limit, func(p *picture) (string, ending, error) {
		r := p.switchovers[vip]
		if r == nil || r.Id != id {
			return "", ending{}, fmt.Errorf("%w: %s: another switchover has begun since, so the end of this one can't be seen", errNotYet, vip)
		}
		return describe(p, vip, r), ending{r.Result, r.Why, r}, nil
	})
}

func (o *operator) followEvacuation(cmd *cobra.Command, site, id, want string, limit time.Duration) error {
	return o.toEnd(cmd, site, want, limit, func(p *picture) (string, ending, error) {
		r := p.evacuations[site]
		if r == nil || r.Id != id {
			return "", ending{}, fmt.Errorf("%w: %s: another evacuation has begun since, so the end of this one can't be seen", errNotYet, site)
		}
		return describeEvacuation(p, r), ending{r.Result, r.Why, r}, nil
	})
}

// toEnd shows how something goes on until its end, and what that was.
func (o *operator) toEnd(cmd *cobra.Command, what, want string, limit time.Duration, look func(*picture) (string, ending, error)) error {
	var end ending
	err := o.until(cmd.Context(), limit, showing(o.progress(cmd)), func(p *picture) (line string, over bool, err error) {
		line, end, err = look(p)
		return line, end.result != "", err
	})
	if errors.Is(err, errNotYet) && cmd.Context().Err() != nil {
		return fmt.Errorf("%w: it goes on, only the watching has ended: medwayctl watch or cancel", errNotYet)
	}
	if err != nil {
		return err
	}
	ended := error(&endedError{what, end.result, end.why})
	if end.result == want {
		ended = nil
	}
	err = o.form.write(o.out, end.record, func() error {
		if ended == nil {
			fmt.Fprintf(o.out, "%s: %s: %s\n", what, end.result, end.why)
		}
		return nil
	})
	return cmp.Or(err, ended)
}

// describe is how far a switchover is, on one line.
func describe(p *picture, vip string, r *medwayv1.Switchover) string {
	over := 0
	for _, s := range r.Steps {
		if s.Ended != "" {
			over++
		}
	}
	all := len(steps)
	if r.Drain != nil {
		all++
	}
	all = max(all, len(r.Steps))
	line := fmt.Sprintf("%s %d/%d %s", bar(over, all), over, all, cmp.Or(r.Result, r.Step))
	if counts := connections(p, vip, r); counts != "" {
		line += ", connections: " + counts
	}
	if r.WaitsFor != "" {
		line += ": " + r.WaitsFor
	}
	return line
}

// connections are those of both sites, by what living nodes say; "" where none does.
// Those that were synchronised count on each node that knows them.
func connections(p *picture, vip string, r *medwayv1.Switchover) string {
	counts := map[string]uint64{}
	for _, n := range p.Said {
		_, alive := p.Alive[n.Node]
		for _, v := range n.Vips {
			if alive && v.Vip == vip {
				counts[n.Site] = max(counts[n.Site], v.ActiveConnections+v.InactiveConnections)
			}
		}
	}
	var parts []string
	for _, site := range []string{r.From, r.To} {
		if n, ok := counts[site]; ok {
			parts = append(parts, fmt.Sprintf("%s %d", site, n))
		}
	}
	return strings.Join(parts, ", ")
}

// describeEvacuation is how far an evacuation is, on one line.
func describeEvacuation(p *picture, r *medwayv1.Evacuation) string {
	over := 0
	for _, m := range r.Moves {
		s := p.switchovers[m.Vip]
		if m.Skipped != "" || m.Switchover != "" && (s == nil || s.Id != m.Switchover || s.Result != "") {
			over++
		}
	}
	line := fmt.Sprintf("%s %d/%d VIPs", bar(over, len(r.Moves)), over, len(r.Moves))
	switch {
	case r.Result != "":
		line += " " + r.Result
	case r.Cancel != nil:
		line += ", goes back"
	}
	return line
}

// bar is a part of a whole, for the eye.
func bar(part, whole int) string {
	const width = 20
	full := 0
	if whole > 0 {
		full = min(width, width*part/whole)
	}
	return "[" + strings.Repeat("#", full) + strings.Repeat(".", width-full) + "]"
}
