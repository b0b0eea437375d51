package drill

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/medway-lb/medway/integration/lab"
)

// Stream is one TCP connection as the clients' side of the wire saw it.
type Stream struct {
	Client     string // address.port
	vip        string // the same of what it calls
	First      time.Time
	Last       time.Time
	Packets    int
	SYNs       int // from the client: more than one is a new connection, or a lost SYN
	Resets     int // while the connection was open: one that answers a straggler after the end harms nobody
	Gaps       int // places where sequence numbers leave some out: both directions
	Repeats    int // retransmissions
	bytesOut   uint32
	bytesIn    uint32
	next       map[bool]uint32 // by direction, the sequence number that comes next
	seen       map[bool]bool
	closing    bool // the client has sent its FIN
	largestGap time.Duration
}

// Continuous says whether it is one connection without a hole.
func (s Stream) Continuous() bool { return s.SYNs == 1 && s.Resets == 0 && s.Gaps == 0 }

func (s Stream) String() string {
	return fmt.Sprintf("%s -> %s: %d packets in %.1f s, %d bytes out, %d bytes in, %d SYN, %d resets, %d gaps, %d retransmissions, longest silence %.1f s",
		s.Client, s.vip, s.Packets, s.Last.Sub(s.First).Seconds(), s.bytesOut, s.bytesIn, s.SYNs, s.Resets, s.Gaps, s.Repeats, s.largestGap.Seconds())
}

// capture is a tcpdump on the interface of a host of phones.
type capture struct {
	file string
	cmd  *exec.Cmd
}

// headers is how many bytes of a packet are kept: Ethernet, IPv6 and the longest TCP
// header have 114.
const headers = "128"

func startCapture(ctx context.Context, l *lab.Lab, node, dir string) (*capture, error) {
	c := &capture{file: filepath.Join(dir, node+".pcap")}
	c.cmd = l.Command(ctx, node, "tcpdump", "-i", "eth0", "-n", "-s", headers, "-U", "-w", c.file,
		"-Z", "root", fmt.Sprintf("tcp and (host %s or host %s)", lab.VIP, lab.VIP6))
	ready, err := c.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("tcpdump: %w", err)
	}
	// It says "listening on" when the capture is on.
	line, err := bufio.NewReader(ready).ReadString('\n')
	if err != nil || !strings.Contains(line, "listening on") {
		return nil, fmt.Errorf("tcpdump: %q: %w", line, err)
	}
	go func() { _, _ = io.Copy(io.Discard, ready) }()
	return c, nil
}

// stop ends the capture and reads it back through tcpdump.
func (c *capture) stop(ctx context.Context) ([]Stream, error) {
	if err := c.cmd.Process.Signal(syscall.SIGINT); err != nil {
		return nil, err
	}
	_ = c.cmd.Wait() // tcpdump's status after a signal says nothing
	if _, err := os.Stat(c.file); err != nil {
		return nil, err
	}
	ctx, giveUp := context.WithCancel(ctx)
	defer giveUp()
	cmd := exec.CommandContext(ctx, "tcpdump", "-r", c.file, "-n", "-S", "-tt", "-K")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	streams, err := parseCapture(out)
	if err != nil {
		giveUp() // it would wait for somebody to read the rest
	}
	if waited := cmd.Wait(); err == nil {
		err = waited
	}
	return streams, err
}

// 1700000000.123456 IP 198.51.100.10.40001 > 203.0.113.10.5060: Flags [P.], seq 1:100, ack 5, win 502, length 99
// and the same with IP6.
var packetLine = regexp.MustCompile(`^(\d+)\.(\d+) IP6? (\S+) > (\S+): Flags \[([^\]]+)\],(?: seq (\d+)(?::(\d+))?,)?.* length (\d+)`)

// parseCapture reads tcpdump's text and follows every connection.
func parseCapture(r io.Reader) ([]Stream, error) {
	var all []*Stream
	streams := map[string]*Stream{} // the last one of each client's port
	called := map[string]bool{}
	for _, vip := range vips {
		called[vip.String()+".5060"] = true
	}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		m := packetLine.FindStringSubmatch(lines.Text())
		if m == nil {
			return nil, fmt.Errorf("tcpdump line not understood: %q", lines.Text())
		}
		out := called[m[4]]
		client, vip := m[3], m[4]
		if !out {
			client, vip = m[4], m[3]
		}
		s := streams[client]
		if s == nil || s.closing && out && strings.Contains(m[5], "S") {
			s = &Stream{Client: client, vip: vip, next: map[bool]uint32{}, seen: map[bool]bool{}}
			streams[client] = s
			all = append(all, s)
		}
		seconds, _ := strconv.ParseInt(m[1], 10, 64)
		micros, _ := strconv.ParseInt(m[2], 10, 64)
		length, _ := strconv.ParseUint(m[8], 10, 32)
		seq, err := strconv.ParseUint(m[6], 10, 32)
		s.packet(time.Unix(seconds, micros*1000), out, m[5], uint32(seq), err == nil, uint32(length))
	}
	var list []Stream
	for _, s := range all {
		list = append(list, *s)
	}
	slices.SortStableFunc(list, func(a, b Stream) int { return strings.Compare(a.Client, b.Client) })
	return list, lines.Err()
}

// packet takes in one packet. Sequence numbers wrap (RFC 9293, 3.4).
func (s *Stream) packet(at time.Time, out bool, flags string, seq uint32, hasSeq bool, length uint32) {
	if s.Packets == 0 {
		s.First = at
	} else {
		s.largestGap = max(s.largestGap, at.Sub(s.Last))
	}
	s.Last = at
	s.Packets++
	if strings.Contains(flags, "R") {
		if !s.closing {
			s.Resets++
		}
		return
	}
	s.closing = s.closing || out && strings.Contains(flags, "F")
	if !hasSeq {
		return // a bare acknowledgement
	}
	next := seq + length
	if strings.ContainsAny(flags, "SF") {
		next++ // SYN and FIN take a number each
	}
	if strings.Contains(flags, "S") {
		if out {
			s.SYNs++
		}
		s.next[out], s.seen[out] = next, true
		return
	}
	switch ahead := int32(seq - s.next[out]); {
	case !s.seen[out]:
		s.seen[out] = true
	case ahead > 0:
		s.Gaps++
	case ahead < 0:
		s.Repeats++
		if int32(next-s.next[out]) <= 0 {
			return
		}
		// TCP may send new bytes along with those that it sends again.
		length = uint32(max(int32(length)+ahead, 0))
	}
	s.next[out] = next
	if out {
		s.bytesOut += length
	} else {
		s.bytesIn += length
	}
}
