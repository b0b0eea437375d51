package drill

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Summary is the report for people.
func (r Report) Summary() string {
	var b strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	say("Calls established before the first switch   %d, with %d distinct entries in ipvsadm -lnc", r.Established, r.Entries)
	say("Alive after the last switch                 %d", r.Final.Total())
	say("Ended normally                              %d", r.Stats.Successful)
	say("Failed                                      %d", r.Lost())
	say("TCP resets that reached the clients         %d", r.Resets)
	for _, s := range r.Switches {
		say("")
		say("%s -> %s", s.From, s.To)
		if s.Best.IsZero() {
			say("  the transit's best path never led to %s", s.To)
		} else {
			say("  from put to the transit's new best path   %.2f s", s.Best.Sub(s.Put).Seconds())
		}
		if !s.Normal.IsZero() {
			say("  until the new site stood at its usual MED %.2f s", s.Normal.Sub(s.Put).Seconds())
		}
		say("  MEDs, as the edge routers heard them      %v", s.Steps)
		say("  calls alive afterwards                    %s", s.Alive)
		say("  new calls                                 %s", counts(s.NewCalls))
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
