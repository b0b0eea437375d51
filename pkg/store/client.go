// Package store is the only user of the etcd client. It moves bytes and knows
// nothing of what they mean: it follows a prefix (one list, then one watch),
// writes in guarded transactions, holds leases, and keeps the last good
// snapshot on disk.
//
// Two promises matter more than the rest. It never reports a key as deleted
// because something failed: keys go by a delete event or by their absence from
// a complete list. And it never calls data fresh on the word of one member: see
// [Client.Fresh].
package store

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
)

// ErrClosed says that the [Client] was closed.
var ErrClosed = errors.New("store: client is closed")

// Config says how to reach etcd. Only Endpoints is required.
type Config struct {
	Endpoints []string
	TLS       *tls.Config
	// Username and Password are for etcd's own users. A client certificate is
	// the better way: with a password each new stream (so each lease renewal)
	// costs the cluster one bcrypt comparison.
	Username, Password string
	// Dial, if given, makes the connections; for tests and laboratories.
	Dial func(ctx context.Context, address string) (net.Conn, error)
	// DialTimeout bounds one attempt to connect. Default 3 s.
	DialTimeout time.Duration
	// ProbeInterval is how often a followed prefix is confirmed to be current.
	// A watch that falls behind for 3 intervals is replaced; after the loss of
	// one the prefix is listed again within 1.5 intervals. Default 1 s.
	ProbeInterval time.Duration
	// RelistInterval is how often a prefix is listed again although nothing
	// seems wrong, plus or minus a quarter. Default 5 minutes.
	RelistInterval time.Duration
	// Log may be nil.
	Log *zap.Logger
}

// Hosts are the addresses in endpoints, with or without a scheme, each with the
// words for it in a fault. A name stands for none.
func Hosts(endpoints []string) map[netip.Addr]string {
	hosts := map[netip.Addr]string{}
	for _, endpoint := range endpoints {
		endpoint = strings.TrimSpace(endpoint)
		_, host, found := strings.Cut(endpoint, "://")
		if !found {
			host = endpoint
		}
		if a, err := netip.ParseAddrPort(strings.TrimSuffix(host, "/")); err == nil {
			hosts[a.Addr().Unmap()] = "etcd (" + endpoint + ")"
		}
	}
	return hosts
}

func (c *Config) setDefaults() {
	if c.DialTimeout <= 0 {
		c.DialTimeout = 3 * time.Second
	}
	if c.ProbeInterval <= 0 {
		c.ProbeInterval = time.Second
	}
	if c.RelistInterval <= 0 {
		c.RelistInterval = 5 * time.Minute
	}
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
}

func (c *Config) dialOptions() []grpc.DialOption {
	options := []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
		// gRPC's own maximum is 120 s: after a long outage an agent would
		// stay away for two minutes more.
		Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
		MinConnectTimeout: c.DialTimeout,
	})}
	if c.Dial != nil {
		options = append(options, grpc.WithContextDialer(c.Dial))
	}
	return options
}

// Client is a connection to one etcd cluster. It is safe for concurrent use.
type Client struct {
	cfg    Config
	log    *zap.Logger
	ctx    context.Context // ends at Close
	cancel context.CancelFunc
	ready  chan struct{} // closed once etcd is set
	etcd   *clientv3.Client
	done   chan struct{} // closed when no dialling goroutine is left

	mu        sync.Mutex
	dialErr   error
	fresh     map[*follower]time.Time
	refreshed chan struct{}

	troubles troubles
}

// Open makes a client. It never waits for etcd: an error means that the
// configuration can't work. Calls made while etcd is down wait for their context.
func Open(cfg Config) (*Client, error) {
	cfg.setDefaults()
	c := &Client{
		cfg: cfg, log: cfg.Log, ready: make(chan struct{}), done: make(chan struct{}),
		fresh: map[*follower]time.Time{}, refreshed: make(chan struct{}),
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	if cfg.Username != "" {
		// With a user name clientv3.New fetches a token before it returns, and
		// fails if it can't: so it must not run on the caller's time.
		go c.dialUntilReady()
		return c, nil
	}
	close(c.done)
	if err := c.dial(); err != nil {
		c.cancel()
		return nil, fmt.Errorf("store: open: %w", err)
	}
	return c, nil
}

func (c *Client) dial() error {
	etcd, err := clientv3.New(clientv3.Config{
		Endpoints: c.cfg.Endpoints, TLS: c.cfg.TLS, Username: c.cfg.Username, Password: c.cfg.Password,
		Context: c.ctx, DialTimeout: c.cfg.DialTimeout,
		// Finds a member that is frozen or cut off without a reset.
		DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: 3 * time.Second,
		Logger:      c.log.Named("etcd").WithOptions(zap.IncreaseLevel(zap.ErrorLevel)),
		DialOptions: c.cfg.dialOptions(),
	})
	if err != nil {
		return err
	}
	c.etcd = etcd
	close(c.ready)
	return nil
}

func (c *Client) dialUntilReady() {
	defer close(c.done)
	wait := pause{}
	for c.ctx.Err() == nil {
		err := c.dial()
		if err == nil {
			return
		}
		c.mu.Lock()
		c.dialErr = err
		c.mu.Unlock()
		c.log.Warn("can't log in to etcd yet", zap.Error(err))
		wait.sleep(c.ctx)
	}
}

// Close ends every [Client.Follow] and fails calls in flight.
func (c *Client) Close() {
	c.cancel()
	<-c.done
	c.troubles.close()
	select {
	case <-c.ready:
		// Its error is that of a context which we have just cancelled.
		_ = c.etcd.Close()
	default:
	}
}

// conn waits until there is a logged-in client. It doesn't wait for etcd.
func (c *Client) conn(ctx context.Context) (*clientv3.Client, error) {
	if c.ctx.Err() != nil {
		return nil, ErrClosed
	}
	select {
	case <-c.ready:
		return c.etcd, nil
	case <-c.ctx.Done():
		return nil, ErrClosed
	case <-ctx.Done():
		c.mu.Lock()
		defer c.mu.Unlock()
		return nil, errors.Join(ctx.Err(), c.dialErr)
	}
}

// Fresh returns the local time up to which everything that is followed is known
// to be current; the zero time if nothing is followed or something has not been
// listed yet. With several prefixes the oldest counts.
//
// It is the time at which a request was sent, not when its answer came: every
// change committed before Fresh has been handed to handle. A progress answer
// alone would not prove that, as it speaks only for one member, which may lag;
// and on an idle store there is none (a watch from the next revision is behind
// its own start). So the client asks for the store's revision by a linearizable
// read, and counts it once the watch has reached that revision.
func (c *Client) Fresh() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.oldest()
}

func (c *Client) oldest() time.Time {
	var oldest time.Time
	first := true
	for _, t := range c.fresh {
		if first || t.Before(oldest) {
			oldest, first = t, false
		}
	}
	return oldest
}

// Refreshed returns a channel that is closed when Fresh next advances. To be
// woken at staleness, wait for it or for a timer at Fresh plus the limit,
// whichever comes first; nothing of this asks etcd.
func (c *Client) Refreshed() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.refreshed
}

func (c *Client) setFresh(f *follower, t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.oldest()
	c.fresh[f] = t
	if c.oldest().After(before) {
		close(c.refreshed)
		c.refreshed = make(chan struct{})
	}
}

func (c *Client) forget(f *follower) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.fresh, f)
}
