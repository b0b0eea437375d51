package sbc_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/emiago/sipgo/sip"
	"go.uber.org/goleak"

	"github.com/medway-lb/medway/integration/sbc"
	"github.com/medway-lb/medway/integration/sbc/idle"
)

func TestMain(m *testing.M) {
	sip.SetDefaultLogger(slog.New(slog.DiscardHandler))
	goleak.VerifyTestMain(m)
}

func TestCall(t *testing.T) {
	for _, transport := range []string{"tcp", "udp"} {
		t.Run(transport, func(t *testing.T) {
			s := start(t, "dc1-sbc1", transport)
			p := dial(t, s.Addrs()[0])
			p.ask("REGISTER", "reg", "")
			if a := p.want(200); a.header["server"] != "dc1-sbc1" || a.header["contact"] == "" {
				t.Errorf("REGISTER: %v", a.header)
			}
			tag := p.call("one")
			for _, m := range []string{"OPTIONS", "INFO", "UPDATE", "INVITE", "MESSAGE"} {
				p.ask(m, "one", tag)
				if a := p.want(200); a.header["server"] != "dc1-sbc1" || a.tag() != tag {
					t.Errorf("%s: %v", m, a.header)
				}
			}
			if n := s.Status().Dialogs; n != 1 {
				t.Errorf("%d dialogues, want 1", n)
			}
			p.ask("BYE", "one", tag)
			p.want(200)
			p.ask("BYE", "one", tag)
			p.want(481)
			if st := s.Status(); st.Dialogs != 0 || st.Ended != 1 || st.Unknown != 1 || st.Requests["BYE"] != 2 {
				t.Errorf("status %+v", st)
			}
		})
	}
}

// TestAnINVITEIsAnsweredUntilItIsConfirmed: over UDP the answer may be lost, and a caller
// that has heard a 180 does not ask again.
func TestAnINVITEIsAnsweredUntilItIsConfirmed(t *testing.T) {
	s := start(t, "one", "udp")
	p := dial(t, s.Addrs()[0])
	p.ask("INVITE", "lost", "")
	first := p.final()
	again := p.final()
	if first.code != 200 || again.code != 200 || again.tag() != first.tag() || again.header["cseq"] != "1 INVITE" {
		t.Fatalf("answers %+v, %+v", first, again)
	}
	p.ask("ACK", "lost", first.tag())
	eventually(t, "the ACK comes", func() bool { return s.Status().Requests["ACK"] == 1 })
	// What was on the way when the ACK came may precede the answer to this.
	p.ask("INFO", "lost", first.tag())
	for a := p.final(); a.header["cseq"] != "3 INFO"; a = p.final() {
		if a.header["cseq"] != "1 INVITE" {
			t.Fatalf("answer %+v", a)
		}
	}
	if err := p.SetDeadline(time.Now().Add(3 * sip.T1)); err != nil {
		t.Fatal(err)
	}
	if a, err := p.read(); err == nil {
		t.Errorf("an answer after the ACK: %+v", a)
	}
}

func TestOtherBackendRefusesTheDialogue(t *testing.T) {
	one, two := start(t, "one", "tcp"), start(t, "two", "tcp")
	tag := dial(t, one.Addrs()[0]).call("x")
	stray := dial(t, two.Addrs()[0])
	for _, m := range []string{"INFO", "OPTIONS", "INVITE", "BYE"} {
		stray.ask(m, "x", tag)
		if a := stray.want(481); a.header["server"] != "two" {
			t.Errorf("%s answered by %q", m, a.header["server"])
		}
	}
	if two.Status().Unknown != 4 || one.Status().Dialogs != 1 {
		t.Errorf("status %+v and %+v", one.Status(), two.Status())
	}
}

func TestLostConnectionLosesItsDialogues(t *testing.T) {
	s := start(t, "one", "tcp")
	p := dial(t, s.Addrs()[0])
	tag := p.call("x")
	p.Close()
	eventually(t, "the loss is counted", func() bool { return s.Status().Lost == 1 })
	again := dial(t, s.Addrs()[0])
	again.ask("INFO", "x", tag)
	again.want(481)
}

func TestDrain(t *testing.T) {
	s := start(t, "one", "tcp")
	busy, fresh := dial(t, s.Addrs()[0]), dial(t, s.Addrs()[0])
	tag := busy.call("x")
	s.Drain()
	s.Drain()

	fresh.ask("INVITE", "new", "")
	if a := fresh.want(503); a.header["retry-after"] == "" || a.header["server"] != "one" {
		t.Errorf("503 with %v", a.header)
	}
	fresh.ask("ACK", "new", "")
	if _, err := fresh.read(); !errors.Is(err, io.EOF) {
		t.Errorf("after the 503: %v, want the end of the connection", err)
	}

	// The phone in a call hears 503 as well, but keeps its call, and the connection until that has ended.
	busy.ask("REGISTER", "r", "")
	busy.want(503)
	busy.ask("INFO", "x", tag)
	busy.want(200)
	if st := s.Status(); !st.Draining || st.Drained || st.Refused != 2 {
		t.Errorf("status %+v", st)
	}
	busy.ask("BYE", "x", tag)
	busy.want(200)
	if _, err := busy.read(); !errors.Is(err, io.EOF) {
		t.Errorf("after the BYE: %v, want the end of the connection", err)
	}
	if st := s.Status(); !st.Drained || st.Ended != 1 || st.Lost != 0 {
		t.Errorf("status %+v", st)
	}
}

func TestStatusPage(t *testing.T) {
	s := start(t, "one", "tcp")
	dial(t, s.Addrs()[0]).call("x")
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Get("http://" + s.StatusAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var st sbc.Status
	if err := json.NewDecoder(res.Body).Decode(&st); err != nil {
		t.Fatal(err)
	}
	if st.Name != "one" || st.Dialogs != 1 || st.Connections != 1 || st.Requests["INVITE"] != 1 {
		t.Errorf("status %+v", st)
	}
}

func TestBadInput(t *testing.T) {
	s := start(t, "one", "tcp", "udp")
	head := "OPTIONS sip:a@b SIP/2.0\r\n"
	via := "Via: SIP/2.0/TCP 192.0.2.1;branch=z9hG4bKx\r\n"
	for i, bad := range []string{
		"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "\x00\x01\xff\r\n\r\n", strings.Repeat("\r\n", 40), strings.Repeat("A", 1<<20),
		head + "Content-Length: 0\r\n\r\n", head + via + "Content-Length: 0\r\n\r\n", head + "Content-Length: -1\r\n\r\n",
		head + via + "From: <\r\nTo: >\r\nCall-ID:\r\nCSeq: x\r\nContent-Length: 0\r\n\r\n",
		head + via + "CSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n",
		head + via + "CSeq: 1 OPTIONS\r\nCall-ID: x\r\nFrom: <sip:a@b>\r\nTo: <sip:a@b>;tag=\r\nContent-Length: 0\r\n\r\n",
		head + via + "CSeq: 1 INVITE\r\nCall-ID: x\r\nFrom: <sip:a@b>\r\nContent-Length: 9999999999\r\n\r\n",
		"SIP/2.0 200 OK\r\n" + via + "CSeq: 1 INVITE\r\nContent-Length: 0\r\n\r\n",
		"CANCEL sip:a@b SIP/2.0\r\nContent-Length: 0\r\n\r\n", "ACK sip:a@b SIP/2.0\r\n" + via + "Content-Length: 0\r\n\r\n",
		"INVITE sip:a@b SIP/2.0\r\n" + via + "CSeq: 1 INVITE\r\nCall-ID: x\r\nFrom: <sip:a@b>\r\nTo: <sip:c@d>\r\nContent-Length: 0\r\n\r\n",
	} {
		for _, addr := range s.Addrs() {
			c := dial(t, addr)
			_, _ = io.WriteString(c, bad) // a connection may be closed under it, and a datagram be too long
			good := dial(t, addr)
			good.ask("OPTIONS", fmt.Sprintf("good%d", i), "")
			good.want(200)
		}
	}
}

func TestIdle(t *testing.T) {
	s := start(t, "one", "tcp")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	// Ends once every connection has had time for a few pings.
	ready := make(chan int, 1)
	cfg := idle.Config{Addr: s.Addrs()[0].String(), Connections: 20, Every: 20 * time.Millisecond, Timeout: 10 * time.Second,
		Ready: func(n int) { ready <- n; time.AfterFunc(300*time.Millisecond, cancel) }}
	res, err := idle.Run(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if n := <-ready; n != 20 || res.Err() != nil || res.Pongs < 20 || res.Pongs != res.Pings || res.Backends["one"] != 20 {
		t.Errorf("ready %d, result %+v", n, res)
	}
}

func TestIdleSurvivesDrainAndNoticesLoss(t *testing.T) {
	for _, lose := range []bool{false, true} {
		s, stop := run(t, "one", "tcp")
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		cfg := idle.Config{Addr: s.Addrs()[0].String(), Connections: 3, Every: time.Hour, Timeout: 10 * time.Second,
			Ready: func(int) {
				s.Drain()
				if lose {
					stop()
				}
				cancel()
			}}
		res, err := idle.Run(ctx, cfg)
		if err != nil {
			t.Fatal(err)
		}
		if lost := res.Lost == 3 && len(res.Errors) >= 1 && res.Err() != nil; lost != lose {
			t.Errorf("lose %v: result %+v", lose, res)
		}
	}
}
