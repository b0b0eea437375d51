package switchover

import (
	"fmt"
	"strings"
	"time"

	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// Limits are how long steps may take before they are given up.
type Limits struct {
	// Force is how long the new site may take to announce below the old one. Nothing
	// has moved until then: the target goes back.
	Force time.Duration
	// Raise is how long the old site may take, and Normalise the new one beyond
	// normalise_after. The traffic has moved: what is late is noted.
	Raise, Normalise time.Duration
	// Verify is how long packets may take to be seen at the new site: agents tell
	// rates of 10 s, and write them every 10 s.
	Verify time.Duration
	// Answer is how long an answer through the VIP is waited for where none is heard,
	// once packets are seen: there may be no way to the VIP from here.
	Answer time.Duration
	// Return is how long the way back is watched.
	Return time.Duration
}

func (l *Limits) setDefaults() {
	for _, d := range []*time.Duration{&l.Force, &l.Raise, &l.Normalise} {
		if *d <= 0 {
			*d = 30 * time.Second
		}
	}
	if l.Answer <= 0 {
		l.Answer = 15 * time.Second
	}
	for _, d := range []*time.Duration{&l.Verify, &l.Return} {
		if *d <= 0 {
			*d = time.Minute
		}
	}
}

// How soon a record is written again only for what it waits for: two coordinators may
// see nodes at different moments. A drain may take hours.
const (
	repeatAfter = time.Second
	drainRepeat = 5 * time.Second
)

// world is what a step rests on.
type world struct {
	*state.Snapshot
	// standing are the mod revisions of the targets' keys as they stand; the
	// snapshot has those of the last good values.
	standing map[string]int64
	// drains are those of the keys of drained backends.
	drains   map[state.BackendKey]int64
	observed map[string]plan.Observed
	limits   Limits
	now      time.Time
	// probe is what was answered through the VIP, by the switchover's id. One that is
	// missing has not been tried yet. nil: nobody asks.
	probe map[string]answer
}

// change is what one step writes, if the record is still as it was read.
type change struct {
	record *medwayv1.Switchover
	// target, if not "", is put, guarded by targetRevision.
	target         string
	targetRevision int64
	event          *medwayv1.Event // for the history, may be nil
	// More keys that go with it, and what they are guarded by.
	guards  []store.Guard
	puts    []store.Put
	deletes []string
}

// advance carries a switchover on as far as the world allows, up to one write. It
// returns nil where there is nothing to write. Whoever makes the write guards it by
// the record's revision: so no step is made twice, whoever else tries.
func advance(vip string, r record, w world) *change {
	if r.Result != "" || w.Revision < r.TargetRevision {
		return nil
	}
	s := &stepper{world: w, vip: vip, r: r.clone()}
	s.run()
	if s.r.Result == "" && s.c.target == "" && s.r.Step == r.Step && len(s.r.Drained) == len(r.Drained) {
		again := repeatAfter
		if r.Step == StepDrain {
			again = drainRepeat
		}
		waitsOn := s.r.WaitsFor == r.WaitsFor || w.now.Sub(timeOf(r.Updated)) < again
		if waitsOn {
			return nil
		}
	}
	s.r.Updated = stamp(w.now)
	s.c.record = s.r
	return &s.c
}

// stepper is one run of advance.
type stepper struct {
	world
	vip string
	r   *medwayv1.Switchover
	c   change
}

func (s *stepper) run() {
	if s.standing[s.vip] != s.r.TargetRevision {
		result := Failed
		if s.r.Cancel != nil {
			result = Cancelled
		}
		t := s.Targets[s.vip]
		now := fmt.Sprintf("%s at revision %d", t.Site, t.Revision)
		if t.Revision == s.r.TargetRevision {
			now = fmt.Sprintf("it can't be read, or was deleted; %s stays in force", t.Site)
		}
		s.end(result, "somebody else has changed the target, which is left so: "+now)
		return
	}
	if s.r.Cancel != nil && s.r.Step != StepReturn {
		s.goBack("cancelled by "+s.r.Cancel.By, s.r.Cancel.By, s.r.Cancel.Reason)
		return
	}
	for more := true; more; {
		more = s.step()
	}
}

// step makes one step, and tells whether it is over.
func (s *stepper) step() bool {
	late := !s.now.Before(timeOf(s.r.Deadline))
	switch s.r.Step {
	case StepForce:
		who, wait := s.taken(s.r.To)
		switch {
		case wait == "":
			s.next(StepRaise, who, s.limits.Raise)
			return true
		case late:
			s.goBack(fmt.Sprintf("%s did not take it over in time: %s", s.r.To, wait), "", "")
			return false
		}
		s.r.WaitsFor = wait
	case StepRaise:
		wait := s.left(s.r.To)
		if wait != "" && !late {
			s.r.WaitsFor = wait
			return false
		}
		s.next(StepNormalise, given(wait), s.Settings.NormaliseAfter+s.limits.Normalise)
		return true
	case StepNormalise:
		wait := s.normal()
		if wait != "" && !late {
			s.r.WaitsFor = wait
			return false
		}
		s.next(StepVerify, given(wait), s.limits.Verify)
		return true
	case StepVerify:
		return s.verify(late)
	case StepDrain:
		s.drain(late)
	case StepReturn:
		s.release()
		who, wait := s.taken(s.r.From)
		if wait == "" {
			wait = s.left(s.r.From)
		}
		if wait != "" && !late {
			s.r.WaitsFor = wait
			return false
		}
		result, why := Failed, s.r.Why
		if s.r.Cancel != nil {
			result = Cancelled
		}
		why += fmt.Sprintf("; the target is %s again", s.r.From)
		if wait == "" {
			why += ", and " + who
		} else {
			why += "; not seen yet: " + wait
		}
		s.end(result, why)
	}
	return false
}

// given is the note of a step that ended, or was given up.
func given(wait string) string {
	if wait == "" {
		return ""
	}
	return "not seen in time: " + wait
}

// next ends a step and begins another one.
func (s *stepper) next(step, note string, limit time.Duration) {
	s.note(note)
	s.r.Steps = append(s.r.Steps, &medwayv1.SwitchoverStep{Name: step, Began: stamp(s.now)})
	s.r.Step, s.r.Deadline, s.r.WaitsFor = step, stamp(s.now.Add(limit)), ""
}

// note ends the step that is under way.
func (s *stepper) note(text string) {
	if n := len(s.r.Steps); n > 0 && s.r.Steps[n-1].Ended == "" {
		s.r.Steps[n-1].Ended, s.r.Steps[n-1].Note = stamp(s.now), state.Line(text)
	}
}

// goBack puts the target back to where the switchover came from.
func (s *stepper) goBack(why, by, reason string) {
	s.release()
	s.c.target, s.c.targetRevision = s.r.From, s.r.TargetRevision
	if by == "" {
		by = s.r.By
	}
	s.c.event = &medwayv1.Event{What: "switch back", From: s.r.To, To: s.r.From, By: by, Reason: state.Line(joined(why, reason))}
	s.next(StepReturn, why, s.limits.Return)
	s.r.Why, s.r.TargetRevision, s.r.WaitsFor = state.Line(why), 0, "a node of "+s.r.From+" to announce it"
}

func joined(why, reason string) string {
	if reason == "" {
		return why
	}
	return why + ": " + reason
}

// end is with the last of the drains that it has put: those before go first.
func (s *stepper) end(result, why string) {
	if s.release(); len(s.r.Drained) > 0 {
		return
	}
	s.note("")
	s.r.Result, s.r.Why, s.r.Ended = result, state.Line(why), stamp(s.now)
	s.r.WaitsFor, s.r.Deadline = "", ""
	s.c.event = &medwayv1.Event{What: "switchover " + result, From: s.r.From, To: s.r.To, By: s.r.By, Reason: s.r.Why}
}

// place is a node of the VIP that lives, and what it told of the VIP.
type place struct {
	node, site string
	plan.ObservedVIP
	told    bool // of a revision at which it knows the target
	carries bool // at or below the line
}

func (s *stepper) places() (out []place) {
	line := state.MED(plan.LadderOf(s.Snapshot, s.vip).Active)
	for _, n := range plan.NodesOf(s.Snapshot, s.vip) {
		if _, alive := s.Alive[n]; !alive {
			continue
		}
		o := s.observed[n]
		p := place{node: n, site: s.Nodes[n].Site, told: o.Revision >= s.r.TargetRevision}
		p.ObservedVIP, p.carries = o.VIPs[s.vip], false
		p.told = p.told && p.Target == s.Targets[s.vip].Site
		p.carries = p.told && p.MED != state.NoMED && p.MED <= line
		out = append(out, p)
	}
	return out
}

// taken tells which node of a site has the traffic by its MED, or what is waited for.
func (s *stepper) taken(site string) (who, wait string) {
	wait = "no node of " + site + " lives"
	said := false
	for _, p := range s.places() {
		if p.site != site {
			continue
		}
		if p.carries {
			return fmt.Sprintf("%s announces %s", p.node, p.MED), ""
		}
		if said {
			continue
		}
		if wait = p.node + " has not told that it knows of the target"; p.told {
			wait, said = fmt.Sprintf("%s is %s: %s", p.node, p.Role, p.Reason), true
		}
	}
	return "", wait
}

// left is what keeps a node of another site than this one at the line, "" where
// none is there any more. Of dead nodes their claims tell, and these are waited
// for by the next step.
func (s *stepper) left(site string) (wait string) {
	for _, p := range s.places() {
		switch {
		case p.site == site:
		case !p.told:
			return p.node + " has not told that it knows of the target"
		case p.carries:
			return fmt.Sprintf("%s announces %s: %s", p.node, p.MED, p.Reason)
		}
	}
	return ""
}

// normal is what keeps the new site off the line, "" where it is there.
func (s *stepper) normal() (wait string) {
	line := state.MED(plan.LadderOf(s.Snapshot, s.vip).Active)
	wait = "no node of " + s.r.To + " is active"
	for _, p := range s.places() {
		switch {
		case p.site != s.r.To || !p.carries:
		case p.MED == line:
			return ""
		default:
			wait = fmt.Sprintf("%s announces %s: %s", p.node, p.MED, p.Reason)
		}
	}
	return wait
}

// verify looks where the packets come, and what the VIP answers. It tells whether the
// step is over, and another one follows.
func (s *stepper) verify(late bool) bool {
	seen, known, here, elsewhere := s.traffic()
	heard, tried := s.probe[s.r.Id]
	if s.probe != nil && !tried {
		heard = answer{"the VIP has not been asked yet", true}
	}
	arrived := known && here > elsewhere
	// Whoever has no way to the VIP does not wait for ever.
	given := late || heard.unknown && tried && !s.now.Before(s.began().Add(s.limits.Answer))
	switch {
	case arrived && (heard.wrong == "" || heard.unknown && given):
	case arrived && !late:
		s.r.WaitsFor = heard.wrong
		return false
	case !late:
		s.r.WaitsFor = seen
		return false
	case heard.wrong != "" && !heard.unknown:
		s.end(Failed, "the roles are swapped, but through the VIP: "+heard.wrong)
		return false
	case known && here == 0 && elsewhere == 0:
		seen = "no packets came to the VIP at all"
	default:
		s.end(Failed, "the roles are swapped, but "+seen)
		return false
	}
	if heard.wrong != "" {
		seen += "; not verified: " + heard.wrong
	}
	if s.r.Drain == nil {
		s.note(seen)
		s.finish()
		return false
	}
	within, _ := time.ParseDuration(s.r.Drain.Within)
	s.next(StepDrain, seen, within)
	return true
}

// traffic is where the packets come, by what nodes told since the step began; known,
// if all have that must.
func (s *stepper) traffic() (seen string, known bool, here, elsewhere float64) {
	silent := ""
	for _, p := range s.places() {
		switch {
		case p.Rate == nil || s.observed[p.node].At.Before(s.began()):
			if p.site != s.r.To {
				silent = p.node // it may carry everything
			}
		case p.site == s.r.To:
			here, known = here+*p.Rate, true
		default:
			elsewhere += *p.Rate
		}
	}
	seen = fmt.Sprintf("%.0f packets a second come to %s, %.0f elsewhere", here, s.r.To, elsewhere)
	switch {
	case !known:
		seen = "no node of " + s.r.To + " has told how many packets come to it"
	case silent != "":
		seen = silent + " has not told how many packets come to it"
	}
	return seen, known && silent == "", here, elsewhere
}

// began is when the step that is under way did.
func (s *stepper) began() time.Time { return timeOf(s.r.Steps[len(s.r.Steps)-1].Began) }

// finish ends a switchover that is done, with what was seen and what was late.
func (s *stepper) finish() {
	var why []string
	for _, name := range []string{StepVerify, StepDrain, StepRaise, StepNormalise} {
		for _, step := range s.r.Steps {
			switch {
			case step.Name != name || step.Note == "":
			case name == StepVerify:
				why = append(why, step.Note)
			default:
				why = append(why, step.Name+": "+step.Note)
			}
		}
	}
	s.end(Done, strings.Join(why, "; "))
}
