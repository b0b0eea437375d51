// Package api is what a coordinator serves: it recognises who asks, looks whether they
// may, and has things done by packages operation and switchover.
package api

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/medway-lb/medway/coordinator/internal/auth"
	"github.com/medway-lb/medway/coordinator/internal/operation"
	"github.com/medway-lb/medway/coordinator/internal/switchover"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
	"github.com/medway-lb/medway/proto/medway/v1/medwayv1connect"
)

const (
	// etcdTime bounds what a request has etcd do.
	etcdTime = 5 * time.Second
	// maxRequest is the largest request in bytes: a thousand VIPs, in words.
	maxRequest = 4 << 20
	// writeTime is how long a client may take none of its answer.
	writeTime = 10 * time.Second
	// pieceSize is what a client has to take in that time, in bytes.
	pieceSize = 64 << 10
)

// Config is what a server works with.
type Config struct {
	Store  *store.Client
	Engine *switchover.Engine
	// Live are the nodes' live numbers by node; nil: they are not polled.
	Live func() map[string]*medwayv1.Live
	// Own is what is wrong with the coordinator itself; nil: nothing ever.
	Own func() []state.Fault
	// Reserved are addresses that no VIP may have.
	Reserved map[netip.Addr]string
	// Plain says that it is served without TLS.
	Plain bool
	Log   *zap.Logger
}

// Server answers requests.
type Server struct {
	config  Config
	log     *zap.Logger
	grants  *grants
	news    *news
	limiter *auth.Limiter
	limits  *limits
	now     func() time.Time
	// stopping is closed when streams are to end.
	stopping chan struct{}
	stop     func()
}

// New makes a server.
func New(c Config) *Server {
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	s := &Server{
		config: c, log: c.Log, grants: newGrants(c.Log), news: newNews(), limiter: auth.NewLimiter(), limits: newLimits(), now: time.Now,
		stopping: make(chan struct{}),
	}
	s.stop = sync.OnceFunc(func() { close(s.stopping) })
	return s
}

// Stop ends all streams; what else is asked is answered yet.
func (s *Server) Stop() { s.stop() }

var errStopping = connect.NewError(connect.CodeUnavailable, errors.New("this coordinator stops: ask another one"))

// Run follows in etcd who may do what and what changes, until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.grants.follow(ctx, s.config.Store) })
	for _, prefix := range newsPrefixes {
		g.Go(func() error {
			return s.config.Store.Follow(ctx, prefix, func(u store.Update) { s.news.take(prefix, u) })
		})
	}
	return g.Wait()
}

// Handler serves the API to who is recognised, and beside it pages, which ask
// themselves who it is ([Server.Session]).
func (s *Server) Handler(pages http.Handler) http.Handler {
	mux := http.NewServeMux()
	path, methods := medwayv1connect.NewCoordinatorHandler(s, connect.WithReadMaxBytes(maxRequest),
		connect.WithCodec(strictJSON{"json"}), connect.WithCodec(strictJSON{"json; charset=utf-8"}))
	mux.Handle(path, s.authenticate(s.limit(methods)))
	mux.Handle("/", pages)
	return withDeadlines(auth.OwnPages(mux))
}

// load reads all that is stored.
func (s *Server) load(ctx context.Context) (*operation.Contents, error) {
	ctx, cancel := context.WithTimeout(ctx, etcdTime)
	defer cancel()
	have, err := operation.Load(ctx, s.config.Store)
	if err != nil {
		return nil, unavailable(err)
	}
	return have, nil
}

// withDeadlines lets no client hold a connection that takes nothing of its answer.
func withDeadlines(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(&deadlineWriter{w, http.NewResponseController(w)}, r)
	})
}

type deadlineWriter struct {
	http.ResponseWriter
	control *http.ResponseController
}

// Write gives each piece its time, so that who reads slowly gets all of a long answer.
func (w *deadlineWriter) Write(b []byte) (written int, err error) {
	defer w.timed()()
	for written < len(b) && err == nil {
		var n int
		n, err = w.ResponseWriter.Write(b[written:min(len(b), written+pieceSize)])
		written += n
		_ = w.control.SetWriteDeadline(time.Now().Add(writeTime))
	}
	return written, err
}

// Flush is for streams.
func (w *deadlineWriter) Flush() {
	defer w.timed()()
	_ = w.control.Flush()
}

// timed begins the time for one piece, and returns what ends it: in HTTP/2 a deadline
// resets a stream also where nothing is to be written.
func (w *deadlineWriter) timed() (end func()) {
	_ = w.control.SetWriteDeadline(time.Now().Add(writeTime))
	return func() { _ = w.control.SetWriteDeadline(time.Time{}) }
}

// Unwrap is for [http.ResponseController].
func (w *deadlineWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
