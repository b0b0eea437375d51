package agent

import (
	"context"
	"maps"
	"reflect"
	"time"

	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/reconcile"
)

// wholeEvery is how long changes of destinations may be made without a look at
// the whole kernel: as long as drift may last by default.
const wholeEvery = 10 * time.Second

// known is the plan that the kernel was found or made to hold, and when all of
// the kernel was read last.
type known struct {
	host plan.Host
	at   time.Time
}

// applyDestinations brings the kernel to a plan that differs from the last one
// in destinations alone: a weight that changes among thousands should not wait
// until all of them have been read. It reads back the destinations of the
// services concerned, and leaves what else may have drifted to the next look at
// the whole. ok is false where that is due, or the last run left anything undone.
func (d *dataplane) applyDestinations(ctx context.Context, h plan.Host) (report reconcile.Report, ok bool) {
	if d.known == nil || time.Since(d.known.at) > wholeEvery {
		return report, false
	}
	before, now := d.known.host, h
	services := map[plan.ServiceKey]bool{}
	for k, v := range now.Destinations {
		if old, there := before.Destinations[k]; !there || old != v {
			services[k.Service] = true
		}
	}
	for k := range before.Destinations {
		if _, there := now.Destinations[k]; !there {
			services[k.Service] = true
		}
	}
	before.Destinations, now.Destinations = nil, nil
	if len(services) == 0 || !reflect.DeepEqual(before, now) {
		return report, false
	}
	want := maps.Clone(h.Destinations)
	maps.DeleteFunc(want, func(k plan.DestinationKey, _ plan.Destination) bool { return !services[k.Service] })
	own := func(k plan.DestinationKey) bool { return !h.Kept[k.Service] }
	report = reconcile.Run(ctx, reconcile.Bind(d.ipvs.DestinationsOf(services), want, own))
	d.remember(h, d.known.at, report)
	return report, true
}

// remember notes what the kernel holds after a run.
func (d *dataplane) remember(h plan.Host, at time.Time, report reconcile.Report) {
	d.known = nil
	if report.Err() == nil {
		d.known = &known{h, at}
	}
}
