package probe

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 30 * time.Second // for anything that must happen

func within(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// closedPort is an address on which nobody listens.
func closedPort(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return netip.MustParseAddrPort(l.Addr().String())
}

// demand checks an error: what it says, and whether anything was heard.
func demand(t *testing.T, err error, unreached bool, says ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, expected %q", says)
	}
	if got := errors.Is(err, ErrUnreached); got != unreached {
		t.Errorf("%v: unreached is %t, expected %t", err, got, unreached)
	}
	for _, part := range says {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not say %q", err, part)
		}
	}
	if len(err.Error()) > 600 || strings.ContainsAny(err.Error(), "\r\n\x00") {
		t.Errorf("an error of %d bytes: %q", len(err.Error()), err)
	}
}

func TestConnect(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := netip.MustParseAddrPort(l.Addr().String())
	if err := (Connect{}).Run(within(t, patience), at); err != nil {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	demand(t, Connect{}.Run(within(t, patience), at), false, "connect to "+at.String(), "connection refused")
	over, cancel := context.WithCancel(context.Background())
	cancel()
	demand(t, Connect{}.Run(over, at), true, "connect to "+at.String())
}
