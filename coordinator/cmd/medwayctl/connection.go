package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"
)

// connection is how to reach etcd; its flags bear etcdctl's names.
type connection struct {
	endpoints     []string
	ca, cert, key string
	insecure      bool
	timeout       time.Duration
}

func (c *connection) open() (*store.Client, error) {
	config, err := c.config()
	if err != nil {
		return nil, err
	}
	return store.Open(config)
}

func (c *connection) config() (store.Config, error) {
	config := store.Config{DialTimeout: c.timeout}
	if c.timeout <= 0 {
		return config, fmt.Errorf("flag --command-timeout: value %s: expected more than 0s", c.timeout)
	}
	secure := false
	for _, endpoint := range c.endpoints {
		endpoint = strings.TrimSpace(endpoint)
		scheme, host, found := strings.Cut(endpoint, "://")
		if !found {
			scheme, host = "http", endpoint // as etcdctl takes it
		}
		if scheme != "https" && !c.insecure {
			return config, fmt.Errorf("flag --endpoints: value %q: expected https://, or --insecure beside it", endpoint)
		}
		if _, port, err := net.SplitHostPort(strings.TrimSuffix(host, "/")); err != nil || port == "" {
			return config, fmt.Errorf("flag --endpoints: value %q: expected https://HOST:PORT", endpoint)
		}
		secure = secure || scheme == "https"
		config.Endpoints = append(config.Endpoints, endpoint)
	}
	if len(config.Endpoints) == 0 {
		return config, errors.New("flag --endpoints: expected at least one URL")
	}
	if !secure {
		return config, nil
	}
	if (c.cert == "") != (c.key == "") {
		return config, errors.New("flags --cert and --key: one is given: expected both, or none")
	}
	var err error
	if config.TLS, err = store.TLS(c.ca, c.cert, c.key); err != nil {
		return config, fmt.Errorf("flags --cacert, --cert and --key: %w", err)
	}
	return config, nil
}

// warnOf says where a client's key is no secret. It hinders nobody: the tool may be
// needed at once.
func warnOf(key string, out io.Writer) {
	if key == "" {
		return
	}
	if err := store.CheckSecret(key); err != nil && !errors.Is(err, fs.ErrNotExist) {
		fmt.Fprintln(out, "medwayctl: warning: flag --key:", err)
	}
}

// explain adds to an error that is one of the connection what is wrong with it.
func (c *connection) explain(ctx context.Context, err error) error {
	if !store.Disconnected(err) || ctx.Err() != nil {
		return err
	}
	config, bad := c.config()
	if bad != nil {
		return err
	}
	return errors.Join(err, store.Reach(ctx, config))
}

// expiresSoon is how long before its end a member's certificate is called to
// mind; a node does the same with its own.
const expiresSoon = 14 * 24 * time.Hour

// members looks at each of etcd's servers by itself: as long as most of them
// work nothing else tells of one that is down, or will be.
func (c *connection) members(ctx context.Context, now time.Time) []state.Fault {
	config, err := c.config()
	if err != nil {
		return nil // whoever opens a client says it
	}
	found := make([][]state.Fault, len(config.Endpoints))
	var all sync.WaitGroup
	for i, endpoint := range config.Endpoints {
		all.Go(func() { found[i] = member(ctx, config, endpoint, now) })
	}
	all.Wait()
	return slices.Concat(found...)
}

func member(ctx context.Context, config store.Config, endpoint string, now time.Time) (out []state.Fault) {
	config.Endpoints = []string{endpoint}
	if config.TLS != nil {
		config.TLS = config.TLS.Clone()
		config.TLS.VerifyConnection = func(s tls.ConnectionState) error {
			if end := s.PeerCertificates[0].NotAfter; end.Sub(now) < expiresSoon {
				reason := fmt.Sprintf("%s: its certificate is valid until %s: renew it", endpoint, end.UTC().Format(time.RFC3339))
				out = append(out, state.Fault{Key: "etcd", Reason: reason, Notice: true})
			}
			return nil
		}
	}
	if err := store.Reach(ctx, config); err != nil {
		out = append(out, state.Fault{Key: "etcd", Reason: err.Error()})
	}
	return out
}
