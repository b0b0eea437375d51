// Package coordinator is one management server: it serves the API, and carries on
// planned switchovers. Any number of them may run beside each other, and none of them
// is in the way of traffic.
package coordinator

import (
	"context"
	"errors"
	"net"
	"net/http"
	"runtime/debug"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/medway-lb/medway/coordinator/internal/api"
	"github.com/medway-lb/medway/coordinator/internal/switchover"
	"github.com/medway-lb/medway/pkg/store"
)

// requestTime is how long a client may take for its request.
const requestTime = 30 * time.Second

// Coordinator is one management server.
type Coordinator struct {
	log      *zap.Logger
	client   *store.Client
	listener net.Listener
	server   *http.Server
	engine   *switchover.Engine
	api      *api.Server
	live     *live
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
	out := &Coordinator{log: log, client: client, live: newLive(client, c, log.Named("live"))}
	out.engine = switchover.New(switchover.Config{Store: client, Log: log.Named("switchover"), Live: out.live.all})
	out.api = api.New(api.Config{Store: client, Engine: out.engine, Live: out.live.all, Reserved: store.Hosts(c.Etcd.Endpoints), Log: log.Named("api")})
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(secured == nil) // gRPC without TLS
	out.server = &http.Server{
		Handler: out.api.Handler(), TLSConfig: secured, Protocols: protocols,
		ReadHeaderTimeout: requestTime / 3, ReadTimeout: requestTime, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 32 << 10,
		// Refused handshakes, which anybody can make: no lines for these.
		ErrorLog: zap.NewStdLog(log.WithOptions(zap.IncreaseLevel(zap.ErrorLevel))),
	}
	if out.listener, err = net.Listen("tcp", c.Listen); err != nil {
		client.Close()
		return nil, err
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
		return errors.Join(ctx.Err(), c.server.Close())
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

// Version is that of this build.
func Version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "unknown" // built without version control
}
