package agent

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"time"

	"go.uber.org/zap"

	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/reconcile"
)

// wanted is a plan for the kernel.
type wanted struct {
	host   plan.Host
	resync time.Duration
}

// applied is what became of a plan.
type applied struct {
	report reconcile.Report
	// held is how much the kernel has of each VIP address of the plan; unknown
	// is why that could not be read.
	held    map[netip.Addr]held
	unknown error
	// remade are the VIP addresses that got services or destinations; true where the
	// address itself is new.
	remade map[netip.Addr]bool
}

// remade finds the VIP addresses to which a run added services or destinations.
func remade(h plan.Host, done []reconcile.Edit) map[netip.Addr]bool {
	made := map[string]bool{}
	for _, e := range done {
		if e.Op == reconcile.Create {
			made[e.Key] = true
		}
	}
	out := map[netip.Addr]bool{}
	if len(made) == 0 {
		return out
	}
	note := func(key fmt.Stringer, vip netip.Addr) {
		if made[key.String()] {
			out[vip] = made[plan.VIPAddress(vip).String()]
		}
	}
	for k := range h.Services {
		note(k, k.Addr)
	}
	for k := range h.Destinations {
		note(k, k.Service.Addr)
	}
	return out
}

// reconcile keeps the kernel as planned: at once when the plan changes, and
// every resync interval to mend what someone else changed.
func (a *Agent) reconcile(ctx context.Context) error {
	retry := time.NewTimer(time.Hour)
	defer retry.Stop()
	said := ""
	var due time.Time // when to look again though the plan is the same
	var resync time.Duration
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-a.replan:
		case <-retry.C:
			due = time.Time{}
		}
		a.mu.Lock()
		w := a.wanted
		a.mu.Unlock()
		if w == nil {
			continue
		}
		report := a.kernel.apply(ctx, w.host)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		done := &applied{report: report, held: map[netip.Addr]held{}, remade: remade(w.host, report.Done)}
		for _, address := range vipAddresses(w.host) {
			done.held[address.Prefix.Addr()] = whole
		}
		if report.Err() != nil {
			have, err := a.kernel.held(ctx, w.host)
			for address := range done.held {
				done.held[address] = have[address]
			}
			done.unknown = err
		}
		next := w.resync
		if err := report.Err(); err != nil {
			next = min(next, time.Second)
			if err.Error() != said { // it is tried every second: once is enough to say
				a.log.Error("the kernel differs from the plan", zap.Errors("errors", report.Failed))
			}
			said = err.Error()
		} else {
			said = ""
		}
		planned, mended := a.drift.split(w, report)
		a.drift.record(a.log, mended)
		if len(planned) > 0 {
			a.log.Info(fmt.Sprintf("kernel brought to the plan: %d changes", len(planned)))
			logLines(a.log.Info, briefLines(planned))
		} else {
			a.log.Debug("kernel agrees with the plan")
		}
		// Plans that come one soon after the other don't put the look for drift off;
		// another interval does.
		if then := time.Now().Add(next); due.IsZero() || then.Before(due) || w.resync != resync {
			due = then
		}
		resync = w.resync
		retry.Reset(time.Until(due))
		a.mu.Lock()
		if a.applied != nil { // the loop has not heard of it yet
			maps.Copy(a.applied.remade, done.remade)
			done.remade = a.applied.remade
		}
		a.applied = done
		a.mu.Unlock()
		poke(a.wake)
	}
}
