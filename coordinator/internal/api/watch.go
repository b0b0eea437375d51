package api

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/zap"

	"github.com/medway-lb/medway/coordinator/internal/auth"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// newsPrefixes are what streams tell of: not of grants.
var newsPrefixes = []string{state.Prefix, state.StatusPrefix, state.HistoryPrefix, state.SwitchoverPrefix, state.EvacuationPrefix}

const (
	// maxBehind is how many changes a reader may be behind.
	maxBehind = 1024
	// maxReaders may read at once.
	maxReaders = 4000
	// grantInterval is how long a stream may go on after its grant has ended.
	grantInterval = 5 * time.Second
)

// news hands what changes in etcd to all who read it.
type news struct {
	mu sync.Mutex
	// revisions are those of all keys, so that a list tells what changed meanwhile.
	revisions map[string]int64
	loaded    map[string]bool
	readers   map[*reader]bool
}

// reader is one stream. Its channel is closed when it has fallen behind.
type reader struct{ changes chan *medwayv1.WatchResponse }

func newNews() *news {
	return &news{revisions: map[string]int64{}, loaded: map[string]bool{}, readers: map[*reader]bool{}}
}

// take brings in an update of a prefix.
func (n *news) take(prefix string, u store.Update) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var changes []*medwayv1.WatchResponse
	gone := func(key string) {
		delete(n.revisions, key)
		changes = append(changes, &medwayv1.WatchResponse{Key: valid(key), Revision: u.Revision})
	}
	if u.Reset {
		kept := make(map[string]bool, len(u.Put))
		for _, e := range u.Put {
			kept[e.Key] = true
		}
		for key := range n.revisions {
			if strings.HasPrefix(key, prefix) && !kept[key] {
				gone(key)
			}
		}
	}
	for _, key := range u.Deleted {
		gone(key)
	}
	for _, e := range u.Put {
		if n.revisions[e.Key] == e.ModRevision && !u.Restored {
			continue
		}
		n.revisions[e.Key] = e.ModRevision
		value := valid(string(e.Value))
		changes = append(changes, &medwayv1.WatchResponse{Key: valid(e.Key), Value: &value, Revision: e.ModRevision})
	}
	first := !n.loaded[prefix]
	n.loaded[prefix] = true
	if first {
		return // what was there before is no news
	}
	for r := range n.readers {
		for _, c := range changes {
			select {
			case r.changes <- c:
				continue
			default:
			}
			close(r.changes)
			delete(n.readers, r)
			break
		}
	}
}

var (
	errBehind  = errors.New("this stream is read too slowly: read the state again, and then a new stream")
	errReaders = errors.New("too many streams are being read")
	errNotYet  = errors.New("etcd has not been read yet")
)

func (n *news) join() (*reader, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case len(n.loaded) < len(newsPrefixes):
		return nil, connect.NewError(connect.CodeUnavailable, errNotYet)
	case len(n.readers) >= maxReaders:
		return nil, connect.NewError(connect.CodeResourceExhausted, errReaders)
	}
	r := &reader{make(chan *medwayv1.WatchResponse, maxBehind)}
	n.readers[r] = true
	return r, nil
}

func (n *news) leave(r *reader) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.readers, r)
}

// Watch tells what changes.
func (s *Server) Watch(ctx context.Context, _ *connect.Request[medwayv1.WatchRequest], stream *connect.ServerStream[medwayv1.WatchResponse]) error {
	who, err := may(ctx, auth.Viewer, "")
	if err != nil {
		return err
	}
	return s.changes(ctx, who.Name, func() error { return s.still(who, auth.Viewer) }, stream.Send)
}

// changes sends an empty message and then what changes, until it can't be sent, this
// server stops, or who reads may do so no more.
func (s *Server) changes(ctx context.Context, name string, still func() error, send func(*medwayv1.WatchResponse) error) error {
	r, err := s.news.join()
	if err != nil {
		return err
	}
	defer s.news.leave(r)
	if err := send(&medwayv1.WatchResponse{}); err != nil {
		return err
	}
	ticker := time.NewTicker(grantInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.stopping:
			return errStopping
		case <-ticker.C:
			if err := still(); err != nil {
				return err
			}
		case c, ok := <-r.changes:
			if !ok {
				s.log.Warn("a reader was too slow", zap.String("name", name))
				return connect.NewError(connect.CodeResourceExhausted, errBehind)
			}
			if err := send(c); err != nil {
				if errors.Is(err, os.ErrDeadlineExceeded) || connect.CodeOf(err) == connect.CodeDeadlineExceeded { // else it went away
					s.log.Warn("a reader was too slow", zap.String("name", name), zap.Error(err))
				}
				return err
			}
		}
	}
}
