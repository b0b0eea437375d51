package api

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"

	"connectrpc.com/connect"
	"golang.org/x/time/rate"

	"github.com/medway-lb/medway/coordinator/internal/auth"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// What one name may do on one coordinator, so that it can't take the memory, or etcd's
// time, from the others.
const (
	// maxStreams are open at once.
	maxStreams = 100
	// maxRequests are being answered at once; each may be of maxRequest bytes.
	maxRequests = 32
	// perSecond begin, streams among them; burst may at once.
	perSecond = 100
	burst     = 200
)

// limits counts what each name does.
type limits struct {
	mu    sync.Mutex
	names map[string]*usage
}

type usage struct {
	streams, requests int
	rate              *rate.Limiter
}

func newLimits() *limits { return &limits{names: map[string]*usage{}} }

// Enter lets a request or a stream of a name begin that comes another way than by the
// API's methods; leave is its end.
func (s *Server) Enter(name string, stream bool) (leave func(), err error) {
	return s.limits.enter(name, stream)
}

// enter lets a request or a stream of a name begin, until leave is called.
func (l *limits) enter(name string, stream bool) (leave func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	u := l.names[name]
	if u == nil {
		l.forget()
		u = &usage{rate: rate.NewLimiter(perSecond, burst)}
		l.names[name] = u
	}
	count, most, what := &u.requests, maxRequests, "requests at once"
	if stream {
		count, most, what = &u.streams, maxStreams, "streams at once"
	}
	switch {
	case *count >= most:
		return nil, tooMany(name, most, what)
	case !u.rate.Allow():
		return nil, tooMany(name, perSecond, "requests a second")
	}
	*count++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		*count--
	}, nil
}

func tooMany(name string, most int, what string) error {
	err := connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("too many %s of %s: at most %d", what, name, most))
	err.Meta().Set("Retry-After", "1")
	return err
}

// forget lets go of names that do nothing.
func (l *limits) forget() {
	for name, u := range l.names {
		if u.streams+u.requests == 0 && u.rate.Tokens() >= burst {
			delete(l.names, name)
		}
	}
}

// limit lets only so much pass of one name. It is before the request is read.
func (s *Server) limit(h http.Handler) http.Handler {
	errs := connect.NewErrorWriter()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who, ok := r.Context().Value(identityKey{}).(auth.Identity)
		if !ok {
			_ = errs.Write(w, r, connect.NewError(connect.CodeUnauthenticated, errors.New("nobody is known")))
			return
		}
		leave, err := s.limits.enter(who.Name, isStream[r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]])
		if err != nil {
			_ = errs.Write(w, r, err)
			return
		}
		defer leave()
		h.ServeHTTP(w, r)
	})
}

// isStream has the methods that answer for as long as somebody listens.
var isStream = func() map[string]bool {
	out := map[string]bool{}
	methods := medwayv1.File_medway_v1_api_proto.Services().ByName("Coordinator").Methods()
	for i := range methods.Len() {
		out[string(methods.Get(i).Name())] = methods.Get(i).IsStreamingServer()
	}
	return out
}()
