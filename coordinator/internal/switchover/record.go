package switchover

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// The steps of a switchover. The first two are over when its record is written: the
// record and the target are one transaction.
const (
	StepPreflight = "preflight"
	StepPut       = "put target"
	StepForce     = "force"
	StepRaise     = "raise"
	StepNormalise = "normalise"
	StepVerify    = "verify"
	// StepDrain is there where it is asked for.
	StepDrain = "drain"
	// StepReturn is the way back, of what was cancelled or not taken over.
	StepReturn = "return"
)

// The results of switchovers and evacuations.
const (
	Done      = "done"
	Cancelled = "cancelled"
	Failed    = "failed"
)

// Key is where a VIP's switchover is stored.
func Key(vip string) string { return state.SwitchoverPrefix + vip }

// EvacuationKey is where a site's evacuation is stored.
func EvacuationKey(site string) string { return state.EvacuationPrefix + site }

// Decode reads a record. One with anything in it that this build doesn't know is
// an error: it belongs to a newer coordinator, which would lose that if it were
// written back from here.
func Decode(e store.Entry) (*medwayv1.Switchover, error) {
	r := &medwayv1.Switchover{}
	if err := protojson.Unmarshal(e.Value, r); err != nil {
		return nil, fmt.Errorf("%s: %s", state.Line(e.Key), state.Line(err.Error()))
	}
	if err := checkRecord(strings.TrimPrefix(e.Key, state.SwitchoverPrefix), r); err != nil {
		return nil, fmt.Errorf("%s: %w", state.Line(e.Key), err)
	}
	if r.TargetRevision == 0 {
		r.TargetRevision = e.ModRevision
	}
	return r, nil
}

// checkRecord looks at what a step relies on: names become keys and targets.
func checkRecord(vip string, r *medwayv1.Switchover) error {
	for _, name := range []string{vip, r.From, r.To} {
		if err := state.CheckName(name); err != nil {
			return err
		}
	}
	for i, name := range r.Drained {
		if k := backendKey(name); state.CheckName(k.Pool) != nil || state.CheckName(k.Name) != nil || slices.Contains(r.Drained[:i], name) {
			return fmt.Errorf("field drained[%d]: value %s: expected POOL/BACKEND, each once", i, state.Quote(name))
		}
	}
	switch {
	case r.Id == "":
		return errors.New("field id: missing")
	case r.Result != "":
		return nil
	case r.Step == StepDrain && r.Drain == nil:
		return errors.New("field drain: missing, though the step is drain")
	case !slices.Contains([]string{StepForce, StepRaise, StepNormalise, StepVerify, StepDrain, StepReturn}, r.Step):
		return fmt.Errorf("field step: value %s: expected one that this build knows", state.Quote(r.Step))
	case len(r.Steps) == 0 || r.Steps[len(r.Steps)-1].Name != r.Step:
		return fmt.Errorf("field steps: expected the last one to be %s, as in field step", r.Step)
	}
	return nil
}

// DecodeEvacuation is [Decode] of an evacuation.
func DecodeEvacuation(e store.Entry) (*medwayv1.Evacuation, error) {
	r := &medwayv1.Evacuation{}
	if err := protojson.Unmarshal(e.Value, r); err != nil {
		return nil, fmt.Errorf("%s: %s", state.Line(e.Key), state.Line(err.Error()))
	}
	if r.Id == "" {
		return nil, fmt.Errorf("%s: field id: missing", state.Line(e.Key))
	}
	for i, m := range r.Moves {
		for _, name := range []string{m.Vip, m.To} {
			if err := state.CheckName(name); err != nil {
				return nil, fmt.Errorf("%s: field moves[%d]: %w", state.Line(e.Key), i, err)
			}
		}
	}
	return r, nil
}

// record is a switchover as stored, evacuation likewise.
type record struct {
	*medwayv1.Switchover
	revision int64
}

type evacuation struct {
	*medwayv1.Evacuation
	revision int64
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// timeOf is a time of a record; the zero time where it is none.
func timeOf(text string) time.Time {
	t, _ := time.Parse(time.RFC3339Nano, text)
	return t
}

// ChecksOf gives the checks of a preflight the form in which they are stored.
func ChecksOf(checks []plan.Check, force []plan.CheckName) (out []*medwayv1.Check) {
	for _, c := range checks {
		check := &medwayv1.Check{
			Name: string(c.Name), Ok: c.OK, Assumed: c.Assumed, Note: c.Note, Forced: !c.OK && slices.Contains(force, c.Name),
		}
		for _, p := range c.Problems {
			check.Problems = append(check.Problems, &medwayv1.Problem{What: state.Line(p.What), Where: p.Where, Mend: p.Mend})
		}
		out = append(out, check)
	}
	return out
}

// inWords is what refusing checks say, on one line.
func inWords(refusing []plan.Check) string {
	var parts []string
	for _, c := range refusing {
		for _, p := range c.Problems {
			parts = append(parts, fmt.Sprintf("%s: %s", c.Name, p.What))
		}
	}
	return state.Line(strings.Join(parts, "; "))
}

// OfStatus is what a status in etcd tells. A node that lives writes it when it
// changes: so it counts as of now, unless it is of the process before.
func OfStatus(s *medwayv1.Status, alive state.Alive, now time.Time) (o plan.Observed, ok bool) {
	if s == nil {
		return o, false
	}
	since, err := time.Parse(time.RFC3339, s.Since)
	if err != nil || !since.Equal(alive.Since) {
		return o, false
	}
	o = plan.Observed{At: now, InPlan: true, Revision: s.Revision, VIPs: make(map[string]plan.ObservedVIP, len(s.Vips))}
	for _, f := range s.Faults {
		o.InPlan = o.InPlan && f.Subject != "kernel"
	}
	for _, session := range s.Sessions {
		if !session.Established {
			o.Down = append(o.Down, session.Neighbor)
		}
	}
	for _, v := range s.Vips {
		vip := plan.ObservedVIP{
			Role: plan.Role(v.Role), MED: state.NoMED, Target: v.Target, Reason: v.Reason, Connections: v.ActiveConnections + v.InactiveConnections,
		}
		if v.Med != nil {
			vip.MED = state.MED(*v.Med)
		}
		if v.PacketsPerSecond != nil {
			rate := float64(*v.PacketsPerSecond)
			vip.Rate = &rate
		}
		o.VIPs[v.Vip] = vip
	}
	return o, true
}

// OfLive is what a node's telemetry tells.
func OfLive(l *medwayv1.Live, alive state.Alive) (o plan.Observed, ok bool) {
	o, ok = OfStatus(l.GetStatus(), alive, timeOf(l.GetAt()))
	o.InPlan, o.Cold = l.GetInPlan(), l.GetCold()
	if !l.GetBackendsKnown() {
		return o, ok
	}
	o.Backends = map[state.BackendKey]uint64{}
	for _, b := range l.GetBackends() {
		o.Backends[state.BackendKey{Pool: b.GetPool(), Name: b.GetBackend()}] = b.GetActive() + b.GetInactive()
	}
	return o, ok
}

// clone is a record to change.
func (r record) clone() *medwayv1.Switchover { return proto.Clone(r.Switchover).(*medwayv1.Switchover) }
