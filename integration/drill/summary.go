package drill

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/medway-lb/medway/integration/lab"
)

// Summary is the report for people.
func (r Report) Summary() string {
	var b strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	for i, k := range r.Kinds {
		of := r.of(i)
		say("%-44s%d", of+"Calls established before the first switch", k.Established)
		say("%-44s%s", of+"Entries for them in ipvsadm -lnc", counts(k.Entries))
		say("%-44s%d", of+"Alive after the last switch", k.Final.Total())
		say("%-44s%d", of+"Ended normally", k.Stats.Successful)
		say("%-44s%d", of+"Failed", k.Lost())
	}
	say("%-44s%d", "TCP resets that reached the clients", r.Resets)
	for _, s := range r.Switches {
		say("")
		say("%s -> %s", s.owner(s.From), s.owner(s.To))
		for _, provider := range slices.Sorted(maps.Keys(s.Best)) {
			if best := s.Best[provider]; best.IsZero() {
				say("  the %s's best path never led to %s", provider, s.To)
			} else {
				say("  %-42s%.2f s", "from put to the "+provider+"'s new best path", best.Sub(s.Put).Seconds())
			}
		}
		if !s.Normal.IsZero() {
			say("  until the new site stood at its usual MED %.2f s", s.Normal.Sub(s.Put).Seconds())
		}
		say("  lowest MEDs, as the edge routers heard    %v", s.steps(lab.VIP))
		for i, c := range s.Calls {
			say("  %-42s%s", r.of(i)+"calls alive afterwards", c.Alive)
			say("  %-42s%s", r.of(i)+"new calls", counts(c.NewCalls))
		}
	}
	if len(r.Streams) > 0 {
		continuous, longest := 0, r.Streams[0]
		for _, s := range r.Streams {
			if s.Continuous() {
				continuous++
			}
			if s.Packets > longest.Packets {
				longest = s
			}
		}
		say("")
		say("On the wire, at the clients: %d TCP connections, %d of them one 4-tuple each with continuous sequence numbers", len(r.Streams), continuous)
		say("  for example %s", longest)
	}
	if faults := r.Faults(); len(faults) > 0 {
		say("")
		say("FAILED:")
		for _, f := range faults {
			say("  - %s", f)
		}
	} else {
		say("")
		say("No established call was lost, and new calls went to the new site.")
	}
	return b.String()
}

// owner names a site and the host that owns the VIP there.
func (s Switch) owner(site string) string {
	if owner := s.Owners[site]; owner != "" {
		return fmt.Sprintf("%s (owner %s)", site, owner)
	}
	return site
}

func counts(m map[string]int) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(m)) {
		parts = append(parts, fmt.Sprintf("%s %d", name, m[name]))
	}
	if parts == nil {
		return "none succeeded"
	}
	return strings.Join(parts, ", ")
}
