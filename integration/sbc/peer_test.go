package sbc_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/medway-lb/medway/integration/sbc"
)

// start runs a backend on loopback until the test ends.
func start(t *testing.T, name string, transports ...string) *sbc.Server {
	t.Helper()
	s, _ := run(t, name, transports...)
	return s
}

// run is start with a stop that waits; it may be called more than once.
func run(t *testing.T, name string, transports ...string) (s *sbc.Server, stop func()) {
	t.Helper()
	cfg := sbc.Config{Name: name, Status: "127.0.0.1:0"}
	for _, tr := range transports {
		cfg.Listen = append(cfg.Listen, sbc.Listen{Transport: tr, Addr: "127.0.0.1:0"})
	}
	s, err := sbc.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return s, stop
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("never: %s", what)
		case <-tick.C:
		}
	}
}

// peer speaks SIP by hand.
type peer struct {
	t *testing.T
	net.Conn
	r   *bufio.Reader
	seq int
}

func dial(t *testing.T, addr net.Addr) *peer {
	t.Helper()
	c, err := net.Dial(addr.Network(), addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return &peer{t: t, Conn: c, r: bufio.NewReader(c)}
}

// ask sends a request; toTag is empty outside a dialogue.
func (p *peer) ask(method, callID, toTag string) {
	p.t.Helper()
	p.seq++
	tag := ""
	if toTag != "" {
		tag = ";tag=" + toTag
	}
	_, err := fmt.Fprintf(p, "%[1]s sip:lab@192.0.2.1 SIP/2.0\r\nVia: SIP/2.0/%[2]s %[3]s;branch=z9hG4bK%[4]s%[5]d;rport\r\n"+
		"From: <sip:a@192.0.2.2>;tag=from%[4]s\r\nTo: <sip:lab@192.0.2.1>%[6]s\r\nCall-ID: %[4]s\r\nCSeq: %[5]d %[1]s\r\n"+
		"Contact: <sip:a@%[3]s>\r\nMax-Forwards: 70\r\nContent-Length: 0\r\n\r\n",
		method, strings.ToUpper(p.LocalAddr().Network()), p.LocalAddr(), callID, p.seq, tag)
	if err != nil {
		p.t.Fatal(err)
	}
}

type answer struct {
	code   int
	header map[string]string
}

func (a answer) tag() string {
	_, tag, _ := strings.Cut(a.header["to"], "tag=")
	return tag
}

// final reads up to the next response that is not provisional.
func (p *peer) final() answer {
	p.t.Helper()
	for {
		a, err := p.read()
		if err != nil {
			p.t.Fatalf("no answer: %v", err)
		}
		if a.code >= 200 {
			return a
		}
	}
}

func (p *peer) read() (answer, error) {
	a := answer{header: map[string]string{}}
	line, err := p.r.ReadString('\n')
	if err != nil {
		return a, err
	}
	a.code, _ = strconv.Atoi(strings.Fields(line)[1])
	for {
		line, err := p.r.ReadString('\n')
		if err != nil {
			return a, err
		}
		if line = strings.TrimSpace(line); line == "" {
			break
		}
		k, v, _ := strings.Cut(line, ":")
		a.header[strings.ToLower(k)] = strings.TrimSpace(v)
	}
	n, _ := strconv.Atoi(a.header["content-length"])
	_, err = io.CopyN(io.Discard, p.r, int64(n))
	return a, err
}

func (p *peer) want(code int) answer {
	p.t.Helper()
	a := p.final()
	if a.code != code {
		p.t.Fatalf("answer %d, want %d", a.code, code)
	}
	return a
}

// call establishes a dialogue and returns the backend's tag.
func (p *peer) call(id string) string {
	p.t.Helper()
	p.ask("INVITE", id, "")
	tag := p.want(200).tag()
	p.ask("ACK", id, tag)
	return tag
}
