package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

const (
	// observeInterval is how often traffic is looked at: the kernel adds its
	// counters up as often.
	observeInterval = 2 * time.Second
	// rateWindow is what rates are taken over: phones send in bursts.
	rateWindow = 10 * time.Second
	// opening is how many packets it takes to open a connection. They are no sign
	// of calls that moved: a scan sends nothing else (PROTOCOL R10).
	opening = 3
)

// observations are what a node sees of its own connections and traffic, and hears of
// other nodes', whose statuses it reads as long as a decision rests on them.
type observations struct {
	mu sync.Mutex
	// table is what is known of the connection table.
	table plan.Table
	// rates are in packets a second, by VIP and node.
	rates map[string]map[string]float64
	// cold and unable are what the loop decided last, for the sign of life.
	cold   bool
	unable []string
	// told are this node's rates in the last status that was written, without those
	// that were not known yet.
	told map[string]float64
	// news says that other nodes should know of a rate that is another now.
	news bool
	// samples are the counters of the last rateWindow, oldest first, by VIP.
	samples map[string][]sample
}

type sample struct {
	at time.Time
	arrivals
}

// inspect looks, before anything is changed, whether the connection table was
// kept up: no call that is known to others may come to a node that lost it.
// That is remembered over restarts of the agent, which starts the sync daemons long
// before it has caught up.
func (a *Agent) inspect(ctx context.Context) error {
	syncing, err := a.kernel.syncing(ctx)
	if err != nil {
		return fmt.Errorf("read the sync daemons: %w", err)
	}
	was, _ := os.ReadFile(a.coldFile())
	if syncing && string(was) != bootID() {
		return nil
	}
	a.observed.table.LostAt, a.observed.cold = time.Now(), true
	if err := store.ReplaceFile(a.coldFile(), []byte(bootID())); err != nil {
		a.log.Warn("can't keep for the next start that this node is cold", zap.Error(err))
	}
	return nil
}

func (a *Agent) coldFile() string { return filepath.Join(a.config.StateDir, "cold") }

// observe follows the node's traffic, and that of others where it matters.
func (a *Agent) observe(ctx context.Context) error {
	ticker := time.NewTicker(observeInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
		a.status.mu.Lock()
		addresses := a.status.addresses // never changed, only replaced
		a.status.mu.Unlock()
		if err := a.observeOnce(ctx, addresses); err != nil && ctx.Err() == nil {
			a.log.Debug("can't observe the traffic", zap.Error(err))
		}
	}
}

func (a *Agent) observeOnce(ctx context.Context, addresses map[string][]netip.Addr) error {
	now := time.Now()
	counters, err := a.kernel.arrived(ctx)
	if err != nil {
		return err
	}
	s := a.view().snapshot
	if s == nil {
		return nil
	}
	o := &a.observed
	o.mu.Lock()
	own := o.sample(now, counters, addresses)
	behind, told := !o.table.LostAt.IsZero() || len(o.table.Remade) > 0, o.told // never changed, only replaced
	o.mu.Unlock()
	rates := map[string]map[string]float64{}
	for vip := range addresses {
		rates[vip] = map[string]float64{}
		if rate, known := own[vip]; known {
			rates[vip][a.self.Name] = rate
		}
	}
	var peers []string
	news := false
	for vip := range addresses {
		v := s.VIPs[vip]
		if !v.Automatic.Enabled {
			continue
		}
		rate, known := own[vip]
		before, was := told[vip]
		news = news || known && (!was || differs(rate, before, v.Automatic.Floor))
		if s.Targets[vip].Site == a.self.Site {
			continue
		}
		if owner, ok := s.Owner(a.self.Site, vip); ok && owner.Node == a.self.Name {
			peers = append(peers, plan.NodesOf(s, vip)...)
		}
	}
	if behind {
		peers = append(peers, plan.WarmPeers(s, a.self)...)
	}
	slices.Sort(peers)
	table := plan.Table{Peers: map[string]map[string]uint64{}}
	var errs []error
	for _, peer := range slices.Compact(peers) {
		if peer == a.self.Name {
			continue
		}
		if err := a.ask(ctx, s, peer, rates, table.Peers); err != nil {
			errs = append(errs, err)
		}
	}
	if behind {
		table.Own = map[string]uint64{}
		counts, err := a.kernel.connections(ctx)
		if err != nil {
			errs = append(errs, err)
		}
		for vip, list := range addresses {
			for _, address := range list {
				table.Own[vip] += counts[address].active + counts[address].inactive
			}
		}
	}
	o.mu.Lock()
	table.LostAt, table.WarmAt, table.Remade = o.table.LostAt, o.table.WarmAt, o.table.Remade
	maps.DeleteFunc(table.Remade, func(_ netip.Addr, at time.Time) bool { return now.Sub(at) >= s.Settings.LongestKeepalive })
	o.table, o.rates, o.news = table, rates, news
	o.mu.Unlock()
	if len(peers) > 0 {
		poke(a.wake) // a decision rests on it
	}
	return errors.Join(errs...)
}

// ask reads what a peer's status says of its connections and its traffic. What
// the peer said before it started anew is no news.
func (a *Agent) ask(ctx context.Context, s *state.Snapshot, peer string, rates map[string]map[string]float64, counts map[string]map[string]uint64) error {
	alive, ok := s.Alive[peer]
	if !ok {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	entry, _, err := a.store.Get(ctx, state.StatusPrefix+peer)
	if err != nil {
		if errors.Is(err, store.ErrDenied) {
			return nil // which the store has told, once
		}
		return err
	}
	status, err := state.DecodeStatus(entry.Value)
	if err != nil {
		return nil //nolint:nilerr // absent, or spoiled by hand: it tells nothing
	}
	if since, err := time.Parse(time.RFC3339, status.Since); err != nil || !since.Equal(alive.Since) {
		return nil //nolint:nilerr // as above
	}
	counts[peer] = map[string]uint64{}
	for _, v := range status.Vips {
		counts[peer][v.Vip] = v.ActiveConnections + v.InactiveConnections
		if rates[v.Vip] != nil && v.PacketsPerSecond != nil {
			rates[v.Vip][peer] = float64(*v.PacketsPerSecond)
		}
	}
	return nil
}

// differs says whether a rate is so much another that a decision may rest on it.
func differs(rate, told, floor float64) bool {
	return math.Abs(rate-told) > max(floor/10, told/4)
}

// sample takes the counters in and returns the node's rate for every VIP that has
// been looked at for long enough. Caller holds o.mu.
func (o *observations) sample(now time.Time, counters map[netip.Addr]arrivals, addresses map[string][]netip.Addr) map[string]float64 {
	samples, rates := make(map[string][]sample, len(addresses)), make(map[string]float64, len(addresses))
	for vip, list := range addresses {
		next := sample{at: now}
		for _, address := range list {
			next.packets += counters[address].packets
			next.opened += counters[address].opened
		}
		kept := slices.Clone(o.samples[vip])
		// What is left must be old enough for a rate: ticks are never quite on time.
		for len(kept) > 1 && now.Sub(kept[1].at) >= rateWindow-observeInterval {
			kept = kept[1:]
		}
		if n := len(kept); n > 0 && (next.packets < kept[n-1].packets || next.opened < kept[n-1].opened) {
			kept = nil // a service was made anew
		}
		samples[vip] = append(kept, next)
		if now.Sub(samples[vip][0].at) >= rateWindow-observeInterval {
			rates[vip] = rateOf(samples[vip])
		}
	}
	o.samples = samples
	return rates
}

// rateOf is the packets a second beyond those that open connections.
func rateOf(samples []sample) float64 {
	first, last := samples[0], samples[len(samples)-1]
	packets, opened := last.packets-first.packets, last.opened-first.opened
	if packets <= opening*opened || !last.at.After(first.at) {
		return 0
	}
	return float64(packets-opening*opened) / last.at.Sub(first.at).Seconds()
}

// rate is what a node carries of a VIP, in packets a second, if it is known.
func (o *observations) rate(vip, node string) (rate float64, known bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	rate, known = o.rates[vip][node]
	return rate, known
}

// tell records what was written of this node's rates.
func (o *observations) tell(s *medwayv1.Status) {
	told := map[string]float64{}
	for _, v := range s.Vips {
		if v.PacketsPerSecond != nil {
			told[v.Vip] = float64(*v.PacketsPerSecond)
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.told, o.news = told, false
}

// isNews says whether other nodes should know of a rate now.
func (o *observations) isNews() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.news
}

// standing is whether the node is cold, and which VIPs it can't serve.
func (o *observations) standing() (cold bool, unable []string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.cold, o.unable
}

// ratesOf are the rates of a VIP by node.
func (d *decider) ratesOf(vip string) map[string]float64 {
	d.observed.mu.Lock()
	defer d.observed.mu.Unlock()
	return d.observed.rates[vip] // never changed, only replaced
}

// cold decides whether the node has to stand back. One that has caught up stays so.
func (d *decider) cold(in plan.Input) bool {
	o := &d.observed
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.table.LostAt.IsZero() {
		return false
	}
	if in.Fresh && len(plan.WarmPeers(in.Snapshot, d.self)) > 0 {
		o.table.WarmAt = in.Now
	}
	cold, reason := plan.Cold(in.Snapshot, d.self, in.Fresh, o.table, in.Hold+d.config.LeaseTTL, in.Now)
	switch {
	case !cold:
		d.log.Info("knows the connections: warm")
		o.table = plan.Table{Remade: o.table.Remade}
		if err := os.Remove(d.coldFile()); err != nil {
			d.log.Warn("the next start will take this node for cold", zap.Error(err))
		}
	case reason != d.coldness:
		d.log.Info("cold", zap.String("reason", reason))
	}
	d.coldness = reason
	return cold
}

// remade notes that services or destinations of an address came to the kernel.
func (o *observations) remade(address netip.Addr) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.table.Remade == nil {
		o.table.Remade = map[netip.Addr]time.Time{}
	}
	o.table.Remade[address] = time.Now()
	o.table.Own, o.table.Peers = nil, nil // what was counted before
}

// unbound is [plan.Unbound]. Connections that are bound stay so.
func (d *decider) unbound(in plan.Input, vip string) string {
	o := &d.observed
	o.mu.Lock()
	defer o.mu.Unlock()
	why := plan.Unbound(in.Snapshot, d.self, o.table, vip, in.Now)
	if why == "" {
		for _, a := range in.Snapshot.VIPs[vip].Addresses {
			delete(o.table.Remade, a)
		}
	}
	return why
}

// stand leaves what was decided to the sign of life, as far as all nodes know
// these fields.
func (d *decider) stand(s *state.Snapshot, cold bool, unable []string) {
	for name, n := range s.Nodes {
		if _, alive := s.Alive[name]; alive && n.Schema < 3 {
			cold, unable = false, nil
		}
	}
	d.observed.mu.Lock()
	defer d.observed.mu.Unlock()
	d.observed.cold, d.observed.unable = cold, unable
}
