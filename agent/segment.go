package agent

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"go.uber.org/zap"

	"github.com/medway-lb/medway/agent/internal/arp"
	"github.com/medway-lb/medway/agent/internal/bgp"
	"github.com/medway-lb/medway/agent/internal/link"
	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/state"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// segment holds addresses: [arp.Segment].
type segment interface {
	Look() (arp.View, error)
	Set(want map[netip.Addr]arp.Hold, life time.Duration) error
	Changed() <-chan struct{}
	Close()
}

// openSegment opens the kernel by itself: its tables are not for concurrent use.
func openSegment(device string) (segment, error) {
	k, err := link.New()
	if err != nil {
		return nil, err
	}
	return closing{arp.New(k, device), k}, nil
}

type closing struct {
	*arp.Segment
	kernel *link.Kernel
}

func (c closing) Close() {
	c.Segment.Close()
	c.kernel.Close()
}

// onSegment is the speaker of ARP mode. It announces no routes, and its one session
// is the segment: established while the device has a carrier.
type onSegment struct {
	segment
	view func() arp.View
}

func (s onSegment) Start(context.Context, bool) error              { return nil }
func (s onSegment) Set(context.Context, []plan.Announcement) error { return nil }
func (s onSegment) Stop(context.Context, bool) error               { return nil }

func (s onSegment) Sessions() []bgp.Session {
	v := s.view()
	return []bgp.Session{{Established: v.Up, Since: v.Since, LastError: v.Down, Families: families}}
}

// onSegmentNow is what was seen of the segment last.
func (a *Agent) onSegmentNow() arp.View {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.seen // never changed, only replaced
}

// openSpeaker opens what the node announces its VIPs with.
func (a *Agent) openSpeaker(h host) (err error) {
	if a.config.ARP == nil {
		passwords, err := a.config.BGP.passwords()
		if err != nil {
			return err
		}
		a.speaker, err = h.speaker(a.config.speaker(passwords), a.log.Named("bgp"))
		return err
	}
	if a.segment, err = h.segment(a.self.Segment); err != nil {
		return err
	}
	a.speaker = onSegment{a.segment, a.onSegmentNow}
	a.lookAround()
	return nil
}

// lookAround sees what there is on the segment. A look that failed changes nothing
// but what is said: one answer that the kernel lost should not move an address.
func (a *Agent) lookAround() {
	v, err := a.segment.Look()
	a.mu.Lock()
	before := a.seen
	if err != nil {
		v = before
		v.Down = err.Error()
	}
	a.seen = v
	a.mu.Unlock()
	if v.Down != before.Down {
		a.log.Warn(fmt.Sprintf("segment behind %s: up %t", a.self.Segment, v.Up), zap.String("reason", v.Down))
	}
}

// on is what the node sees of one VIP on its segment; nil but in ARP mode.
func (d *decider) on(v state.VIP) *plan.Segment {
	if d.segment == nil {
		return nil
	}
	seen := d.onSegmentNow()
	on := &plan.Segment{}
	for _, a := range v.Addresses {
		on.Has = on.Has || seen.Has[a]
		if h := seen.Heard[a]; h.At.After(on.Heard) {
			on.Heard = h.At
		}
	}
	return on
}

// setSegment gives the segment the addresses of all decisions: those to be held that the
// kernel can serve, and those to be gone. What fails is tried again with the next
// step, and does not keep the others from it.
func (d *decider) setSegment(s *state.Snapshot, decisions map[string]plan.Decision) {
	want := map[netip.Addr]arp.Hold{}
	announced := map[netip.Addr]bool{}
	for vip, decision := range decisions {
		for _, a := range s.VIPs[vip].Addresses {
			if decision.Holds && !d.ready[a] && d.lacking[a] < failuresAllowed {
				continue // as it is, until the kernel has been looked at
			}
			holds := decision.Holds && d.ready[a] && d.self.Has(a)
			if holds || !want[a].Hold { // what leaves with one VIP may have come with another
				want[a] = arp.Hold{Hold: holds, Announce: holds && decision.Announces}
			}
			announced[a] = announced[a] || holds
		}
	}
	var left time.Duration
	if d.keeper.ID() != 0 {
		left = time.Until(d.keeper.Deadline())
	}
	d.routes, d.announced = nil, announced
	err := d.segment.Set(want, plan.Lifetime(left, d.config.LeaseTTL))
	if err != nil && (d.unheld == nil || d.unheld.Error() != err.Error()) {
		d.log.Error("the segment is not as it should be", zap.Error(err))
	}
	d.unheld = err
}

// segmentFaults are what could not be held, and other hosts that announce what this
// node holds.
func (d *decider) segmentFaults() (faults []*medwayv1.Fault) {
	if d.unheld != nil {
		faults = append(faults, &medwayv1.Fault{Subject: "segment", Reason: readable(d.unheld.Error())})
	}
	for a, h := range d.onSegmentNow().Heard {
		if d.announced[a] && time.Since(h.At) < 10*time.Second {
			faults = append(faults, &medwayv1.Fault{
				Subject: "segment", Reason: fmt.Sprintf("another host, %s, announced %s within the last 10s", h.MAC, a),
			})
		}
	}
	return faults
}
