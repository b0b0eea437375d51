package sbc_test

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/medway-lb/medway/pkg/probe"
)

// TestProbe: medway's check takes the backend for what it is, also while it is drained.
func TestProbe(t *testing.T) {
	for transport, check := range map[string]probe.Check{"tcp": probe.SIPOptions{Transport: probe.TCP}, "udp": probe.SIPOptions{Transport: probe.UDP}} {
		s := start(t, "one", transport)
		at := netip.MustParseAddrPort(s.Addrs()[0].String())
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		if err := check.Run(ctx, at); err != nil {
			t.Errorf("%s: %v", transport, err)
		}
		s.Drain()
		if err := check.Run(ctx, at); err == nil || !strings.Contains(err.Error(), "503") {
			t.Errorf("%s, drained: %v", transport, err)
		}
	}
}
