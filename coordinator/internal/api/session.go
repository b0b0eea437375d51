package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"connectrpc.com/connect"
	"go.uber.org/zap"

	"github.com/medway-lb/medway/coordinator/internal/auth"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// maxSessions are those of one grant; the one that ends first makes room.
const maxSessions = 20

// Session is a person at a browser, logged in.
type Session struct {
	auth.Identity
	// Key is the name under which it is stored.
	Key string
}

var errNoSession = connect.NewError(connect.CodeUnauthenticated, errors.New("nobody is logged in here, or the session has ended"))

// Certificate is the name of the certificate that a browser shows, "" for none.
func Certificate(r *http.Request) string {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return ""
	}
	return r.TLS.VerifiedChains[0][0].Subject.CommonName
}

// Login begins a session for who has a token, or with none for who shows a
// certificate. The cookie is for the browser.
func (s *Server) Login(r *http.Request, token string) (*http.Cookie, error) {
	if !s.grants.read() {
		return nil, unavailable(errNotYet)
	}
	identify := s.shown
	if token != "" {
		identify = func(r *http.Request) (auth.Identity, error) { return s.holder(r, token) }
	}
	who, err := identify(r)
	if err != nil {
		return nil, err
	}
	if err := who.May(auth.Viewer, ""); err != nil {
		return nil, connect.NewError(connect.CodePermissionDenied, err)
	}
	leave, err := s.Enter(who.Name, false)
	if err != nil {
		return nil, err
	}
	defer leave()
	now := s.now()
	cookie, key, session := auth.NewSession(who, now, s.config.Plain)
	if token == "" {
		if end := r.TLS.VerifiedChains[0][0].NotAfter; end.Before(session.Expires) {
			session.Expires = end.UTC()
		}
	}
	value, err := json.Marshal(session)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(r.Context(), etcdTime)
	defer cancel()
	old, err := s.surplus(ctx, who.Name)
	if err != nil {
		return nil, unavailable(err)
	}
	// The lease is what takes it away when nobody ends it.
	lease, err := s.config.Store.Grant(ctx, session.Expires.Sub(now))
	if err != nil {
		return nil, unavailable(err)
	}
	if _, _, err := s.config.Store.Commit(ctx, nil, []store.Put{{Key: state.SessionPrefix + key, Value: value, Lease: lease.ID()}}, nil); err != nil {
		s.end(ctx, lease.ID())
		return nil, unavailable(err)
	}
	for _, e := range old {
		s.end(ctx, e.Lease)
	}
	s.log.Info("somebody has logged in", zap.String("name", who.Name), zap.String("from", r.RemoteAddr))
	return cookie, nil
}

// surplus are the sessions of a name that have to go before there is another, those
// that end first.
func (s *Server) surplus(ctx context.Context, name string) (old []store.Entry, err error) {
	entries, _, err := s.config.Store.List(ctx, state.SessionPrefix)
	if err != nil {
		return nil, err
	}
	type stored struct {
		store.Entry
		auth.Session
	}
	var sessions []stored
	for _, e := range entries {
		if session, err := auth.DecodeSession(e.Value, s.now()); err == nil && session.Name == name {
			sessions = append(sessions, stored{e, session})
		}
	}
	slices.SortFunc(sessions, func(a, b stored) int { return a.Expires.Compare(b.Expires) })
	for _, session := range sessions[:max(0, len(sessions)-maxSessions+1)] {
		old = append(old, session.Entry)
	}
	return old, nil
}

// end ends a session with its lease, if it can: else it runs out.
func (s *Server) end(ctx context.Context, lease int64) {
	if err := s.config.Store.Revoke(ctx, lease); err != nil {
		s.log.Warn("can't end the lease of a session", zap.Error(err))
	}
}

// Logout ends the session of a request, if it has one. The cookie is what makes the
// browser forget its own.
func (s *Server) Logout(r *http.Request) (*http.Cookie, error) {
	key, ok := auth.SessionKey(r, s.config.Plain)
	if !ok {
		return auth.EndSession(s.config.Plain), nil
	}
	ctx, cancel := context.WithTimeout(r.Context(), etcdTime)
	defer cancel()
	e, found, err := s.config.Store.Get(ctx, state.SessionPrefix+key)
	if err == nil && found {
		err = s.config.Store.Revoke(ctx, e.Lease)
	}
	if err != nil {
		return nil, unavailable(fmt.Errorf("the session may go on: %w", err))
	}
	return auth.EndSession(s.config.Plain), nil
}

// Session says whose session a request is of. In the context it comes with the methods
// of the API do what they allow.
func (s *Server) Session(r *http.Request) (context.Context, Session, error) {
	key, ok := auth.SessionKey(r, s.config.Plain)
	if !ok {
		return nil, Session{}, errNoSession
	}
	who, err := s.session(r.Context(), key)
	if err != nil {
		return nil, Session{}, err
	}
	who.Address = addressOf(r)
	return context.WithValue(r.Context(), identityKey{}, who), Session{Identity: who, Key: key}, nil
}

func (s *Server) session(ctx context.Context, key string) (none auth.Identity, err error) {
	if !s.grants.read() {
		return none, unavailable(errNotYet)
	}
	ctx, cancel := context.WithTimeout(ctx, etcdTime)
	defer cancel()
	e, found, err := s.config.Store.Get(ctx, state.SessionPrefix+key)
	if err != nil {
		return none, unavailable(err)
	}
	if !found {
		return none, errNoSession
	}
	session, err := auth.DecodeSession(e.Value, s.now())
	if err != nil {
		return none, errNoSession
	}
	grant, ok := s.grants.of(session.Name)
	if !ok || !grant.Since.Equal(session.Grant) {
		return none, connect.NewError(connect.CodeUnauthenticated, fmt.Errorf("the grant of %s has ended", session.Name))
	}
	return s.as(session.Name, grant)
}

// Changes calls changed at once and after each change of what is stored, until ctx, the
// session or this server ends.
func (s *Server) Changes(ctx context.Context, session Session, changed func()) error {
	still := func() error {
		_, err := s.session(ctx, session.Key)
		if connect.CodeOf(err) == connect.CodeUnavailable {
			return nil // who reads is told nothing meanwhile
		}
		return err
	}
	return s.changes(ctx, session.Name, still, func(*medwayv1.WatchResponse) error {
		changed()
		return nil
	})
}
