package sipp_test

import (
	"bytes"
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/medway-lb/medway/integration/sbc"
)

const calls = 60

var names = []string{"dc1-sbc1", "dc2-sbc2"}

// vip spreads connections over backends, as the load balancer does, and can do to them what must not happen.
type vip struct {
	net.Listener
	mu    sync.Mutex
	turn  int
	pairs [][2]*net.TCPConn
	to    []string // the backend of each pair
	forge bool
	hold  bool
	wg    sync.WaitGroup
}

// newVIP starts two backends behind a VIP.
func newVIP(t *testing.T) (*vip, []*sbc.Server) {
	t.Helper()
	var backends []*sbc.Server
	for _, name := range names {
		s, err := sbc.New(sbc.Config{Name: name, Listen: []sbc.Listen{{Transport: "tcp", Addr: "127.0.0.1:0"}}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		t.Cleanup(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("Run: %v", err)
			}
		})
		backends = append(backends, s)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	v := &vip{Listener: l}
	v.wg.Go(func() { v.serve(backends) })
	t.Cleanup(func() { l.Close(); v.cut("", true); v.wg.Wait() })
	return v, backends
}

func (v *vip) serve(backends []*sbc.Server) {
	for {
		in, err := v.Accept()
		if err != nil {
			return
		}
		n := v.turn % len(backends)
		v.turn++
		out, err := net.Dial("tcp", backends[n].Addrs()[0].String())
		if err != nil {
			in.Close()
			continue
		}
		pair := [2]*net.TCPConn{in.(*net.TCPConn), out.(*net.TCPConn)}
		v.mu.Lock()
		v.pairs, v.to = append(v.pairs, pair), append(v.to, names[n])
		v.mu.Unlock()
		v.wg.Go(func() { v.pipe(pair[1], pair[0]) })
		v.wg.Go(func() { v.pipe(pair[0], pair[1]) })
	}
}

func (v *vip) pipe(dst, src *net.TCPConn) {
	defer dst.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := src.Read(buf)
		v.mu.Lock()
		forge, hold := v.forge, v.hold
		v.mu.Unlock()
		out := buf[:n]
		if forge {
			out = bytes.ReplaceAll(out, []byte(names[0]), []byte("dc9-sbc9"))
		}
		if !hold {
			if _, err := dst.Write(out); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// cut breaks the connections of one backend, or of all. Without reset it is careful: closing with something
// unread would be a reset too.
func (v *vip) cut(name string, reset bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for i, p := range v.pairs {
		if name == "" || v.to[i] == name {
			if !reset {
				_ = p[0].CloseWrite()
				continue
			}
			_ = p[0].SetLinger(0)
			p[0].Close()
			p[1].Close()
		}
	}
}

func (v *vip) set(f func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	f()
}

// lossy relays datagrams to one backend, in a socket per client, and loses every tenth packet in either direction.
type lossy struct {
	net.PacketConn
	mu   sync.Mutex
	n    int
	lost int
	to   map[string]net.Conn
	wg   sync.WaitGroup
}

func newLossy(t *testing.T, backend net.Addr) *lossy {
	t.Helper()
	in, err := net.ListenPacket("udp", net.JoinHostPort(backend.(*net.UDPAddr).IP.String(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	l := &lossy{PacketConn: in, to: map[string]net.Conn{}}
	l.wg.Go(func() { l.serve(backend) })
	t.Cleanup(func() {
		in.Close()
		l.wg.Wait()
		for _, out := range l.to {
			out.Close()
		}
	})
	return l
}

func (l *lossy) serve(backend net.Addr) {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := l.ReadFrom(buf)
		if err != nil {
			for _, out := range l.to {
				_ = out.SetReadDeadline(time.Now())
			}
			return
		}
		out := l.to[from.String()]
		if out == nil {
			if out, err = net.Dial("udp", backend.String()); err != nil {
				continue
			}
			l.to[from.String()] = out
			l.wg.Go(func() { l.back(out, from) })
		}
		if !l.loses() {
			_, _ = out.Write(buf[:n])
		}
	}
}

func (l *lossy) back(out net.Conn, to net.Addr) {
	buf := make([]byte, 64<<10)
	for {
		n, err := out.Read(buf)
		if err != nil {
			return
		}
		if !l.loses() {
			_, _ = l.WriteTo(buf[:n], to)
		}
	}
}

func (l *lossy) loses() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.n++
	if l.n%10 == 0 {
		l.lost++
		return true
	}
	return false
}
