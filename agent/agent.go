package agent

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/medway-lb/medway/agent/internal/bgp"
	"github.com/medway-lb/medway/agent/internal/lease"
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
	store   *store.Client
	keeper  *lease.Keeper
	speaker speaker
	kernel  kernel

	mu sync.Mutex
	// cache and loaded: what etcd holds, and whether that is known yet, from
	// etcd or from the disk.
	cache  *state.Cache
	loaded source
	// replaced is true once etcd's store is not the one that was followed: what
	// it holds now is taken only by a restart.
	replaced bool
	// saved is when the snapshot on disk was written, zero where there is none.
	saved time.Time
	// results are what other goroutines have to tell the loop.
	outcomes []func(*decider)
	applied  *applied

	// wake tells the loop, and replan the kernel's goroutine, to look.
	wake   chan struct{}
	replan chan struct{}
	// wanted is the plan that the kernel's goroutine works on.
	wanted *wanted

	drift  drift
	status reporter
}

// kernel is the host's data plane: everything but the routes that BGP carries.
// It is used by one goroutine at a time, but for connections.
type kernel interface {
	// apply brings the kernel to the plan.
	apply(ctx context.Context, h plan.Host) reconcile.Report
	// serves reads back whether the kernel holds what serving the VIPs needs.
	serves(ctx context.Context, h plan.Host) bool
	// connections counts what is in the connection table, by VIP address.
	connections(ctx context.Context) (map[netip.Addr]connections, error)
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
	})
}

// host makes what an agent works on; tests have hosts of their own.
type host struct {
	kernel  func() (kernel, error)
	speaker func(bgp.Config, *zap.Logger) (speaker, error)
}

func newAgent(config Config, log *zap.Logger, h host) (*Agent, error) {
	a := &Agent{
		config: config, self: config.self(), started: time.Now(), log: log,
		cache: state.NewCache(), wake: make(chan struct{}, 1), replan: make(chan struct{}, 1),
	}
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
	a.keeper = lease.NewKeeper(a.store, a.config.LeaseTTL, a.alive, a.log.Named("lease"))
	passwords, err := a.config.BGP.passwords()
	if err != nil {
		return err
	}
	speaker, err := h.speaker(a.config.speaker(passwords), a.log.Named("bgp"))
	if err != nil {
		return err
	}
	a.speaker = speaker
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
	if a.store != nil {
		a.store.Close()
	}
	if a.lock != nil {
		a.lock.Close()
	}
}

// Run works until ctx ends, then stops in order: the kernel keeps its state,
// and routers that know graceful restart keep the routes while the next agent
// starts.
func (a *Agent) Run(ctx context.Context) error {
	a.log.Info("agent starts", zap.String("version", Version()), zap.String("node", a.self.Name),
		zap.String("site", a.self.Site), zap.String("group", a.self.Group))
	a.preload()
	g, running := errgroup.WithContext(ctx)
	g.Go(func() error { return a.store.Follow(running, state.Prefix, a.take) })
	g.Go(func() error { return a.keeper.Run(running) })
	g.Go(func() error { return a.reconcile(running) })
	g.Go(func() error { return a.decide(running) })
	g.Go(func() error { return a.report(running) })
	g.Go(func() error { return a.keepSnapshot(running) })
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

// take brings an update from etcd into the cache.
func (a *Agent) take(u store.Update) {
	a.mu.Lock()
	if u.Restored && !a.replaced {
		a.replaced = true
		a.log.Error("etcd's store is not the continuation of what was followed before: nothing moves until this agent is started again",
			zap.Int64("revision", u.Revision))
	}
	if a.replaced {
		a.mu.Unlock()
		poke(a.wake)
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
	a.loaded = etcd
	a.mu.Unlock()
	poke(a.wake)
}

// restored says whether etcd's store was replaced under the agent.
func (a *Agent) restored() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.replaced
}

// snapshot is what is known now.
func (a *Agent) snapshot() (*state.Snapshot, source) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.loaded == nowhere {
		return nil, nowhere
	}
	return a.cache.Snapshot(), a.loaded
}

// poke wakes whoever reads c, once for any number of pokes.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

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
