package idle

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// phone is one connection. Its fields belong to its own goroutine until that has ended, but for up.
type phone struct {
	cfg  Config
	conn net.Conn
	r    *bufio.Reader
	up   atomic.Pointer[string] // the backend's name, once open has succeeded

	name, nameAfter      string
	pings, pongs, missed int
	owed                 bool // a ping is unanswered
	err                  error
}

func (p *phone) before() string {
	if s := p.up.Load(); s != nil {
		return *s
	}
	return ""
}

func (p *phone) open(ctx context.Context) {
	d := net.Dialer{Timeout: p.cfg.Timeout}
	// No probes of the kernel: only the pings may keep the connection busy.
	d.KeepAliveConfig.Enable, d.KeepAlive = false, -1
	if p.conn, p.err = d.DialContext(ctx, "tcp", p.cfg.Addr); p.err != nil {
		p.err = plain("connect", p.err)
		return
	}
	p.r = bufio.NewReader(p.conn)
	var code int
	if p.name, code, p.err = p.options(1); p.err == nil && code != 200 {
		p.err = fmt.Errorf("options: %d from %q", code, p.name)
	}
	if p.err == nil {
		p.up.Store(&p.name)
	}
}

// hold pings until ctx ends or the connection does. While a pong is owed no further ping is sent: two that
// arrive together are not a ping to every server.
func (p *phone) hold(ctx context.Context) {
	if p.err != nil {
		return
	}
	tick := time.NewTicker(p.cfg.Every)
	defer tick.Stop()
	for p.err == nil {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			p.ping()
		}
	}
}

func (p *phone) ping() {
	if !p.owed {
		p.deadline()
		if _, err := p.conn.Write([]byte("\r\n\r\n")); err != nil {
			p.err = plain("ping", err)
			return
		}
		p.pings++
		p.owed = true
	}
	p.pong()
}

func (p *phone) pong() {
	p.deadline()
	crlf, err := p.r.Peek(2) // not Read: half a pong before the deadline must not be lost
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		p.missed++ // TCP may still bring it; the next tick looks again
	case err != nil:
		p.err = plain("pong", err)
	case string(crlf) != "\r\n":
		p.err = fmt.Errorf("pong: got %q", crlf)
	default:
		_, _ = p.r.Discard(2) // they are there
		p.pongs++
		p.owed = false
	}
}

// finish asks for the name again and closes. It runs after the context has ended, so its time is its own.
func (p *phone) finish() {
	if p.conn == nil {
		return
	}
	defer p.conn.Close()
	if p.err == nil && p.owed {
		p.pong()
	}
	if p.err == nil && p.owed {
		p.err = errors.New("pong: none")
	}
	if p.err == nil {
		p.nameAfter, _, p.err = p.options(2) // whatever the answer, the connection lives: a draining backend says 503
	}
}

// options asks who answers on this connection.
func (p *phone) options(seq int) (name string, code int, err error) {
	local := p.conn.LocalAddr().String()
	p.deadline()
	id := rand.Text()
	_, err = fmt.Fprintf(p.conn, "OPTIONS sip:%[1]s SIP/2.0\r\nVia: SIP/2.0/TCP %[2]s;branch=z9hG4bK%[3]s\r\n"+
		"From: <sip:idle@%[2]s>;tag=%[3]s\r\nTo: <sip:%[1]s>\r\nCall-ID: %[3]s\r\nCSeq: %[4]d OPTIONS\r\n"+
		"Max-Forwards: 70\r\nContent-Length: 0\r\n\r\n", p.cfg.Addr, local, id, seq)
	if err != nil {
		return "", 0, plain("options", err)
	}
	name, code, err = readAnswer(p.r)
	if err != nil {
		return "", 0, plain("options", err)
	}
	return name, code, nil
}

// readAnswer reads one response and returns its Server header and status code.
func readAnswer(r *bufio.Reader) (name string, code int, err error) {
	status, err := r.ReadString('\n')
	if err != nil {
		return "", 0, err
	}
	if n, _ := fmt.Sscanf(status, "SIP/2.0 %d", &code); n != 1 {
		return "", 0, fmt.Errorf("not a SIP response: %q", status)
	}
	length := 0
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return "", 0, err
		}
		if line = strings.TrimSpace(line); line == "" {
			break
		}
		key, value, _ := strings.Cut(line, ":")
		switch value = strings.TrimSpace(value); strings.ToLower(key) {
		case "server":
			name = value
		case "content-length":
			if length, err = strconv.Atoi(value); err != nil {
				return "", 0, err
			}
		}
	}
	_, err = io.CopyN(io.Discard, r, int64(length))
	return name, code, err
}

func (p *phone) deadline() { _ = p.conn.SetDeadline(time.Now().Add(p.cfg.Timeout)) } // the read or write reports it

// plain drops the addresses from an error, so that a thousand lost connections make one line of the result.
func plain(doing string, err error) error {
	var no syscall.Errno
	switch {
	case errors.As(err, &no):
		err = no
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = os.ErrDeadlineExceeded
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		err = errors.New("closed by the peer")
	}
	return fmt.Errorf("%s: %w", doing, err)
}
