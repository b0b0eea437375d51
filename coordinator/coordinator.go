// Package coordinator is one management server: it serves the API and the console, and
// carries on planned switchovers. Any number of them may run beside each other, and none of them
// is in the way of traffic.
package coordinator

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sync/errgroup"

	"github.com/medway-lb/medway/coordinator/internal/api"
	"github.com/medway-lb/medway/coordinator/internal/console"
	"github.com/medway-lb/medway/coordinator/internal/switchover"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"
)

// requestTime is how long a client may take for its request.
const requestTime = 30 * time.Second

// stopTime is what is being answered when it stops has yet.
const stopTime = 5 * time.Second

// Coordinator is one management server.
type Coordinator struct {
	log      *zap.Logger
	client   *store.Client
	listener net.Listener
	server   *http.Server
	engine   *switchover.Engine
	api      *api.Server
	live     *live
	config   Config
}

// New makes a coordinator that listens already. It does not wait for etcd.
func New(c Config, log *zap.Logger) (*Coordinator, error) {
	etcd, err := c.Etcd.store()
	if err != nil {
		return nil, err
	}
	etcd.Log = log.Named("store")
	secured, err := c.TLS.server()
	if err != nil {
		return nil, err
	}
	client, err := store.Open(etcd)
	if err != nil {
		return nil, err
	}
	out := &Coordinator{log: log, client: client, live: newLive(client, c, log.Named("live")), config: c}
	engine := switchover.Config{Store: client, Log: log.Named("switchover"), Live: out.live.all}
	if c.Verify != VerifyOff {
		engine.Probe = c.Verify.ask
	}
	out.engine = switchover.New(engine)
	out.api = api.New(api.Config{
		Store: client, Engine: out.engine, Live: out.live.all, Reserved: store.Hosts(c.Etcd.Endpoints), Log: log.Named("api"),
		Plain: secured == nil, Own: func() []state.Fault { return c.expiring(time.Now()) },
	})
	pages := console.New(console.Config{API: out.api, Trend: out.live.trends.of, Plain: secured == nil, Log: log.Named("console")})
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(secured == nil) // gRPC without TLS
	httpLog, err := zap.NewStdLogAt(log.Named("http").WithOptions(zap.WrapCore(func(c zapcore.Core) zapcore.Core { return noHandshakes{c} })), zap.ErrorLevel)
	if err != nil {
		client.Close()
		return nil, err
	}
	out.server = &http.Server{
		Handler: out.api.Handler(pages.Handler()), TLSConfig: secured, Protocols: protocols,
		ReadHeaderTimeout: requestTime / 3, ReadTimeout: requestTime, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 32 << 10,
		ErrorLog: httpLog,
	}
	if out.listener, err = net.Listen("tcp", c.Listen); err != nil {
		client.Close()
		return nil, fmt.Errorf("field listen: value %q: %w", c.Listen, err)
	}
	return out, nil
}

// Address is where it listens.
func (c *Coordinator) Address() net.Addr { return c.listener.Addr() }

// Run serves until ctx ends. What was begun is carried on by another coordinator, or
// by the next one here.
func (c *Coordinator) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.engine.Run(ctx) })
	g.Go(func() error { return c.api.Run(ctx) })
	g.Go(func() error { return c.live.run(ctx) })
	g.Go(func() error { return c.trim(ctx) })
	g.Go(func() error { return c.watchCertificates(ctx) })
	g.Go(func() error {
		c.log.Info("serves", zap.Stringer("address", c.Address()), zap.Bool("tls", c.server.TLSConfig != nil))
		var err error
		if c.server.TLSConfig != nil {
			err = c.server.ServeTLS(c.listener, "", "")
		} else {
			err = c.server.Serve(c.listener)
		}
		if errors.Is(err, http.ErrServerClosed) {
			return ctx.Err()
		}
		return err
	})
	g.Go(func() error {
		<-ctx.Done()
		c.api.Stop()
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
		defer cancel()
		if c.server.Shutdown(grace) != nil {
			_ = c.server.Close()
		}
		return ctx.Err()
	})
	err := g.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// Close lets go of what New took.
func (c *Coordinator) Close() {
	_ = c.server.Close()
	_ = c.listener.Close()
	c.client.Close()
}

// noHandshakes logs what net/http has to say, panics among it, but for refused
// handshakes, which anybody can make.
type noHandshakes struct{ zapcore.Core }

func (c noHandshakes) Check(e zapcore.Entry, to *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if strings.Contains(e.Message, "TLS handshake error") {
		return to
	}
	return c.Core.Check(e, to)
}
