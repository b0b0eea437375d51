// Package bgp announces the VIPs' routes to the routers. It is the only
// importer of GoBGP, which does the speaking: sessions, BFD, graceful restart.
//
// A Speaker takes the whole announced set at once and makes it so. It only
// announces: nothing that a router sends is accepted, and nothing is passed on
// from one router to another. It doesn't listen: it dials the routers, from
// the network namespace that the whole process is in (GoBGP dials on
// goroutines of its own).
//
// Routers should export nothing to us: what they send is refused, but GoBGP
// keeps it in memory (its Adj-RIB-In).
package bgp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/osrg/gobgp/v4/pkg/server"
	"go.uber.org/zap"

	"github.com/medway-lb/medway/pkg/plan"
)

// Speaker is one BGP speaker. Its methods are safe for concurrent use.
type Speaker struct {
	cfg     Config
	log     *zap.Logger
	changed chan struct{}
	// stopping silences what GoBGP says of its own end.
	stopping atomic.Bool
	// deaf tells that BFD was found to have no port.
	deaf atomic.Bool

	// life serialises Start, Set and Stop. server is nil before Start and
	// after Stop; rib is what GoBGP holds, a zero announcement where a failed
	// call left that unknown.
	life   sync.Mutex
	server *server.BgpServer
	rib    routes
	cancel context.CancelFunc
	done   chan struct{}
	tasks  chan task

	mu       sync.Mutex
	want     routes
	sessions map[netip.Addr]*session
}

// ErrStopped is returned by a Speaker that has been stopped.
var ErrStopped = errors.New("bgp: the speaker is stopped")

// New checks the configuration and makes a speaker that sends nothing and has
// no goroutines until Start.
func New(cfg Config, log *zap.Logger) (*Speaker, error) {
	if faults := cfg.Faults(); len(faults) > 0 {
		return nil, fmt.Errorf("bgp: %w", faults[0])
	}
	cfg = cfg.withDefaults()
	s := &Speaker{
		cfg:      cfg,
		log:      log,
		changed:  make(chan struct{}, 1),
		rib:      routes{},
		want:     routes{},
		sessions: map[netip.Addr]*session{},
	}
	for _, n := range cfg.Neighbors {
		s.sessions[n.Address] = &session{Neighbor: n, since: time.Now(), warned: map[string]bool{}}
		s.sessions[n.Address].forget()
	}
	return s, nil
}

// Start begins to speak. What Set was given before is there when the first
// session comes up, so that no router sees an empty set in between.
//
// With localRestarting, routers that kept our routes over a planned restart
// (Stop with graceful) are asked to keep them until the announced set has been
// sent again.
func (s *Speaker) Start(ctx context.Context, localRestarting bool) error {
	s.life.Lock()
	defer s.life.Unlock()
	if s.server != nil || s.stopping.Load() {
		return errors.New("bgp: the speaker has been started before")
	}
	// The level is the handler's affair; GoBGP only needs one to change.
	srv := server.NewBgpServer(server.LoggerOption(slog.New(newLogHandler(s.log, s)), new(slog.LevelVar)))
	s.server = srv
	go srv.Serve()
	if err := s.setUp(ctx, localRestarting); err != nil {
		return errors.Join(err, s.stop(ctx, false))
	}
	return nil
}

// setUp brings a fresh GoBGP server to work: policy, paths first, peers second.
func (s *Speaker) setUp(ctx context.Context, localRestarting bool) error {
	// Families stays empty, which makes a table for every family: the numbers
	// there are GoBGP's own, and one that it doesn't know is not refused.
	global := &api.Global{Asn: s.cfg.AS, RouterId: s.cfg.RouterID.String(), ListenPort: -1}
	if err := s.server.StartBgp(ctx, &api.StartBgpRequest{Global: global}); err != nil {
		return fmt.Errorf("bgp: start: %w", err)
	}
	if err := s.cfg.setPolicies(ctx, s.server); err != nil {
		return err
	}
	if err := s.apply(); err != nil {
		return err
	}
	if err := s.watch(); err != nil {
		return err
	}
	pause(ctx, s.cfg.missed())
	for _, n := range s.cfg.Neighbors {
		if err := s.server.AddPeer(ctx, &api.AddPeerRequest{Peer: s.cfg.peer(n, localRestarting)}); err != nil {
			return fmt.Errorf("bgp: neighbour %v: %w", n.Address, err)
		}
	}
	return nil
}

// Set makes the announced set what it is given: first what is new or changed,
// then the withdrawal of what is missing. A set that is there already sends
// nothing. A changed route is one UPDATE, never a withdrawal.
//
// It returns when GoBGP has the routes; Session.Pending tells when the routers
// have them. After an error the set is partly made: call it again. A set that
// isn't valid changes nothing. Before Start it only takes the set.
func (s *Speaker) Set(ctx context.Context, set []plan.Announcement) error {
	want, err := s.cfg.newRoutes(set)
	if err != nil {
		return err
	}
	s.life.Lock()
	defer s.life.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.stopping.Load() {
		return ErrStopped
	}
	s.mu.Lock()
	if !maps.EqualFunc(want, s.want, equal) {
		for _, n := range s.sessions {
			n.taken = false
		}
	}
	s.want = want
	s.mu.Unlock()
	if s.server == nil {
		return nil
	}
	return s.apply()
}

// apply brings GoBGP's table to s.want. Caller holds s.life.
func (s *Speaker) apply() error {
	s.mu.Lock()
	want := s.want
	s.mu.Unlock()
	add, withdraw := changes(s.rib, want)
	paths := make([]*apiutil.Path, 0, len(add))
	for _, a := range add {
		p, err := s.cfg.path(a)
		if err != nil {
			return err
		}
		paths = append(paths, p)
		s.rib[a.Prefix] = plan.Announcement{}
	}
	if len(paths) > 0 {
		if _, err := s.server.AddPath(apiutil.AddPathRequest{Paths: paths}); err != nil {
			return fmt.Errorf("bgp: announce: %w", err)
		}
	}
	for _, a := range add {
		s.rib[a.Prefix] = a
	}
	gone := make([]*apiutil.Path, 0, len(withdraw))
	for _, p := range withdraw {
		nlri, err := bgp.NewIPAddrPrefix(p)
		if err != nil {
			return fmt.Errorf("bgp: withdraw %v: %w", p, err)
		}
		gone = append(gone, &apiutil.Path{Family: family(p), Nlri: nlri, Withdrawal: true})
	}
	if len(gone) > 0 {
		if err := s.server.DeletePath(apiutil.DeletePathRequest{Paths: gone}); err != nil {
			return fmt.Errorf("bgp: withdraw: %w", err)
		}
	}
	for _, p := range withdraw {
		delete(s.rib, p)
	}
	return nil
}

// watch follows the sessions' state until Stop.
func (s *Speaker) watch() error {
	srv := s.server
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel, s.done = cancel, make(chan struct{})
	// Buffered, so that the state of other sessions isn't learned late while
	// one peer is being replaced.
	s.tasks = make(chan task, 64)
	err := srv.WatchEvent(ctx, server.WatchEventMessageCallbacks{
		OnPeerUpdate: func(ev *apiutil.WatchEventMessage_PeerEvent, at time.Time) {
			if do := s.onPeer(ev, at); do != nil {
				s.order(ctx, do)
			}
		},
	}, server.WatchPeer())
	if err != nil {
		cancel()
		close(s.done)
		return fmt.Errorf("bgp: watch sessions: %w", err)
	}
	go func() {
		defer close(s.done)
		for {
			select {
			case <-ctx.Done():
				return
			case do := <-s.tasks:
				do(ctx, srv)
			}
		}
	}()
	return nil
}

// task is something to do about a session that GoBGP can't be asked for while
// it tells of an event.
type task func(context.Context, *server.BgpServer)

func (s *Speaker) order(ctx context.Context, do task) {
	select {
	case s.tasks <- do:
	case <-ctx.Done():
	}
}

// Stop ends all sessions. With graceful, those that negotiated graceful
// restart end without a NOTIFICATION, and their routers keep our routes for
// the restart time; what hasn't been sent yet (Session.Pending) is waited for,
// for at most half of the time that ctx leaves. Otherwise a Cease is sent, and
// routers drop our routes at once. Stopping what isn't running is no error.
func (s *Speaker) Stop(ctx context.Context, graceful bool) error {
	s.life.Lock()
	defer s.life.Unlock()
	if graceful && s.server != nil {
		s.flush(ctx)
	}
	return s.stop(ctx, graceful)
}

// flush waits until routers have what was announced last: they will keep that
// over the restart. One that is silent must not keep us from stopping in order.
func (s *Speaker) flush(ctx context.Context) {
	limit := time.Second
	if deadline, ok := ctx.Deadline(); ok {
		limit = time.Until(deadline) / 2
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for ctx.Err() == nil {
		var pending []string
		for _, n := range s.Sessions() {
			if n.Established && n.Pending {
				pending = append(pending, n.Neighbor.String())
			}
		}
		if len(pending) == 0 {
			return
		}
		pause(ctx, pollInterval)
		if ctx.Err() != nil {
			s.log.Sugar().Warnf("BGP stops before %s took the last routes", strings.Join(pending, ", "))
		}
	}
}

func (s *Speaker) stop(ctx context.Context, graceful bool) error {
	s.stopping.Store(true)
	srv := s.server
	if srv == nil {
		return nil
	}
	s.server = nil
	if s.cancel != nil {
		s.cancel()
	}
	// GoBGP takes no context here, and could block (see awaitBFD).
	ended := make(chan error, 1)
	go func() {
		if s.done != nil {
			<-s.done
		}
		err := srv.StopBgp(context.Background(), &api.StopBgpRequest{AllowGracefulRestart: graceful})
		srv.Stop() // ends BFD, which StopBgp leaves running
		ended <- err
	}()
	select {
	case err := <-ended:
		s.markStopped()
		if err != nil {
			return fmt.Errorf("bgp: stop: %w", err)
		}
		return nil
	case <-ctx.Done():
		s.markStopped()
		return fmt.Errorf("bgp: stop: %w", ctx.Err())
	}
}

func (s *Speaker) markStopped() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.sessions {
		if n.established {
			n.established, n.since, n.lastError = false, time.Now(), "stopped"
		}
		n.forget()
	}
	s.notify()
}
