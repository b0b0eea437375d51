package bgp

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest"

	"github.com/medway-lb/medway/pkg/plan"
)

// wire is one connection that the speaker has made, seen by a router that says
// what it likes.
type wire struct{ net.Conn }

func message(kind byte, body ...byte) []byte {
	m := append(bytes.Repeat([]byte{0xff}, 16), 0, 0, kind)
	m = append(m, body...)
	binary.BigEndian.PutUint16(m[16:], uint16(len(m)))
	return m
}

// open is an OPEN of AS 65001, hold time 9 s, identifier 192.0.2.1; change
// spoils it.
func open(change func(body []byte), options ...byte) []byte {
	body := append([]byte{4, 0xfd, 0xe9, 0, 9, 192, 0, 2, 1, byte(len(options))}, options...)
	if change != nil {
		change(body)
	}
	return message(bgp.BGP_MSG_OPEN, body...)
}

var keepalive = message(bgp.BGP_MSG_KEEPALIVE)

// greet brings the session up as a good router does.
func (w wire) greet() bool {
	_, err := w.Write(append(open(nil), keepalive...))
	return err == nil && w.until(bgp.BGP_MSG_KEEPALIVE)
}

// until reads messages until one of a kind has come.
func (w wire) until(kind byte) bool { return w.next(kind) != nil }

// next returns the next message of a kind, nil where the connection ends.
func (w wire) next(kind byte) []byte {
	for {
		m := make([]byte, bgp.BGP_HEADER_LENGTH)
		if _, err := io.ReadFull(w, m); err != nil {
			return nil
		}
		body := make([]byte, binary.BigEndian.Uint16(m[16:])-bgp.BGP_HEADER_LENGTH)
		if _, err := io.ReadFull(w, body); err != nil {
			return nil
		}
		if m[18] == kind {
			return append(m, body...)
		}
	}
}

// rawRouter is a TCP listener on BGP's port in 127.0.0.0/8. Its connections are
// given to serve one after the other; serve's end closes one.
type rawRouter struct {
	Neighbor
	mu    sync.Mutex
	serve func(wire)
}

var rawRouters atomic.Int32

func newRawRouter(t testing.TB, serve func(wire)) *rawRouter {
	t.Helper()
	// Apart from those of other test processes on this host.
	address := netip.AddrFrom4([4]byte{127, byte(os.Getpid() >> 8), byte(os.Getpid()), byte(1 + rawRouters.Add(1)%250)})
	l, err := net.Listen("tcp", netip.AddrPortFrom(address, bgp.BGP_PORT).String())
	if err != nil {
		if os.Getuid() == 0 || os.Getenv("MEDWAY_REQUIRE_KERNEL") == "1" {
			t.Fatal(err)
		}
		t.Skip("SKIPPED: needs root, for BGP's port on loopback: ", err)
	}
	r := &rawRouter{Neighbor: Neighbor{Address: address, AS: 65001}, serve: serve}
	var running sync.WaitGroup
	t.Cleanup(func() {
		l.Close()
		running.Wait()
	})
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(30 * time.Second))
				r.mu.Lock()
				serve := r.serve
				r.mu.Unlock()
				serve(wire{c})
			})
		}
	})
	return r
}

// turn makes the router behave otherwise from the next connection on.
func (r *rawRouter) turn(serve func(wire)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.serve = serve
}

// good keeps a session up and reports the UPDATEs that come.
func good(updates chan<- struct{}) func(wire) {
	return func(w wire) {
		if !w.greet() {
			return
		}
		for w.until(bgp.BGP_MSG_UPDATE) {
			select {
			case updates <- struct{}{}:
			default:
			}
			_, _ = w.Write(keepalive)
		}
	}
}

// spy keeps the log's lines.
type spy struct {
	mu    sync.Mutex
	lines []string
}

func (s *spy) logger(t *testing.T) *zap.Logger {
	return zaptest.NewLogger(t, zaptest.WrapOptions(zap.Hooks(func(e zapcore.Entry) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.lines = append(s.lines, e.LoggerName+": "+e.Message)
		return nil
	}))).Named("bgp")
}

func (s *spy) saw(text string) bool { return s.count(text) > 0 }

// count is how often the log says something.
func (s *spy) count(text string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Count(strings.Join(s.lines, "\n"), text)
}

// send makes a router that says something at once, and reads on.
func send(parts ...[]byte) func(wire) {
	return func(w wire) {
		_, _ = w.Write(bytes.Join(parts, nil))
		_, _ = io.Copy(io.Discard, w)
	}
}

// after makes one that brings the session up first.
func after(parts ...[]byte) func(wire) {
	return func(w wire) {
		if w.greet() {
			send(parts...)(w)
		}
	}
}

// TestHostileRouter: whatever a router says, the speaker lives on, tells why
// there is no session, and has one as soon as the router behaves.
func TestHostileRouter(t *testing.T) {
	garbage := bytes.Repeat([]byte{0xde, 0xad, 0xbe, 0xef}, 4096)
	capability := func(code byte, value ...byte) []byte {
		return append([]byte{2, byte(2 + len(value)), code, byte(len(value))}, value...)
	}
	origin, path, hop := []byte{0x40, 1, 1, 0}, []byte{0x40, 2, 4, 2, 1, 0xfd, 0xe9}, []byte{0x40, 3, 4, 192, 0, 2, 1}
	update := func(attrs []byte, nlri ...byte) []byte {
		return message(bgp.BGP_MSG_UPDATE, append(append([]byte{0, 0, byte(len(attrs) >> 8), byte(len(attrs))}, attrs...), nlri...)...)
	}
	for name, test := range map[string]struct {
		serve func(wire)
		want  string // in LastError; "" where the session must come up
	}{
		"garbage":              {send(garbage), "we sent NOTIFICATION code 1(header) subcode 1(connection not synchronized)"},
		"another protocol":     {send([]byte("HTTP/1.1 400 Bad Request\r\nServer: nginx\r\nContent-Length: 0\r\n\r\n")), "code 1(header)"},
		"closes at once":       {func(wire) {}, "closes the connection before its OPEN"},
		"half a header":        {func(w wire) { _, _ = w.Write(keepalive[:10]) }, "closes the connection before its OPEN"},
		"length 0":             {send(append(bytes.Repeat([]byte{0xff}, 16), 0, 0, 1)), "code 1(header) subcode 2"},
		"wrong AS":             {send(open(func(b []byte) { b[2] = 1 })), "bad peer as"},
		"version 3":            {send(open(func(b []byte) { b[0] = 3 })), "unsupported version"},
		"identifier 0.0.0.0":   {send(open(func(b []byte) { copy(b[5:], []byte{0, 0, 0, 0}) })), "bad bgp identifier"},
		"hold time 1 s":        {send(open(func(b []byte) { b[4] = 1 })), "unacceptable hold time"},
		"options too long":     {send(open(func(b []byte) { b[9] = 200 })), "we sent NOTIFICATION"},
		"unknown option":       {func(w wire) { unknown(w, []byte{99, 1, 0}) }, ""},
		"never sends an OPEN":  {func(w wire) { _ = w.SetDeadline(time.Now().Add(silentAfter + 5*time.Second)); w.until(99) }, "sends no OPEN"},
		"NOTIFICATION first":   {send(message(bgp.BGP_MSG_NOTIFICATION, 6, 5)), "perhaps with a NOTIFICATION"},
		"refuses our OPEN":     {send(open(nil), message(bgp.BGP_MSG_NOTIFICATION, 2, 2)), "refuses our OPEN"},
		"closes after OPEN":    {func(w wire) { _, _ = w.Write(open(nil)); w.until(bgp.BGP_MSG_OPEN) }, "refuses our OPEN"},
		"type 9":               {after(message(9)), "we sent NOTIFICATION code 1(header) subcode 3"},
		"garbage later":        {after(garbage), "code 1(header)"},
		"too long a message":   {after(append(bytes.Repeat([]byte{0xff}, 16), 0xff, 0xff, 2)), "code 1(header) subcode 2"},
		"NOTIFICATION later":   {after(message(bgp.BGP_MSG_NOTIFICATION, 6, 2)), "the router sent NOTIFICATION code 6(cease) subcode 2(administrative shutdown)"},
		"closes later":         {func(w wire) { w.greet() }, "closed the connection without a NOTIFICATION"},
		"UPDATE without path":  {after(update(append(origin, hop...), 24, 198, 51, 100)), ""},
		"UPDATE cut short":     {after(message(bgp.BGP_MSG_UPDATE, 0, 9, 0)), "code 3(update)"},
		"UPDATE with a /33":    {after(update(append(append(origin, path...), hop...), 33, 198, 51, 100, 0, 0)), "code 3(update)"},
		"unknown capabilities": {func(w wire) { unknown(w, capability(77, 1, 2, 3), capability(200)) }, ""},
		"hold time 0":          {send(open(func(b []byte) { b[4] = 0 }), keepalive), ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRawRouter(t, test.serve)
			var log spy
			s := startRaw(t, r, log.logger(t))
			if test.want == "" {
				eventually(t, 10*time.Second, "the session is up and flushed", func() bool {
					n := s.Sessions()[0]
					return n.Established && !n.Pending
				})
				holds(t, time.Second, "the session is up", func() bool { return s.Sessions()[0].Established })
			} else {
				eventually(t, silentAfter+15*time.Second, test.want, func() bool { return contains(s.Sessions()[0].LastError, test.want) })
				eventually(t, time.Second, "the log says so", func() bool { return contains(strings.Join(log.lines, "\n"), test.want) })
				if !log.saw("bgp: BGP session with " + r.Address.String() + " (AS 65001)") {
					t.Error("the log doesn't name the router")
				}
			}
			if test.want == "" {
				if name == "hold time 0" && !log.saw("hold time 0") {
					t.Error("no warning")
				}
				return
			}
			updates := make(chan struct{}, 1)
			r.turn(good(updates))
			eventually(t, 30*time.Second, "a session with a router that behaves", func() bool { return s.Sessions()[0].Established })
			select {
			case <-updates:
			case <-time.After(10 * time.Second):
				t.Error("no route came")
			}
		})
	}
}

// unknown is a router that is good but for what its OPEN holds.
func unknown(w wire, options ...[]byte) {
	_, _ = w.Write(append(open(nil, bytes.Join(options, nil)...), keepalive...))
	w.live()
}

// live answers keepalives until the connection ends.
func (w wire) live() {
	for w.until(bgp.BGP_MSG_KEEPALIVE) {
		_, _ = w.Write(keepalive)
	}
}

// A router that knows no AS numbers of 4 octets is told 23456 in their place,
// and ours in an attribute that it passes on (RFC 6793).
func TestTwoOctetRouter(t *testing.T) {
	path := make(chan string, 1)
	r := newRawRouter(t, func(w wire) {
		if !w.greet() { // its OPEN has no capability at all
			return
		}
		m, err := bgp.ParseBGPMessage(w.next(bgp.BGP_MSG_UPDATE), &bgp.MarshallingOption{Use2ByteAS: true})
		if err != nil {
			path <- err.Error()
			return
		}
		var text []string
		for _, a := range m.Body.(*bgp.BGPUpdate).PathAttributes {
			switch a.(type) {
			case *bgp.PathAttributeAsPath, *bgp.PathAttributeAs4Path:
				text = append(text, a.String())
			}
		}
		path <- strings.Join(text, " ")
		w.live()
	})
	c := loopbackConfig()
	c.AS = 4200000000
	s := startRawWith(t, c, r, zaptest.NewLogger(t))
	eventually(t, 10*time.Second, "flushed", func() bool { return s.Sessions()[0].Established && !s.Sessions()[0].Pending })
	if got, want := <-path, "{AsPath: 23456 23456 23456} 4200000000 4200000000 4200000000"; got != want {
		t.Errorf("%s, expected %s", got, want)
	}
}

// A router without BFD, and without IPv6: both are told, for the session looks well.
func TestRouterWithoutBFDAndIPv6(t *testing.T) {
	t.Parallel()
	r := newRawRouter(t, func(w wire) {
		if w.greet() { // its OPEN has no capability at all
			w.live()
		}
	})
	r.BFD = &BFD{Interval: 300 * time.Millisecond, Multiplier: 3}
	c := loopbackConfig()
	c.LocalAddress6 = netip.MustParseAddr("::1")
	var log spy
	s := startRawWith(t, c, r, log.logger(t))
	eventually(t, 10*time.Second, "the session is up", func() bool { return s.Sessions()[0].Established })
	if got := s.Sessions()[0].Families; !slices.Equal(got, []plan.Family{plan.IPv4}) {
		t.Errorf("families %v", got)
	}
	eventually(t, bfdAfter+10*time.Second, "the warning", func() bool { return log.saw("has no BFD beside it") })
}

func startRaw(t testing.TB, r *rawRouter, log *zap.Logger) *Speaker {
	t.Helper()
	return startRawWith(t, loopbackConfig(), r, log)
}

func startRawWith(t testing.TB, c Config, r *rawRouter, log *zap.Logger) *Speaker {
	t.Helper()
	c.Neighbors = []Neighbor{r.Neighbor}
	s, err := New(c, log)
	if err != nil {
		t.Fatal(err)
	}
	a := ann(vip1, 100)
	a.Prepend = 2
	if err := s.Set(t.Context(), []plan.Announcement{a}); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Stop(ctx, false); err != nil {
			t.Error(err)
		}
	})
	return s
}
