package ipvs

import (
	"context"
	"errors"
	"fmt"

	moby "github.com/moby/ipvs"
)

// verb is a change to one IPVS object, in ipvsadm's words.
type verb int

const (
	add verb = iota
	edit
	remove
)

func (v verb) String() string { return [...]string{"add", "edit", "delete"}[v] }

// conn is IPVS as Kernel uses it: the real one, or Fake. Errors are the
// kernel's, bare.
type conn interface {
	services(ctx context.Context) ([]service, error)
	destinations(ctx context.Context, of *moby.Service) ([]destination, error)
	daemons(ctx context.Context) ([]daemon, error)
	timeouts() (*moby.Config, error)

	setService(v verb, s *moby.Service) error
	setDestination(v verb, s *moby.Service, d *moby.Destination) error
	setDaemon(ctx context.Context, v verb, d daemon) error
	setTimeouts(c *moby.Config) error

	close()
}

// netlinkConn writes services and destinations through moby/ipvs and does the
// rest itself. What goes through moby takes no context: the kernel carries such
// requests out inside sendmsg(2), so there is no wait that could be cut short.
type netlinkConn struct {
	*session
	handle *moby.Handle
}

func open() (*netlinkConn, error) {
	// First, since moby takes a missing family for success, and asks only
	// once per process.
	s, err := openSession((*session).findFamily)
	if err != nil {
		return nil, err
	}
	h, err := moby.New("")
	if err != nil {
		s.close()
		return nil, fmt.Errorf("open IPVS: %w", err)
	}
	return &netlinkConn{session: s, handle: h}, nil
}

func (c *netlinkConn) close() {
	c.handle.Close()
	c.session.close()
}

func (c *netlinkConn) setService(v verb, s *moby.Service) error {
	switch v {
	case add:
		return c.handle.NewService(s)
	case edit:
		return c.handle.UpdateService(s)
	default:
		return c.handle.DelService(s)
	}
}

func (c *netlinkConn) setDestination(v verb, s *moby.Service, d *moby.Destination) error {
	switch v {
	case add:
		return c.handle.NewDestination(s, d)
	case edit:
		return c.handle.UpdateDestination(s, d)
	default:
		return c.handle.DelDestination(s, d)
	}
}

func (c *netlinkConn) setTimeouts(t *moby.Config) error { return c.handle.SetConfig(t) }

// reader is IPVS for looking only.
type reader struct{ *session }

var errReader = errors.New("IPVS is open for reading only")

func (reader) setService(verb, *moby.Service) error                        { return errReader }
func (reader) setDestination(verb, *moby.Service, *moby.Destination) error { return errReader }
func (reader) setDaemon(context.Context, verb, daemon) error               { return errReader }
func (reader) setTimeouts(*moby.Config) error                              { return errReader }
