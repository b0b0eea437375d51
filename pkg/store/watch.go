package store

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
)

// session is one watch on one stream, from the follower's revision on.
//
// It speaks to etcd's watch service itself instead of through clientv3.Watch,
// which reconnects unseen (so that a store restored in between looks like the
// same one), keeps a goroutine for each watch given up during an outage, and
// shares one stream, hence its progress answers, among all watches.
type session struct {
	f      *follower
	etcd   *clientv3.Client
	stream etcdserverpb.Watch_WatchClient
	opened time.Time

	created bool
	heard   time.Time // when the watch last said something
	waiting []probe   // answered, but for revisions that the watch hasn't reached
	asked   int       // probes without an answer
	probes  chan probe
}

// A probe is one linearizable question for the store's revision.
type probe struct {
	sent, answered time.Time
	since          int64 // the follower's revision when it was sent
	revision       int64
	cluster        uint64
	err            error
}

const maxProbes = 5 // outstanding; a frozen member must not hold up the others

// watch runs one session until it fails (the next goes on where it ended) or
// until a list is due (errListAgain).
func (f *follower) watch(ctx context.Context) error {
	etcd, err := f.c.conn(ctx)
	if err != nil {
		return err
	}
	var background sync.WaitGroup
	defer background.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	now := time.Now()
	s := &session{f: f, etcd: etcd, opened: now, heard: now, probes: make(chan probe, maxProbes)}
	if s.stream, err = openWatch(ctx, etcd, f.prefix, f.revision+1); err != nil {
		return fmt.Errorf("watch: %w", err)
	}
	responses, failed := make(chan *etcdserverpb.WatchResponse), make(chan error, 1)
	background.Go(func() { failed <- receive(ctx, s.stream, responses) })
	return s.loop(ctx, responses, failed, &background)
}

func (s *session) loop(ctx context.Context, responses <-chan *etcdserverpb.WatchResponse, failed <-chan error, background *sync.WaitGroup) error {
	tick := time.NewTicker(s.f.c.cfg.ProbeInterval)
	defer tick.Stop()
	relist := time.NewTimer(time.Until(s.f.relistAt))
	defer relist.Stop()
	s.probe(ctx, background)
	for {
		var err error
		select {
		case r := <-responses:
			err = s.onResponse(r)
		case p := <-s.probes:
			err = s.onProbe(ctx, p)
		case <-tick.C:
			if err = s.stalled(); err == nil {
				s.probe(ctx, background)
			}
		case err = <-failed:
		case <-relist.C:
			err = errListDue
		case <-ctx.Done():
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
	}
}

func openWatch(ctx context.Context, etcd *clientv3.Client, prefix string, revision int64) (etcdserverpb.Watch_WatchClient, error) {
	// A member without a leader must end the stream, not go on in silence.
	stream, err := etcdserverpb.NewWatchClient(etcd.ActiveConnection()).Watch(clientv3.WithRequireLeader(ctx),
		grpc.WaitForReady(false), grpc.MaxCallRecvMsgSize(math.MaxInt32))
	if err != nil {
		return nil, err
	}
	return stream, stream.Send(&etcdserverpb.WatchRequest{RequestUnion: &etcdserverpb.WatchRequest_CreateRequest{
		CreateRequest: &etcdserverpb.WatchCreateRequest{
			Key: []byte(prefix), RangeEnd: []byte(clientv3.GetPrefixRangeEnd(prefix)),
			StartRevision: revision, ProgressNotify: true, Fragment: true,
		},
	}})
}

// receive reads the stream until it fails, and joins fragments: a revision's
// events must not be seen in part.
func receive(ctx context.Context, stream etcdserverpb.Watch_WatchClient, out chan<- *etcdserverpb.WatchResponse) error {
	var whole *etcdserverpb.WatchResponse
	for {
		r, err := stream.Recv()
		if err != nil {
			return fmt.Errorf("watch: %w", err)
		}
		switch {
		case whole != nil && len(r.Events) > 0:
			whole.Events = append(whole.Events, r.Events...)
			whole.Fragment = r.Fragment
			r = whole
		case whole != nil && !r.Canceled:
			continue // progress must not overtake the rest of the events
		}
		if r.Fragment {
			whole = r
			continue
		}
		whole = nil
		select {
		case out <- r:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *session) onResponse(r *etcdserverpb.WatchResponse) error {
	f := s.f
	switch {
	case r.CompactRevision != 0:
		return fmt.Errorf("revision %d is compacted: %w", f.revision+1, errListAgain)
	case r.Canceled:
		return fmt.Errorf("watch refused: %s", r.CancelReason)
	case r.Header.GetClusterId() != f.cluster:
		return fmt.Errorf("another cluster: %w", errListAgain)
	case r.Created:
		// A lower revision here proves nothing: this member may lag. Probes tell.
		s.created = true
	case len(r.Events) > 0:
		if err := f.deliver(r.Events); err != nil {
			return err
		}
	default: // progress
		f.revision = max(f.revision, r.Header.GetRevision())
	}
	s.heard = time.Now()
	s.settle()
	return nil
}

// probe asks for the store's revision in the background. The key read is the
// prefix itself, which every permission for the prefix covers and nobody uses.
func (s *session) probe(ctx context.Context, background *sync.WaitGroup) {
	if s.asked == maxProbes {
		return
	}
	s.asked++
	p := probe{sent: time.Now(), since: s.f.revision}
	background.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, maxProbes*s.f.c.cfg.ProbeInterval)
		defer cancel()
		r, err := s.etcd.Get(ctx, s.f.prefix, clientv3.WithCountOnly())
		p.answered, p.err = time.Now(), err
		if err == nil {
			p.revision, p.cluster = r.Header.Revision, r.Header.ClusterId
		}
		s.probes <- p // has room for all that are outstanding
	})
}

func (s *session) onProbe(ctx context.Context, p probe) error {
	f := s.f
	s.asked--
	if p.err != nil {
		f.report(ctx, fmt.Errorf("probe: %w", p.err))
		return nil
	}
	if p.cluster != f.cluster || p.revision < p.since {
		f.restored = true
		return fmt.Errorf("revision %d of cluster %x after %d of %x: %w", p.revision, p.cluster, p.since, f.cluster, errListAgain)
	}
	s.waiting = append(s.waiting, p)
	s.settle()
	if len(s.waiting) == 0 {
		return nil
	}
	// Events may be under way, or the store moved outside our prefix.
	err := s.stream.Send(&etcdserverpb.WatchRequest{RequestUnion: &etcdserverpb.WatchRequest_ProgressRequest{
		ProgressRequest: &etcdserverpb.WatchProgressRequest{},
	}})
	if err != nil {
		return fmt.Errorf("ask for progress: %w", err)
	}
	return nil
}

// settle confirms the probes whose revision the watch has reached.
func (s *session) settle() {
	rest := s.waiting[:0]
	for _, p := range s.waiting {
		if p.revision > s.f.revision {
			rest = append(rest, p)
			continue
		}
		s.f.confirm(p.sent)
	}
	s.waiting = rest
}

var errStalled = errors.New("the watch lags behind the store")

// stalled is the watchdog: a watch must be created soon, and must reach the
// revisions that probes report. Time spent in handle is not held against it.
func (s *session) stalled() error {
	limit := 3 * s.f.c.cfg.ProbeInterval
	if !s.created && time.Since(s.opened) > limit {
		return fmt.Errorf("watch not created in %v: %w", limit, errStalled)
	}
	if len(s.waiting) == 0 || time.Since(s.heard) <= limit || time.Since(s.waiting[0].answered) <= limit {
		return nil
	}
	s.f.log.Warn("watch stalled", zap.Int64("revision", s.f.revision), zap.Int64("store_revision", s.waiting[0].revision))
	return errStalled
}
