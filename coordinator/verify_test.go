package coordinator

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/medway-lb/medway/pkg/probe"
	"github.com/medway-lb/medway/pkg/state"
)

// TestQuestions: services that speak SIP are asked so, and nobody by a protocol that
// it does not speak.
func TestQuestions(t *testing.T) {
	vip := state.VIP{
		Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("2001:db8:10::10")},
		Services: []state.Service{
			{Protocol: "tcp", Port: 5060}, {Protocol: "udp", Port: 5060}, {Protocol: "udp", Port: 5070, Engine: "sip"},
			{Protocol: "tcp", Port: 5061}, {Protocol: "tcp", Port: 443}, {Protocol: "udp", Port: 53},
		},
	}
	for v, want := range map[Verify]string{
		VerifySIP:     "{TCP}:5060 {UDP}:5060 {UDP}:5070 {}:5061 {}:443",
		VerifyConnect: "{}:5060 {}:5061 {}:443",
	} {
		var got [2][]string
		for _, q := range v.questions(vip) {
			i := 0
			if q.at.Addr().Is6() {
				i = 1
			}
			what := "{}"
			if s, ok := q.check.(probe.SIPOptions); ok {
				what = "{" + string(s.Transport) + "}"
			}
			got[i] = append(got[i], fmt.Sprintf("%s:%d", what, q.at.Port()))
		}
		if strings.Join(got[0], " ") != want || strings.Join(got[1], " ") != want {
			t.Errorf("%s: %q, expected %s at both addresses", v, got, want)
		}
	}
}

// TestAsk tells what was answered wrongly from what was not heard.
func TestAsk(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	mute, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = mute.Close() }()
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := func(a net.Addr) uint16 { return netip.MustParseAddrPort(a.String()).Port() }
	well := state.Service{Protocol: "tcp", Port: port(listener.Addr())}
	silent := state.Service{Protocol: "udp", Port: port(mute.LocalAddr()), Engine: "sip"}
	closed := state.Service{Protocol: "tcp", Port: port(gone.Addr())}
	if err := gone.Close(); err != nil {
		t.Fatal(err)
	}
	ask := func(services ...state.Service) error {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		s := &state.Snapshot{VIPs: map[string]state.VIP{"v": {Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, Services: services}}}
		return VerifySIP.ask(ctx, s, "v")
	}
	if err := ask(well); err != nil {
		t.Error(err)
	}
	if err := ask(); err != nil {
		t.Error(err)
	}
	if err := ask(well, silent); !errors.Is(err, probe.ErrUnreached) || !strings.Contains(err.Error(), "no answer to") {
		t.Errorf("%v", err)
	}
	if err := ask(silent, closed, well); err == nil || errors.Is(err, probe.ErrUnreached) || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("%v", err)
	}
}
