package coordinator

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/medway-lb/medway/coordinator/internal/console"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

const (
	// sampleInterval is between two points of a trend, trendTime what a trend goes back.
	sampleInterval = 15 * time.Second
	trendTime      = time.Hour
	// maxTrends are those of VIPs at sites: with all their points some 16 MB.
	maxTrends = 2000
	// freshTime is how old a node's live numbers may be to be a point.
	freshTime = 10 * time.Second
)

// trends are the live numbers of the last hour, of each VIP at each site. They are kept
// in memory alone: a coordinator that has just started knows none.
type trends struct {
	mu     sync.Mutex
	points map[trendKey][]console.Point
}

type trendKey struct{ vip, site string }

func newTrends() *trends { return &trends{points: map[trendKey][]console.Point{}} }

// run takes a point of each until ctx ends.
func (t *trends) run(ctx context.Context, live func() map[string]*medwayv1.Live) {
	ticker := time.NewTicker(sampleInterval)
	defer ticker.Stop()
	for {
		t.take(live(), time.Now())
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// take brings in the numbers of a moment.
func (t *trends) take(live map[string]*medwayv1.Live, now time.Time) {
	sums := map[trendKey]console.Point{}
	for _, l := range live {
		at, err := time.Parse(time.RFC3339Nano, l.At)
		if err != nil || now.Sub(at) > freshTime {
			continue
		}
		for _, v := range l.GetStatus().GetVips() {
			key := trendKey{v.Vip, l.Status.Site}
			p := sums[key]
			p.At = now
			// Connections are known to all nodes of a site, packets come to one.
			p.Connections = max(p.Connections, v.ActiveConnections+v.InactiveConnections)
			p.PacketsPerSecond += v.GetPacketsPerSecond()
			sums[key] = p
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for key, points := range t.points {
		points = slices.DeleteFunc(points, func(p console.Point) bool { return now.Sub(p.At) > trendTime })
		if t.points[key] = points; len(points) == 0 {
			delete(t.points, key)
		}
	}
	for key, p := range sums {
		if _, known := t.points[key]; known || len(t.points) < maxTrends {
			t.points[key] = append(t.points[key], p)
		}
	}
}

// of are the points of a VIP by site, the oldest first.
func (t *trends) of(vip string) map[string][]console.Point {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := map[string][]console.Point{}
	for key, points := range t.points {
		if key.vip == vip {
			out[key.site] = slices.Clone(points)
		}
	}
	return out
}
