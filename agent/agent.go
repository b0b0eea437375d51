package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/medway-lb/medway/agent/internal/arp"
	"github.com/medway-lb/medway/agent/internal/bgp"
	"github.com/medway-lb/medway/agent/internal/lease"
	"github.com/medway-lb/medway/agent/internal/local"
	"github.com/medway-lb/medway/agent/internal/telemetry"
	"github.com/medway-lb/medway/pkg/daemon"
	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/reconcile"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"
)

// Agent is one LVS node.
type Agent struct {
	config    Config
	self      plan.Self
	machineID string
	started   time.Time
	log       *zap.Logger

	lock    *os.File
	socket  net.Listener
	store   *store.Client
	keeper  *lease.Keeper
	speaker speaker
	segment segment // nil but in ARP mode
	// telemetry is nil where it is off.
	telemetry *telemetry.Server
	kernel    kernel

	mu sync.Mutex
	// seen is what was seen of the segment last.
	seen arp.View
	// cache and loaded: what etcd holds, and whether that is known yet, from
	// etcd or from the disk.
	cache  *state.Cache
	loaded source
	// cluster is the id of the cluster that the cache is of.
	cluster uint64
	// disk is what was on disk at the start: where etcd can't be reached the
	// agent works with it, and a store that doesn't continue it is not taken.
	disk *store.Snapshot
	// unusable is why the snapshot on disk was refused, unsaved why it is not up
	// to date. before are this node's VIPs by that on disk at the start.
	unusable, unsaved error
	before            map[string]state.VIP
	// foreign is why etcd's store is not taken, nil where it is. accepted is set
	// by a person's word until the next list, which is taken whatever it holds;
	// stores counts the stores taken. relist begins to follow anew.
	foreign  error
	accepted bool
	stores   int
	relist   context.CancelFunc
	// found is a restore of etcd that is not over yet; held is true while intent is
	// as it was before one, and remembered what was on disk at the start (R13).
	found      *plan.Restore
	held       bool
	remembered *state.Snapshot
	// led are the VIPs for which this node had a claim at or below the line, by
	// what was on disk.
	led map[string]bool
	// withdrawn are the VIPs that a person has withdrawn.
	withdrawn withdrawals
	// results are what other goroutines have to tell the loop.
	outcomes []func(*decider)
	applied  *applied

	// wake tells the loop, and replan the kernel's goroutine, to look.
	wake   chan struct{}
	replan chan struct{}
	// wanted is the plan that the kernel's goroutine works on.
	wanted *wanted

	drift    drift
	status   reporter
	observed observations
	handover handover
	// ready is closed once routers hear this node and others can count on it.
	ready chan struct{}
}

// Ready is closed once a router has taken this node's routes, and the other nodes
// can see that (where etcd can be reached): the next host may be restarted then.
func (a *Agent) Ready() <-chan struct{} { return a.ready }

// kernel is the host's data plane: everything but the routes that BGP carries.
// It is used by one goroutine at a time, but for connections and arrived.
type kernel interface {
	// apply brings the kernel to the plan.
	apply(ctx context.Context, h plan.Host) reconcile.Report
	// held reads back how much the kernel has of each of the plan's VIP addresses.
	held(ctx context.Context, h plan.Host) (map[netip.Addr]held, error)
	// connections counts what is in the connection table, by VIP address.
	connections(ctx context.Context) (map[netip.Addr]connections, error)
	// arrived counts what clients have sent since the services were made, by VIP address.
	arrived(ctx context.Context) (map[netip.Addr]arrivals, error)
	// syncing says whether both sync daemons run.
	syncing(ctx context.Context) (bool, error)
	// packets counts those that came to VIPs since the host's boot.
	packets(ctx context.Context) (uint64, error)
	close()
}

// speaker announces routes: [bgp.Speaker].
type speaker interface {
	Start(ctx context.Context, localRestarting bool) error
	Set(ctx context.Context, set []plan.Announcement) error
	Sessions() []bgp.Session
	Changed() <-chan struct{}
	Stop(ctx context.Context, graceful bool) error
}

// source is where the snapshot comes from.
type source int

const (
	nowhere source = iota
	disk
	etcd
)

// New makes an agent. It opens the kernel and checks that it can work, but
// changes and announces nothing.
func New(config Config, log *zap.Logger) (*Agent, error) {
	return newAgent(config, log, host{
		kernel:  func() (kernel, error) { return openDataplane() },
		speaker: func(c bgp.Config, log *zap.Logger) (speaker, error) { return bgp.New(c, log) },
		segment: openSegment,
	})
}

// host makes what an agent works on; tests have hosts of their own.
type host struct {
	kernel  func() (kernel, error)
	speaker func(bgp.Config, *zap.Logger) (speaker, error)
	segment func(device string) (segment, error)
}

func newAgent(config Config, log *zap.Logger, h host) (*Agent, error) {
	a := &Agent{
		config: config, self: config.self(), started: time.Now(), log: log,
		cache: state.NewCache(), wake: make(chan struct{}, 1), replan: make(chan struct{}, 1), handover: newHandover(),
		ready: make(chan struct{}),
	}
	a.cache.Reserve(config.reserved())
	if err := a.open(h); err != nil {
		a.Close()
		return nil, err
	}
	return a, nil
}

func (a *Agent) open(h host) (err error) {
	if err := os.MkdirAll(a.config.StateDir, 0o700); err != nil {
		return err
	}
	if a.lock, err = lock(a.config.StateDir); err != nil {
		return err
	}
	if a.machineID, err = machineID(a.config.StateDir); err != nil {
		return err
	}
	// The lock is held: what listens there is not an agent of this directory.
	if a.socket, err = local.Listen(a.config.socket()); err != nil {
		return fmt.Errorf("field socket: %w", err)
	}
	tls, err := a.config.Etcd.tls()
	if err != nil {
		return err
	}
	a.store, err = store.Open(store.Config{
		Endpoints: a.config.Etcd.Endpoints, TLS: tls, Log: a.log.Named("etcd"),
		// Freshness counts against half the lease's TTL: look several times within it.
		ProbeInterval: min(time.Second, a.config.LeaseTTL/6),
	})
	if err != nil {
		return err
	}
	a.keeper = lease.NewKeeper(a.store, a.config.LeaseTTL, a.leaseFile(), bootID(), a.alive, a.log.Named("lease"))
	if err := a.openTelemetry(); err != nil {
		return err
	}
	if err := a.openSpeaker(h); err != nil {
		return err
	}
	kernel, err := h.kernel()
	if err != nil {
		return err
	}
	a.kernel = kernel
	return nil
}

// Close gives back what New opened. The kernel keeps its state.
func (a *Agent) Close() {
	if a.kernel != nil {
		a.kernel.close()
	}
	if a.segment != nil {
		a.segment.Close()
	}
	if a.store != nil {
		a.store.Close()
	}
	if a.socket != nil {
		a.socket.Close()
	}
	if a.lock != nil {
		unlock(a.lock)
	}
}

// Run works until ctx ends, then stops in order: what other nodes announce is
// handed over to them, routers that know graceful restart keep the other routes
// while the next agent starts, and the kernel keeps its state.
func (a *Agent) Run(ctx context.Context) error {
	a.log.Info("agent starts", zap.String("version", daemon.Version()), zap.String("node", a.self.Name),
		zap.String("site", a.self.Site), zap.String("group", a.self.Group))
	a.preload()
	a.loadWithdrawals()
	if err := a.inspect(ctx); err != nil {
		return err
	}
	working, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	g, running := errgroup.WithContext(working)
	g.Go(func() error {
		defer end()
		return a.handOver(ctx, running)
	})
	g.Go(func() error { return a.followStore(running) })
	g.Go(func() error { return a.keeper.Run(running) })
	g.Go(func() error { return a.reconcile(running) })
	g.Go(func() error { return a.decide(running) })
	g.Go(func() error { return a.report(running) })
	g.Go(func() error { return a.observe(running) })
	g.Go(func() error { return a.keepSnapshot(running) })
	g.Go(func() error { return local.Serve(running, a.socket, localAgent{a}) })
	g.Go(func() error { return a.serveTelemetry(running) })
	err := g.Wait()

	stop, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	planned := errors.Is(err, context.Canceled) && ctx.Err() != nil
	if stopped := a.speaker.Stop(stop, planned); stopped != nil {
		a.log.Warn("BGP did not stop in order", zap.Error(stopped))
	}
	if planned {
		a.markPlannedStop()
		a.log.Info("agent stopped: the kernel keeps its state")
		return nil
	}
	return err
}

// followStore follows etcd, from a complete list on; again when a person has
// accepted a store that was not taken.
func (a *Agent) followStore(ctx context.Context) error {
	for {
		run, cancel := context.WithCancel(ctx)
		a.mu.Lock()
		a.relist = cancel
		a.mu.Unlock()
		err := a.store.Follow(run, state.Prefix, a.take)
		cancel()
		if ctx.Err() != nil || !errors.Is(err, context.Canceled) {
			return err
		}
	}
}

// take brings an update from etcd into the cache.
func (a *Agent) take(u store.Update) {
	defer poke(a.wake)
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.takes(u) {
		return
	}
	if u.Reset {
		keep := make(map[string]bool, len(u.Put))
		for _, e := range u.Put {
			keep[e.Key] = true
		}
		a.cache.Retain(keep)
	}
	for _, e := range u.Put {
		a.cache.Put(e.Key, e.Value, e.ModRevision, e.Lease)
	}
	for _, key := range u.Deleted {
		a.cache.Delete(key)
	}
	a.cache.SetRevision(u.Revision)
	a.loaded, a.cluster, a.disk = etcd, u.Cluster, nil
}

// takes decides whether etcd's store may be acted on. One that is not the
// continuation of what this node knows, be it from before or from its disk, was
// emptied, replaced or restored: acting on it could take everything down, and
// the claims in it say nothing of what routers hold. Where it was restored the
// nodes put that right among themselves (see restore.go); else nothing moves until
// a person has looked. Caller holds a.mu.
func (a *Agent) takes(u store.Update) bool {
	if a.accepted && u.Reset {
		a.accepted, a.foreign, a.found = false, nil, nil
		a.stores++
		a.cache.NewStore()
		a.log.Warn("etcd's store was accepted", zap.Int64("revision", u.Revision))
		return true
	}
	if a.foreign != nil {
		return false
	}
	switch {
	case u.Restored:
		a.foreign = fmt.Errorf("revision %d, after %d was seen", u.Revision, a.cache.Revision())
	case a.disk != nil:
		a.foreign = a.disk.Continues(u)
	}
	if a.foreign == nil || a.restored(u) {
		return true
	}
	if a.loaded == nowhere {
		a.loaded = disk
	}
	a.log.Error("etcd's store is not the one that this node knew: nothing moves until \"medway-agent accept\"", zap.Error(a.foreign))
	return false
}

// accept takes etcd's store as it is now, on a person's word. It returns false
// where there is nothing to accept.
func (a *Agent) accept() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.foreign == nil {
		return false
	}
	a.accepted = true
	a.relist()
	return true
}

// view is what is known now.
type view struct {
	snapshot *state.Snapshot // nil: nothing yet
	from     source
	saved    time.Time // of the disk's
	foreign  error
	found    *plan.Restore
	stored   *state.Snapshot // what snapshot is made of while intent is held
	// of the snapshot on disk
	unusable, unsaved error
	stores            int
}

func (a *Agent) view() view {
	a.mu.Lock()
	defer a.mu.Unlock()
	v := view{from: a.loaded, foreign: a.foreign, found: a.found, unusable: a.unusable, unsaved: a.unsaved, stores: a.stores}
	if a.disk != nil {
		v.saved = a.disk.Saved
	}
	if v.from != nowhere {
		v.snapshot = a.cache.Snapshot()
	}
	return v
}

// poke wakes whoever reads c, once for any number of pokes.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (a *Agent) leaseFile() string { return filepath.Join(a.config.StateDir, "lease") }

func (a *Agent) plannedStopFile() string { return filepath.Join(a.config.StateDir, "planned-stop") }

// markPlannedStop tells the next start on this boot that the kernel forwards on
// and that routers may hold our routes.
func (a *Agent) markPlannedStop() {
	if err := os.WriteFile(a.plannedStopFile(), []byte(bootID()), 0o600); err != nil {
		a.log.Warn("can't mark the planned stop", zap.Error(err))
	}
}

func (a *Agent) takePlannedStop() bool {
	text, err := os.ReadFile(a.plannedStopFile())
	_ = os.Remove(a.plannedStopFile())
	return err == nil && string(text) == bootID()
}
