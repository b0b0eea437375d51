package probe

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/emiago/sipgo/sip"
)

// answers are what a server sends for a request, one after the other; nil ends the
// connection.
type answers func(request string) []string

// field is a header field of a message.
func field(message, name string) string {
	for line := range strings.SplitSeq(message, "\r\n") {
		if value, ok := strings.CutPrefix(line, name+": "); ok {
			return value
		}
	}
	return ""
}

// reply is a right answer of a status, each field changed where change has it.
func reply(request, status string, change map[string]string) string {
	var b strings.Builder
	b.WriteString("SIP/2.0 " + status + "\r\n")
	for _, name := range []string{"Via", "From", "To", "Call-ID", "CSeq", "Content-Length"} {
		value := field(request, name)
		if other, ok := change[name]; ok {
			value = other
		}
		if value != "" {
			b.WriteString(name + ": " + value + "\r\n")
		}
	}
	return b.String() + "\r\n"
}

func always(status string) answers {
	return func(r string) []string { return []string{reply(r, status, nil)} }
}

// serveUDP answers every datagram.
func serveUDP(t testing.TB, a answers) netip.AddrPort {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buffer := make([]byte, 65535)
		for {
			n, from, err := conn.ReadFrom(buffer)
			if err != nil {
				return
			}
			for _, text := range a(string(buffer[:n])) {
				_, _ = conn.WriteTo([]byte(text), from)
			}
		}
	}()
	t.Cleanup(func() { _ = conn.Close(); <-done })
	return netip.MustParseAddrPort(conn.LocalAddr().String())
}

// serveTCP answers the request of every connection, and then ends it, or keeps it open
// until the test's end.
func serveTCP(t testing.TB, config *tls.Config, keep bool, a answers) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if config != nil {
				conn = tls.Server(conn, config)
			}
			_ = conn.SetDeadline(time.Now().Add(patience))
			request := readRequest(conn)
			for _, text := range a(request) {
				if _, err := io.WriteString(conn, text); err != nil {
					break
				}
			}
			if keep {
				<-stop
			}
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() { close(stop); _ = l.Close(); <-done })
	return netip.MustParseAddrPort(l.Addr().String())
}

func readRequest(r io.Reader) string {
	var out strings.Builder
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadString('\n')
		out.WriteString(line)
		if err != nil || line == "\r\n" {
			return out.String()
		}
	}
}

// both runs a test over UDP and TCP.
func both(t *testing.T, a answers, check func(t *testing.T, c SIPOptions, at netip.AddrPort)) {
	t.Helper()
	t.Run("UDP", func(t *testing.T) { check(t, SIPOptions{Transport: UDP}, serveUDP(t, a)) })
	t.Run("TCP", func(t *testing.T) { check(t, SIPOptions{Transport: TCP}, serveTCP(t, nil, true, a)) })
}

// TestRequest has all that RFC 3261 section 8.1.1 demands, and no two are alike.
func TestRequest(t *testing.T) {
	seen := make(chan string, 2)
	var requests []string
	both(t, func(r string) []string { seen <- r; return always("200 OK")(r) }, func(t *testing.T, c SIPOptions, at netip.AddrPort) {
		if err := c.Run(within(t, patience), at); err != nil {
			t.Fatal(err)
		}
		text := <-seen
		requests = append(requests, text)
		m, err := sip.ParseMessage([]byte(text))
		if err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		r, ok := m.(*sip.Request)
		if !ok || r.Method != sip.OPTIONS || r.Recipient.Host != "127.0.0.1" || r.Recipient.Port != int(at.Port()) {
			t.Fatalf("%s", text)
		}
		branch, _ := r.Via().Params.Get("branch")
		tag, _ := r.From().Params.Get("tag")
		_, rport := r.Via().Params.Get("rport")
		_, answered := r.To().Params.Get("tag")
		if r.Via().Transport != string(c.Transport) || !strings.HasPrefix(branch, "z9hG4bK") || len(branch) < 20 || !rport || len(tag) < 8 || answered ||
			*r.MaxForwards() != 70 || *r.CSeq() != (sip.CSeqHeader{SeqNo: 1, MethodName: sip.OPTIONS}) || *r.ContentLength() != 0 || len(*r.CallID()) < 8 {
			t.Errorf("%s", text)
		}
	})
	for _, name := range []string{"Via", "From", "Call-ID"} {
		if field(requests[0], name) == field(requests[1], name) {
			t.Errorf("%s is the same twice: %s", name, field(requests[0], name))
		}
	}
}

// TestFinalAnswers: any of them shows a server, but for one that takes no requests.
func TestFinalAnswers(t *testing.T) {
	for _, status := range []string{"200 OK", "302 Moved Temporarily", "403 Forbidden", "486 Busy Here", "500 Server Internal Error", "603 Decline", "699 "} {
		both(t, always(status), func(t *testing.T, c SIPOptions, at netip.AddrPort) {
			if err := c.Run(within(t, patience), at); err != nil {
				t.Errorf("%s: %v", status, err)
			}
		})
	}
	both(t, always("503 Service Unavailable"), func(t *testing.T, c SIPOptions, at netip.AddrPort) {
		demand(t, c.Run(within(t, patience), at), false, at.String(), string(c.Transport), "takes no requests: 503", "Service Unavailable")
	})
	both(t, func(r string) []string {
		return []string{reply(r, "100 Trying", nil), reply(r, "183 Session Progress", nil), reply(r, "404 Not Found", nil)}
	}, func(t *testing.T, c SIPOptions, at netip.AddrPort) {
		if err := c.Run(within(t, patience), at); err != nil {
			t.Error(err)
		}
	})
}

// TestIgnored is what is no answer to this request; one that comes after it counts.
func TestIgnored(t *testing.T) {
	for name, test := range map[string]struct {
		message func(r string) string
		says    string
	}{
		"another Call-ID": {func(r string) string { return reply(r, "200 OK", map[string]string{"Call-ID": "x@y"}) }, `Call-ID "x@y"`},
		"another branch": {func(r string) string {
			return reply(r, "200 OK", map[string]string{"Via": "SIP/2.0/UDP 127.0.0.1:5060;branch=z9hG4bKx"})
		}, `branch "z9hG4bKx"`},
		"another method": {func(r string) string { return reply(r, "200 OK", map[string]string{"CSeq": "1 INVITE"}) }, `CSeq "1 INVITE"`},
		"another CSeq":   {func(r string) string { return reply(r, "200 OK", map[string]string{"CSeq": "2 OPTIONS"}) }, `CSeq "2 OPTIONS"`},
		"no Via":         {func(r string) string { return reply(r, "200 OK", map[string]string{"Via": ""}) }, `branch ""`},
		"a request":      {func(r string) string { return r }, "a request"},
		"a long Call-ID": {func(r string) string {
			return reply(r, "200 OK", map[string]string{"Call-ID": strings.Repeat("x", 9000)})
		}, "Call-ID"},
		"before the last": {func(r string) string { return reply(r, "180 Ringing", nil) }, "the last: 180"},
	} {
		t.Run(name, func(t *testing.T) {
			both(t, func(r string) []string { return []string{test.message(r)} }, func(t *testing.T, c SIPOptions, at netip.AddrPort) {
				demand(t, c.Run(within(t, 300*time.Millisecond), at), true, "no answer", "ignored", test.says)
			})
			both(t, func(r string) []string { return []string{test.message(r), reply(r, "200 OK", nil)} }, func(t *testing.T, c SIPOptions, at netip.AddrPort) {
				if err := c.Run(within(t, patience), at); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestHostileDatagrams are passed over: anybody who guesses the port can send one.
func TestHostileDatagrams(t *testing.T) {
	for name, text := range map[string]string{
		"garbage": "\x00\x01\xff", "empty": "", "HTTP": "HTTP/1.1 200 OK\r\n\r\n", "cut off": "SIP/2.0 200 OK\r\nVia: SIP/2.0/UDP 127.0",
		"huge": "SIP/2.0 200 OK\r\nX: " + strings.Repeat("x", 20000) + "\r\n\r\n", "no colon": "SIP/2.0 200 OK\r\nx\r\n\r\n",
	} {
		at := serveUDP(t, func(r string) []string { return []string{text, reply(r, "200 OK", nil)} })
		if err := (SIPOptions{Transport: UDP}).Run(within(t, patience), at); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	flood := serveUDP(t, func(string) []string { return make([]string, 200) })
	demand(t, SIPOptions{Transport: UDP}.Run(within(t, patience), flood), false, "messages and no answer among them")
}

// TestHostileStreams are refused at once: nothing can follow what can't be read.
func TestHostileStreams(t *testing.T) {
	for name, test := range map[string]struct {
		text string
		says string
	}{
		"garbage":         {"\x00\x01\xff\r\n\r\n", "not SIP"},
		"HTTP":            {"HTTP/1.1 200 OK\r\n\r\n", "not SIP"},
		"endless line":    {"SIP/2.0 200 OK\r\nX: " + strings.Repeat("x", 100000), "more than 16384 bytes"},
		"endless headers": {"SIP/2.0 200 OK\r\n" + strings.Repeat("X: y\r\n", 10000), "more than 16384 bytes"},
		"no line ends":    {strings.Repeat("x", 100000), "more than 16384 bytes"},
		"cut off":         {"SIP/2.0 200 OK\r\nVia: SIP", "ended within an answer"},
		"nothing":         {"", "closed the connection without an answer"},
		"keep-alives":     {strings.Repeat("\r\n", 100), "closed the connection without an answer"},
		"endless body":    {"SIP/2.0 100 Trying\r\nContent-Length: 4000000000\r\n\r\n", `Content-Length "4000000000"`},
		"no length":       {"SIP/2.0 100 Trying\r\n\r\n", `Content-Length ""`},
		"a wrong status":  {"SIP/2.0 1000 x\r\n\r\n", `status "1000"`},
		"a wrong length":  {"SIP/2.0 100 Trying\r\nContent-Length: -1\r\n\r\n", `Content-Length "-1"`},
		"a flood":         {strings.Repeat("SIP/2.0 100 Trying\r\nContent-Length: 1\r\n\r\nx", 1000), "messages and no answer among them"},
	} {
		t.Run(name, func(t *testing.T) {
			at := serveTCP(t, nil, false, func(string) []string { return []string{test.text} })
			demand(t, SIPOptions{Transport: TCP}.Run(within(t, patience), at), false, test.says)
		})
	}
}

// TestSegments: a stream has no borders, so a byte may come alone.
func TestSegments(t *testing.T) {
	at := serveTCP(t, nil, false, func(r string) []string {
		return strings.Split("\r\n\r\n"+reply(r, "100 Trying", map[string]string{"Content-Length": "3"})+"abc"+reply(r, "200 OK", nil), "")
	})
	if err := (SIPOptions{Transport: TCP}).Run(within(t, patience), at); err != nil {
		t.Error(err)
	}
}

// TestFoldedAndCompact forms are SIP as well (RFC 3261 sections 7.3.1 and 7.3.3), and
// fields that nobody asked for may be wrong.
func TestFoldedAndCompact(t *testing.T) {
	both(t, func(r string) []string {
		return []string{"SIP/2.0 200 OK\r\nv: " + strings.Replace(field(r, "Via"), ";", "\r\n ;", 1) + ";received=127.0.0.1\r\nContact: <<>\r\n" +
			"i: " + field(r, "Call-ID") + "\r\nCSEQ:1  OPTIONS\r\nl:0\r\n\r\n"}
	}, func(t *testing.T, c SIPOptions, at netip.AddrPort) {
		if err := c.Run(within(t, patience), at); err != nil {
			t.Error(err)
		}
	})
}

// TestSentAgain: datagrams get lost.
func TestSentAgain(t *testing.T) {
	heard := make(chan string, 3)
	at := serveUDP(t, func(r string) []string {
		if heard <- r; len(heard) < 3 {
			return nil
		}
		return always("200 OK")(r)
	})
	begun := time.Now()
	if err := (SIPOptions{Transport: UDP}).Run(within(t, patience), at); err != nil {
		t.Fatal(err)
	}
	took, first, second, third := time.Since(begun), <-heard, <-heard, <-heard
	if took < 3*t1 || first != second || second != third {
		t.Errorf("3 requests in %v, expected the same one after %v and %v more: %q %q %q", took, t1, 2*t1, first, second, third)
	}
}

func TestNobody(t *testing.T) {
	silent := serveUDP(t, func(string) []string { return nil })
	demand(t, SIPOptions{Transport: UDP}.Run(within(t, 700*time.Millisecond), silent), true, "no answer to 2 requests")
	mute := serveTCP(t, nil, true, func(string) []string { return nil })
	demand(t, SIPOptions{Transport: TCP}.Run(within(t, 200*time.Millisecond), mute), true, "no answer")
	demand(t, SIPOptions{Transport: TLS, TLS: &tls.Config{ServerName: "sip.example.com"}}.Run(within(t, 200*time.Millisecond), mute), true)
	for _, transport := range []Transport{UDP, TCP} {
		demand(t, SIPOptions{Transport: transport}.Run(within(t, patience), closedPort(t)), false, "connection refused")
	}
}

func TestTLS(t *testing.T) {
	config, roots := certified(t, "sip.example.com")
	at := serveTCP(t, config, false, always("200 OK"))
	right := &tls.Config{ServerName: "sip.example.com", RootCAs: roots}
	if err := (SIPOptions{Transport: TLS, TLS: right}).Run(within(t, patience), at); err != nil {
		t.Error(err)
	}
	demand(t, SIPOptions{Transport: TLS, TLS: &tls.Config{ServerName: "www.example.com", RootCAs: roots}}.Run(within(t, patience), at), false, "TLS", "sip.example.com")
}

// certified is a server with a certificate, and the authority that signed it: itself.
func certified(t *testing.T, name string) (*tls.Config, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, roots
}

// FuzzAnswer: whatever comes is taken, passed over or refused with an error that can
// be shown; only what bears the request's marks is an answer.
func FuzzAnswer(f *testing.F) {
	request := func() *question {
		return newQuestion(TCP, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 5060}, netip.MustParseAddrPort("203.0.113.10:5060"))
	}
	for _, status := range []string{"200 OK", "100 Trying", "503 x", "999 x", "-1 x"} {
		text := string(request().text)
		f.Add([]byte(reply(text, status, map[string]string{"Via": "BRANCH", "Call-ID": "CALLID"})), true)
	}
	for _, text := range []string{"", "\r\n\r\n", "SIP/2.0 200 OK\r\n\r\n", "OPTIONS sip:x SIP/2.0\r\nContent-Length: 9\r\n\r\n",
		"SIP/2.0 200 OK\r\nVia: ,,,\r\ni: \r\nCSeq: 1\r\n\r\n", "SIP/2.0 200 OK\r\nVia: a/b/c d;branch=\r\n\t,x\r\n\r\n", "SIP/2.0 200 OK\r\nl: 5\r\n\r\n"} {
		f.Add([]byte(text), false)
	}
	f.Fuzz(func(t *testing.T, text []byte, known bool) {
		q := request()
		if known {
			text = bytes.ReplaceAll(text, []byte("BRANCH"), []byte("SIP/2.0/TCP 127.0.0.1:5060;branch="+q.branch))
			text = bytes.ReplaceAll(text, []byte("CALLID"), []byte(q.callID))
		}
		marked := bytes.Contains(text, []byte(q.branch)) && bytes.Contains(text, []byte(q.callID))
		done, err := q.datagram(text)
		if done && (err != nil || !marked) {
			t.Errorf("%q is an answer: %v", text, err)
		}
		if err := q.overStream(&canned{Reader: bytes.NewReader(text)}); err == nil && !marked {
			t.Errorf("%q is an answer", text)
		} else if err != nil {
			demandShort(t, err)
		}
		if err != nil {
			demandShort(t, err)
		}
	})
}

func demandShort(t *testing.T, err error) {
	t.Helper()
	if text := err.Error(); len(text) > 600 || strings.ContainsAny(text, "\r\n\x00\x1b") {
		t.Errorf("an error of %d bytes: %q", len(text), text)
	}
}

// canned is a connection with all that comes from the other side.
type canned struct {
	net.Conn
	io.Reader
}

func (c *canned) Read(b []byte) (int, error) { return c.Reader.Read(b) }

func (c *canned) Write(b []byte) (int, error) { return len(b), nil }
