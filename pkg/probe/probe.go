// Package probe asks one endpoint whether it serves. Each check sends little, reads
// little, and ends with its context. What an endpoint answers is not trusted.
package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
)

// Check is a way to ask an endpoint whether it serves.
type Check interface {
	// Run returns nil where the endpoint serves. An error that is [ErrUnreached] says
	// that nothing is known of it; any other one that it was heard, and does not.
	Run(ctx context.Context, endpoint netip.AddrPort) error
}

// ErrUnreached says that nothing was heard of an endpoint: it does not serve, or there
// is no way to it from here.
var ErrUnreached = errors.New("not reached")

// Connect opens a TCP connection and closes it again.
type Connect struct{}

// Run is [Check].
func (Connect) Run(ctx context.Context, endpoint netip.AddrPort) error {
	conn, err := dial(ctx, "tcp", endpoint)
	if err != nil {
		return err
	}
	return conn.Close()
}

// dial connects; a refusal is an answer of the endpoint.
func dial(ctx context.Context, network string, endpoint netip.AddrPort) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, network, endpoint.String())
	if err != nil {
		return nil, heard(fmt.Errorf("connect to %s: %w", endpoint, cause(err)), err)
	}
	return conn, nil
}

// heard makes an error [ErrUnreached] unless the endpoint itself caused it.
func heard(text, err error) error {
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET) {
		return text
	}
	return unreached{text}
}

// unreached is an error that is [ErrUnreached] too, in its own words.
type unreached struct{ error }

func (u unreached) Unwrap() []error { return []error{u.error, ErrUnreached} }

// cause is what net has to say, without the addresses, which are told already.
func cause(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}
