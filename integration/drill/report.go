package drill

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/medway-lb/medway/integration/lab"
	"github.com/medway-lb/medway/integration/sbc/sipp"
)

// Report is what a drill saw.
type Report struct {
	Kinds    []Kind
	Switches []Switch
	Resets   int
	Streams  []Stream

	Started time.Time
	Samples []Sample
	Routes  []lab.RouteEvent
	// Before are the MEDs that every LVS host announced at the start, for lab.VIP.
	Before []Step
}

// Kind is what became of the calls of one kind.
type Kind struct {
	Traffic     Traffic
	Established int
	// Entries are distinct connections in `ipvsadm -lnc`, by LVS host.
	Entries map[string]int
	// Final is how the calls stood before they were told to end, Stats SIPp's
	// own totals after.
	Final Count
	Stats sipp.Stats
}

// Switch is one switchover.
type Switch struct {
	From, To string
	Put      time.Time
	// Owners are the LVS hosts that owned the VIP at the put, by site.
	Owners map[string]string
	// Best is when a provider's best paths to all addresses of the VIP had come to lead
	// to the new site; zero: never. Normal is when that of the first provider did
	// so with the MED of an active site.
	Best   map[string]time.Time
	Normal time.Time
	// Steps are the lowest MED of each site as its edge router heard it, in order.
	Steps []Step
	// Calls are in the order of the report's kinds.
	Calls []SwitchCalls
}

// SwitchCalls is what a switch did to the calls of one kind: Alive is how they stood
// when all had been asked again, NewCalls where new ones went.
type SwitchCalls struct {
	Alive    Count
	NewCalls map[string]int
}

// Step is the lowest MED that an edge router had heard from the LVS hosts of its
// site, for an address of the VIP; without a node it had none.
type Step struct {
	After time.Duration // since the put
	VIP   netip.Addr
	Site  string
	Node  string // whose MED it is
	MED   int
}

// Lost is the number of established calls that did not live to the end.
func (k Kind) Lost() int { return k.Established - k.Stats.Successful }

// Established is the number of calls of all kinds that were established.
func (r Report) Established() int {
	n := 0
	for _, k := range r.Kinds {
		n += k.Established
	}
	return n
}

// Lost is the number of established calls that did not live to the end.
func (r Report) Lost() int {
	n := 0
	for _, k := range r.Kinds {
		n += k.Lost()
	}
	return n
}

// vips are the addresses that switch together.
var vips = []netip.Addr{lab.VIP, lab.VIP6}

// Faults says all that a good drill does not have.
func (r Report) Faults() []string {
	var out []string
	fault := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	tcp := 0
	for i, k := range r.Kinds {
		of := r.of(i)
		if k.Lost() != 0 || k.Stats.Failed != 0 {
			fault("%s%d of %d established calls were lost, SIPp counts %d failed %v", of, k.Lost(), k.Established, k.Stats.Failed, k.Stats.Why)
		}
		if k.Final.Strayed != 0 {
			fault("%s%d calls got an answer from another backend than their own", of, k.Final.Strayed)
		}
		for _, host := range slices.Sorted(maps.Keys(k.Entries)) {
			if k.Entries[host] < k.Established {
				fault("%s%d entries in %s's connection table for %d calls", of, k.Entries[host], host, k.Established)
			}
		}
		if len(k.Entries) == 0 {
			fault("%sno connection table was looked at", of)
		}
		if !k.Traffic.UDP {
			tcp += k.Established
		}
	}
	if r.Resets != 0 {
		fault("clients were sent %d TCP resets", r.Resets)
	}
	for _, s := range r.Switches {
		out = append(out, r.switchFaults(s)...)
	}
	if len(r.Streams) < tcp {
		fault("the capture shows %d connections for %d calls", len(r.Streams), tcp)
	}
	for _, s := range r.Streams {
		if !s.Continuous() {
			fault("on the wire: %s", s)
		}
	}
	return out
}

// of begins a line about one kind of calls, where there are several.
func (r Report) of(i int) string {
	if len(r.Kinds) == 1 {
		return ""
	}
	return r.Kinds[i].Traffic.String() + ": "
}

func (r Report) switchFaults(s Switch) []string {
	var out []string
	fault := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	for i, c := range s.Calls {
		for backend, n := range c.NewCalls {
			if !strings.HasPrefix(backend, s.To+"-") && n > r.Kinds[i].Traffic.Astray() {
				fault("%safter the switch to %s, %d new calls went to %s", r.of(i), s.To, n, backend)
			}
		}
		if len(c.NewCalls) == 0 {
			fault("%safter the switch to %s, no new call succeeded", r.of(i), s.To)
		}
	}
	for _, provider := range slices.Sorted(maps.Keys(s.Best)) {
		if s.Best[provider].IsZero() {
			fault("switch to %s: %s's best path never led there", s.To, provider)
		}
	}
	for _, vip := range vips {
		if why := s.disorder(vip); why != "" {
			fault("switch to %s: %s: %s", s.To, vip, why)
		}
	}
	return out
}

// The MEDs of the default ladder that a switch is read by.
const force, active, backup = 50, 100, 500

// disorder says where a switch left the order of PROTOCOL: the new site forces
// 50 while the old one stands at 100, the old one goes to its backup value,
// the new one normalises to 100.
func (s Switch) disorder(vip netip.Addr) string {
	stage, old := 0, active
	steps := s.steps(vip)
	for _, step := range steps {
		switch {
		case stage == 0 && step.Site == s.To && step.MED == force:
			if old != active {
				return fmt.Sprintf("%s was at %d when %s forced %d", s.From, old, s.To, force)
			}
			stage = 1
		case stage == 1 && step.Site == s.From && step.MED >= backup:
			stage = 2
		case stage == 2 && step.Site == s.To && step.MED == active:
			stage = 3
		case step.Site == s.From:
			old = step.MED
		}
	}
	if stage != 3 {
		return fmt.Sprintf("the steps were %v, expected %s %d, %s at least %d, %s %d", steps, s.To, force, s.From, backup, s.To, active)
	}
	return ""
}

// steps are those of one address.
func (s Switch) steps(vip netip.Addr) []Step {
	return slices.DeleteFunc(slices.Clone(s.Steps), func(step Step) bool { return step.VIP != vip })
}

// complete says whether the new site is the usual active one, for every provider, and
// the old one a backup, in whatever order it came about.
func (s Switch) complete() bool {
	for _, best := range s.Best {
		if best.IsZero() {
			return false
		}
	}
	for _, vip := range vips {
		last := map[string]int{}
		for _, step := range s.steps(vip) {
			last[step.Site] = step.MED
		}
		if last[s.To] != active || last[s.From] < backup {
			return false
		}
	}
	return !s.Normal.IsZero()
}

func (s Step) String() string {
	return fmt.Sprintf("%s %d (%.2f s)", cmp.Or(s.Node, s.Site), s.MED, s.After.Seconds())
}

// alive is how many calls of all kinds lived after the switch.
func (s Switch) alive() int {
	n := 0
	for _, c := range s.Calls {
		n += c.Alive.Total()
	}
	return n
}
