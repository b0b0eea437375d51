package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/zap"

	"github.com/medway-lb/medway/coordinator/internal/auth"
	"github.com/medway-lb/medway/coordinator/internal/operation"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"
)

// grants are those that etcd has, by name. They stand while etcd can't be reached.
type grants struct {
	log *zap.Logger

	mu     sync.Mutex
	known  map[string]auth.Grant
	loaded bool
}

func newGrants(log *zap.Logger) *grants { return &grants{log: log, known: map[string]auth.Grant{}} }

func (g *grants) follow(ctx context.Context, client *store.Client) error {
	return client.Follow(ctx, state.GrantPrefix, func(u store.Update) {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.loaded = true
		if u.Reset {
			clear(g.known)
		}
		for _, e := range u.Put {
			name := strings.TrimPrefix(e.Key, state.GrantPrefix)
			grant, err := auth.DecodeGrant(e.Value)
			if err != nil {
				// The last good one may have been meant to end: it allows nothing now.
				g.log.Error("a grant can't be read and allows nothing", zap.String("name", state.Printable(name)), zap.Error(err))
				delete(g.known, name)
				continue
			}
			g.known[name] = grant
		}
		for _, key := range u.Deleted {
			delete(g.known, strings.TrimPrefix(key, state.GrantPrefix))
		}
	})
}

func (g *grants) of(name string) (auth.Grant, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	grant, ok := g.known[name]
	return grant, ok
}

// read says whether grants are known: without, nobody is refused for good.
func (g *grants) read() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.loaded
}

// errUnknown is the same for a name that does not exist and for a wrong token.
var errUnknown = connect.NewError(connect.CodeUnauthenticated, errors.New("the token is not valid"))

// identify says who asks: by a bearer token, or else by the certificate that the TLS
// handshake has verified.
func (s *Server) identify(r *http.Request) (auth.Identity, error) {
	if !s.grants.read() {
		return auth.Identity{}, unavailable(errNotYet)
	}
	if header := r.Header.Get("Authorization"); header != "" {
		return s.bearer(r, header)
	}
	return s.shown(r)
}

// shown says whose certificate it is.
func (s *Server) shown(r *http.Request) (auth.Identity, error) {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return auth.Identity{}, connect.NewError(connect.CodeUnauthenticated, errors.New("expected a client certificate or a bearer token"))
	}
	certificate := r.TLS.VerifiedChains[0][0]
	name := certificate.Subject.CommonName
	// It was good when the connection was made, which may be long ago.
	if end := certificate.NotAfter; s.now().After(end) {
		return auth.Identity{}, connect.NewError(connect.CodeUnauthenticated, fmt.Errorf("the certificate of %s ended at %s", state.Quote(name), end.UTC().Format(time.RFC3339)))
	}
	grant, ok := s.grants.of(name)
	if !ok {
		return auth.Identity{}, connect.NewError(connect.CodePermissionDenied, fmt.Errorf("there is no grant for the certificate's name, %s", state.Quote(name)))
	}
	return s.as(name, grant)
}

func (s *Server) bearer(r *http.Request, header string) (auth.Identity, error) {
	scheme, token, _ := strings.Cut(header, " ")
	if !strings.EqualFold(scheme, "Bearer") {
		token = "" // nobody's
	}
	return s.holder(r, token)
}

// holder says whose token it is, and slows down who guesses.
func (s *Server) holder(r *http.Request, token string) (auth.Identity, error) {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return auth.Identity{}, connect.NewError(connect.CodeUnauthenticated, fmt.Errorf("no address to count failures of: %w", err))
	}
	name, ok := auth.TokenName(token)
	grant, known := s.grants.of(name)
	if !ok || !known || !grant.Verify(token) {
		// A token that is right passes whatever others of its address do: nobody
		// guesses 256 bits, and else one could lock all out who share a proxy.
		if wait := s.limiter.Wait(from.Addr(), s.now()); wait > 0 {
			limited := connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("too many failed logins from %s: wait %s", from.Addr(), wait.Round(time.Second)))
			limited.Meta().Set("Retry-After", fmt.Sprint(int(wait.Seconds())+1))
			return auth.Identity{}, limited
		}
		s.limiter.Failed(from.Addr(), s.now())
		if !known { // whatever it is, part of a secret perhaps that was pasted wrongly
			name = "(unknown)"
		}
		s.log.Warn("a login failed", zap.Stringer("from", from.Addr()), zap.String("name", state.Line(name)))
		return auth.Identity{}, errUnknown
	}
	return s.as(name, grant)
}

func (s *Server) as(name string, grant auth.Grant) (auth.Identity, error) {
	who, err := auth.As(name, grant, s.now())
	if err != nil {
		return who, connect.NewError(connect.CodeUnauthenticated, err)
	}
	return who, nil
}

// addressOf is from where a request comes: of a proxy's, the proxy.
func addressOf(r *http.Request) string {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return ""
	}
	return from.Addr().Unmap().String()
}

// author is who asks, for the history.
func author(who auth.Identity, reason string) operation.Author {
	return operation.Author{By: who.Name, Reason: reason, Address: who.Address}
}

type identityKey struct{}

// authenticate lets only requests pass whose author is known.
func (s *Server) authenticate(h http.Handler) http.Handler {
	errs := connect.NewErrorWriter()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who, err := s.identify(r)
		if err != nil {
			var c *connect.Error
			if errors.As(err, &c) && c.Code() == connect.CodeUnauthenticated {
				w.Header().Set("WWW-Authenticate", `Bearer realm="medway"`)
			}
			_ = errs.Write(w, r, err)
			return
		}
		who.Address = addressOf(r)
		h.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), identityKey{}, who)))
	})
}

// may is who asks, if they have a role for a VIP; "" is what concerns all VIPs.
func may(ctx context.Context, need auth.Role, vip string) (auth.Identity, error) {
	who, ok := ctx.Value(identityKey{}).(auth.Identity)
	if !ok {
		return who, connect.NewError(connect.CodeUnauthenticated, errors.New("nobody is known"))
	}
	if err := who.May(need, vip); err != nil {
		return who, connect.NewError(connect.CodePermissionDenied, err)
	}
	return who, nil
}

// still says whether somebody has a role yet, while a stream goes on.
func (s *Server) still(who auth.Identity, need auth.Role) error {
	grant, ok := s.grants.of(who.Name)
	if !ok || grant.TokenSHA256 != who.TokenSHA256 {
		return connect.NewError(connect.CodeUnauthenticated, fmt.Errorf("the grant of %s has ended", who.Name))
	}
	now, err := s.as(who.Name, grant)
	if err == nil {
		if err = now.May(need, ""); err != nil {
			err = connect.NewError(connect.CodePermissionDenied, err)
		}
	}
	return err
}
