package probe

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/textproto"
	"strconv"
	"strings"
	"time"
)

// Transport is what SIP goes over, in the word of a Via header (RFC 3261 section 20.42).
type Transport string

// The transports.
const (
	UDP Transport = "UDP"
	TCP Transport = "TCP"
	TLS Transport = "TLS"
)

// Timers of RFC 3261 section 17.1.2.2: a request over UDP is sent again after t1, then
// after twice as long each time, and every t2 at the latest.
const (
	t1 = 500 * time.Millisecond
	t2 = 4 * time.Second
)

const (
	// maxHead is the longest answer that is read, without its body, in bytes. An
	// answer to OPTIONS has some hundreds.
	maxHead = 16 << 10
	// maxBody is the longest body that is skipped, which only answers before the last
	// one can need.
	maxBody = 64 << 10
	// maxIgnored is how many messages that are no answer are passed over.
	maxIgnored = 50
	// unavailable is the status of a server that takes no requests now.
	unavailable = 503
)

// SIPOptions asks by the request OPTIONS (RFC 3261 section 11). Any final answer shows
// that a SIP server is there, since OPTIONS is answered as an INVITE would be; but for
// 503, by which a server says that it takes no requests now (section 21.5.4).
type SIPOptions struct {
	Transport Transport
	// TLS is for Transport TLS: the name that the endpoint has to prove, and by which
	// authorities.
	TLS *tls.Config
}

// Run is [Check].
func (c SIPOptions) Run(ctx context.Context, endpoint netip.AddrPort) error {
	network := "tcp"
	if c.Transport == UDP {
		network = "udp"
	}
	conn, err := dial(ctx, network, endpoint)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	if c.Transport == TLS {
		secured := tls.Client(conn, c.TLS)
		if err := secured.HandshakeContext(ctx); err != nil {
			var op *net.OpError
			if ctx.Err() == nil && (!errors.As(err, &op) || op.Op != "read" && op.Op != "write") {
				err = wrong("TLS: %.200q", err.Error())
			}
			return c.failed(endpoint, err)
		}
		conn = secured
	}
	q := newQuestion(c.Transport, conn.LocalAddr(), endpoint)
	if c.Transport == UDP {
		err = q.overUDP(ctx, conn)
	} else {
		err = q.overStream(conn)
	}
	if err != nil {
		return c.failed(endpoint, err)
	}
	return nil
}

// failed says what was asked.
func (c SIPOptions) failed(endpoint netip.AddrPort, err error) error {
	text := fmt.Errorf("SIP OPTIONS to %s by %s: %w", endpoint, c.Transport, err)
	var refused *answerError
	if errors.As(err, &refused) {
		return text
	}
	return heard(text, err)
}

// answerError is what the endpoint said that is not as it should be.
type answerError struct{ text string }

func (e *answerError) Error() string { return e.text }

func wrong(format string, args ...any) error { return &answerError{fmt.Sprintf(format, args...)} }

// question is one request and what its answer is known by.
type question struct {
	branch, callID string
	text           []byte
	// ignored is what was passed over, and why the last one was.
	ignored int
	last    string
}

// newQuestion makes the request, with the fields that RFC 3261 section 8.1.1 demands.
// rport has the answer come to the port that it was sent from (RFC 3581).
func newQuestion(transport Transport, from net.Addr, to netip.AddrPort) *question {
	q := &question{branch: "z9hG4bK" + rand.Text(), callID: rand.Text()}
	local := from.String()
	host, _, _ := net.SplitHostPort(local)
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	uri := "sip:" + to.String()
	if transport != UDP {
		uri += ";transport=" + strings.ToLower(string(transport))
	}
	q.text = []byte(strings.Join([]string{
		"OPTIONS " + uri + " SIP/2.0",
		"Via: SIP/2.0/" + string(transport) + " " + local + ";branch=" + q.branch + ";rport",
		"Max-Forwards: 70",
		"From: <sip:medway@" + host + ">;tag=" + rand.Text(),
		"To: <" + uri + ">",
		"Call-ID: " + q.callID,
		"CSeq: 1 OPTIONS",
		"Accept: application/sdp",
		"User-Agent: medway",
		"Content-Length: 0",
		"", "",
	}, "\r\n"))
	return q
}

// overUDP sends the request again and again until an answer comes.
func (q *question) overUDP(ctx context.Context, conn net.Conn) error {
	buffer := make([]byte, maxHead+1)
	wait := t1
	for sent := 1; ; sent++ {
		if _, err := conn.Write(q.text); err != nil {
			return q.silence(ctx, cause(err), sent)
		}
		again := time.Now().Add(wait)
		wait = min(2*wait, t2)
		for {
			if err := conn.SetReadDeadline(again); err != nil {
				return err
			}
			if ctx.Err() != nil { // the deadline above may have come after that of its end
				return q.silence(ctx, ctx.Err(), sent)
			}
			n, err := conn.Read(buffer)
			var timeout net.Error
			switch {
			case errors.As(err, &timeout) && timeout.Timeout() && ctx.Err() == nil:
			case err != nil:
				return q.silence(ctx, cause(err), sent)
			default:
				if done, err := q.datagram(buffer[:n]); done || err != nil {
					return err
				}
				continue
			}
			break
		}
	}
}

// datagram takes a datagram, which is one message, and tells whether it is the answer.
func (q *question) datagram(text []byte) (done bool, err error) {
	if len(text) > maxHead {
		return false, q.pass("longer than %d bytes", maxHead)
	}
	m, err := parse(text)
	if err != nil {
		return false, q.pass("%v", err)
	}
	return q.judge(m)
}

// overStream sends the request once, and reads message after message.
func (q *question) overStream(conn net.Conn) error {
	if _, err := conn.Write(q.text); err != nil {
		return cause(err)
	}
	r := bufio.NewReaderSize(conn, maxHead)
	for {
		text, err := readHead(r)
		if err != nil {
			return q.ended(err)
		}
		m, err := parse(text)
		if err != nil {
			return wrong("the answer is wrong: %v", err)
		}
		if done, err := q.judge(m); done || err != nil {
			return err
		}
		if err := skipBody(r, m); err != nil {
			return q.ended(err)
		}
	}
}

// readHead reads up to the empty line that ends the head of a message, by which it is
// found in a stream.
func readHead(r *bufio.Reader) ([]byte, error) {
	var head []byte
	for {
		line, err := r.ReadSlice('\n')
		switch {
		case errors.Is(err, bufio.ErrBufferFull) || len(head)+len(line) > maxHead:
			return nil, wrong("an answer of more than %d bytes before its body", maxHead)
		case err != nil && len(head)+len(line) > 0 && errors.Is(err, io.EOF):
			return nil, wrong("the connection ended within an answer")
		case err != nil:
			return nil, err
		}
		blank := len(bytes.TrimRight(line, "\r\n")) == 0
		switch {
		case !blank:
			head = append(head, line...)
		case len(head) > 0:
			return append(head, line...), nil
		}
		// Empty lines before a message are keep-alives (RFC 3261 section 7.5, RFC 5626 section 4.4.1).
	}
}

// skipBody passes over a message's body.
func skipBody(r *bufio.Reader, m message) error {
	text := m.first("Content-Length", "L")
	length, err := strconv.ParseUint(text, 10, 32)
	if err != nil || length > maxBody {
		return wrong("a message before the answer with Content-Length %.20q, expected 0 to %d", text, maxBody)
	}
	_, err = io.CopyN(io.Discard, r, int64(length))
	return err
}

// judge tells whether a message is the final answer. It is by branch, method
// (RFC 3261 section 17.1.3) and Call-ID.
func (q *question) judge(m message) (done bool, err error) {
	branch, id, seq := m.branch(), m.first("Call-Id", "I"), strings.Join(strings.Fields(m.first("Cseq")), " ")
	switch {
	case m.status == 0:
		return false, q.pass("a request")
	case branch != q.branch:
		return false, q.pass("an answer to branch %.60q, expected %q", branch, q.branch)
	case id != q.callID:
		return false, q.pass("an answer with Call-ID %.60q, expected %q", id, q.callID)
	case seq != "1 OPTIONS":
		return false, q.pass("an answer with CSeq %.30q, expected %q", seq, "1 OPTIONS")
	case m.status < 200:
		return false, q.pass("%d", m.status)
	case m.status == unavailable:
		return false, wrong("it takes no requests: %d %.100q", m.status, m.reason)
	}
	return true, nil
}

// pass notes a message that is not the answer, and gives up where there are too many.
func (q *question) pass(format string, args ...any) error {
	q.ignored++
	q.last = fmt.Sprintf(format, args...)
	if q.ignored > maxIgnored {
		return wrong("%d messages and no answer among them; the last: %s", q.ignored, q.last)
	}
	return nil
}

// ended is why a stream has no answer.
func (q *question) ended(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return wrong("it closed the connection without an answer%s", q.heard())
	}
	return q.none(cause(err))
}

// silence is why there is no answer by UDP.
func (q *question) silence(ctx context.Context, err error, sent int) error {
	if ctx.Err() == nil {
		return err
	}
	return fmt.Errorf("no answer to %d requests%s", sent, q.heard())
}

func (q *question) none(err error) error {
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return fmt.Errorf("no answer%s", q.heard())
	}
	return err
}

func (q *question) heard() string {
	if q.ignored == 0 {
		return ""
	}
	return fmt.Sprintf("; %d other messages were ignored, the last: %s", q.ignored, q.last)
}

// message is the head of a SIP message.
type message struct {
	status int // 0: a request
	reason string
	textproto.MIMEHeader
}

// parse reads a head. It is lenient about what is not looked at, and knows folded lines
// and compact names (RFC 3261 sections 7.3.1 and 7.3.3).
func parse(text []byte) (m message, err error) {
	r := textproto.NewReader(bufio.NewReader(bytes.NewReader(text)))
	line, err := r.ReadLine()
	if err != nil {
		return m, errors.New("not SIP: no line")
	}
	version, rest, _ := strings.Cut(line, " ")
	switch {
	case strings.EqualFold(version, "SIP/2.0"):
		code, reason, _ := strings.Cut(rest, " ")
		m.reason = reason
		if m.status, err = strconv.Atoi(code); err != nil || len(code) != 3 || m.status < 100 || m.status > 699 {
			return m, fmt.Errorf("status %.20q, expected 100 to 699", code)
		}
	case !strings.HasSuffix(line, " SIP/2.0"):
		return m, fmt.Errorf("not SIP: %.60q", line)
	}
	if m.MIMEHeader, err = r.ReadMIMEHeader(); err != nil {
		return m, fmt.Errorf("its header: %.100q", err.Error())
	}
	return m, nil
}

// first is the first value of a field by its names, as textproto spells them.
func (m message) first(names ...string) string {
	for _, name := range names {
		if values := m.MIMEHeader[name]; len(values) > 0 {
			return values[0]
		}
	}
	return ""
}

// branch is that of the topmost Via (RFC 3261 section 20.42); "" where there is none.
func (m message) branch() string {
	top, _, _ := strings.Cut(m.first("Via", "V"), ",")
	for param := range strings.SplitSeq(top, ";") {
		name, value, _ := strings.Cut(param, "=")
		if strings.EqualFold(strings.TrimSpace(name), "branch") {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
