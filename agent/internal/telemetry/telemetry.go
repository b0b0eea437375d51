// Package telemetry serves what a node sees at this moment: the live numbers that
// coordinators poll, metrics for Prometheus, and whether the node is well. It only
// reads, but what it tells is nobody else's business: with TLS it answers only
// who shows a certificate of the same authority.
package telemetry

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"

	"github.com/medway-lb/medway/pkg/state"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// The paths that are served.
const (
	LivePath    = "/v1/live"
	MetricsPath = "/metrics"
	HealthPath  = "/healthz"
	ReadyPath   = "/readyz"
)

const (
	// requestTime bounds one request with its answer: who is slower holds nothing up.
	requestTime = 10 * time.Second
	// listenRetry is how soon an address that is taken is tried again.
	listenRetry = time.Second
	// maxRequests are answered at once: each reads the kernel's counters.
	maxRequests = 8
)

// Source is the node that is told of.
type Source interface {
	Live(ctx context.Context) *medwayv1.Live
	// Unready is why others should not count on the node yet, "" where they may.
	Unready() string
}

// Server serves a node's telemetry.
type Server struct {
	address string
	tls     *tls.Config // nil: plain
	source  Source
	log     *zap.Logger

	mu    sync.Mutex
	bound net.Addr // nil while it does not listen
	fault error
}

// New makes a server for an address of the form "host:port". It does not listen yet.
func New(address string, tls *tls.Config, source Source, log *zap.Logger) *Server {
	return &Server{address: address, tls: tls, source: source, log: log}
}

// Address is where it listens, nil while it can't; the error is why.
func (s *Server) Address() (net.Addr, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bound, s.fault
}

// Serve answers until ctx ends. An address that can't be had is tried again: a
// host is better off without telemetry than without an agent.
func (s *Server) Serve(ctx context.Context) error {
	for {
		listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.address)
		if err == nil {
			s.set(listener.Addr(), nil)
			err = s.serve(ctx, listener)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if s.set(nil, err) {
			s.log.Error("telemetry is not served", zap.Error(err))
		}
		retry := time.NewTimer(listenRetry)
		select {
		case <-ctx.Done():
			retry.Stop()
			return ctx.Err()
		case <-retry.C:
		}
	}
}

// set tells whether the fault is a new one.
func (s *Server) set(bound net.Addr, fault error) (news bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	news = fault != nil && (s.fault == nil || s.fault.Error() != fault.Error())
	s.bound, s.fault = bound, fault
	return news
}

func (s *Server) serve(ctx context.Context, listener net.Listener) error {
	server := &http.Server{
		Handler: s.handler(), TLSConfig: s.tls,
		ReadHeaderTimeout: requestTime, ReadTimeout: requestTime, WriteTimeout: requestTime, IdleTimeout: time.Minute,
		MaxHeaderBytes: 8 << 10,
		// Refused handshakes, which anybody can make: no lines for these.
		ErrorLog: zap.NewStdLog(s.log.WithOptions(zap.IncreaseLevel(zap.ErrorLevel))),
	}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		_ = server.Close()
	})
	var err error
	if s.tls != nil {
		err = server.ServeTLS(listener, "", "")
	} else {
		err = server.Serve(listener)
	}
	if !stop() {
		<-ended
	}
	if errors.Is(err, http.ErrServerClosed) {
		return ctx.Err()
	}
	return err
}

func (s *Server) handler() http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collector{s.source}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET "+MetricsPath, promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: maxRequests}))
	mux.HandleFunc("GET "+HealthPath, func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, "ok") })
	mux.HandleFunc("GET "+ReadyPath, func(w http.ResponseWriter, _ *http.Request) {
		if why := s.source.Unready(); why != "" {
			answer(w, http.StatusServiceUnavailable, why)
			return
		}
		answer(w, http.StatusOK, "ok")
	})
	places := make(chan struct{}, maxRequests)
	mux.HandleFunc("GET "+LivePath, func(w http.ResponseWriter, r *http.Request) {
		select {
		case places <- struct{}{}:
			defer func() { <-places }()
		default:
			answer(w, http.StatusServiceUnavailable, "too many ask at once")
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(append(state.Encode(s.source.Live(r.Context())), '\n'))
	})
	return mux
}

func answer(w http.ResponseWriter, code int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	_, _ = w.Write([]byte(text + "\n"))
}
