package agent

import (
	"context"
	"time"

	"go.uber.org/zap"

	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/state"
)

const (
	// handOverTime bounds the hand-over of an agent that stops: a settle delay for
	// the farewell, one more until routers have surely forgotten the route.
	handOverTime = 10 * time.Second
	// silenceTime bounds the wait for the last packet after it.
	silenceTime = 5 * time.Second
	// silencePoll is how long no packet may have come for the traffic to be gone.
	silencePoll = 300 * time.Millisecond
)

// handover is how an agent that is told to stop gives its VIPs to other nodes
// before it goes. The loop works on meanwhile.
type handover struct {
	// begun is closed when the agent is told to stop. The loop closes done when
	// routers have let go of all that others announce, or nothing is to be handed
	// over; all then tells that nothing was kept.
	begun, done chan struct{}
	all         bool
}

func newHandover() handover { return handover{begun: make(chan struct{}), done: make(chan struct{})} }

// stops says whether the agent was told to stop.
func (h *handover) stops() bool {
	select {
	case <-h.begun:
		return true
	default:
		return false
	}
}

// handOver waits for the word to stop, and returns once the agent may end.
func (a *Agent) handOver(told, running context.Context) error {
	select {
	case <-told.Done():
	case <-running.Done():
		return running.Err()
	}
	close(a.handover.begun)
	poke(a.wake)
	ctx, cancel := context.WithTimeout(running, handOverTime)
	defer cancel()
	select {
	case <-a.handover.done:
		if a.handover.all {
			a.awaitSilence(running)
		}
	case <-ctx.Done():
		a.log.Warn("not all was handed over in time: routers keep the rest for the next start", zap.Duration("limit", handOverTime))
	}
	last, cancel := context.WithTimeout(running, time.Second)
	defer cancel()
	if err := a.keeper.Prolong(last); err != nil {
		a.log.Warn("the next process has less time to resume the lease", zap.Error(err))
	}
	return context.Canceled
}

// awaitSilence waits until no more packets come: a host that is shut down should
// not go while some are on the way to it.
func (a *Agent) awaitSilence(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, silenceTime)
	defer cancel()
	tick := time.NewTicker(silencePoll)
	defer tick.Stop()
	before, err := a.kernel.packets(ctx)
	for err == nil {
		select {
		case <-ctx.Done():
			a.log.Warn("packets still come to VIPs that other nodes have taken over")
			return
		case <-tick.C:
		}
		var now uint64
		if now, err = a.kernel.packets(ctx); err == nil && now == before {
			return
		}
		before = now
	}
	a.log.Warn("can't see whether packets still come", zap.Error(err))
}

// handing is what the loop knows of a hand-over.
type handing struct {
	// waits is set where one is not at its end; some and rest tell whether VIPs
	// are handed over, and whether VIPs are announced on.
	waits, some, rest bool
}

// giveAway is the withdrawal of a VIP where the agent stops and another node
// announces it, nil where there is none. Nothing is given away before others can
// see that this node goes: two that stop at once would hand over to each other. On a
// segment the kernel holds the addresses until the next process is there.
func (d *decider) giveAway(in plan.Input, vip string) *plan.Withdrawal {
	if !d.stopping || !d.speaking || d.segment != nil {
		return nil
	}
	if !in.Fresh || plan.Heard(in.Snapshot, d.self.Name) {
		d.handing.waits = d.handing.waits || in.Fresh
		return nil
	}
	return plan.HandOver(in, vip)
}

// note takes in what was decided on a VIP.
func (h *handing) note(w *plan.Withdrawal, d plan.Decision) {
	switch {
	case w != nil && w.KeepOwnership:
		h.some = true
		h.waits = h.waits || !d.Done
	case d.MED != state.NoMED:
		h.rest = true
	}
}

// beginHandOver has the alive key written at once: it tells others not to count
// on this node.
func (d *decider) beginHandOver() {
	d.handing = handing{}
	if !d.stopping && d.handover.stops() {
		d.stopping, d.reviving = true, time.Time{}
	}
}

// tellReady tells when the node has come back from a restart.
func (d *decider) tellReady(in plan.Input) {
	if d.toldReady || !d.speaking || in.Sessions == 0 || in.Fresh && !plan.Heard(in.Snapshot, d.self.Name) {
		return
	}
	for _, s := range d.speaker.Sessions() {
		if s.Established && s.Pending {
			return
		}
	}
	d.toldReady = true
	close(d.Agent.ready)
}

// endHandOver tells when all is handed over.
func (d *decider) endHandOver() {
	if !d.stopping || d.handing.waits || d.handedOver {
		return
	}
	d.handedOver = true
	d.handover.all = d.handing.some && !d.handing.rest
	close(d.handover.done)
}
