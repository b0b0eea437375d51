package local

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"syscall"
	"time"
)

// ErrNotRunning says that no agent listens on the socket.
var ErrNotRunning = errors.New("no agent is running here")

// Client speaks to the agent of this host.
type Client struct {
	path string
	http http.Client
}

// NewClient makes a client of the socket at path. It connects when it is used.
func NewClient(path string) *Client {
	var dialer net.Dialer
	return &Client{path: path, http: http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", path)
		},
	}}}
}

// Status asks what the node does.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	return s, c.do(ctx, http.MethodGet, "/status", nil, &s)
}

// Withdraw has a VIP's routes taken back, and returns what was done.
func (c *Client) Withdraw(ctx context.Context, o Order) (string, error) {
	return c.order(ctx, "/withdraw", o)
}

// AwaitWithdrawn waits until no route of a VIP is announced any more.
func (c *Client) AwaitWithdrawn(ctx context.Context, vip string) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		s, err := c.Status(ctx)
		if err != nil || !s.Announces(vip) {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Resume ends a withdrawal.
func (c *Client) Resume(ctx context.Context, vip string) (string, error) {
	return c.order(ctx, "/resume", Order{VIP: vip})
}

// Accept has etcd's store taken as it is now.
func (c *Client) Accept(ctx context.Context) (string, error) {
	return c.order(ctx, "/accept", Order{})
}

func (c *Client) order(ctx context.Context, path string, o Order) (string, error) {
	body, err := json.Marshal(o)
	if err != nil {
		return "", err
	}
	var a Answer
	if err := c.do(ctx, http.MethodPost, path, body, &a); err != nil {
		return a.Done, err
	}
	return a.Done, nil
}

func (c *Client) do(ctx context.Context, method, path string, body []byte, into any) error {
	r, err := http.NewRequestWithContext(ctx, method, "http://agent"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := c.http.Do(r)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w: nobody listens on %s", ErrNotRunning, c.path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s: permission denied: only its owner, root, may use it", c.path)
	case err != nil:
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode == http.StatusOK {
		return json.Unmarshal(text, into)
	}
	var a Answer
	if err := json.Unmarshal(text, &a); err != nil || a.Error == "" {
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, bytes.TrimSpace(text))
	}
	if answer, ok := into.(*Answer); ok {
		*answer = a
	}
	return errors.New(a.Error)
}
