// Package switchover carries out planned switchovers. Each is a record in etcd,
// and each of its steps one guarded write, decided by a pure function of the
// record, the snapshot and what nodes tell. So any number of coordinators may work
// on one: whoever is first makes the step, the others' writes fail, and where one
// dies the others go on.
package switchover

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

const (
	// lookInterval is how often an engine looks though etcd has no news: deadlines
	// pass, and live numbers change.
	lookInterval = time.Second
	// writeTimeout is when a write counts as failed, with an unknown outcome.
	writeTimeout = 5 * time.Second
)

// Config is what an engine works with. Only Store is required.
type Config struct {
	Store  *store.Client
	Log    *zap.Logger
	Limits Limits
	// Live are the nodes' live numbers by node, where they are polled; what a
	// node's status in etcd says counts for the others.
	Live func() map[string]*medwayv1.Live
	// Probe asks a VIP something through the network, such as SIP OPTIONS; its
	// error is why the switchover is not verified yet. Where it is
	// [probe.ErrUnreached] to the end the switchover is done, and says so.
	Probe func(ctx context.Context, s *state.Snapshot, vip string) error
}

// Engine carries on the switchovers that are in etcd.
type Engine struct {
	config Config
	log    *zap.Logger
	// commit is the store's; tests die after it.
	commit func(ctx context.Context, guards []store.Guard, puts []store.Put, deletes []string) (bool, int64, error)
	now    func() time.Time
	wake   chan struct{}

	mu    sync.Mutex
	cache *state.Cache
	// revisions are those of the keys that writes are guarded by.
	revisions   map[string]int64
	statuses    map[string]*medwayv1.Status
	records     map[string]record     // by VIP; those that can be read
	evacuations map[string]evacuation // by site
	// loaded are the prefixes that are known; ready is closed when all are.
	loaded map[string]bool
	ready  chan struct{}
	probes probes
}

// New makes an engine. It does nothing before Run.
func New(c Config) *Engine {
	c.Limits.setDefaults()
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	return &Engine{
		config: c, log: c.Log, commit: c.Store.Commit, now: time.Now, wake: make(chan struct{}, 1),
		cache: state.NewCache(), revisions: map[string]int64{}, statuses: map[string]*medwayv1.Status{},
		records: map[string]record{}, evacuations: map[string]evacuation{},
		loaded: map[string]bool{}, ready: make(chan struct{}), probes: newProbes(),
	}
}

// Run follows etcd and carries on what is under way, until ctx ends.
func (e *Engine) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for prefix, take := range map[string]func(key string, entry *store.Entry){
		state.Prefix: e.takeIntent, state.StatusPrefix: e.takeStatus,
		state.SwitchoverPrefix: e.takeRecord, state.EvacuationPrefix: e.takeEvacuation,
	} {
		g.Go(func() error {
			return e.config.Store.Follow(ctx, prefix, func(u store.Update) { e.take(prefix, u, take) })
		})
	}
	g.Go(func() error { return e.work(ctx) })
	err := g.Wait()
	e.probes.wait()
	return err
}

// take brings an update of a prefix in, key by key; a nil entry is a deleted one.
func (e *Engine) take(prefix string, u store.Update, take func(key string, entry *store.Entry)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if u.Reset {
		keep := make(map[string]bool, len(u.Put))
		for _, entry := range u.Put {
			keep[entry.Key] = true
		}
		for key := range e.revisions {
			if strings.HasPrefix(key, prefix) && !keep[key] && (u.Restored || e.revisions[key] <= u.Revision) {
				delete(e.revisions, key)
				take(key, nil)
			}
		}
	}
	for _, entry := range u.Put {
		if u.Restored || e.revisions[entry.Key] <= entry.ModRevision { // else it was written from here since
			e.revisions[entry.Key] = entry.ModRevision
			take(entry.Key, &entry)
		}
	}
	for _, key := range u.Deleted {
		if e.revisions[key] <= u.Revision {
			delete(e.revisions, key)
			take(key, nil)
		}
	}
	if prefix == state.Prefix {
		e.cache.SetRevision(u.Revision)
	}
	if e.loaded[prefix] = true; len(e.loaded) == 4 {
		select {
		case <-e.ready:
		default:
			close(e.ready)
		}
	}
	e.poke()
}

func (e *Engine) takeIntent(key string, entry *store.Entry) {
	if entry == nil {
		e.cache.Delete(key)
		return
	}
	e.cache.Put(key, entry.Value, entry.ModRevision, entry.Lease)
}

func (e *Engine) takeStatus(key string, entry *store.Entry) {
	node := strings.TrimPrefix(key, state.StatusPrefix)
	delete(e.statuses, node)
	if entry == nil {
		return
	}
	if status, err := state.DecodeStatus(entry.Value); err == nil { // else it tells nothing
		e.statuses[node] = status
	}
}

func (e *Engine) takeRecord(key string, entry *store.Entry) {
	vip := strings.TrimPrefix(key, state.SwitchoverPrefix)
	was, known := e.records[vip]
	delete(e.records, vip)
	if entry == nil {
		return
	}
	r, err := Decode(*entry)
	if err != nil {
		e.log.Error("a switchover is left alone: it can't be read", zap.Error(err))
		return
	}
	e.records[vip] = record{r, entry.ModRevision}
	if known && was.Id == r.Id && was.Result == "" {
		e.tellEnd("a switchover", zap.String("vip", vip), r.Result, r.Why)
	}
}

// tellEnd logs the end of what was under way, whichever coordinator has seen it.
func (e *Engine) tellEnd(what string, of zap.Field, result, why string) {
	log := e.log.Info
	switch result {
	case "":
		return
	case Failed:
		log = e.log.Warn
	}
	log(what+" is over", of, zap.String("result", result), zap.String("why", why))
}

func (e *Engine) takeEvacuation(key string, entry *store.Entry) {
	site := strings.TrimPrefix(key, state.EvacuationPrefix)
	was, known := e.evacuations[site]
	delete(e.evacuations, site)
	if entry == nil {
		return
	}
	r, err := DecodeEvacuation(*entry)
	if err != nil {
		e.log.Error("an evacuation is left alone: it can't be read", zap.Error(err))
		return
	}
	e.evacuations[site] = evacuation{r, entry.ModRevision}
	if known && was.Id == r.Id && was.Result == "" {
		e.tellEnd("an evacuation", zap.String("site", site), r.Result, r.Why)
	}
}

// work carries on what is under way, on every news and now and then.
func (e *Engine) work(ctx context.Context) error {
	ticker := time.NewTicker(lookInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-e.wake:
		case <-ticker.C:
		}
		select {
		case <-e.ready:
		default:
			continue // not known is not absent
		}
		for more := true; more; {
			more = e.round(ctx)
		}
	}
}

// look is what is known now.
func (e *Engine) look() (w world, records map[string]record, evacuations map[string]evacuation) {
	var live map[string]*medwayv1.Live
	if e.config.Live != nil {
		live = e.config.Live()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	w = world{
		Snapshot: e.cache.Snapshot(), standing: make(map[string]int64, len(e.records)),
		drains: map[state.BackendKey]int64{}, observed: map[string]plan.Observed{}, limits: e.config.Limits, now: e.now(),
	}
	for vip := range e.records {
		w.standing[vip] = e.revisions[state.Key{Kind: state.KindTarget, A: vip}.String()]
	}
	for key, revision := range e.revisions {
		if name, ok := strings.CutPrefix(key, drainPrefix); ok {
			w.drains[backendKey(name)] = revision
		}
	}
	for node, alive := range w.Alive {
		if status := e.statuses[node]; status != nil {
			if o, ok := OfStatus(status, alive, w.now); ok {
				w.observed[node] = o
			}
		}
		if l := live[node]; l != nil && w.now.Sub(timeOf(l.At)) < liveFor {
			if o, ok := OfLive(l, alive); ok {
				w.observed[node] = o
			}
		}
	}
	return w, maps.Clone(e.records), maps.Clone(e.evacuations)
}

// liveFor is how old live numbers may be to count for more than a status.
const liveFor = 10 * time.Second

// write is a change with its keys, to be committed as a whole.
type write struct {
	guards  []store.Guard
	puts    []store.Put
	deletes []string
}

// fits says whether one more fits into a transaction with this one, which takes a key
// once: two VIPs may have a pool whose backends are drained.
func (w write) fits(more write) bool {
	twice := func(key string) bool {
		return slices.Contains(w.deletes, key) || slices.ContainsFunc(w.puts, func(p store.Put) bool { return p.Key == key })
	}
	if slices.ContainsFunc(more.deletes, twice) || slices.ContainsFunc(more.puts, func(p store.Put) bool { return twice(p.Key) }) {
		return false
	}
	return len(w.guards)+len(more.guards) <= store.MaxOps && len(w.puts)+len(w.deletes)+len(more.puts)+len(more.deletes) <= store.MaxOps
}

// round makes every step that can be made now, and tells whether it made one.
func (e *Engine) round(ctx context.Context) (progress bool) {
	w, records, evacuations := e.look()
	if e.config.Probe != nil {
		w.probe = e.probes.results(ctx, e, w.Snapshot, records)
	}
	var writes []write
	for _, vip := range slices.Sorted(maps.Keys(records)) {
		r := records[vip]
		if c := withdrawn(r, evacuations, w); c != nil {
			writes = append(writes, writeOf(vip, r, c, w.now))
		} else if c := advance(vip, r, w); c != nil {
			writes = append(writes, writeOf(vip, r, c, w.now))
		}
	}
	progress = e.commitAll(ctx, writes)
	for _, site := range slices.Sorted(maps.Keys(evacuations)) {
		if wanted, ok := e.evacuate(site, evacuations[site], records, w); ok {
			progress = e.commitAll(ctx, []write{wanted}) || progress
		}
	}
	return progress
}

// writeOf is a change of a record with its guards.
func writeOf(vip string, r record, c *change, now time.Time) write {
	w := c.write(vip, now)
	w.guards = append(w.guards, store.Guard{Key: Key(vip), ModRevision: r.revision})
	if c.target != "" {
		w.guards = append(w.guards, store.Guard{Key: state.Key{Kind: state.KindTarget, A: vip}.String(), ModRevision: c.targetRevision})
	}
	return w
}

// commitAll makes writes in as few transactions as etcd allows. Where one does not
// hold, since another coordinator was first, those beside it are made one by one.
func (e *Engine) commitAll(ctx context.Context, writes []write) (progress bool) {
	for len(writes) > 0 {
		var all write
		n := 0
		for ; n < len(writes) && all.fits(writes[n]); n++ {
			all.guards = append(all.guards, writes[n].guards...)
			all.puts = append(all.puts, writes[n].puts...)
			all.deletes = append(all.deletes, writes[n].deletes...)
		}
		committed, failed := e.commitOne(ctx, all)
		progress = progress || committed
		for i := 0; i < n && n > 1 && !committed && !failed; i++ {
			one, _ := e.commitOne(ctx, writes[i])
			progress = progress || one
		}
		writes = writes[n:]
	}
	return progress
}

// commitOne tells whether a write was made, and whether etcd could not be asked.
func (e *Engine) commitOne(ctx context.Context, w write) (committed, failed bool) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	committed, revision, err := e.commit(ctx, w.guards, w.puts, w.deletes)
	if err != nil {
		if !errors.Is(err, context.Canceled) {
			e.log.Warn("can't write a switchover", zap.Error(err))
		}
		return false, true
	}
	if committed {
		e.saw(w, revision)
	}
	return committed, false
}

// saw takes in what this engine has written itself, before the watch brings it.
func (e *Engine) saw(w write, revision int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, p := range w.puts {
		entry := store.Entry{Key: p.Key, Value: p.Value, ModRevision: revision}
		if e.revisions[p.Key] >= revision {
			continue
		}
		switch {
		case strings.HasPrefix(p.Key, state.SwitchoverPrefix):
			e.takeRecord(p.Key, &entry)
		case strings.HasPrefix(p.Key, state.EvacuationPrefix):
			e.takeEvacuation(p.Key, &entry)
		default:
			continue
		}
		e.revisions[p.Key] = revision
	}
}
