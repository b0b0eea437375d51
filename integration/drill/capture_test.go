package drill

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/medway-lb/medway/integration/lab"
)

const client = "198.51.100.10.40001"

// wire is tcpdump's text of packets "> rest" from the client and "< rest" to
// it, a tenth of a second apart.
func wire(client string, packets ...string) string {
	var b strings.Builder
	vip := lab.VIP.String() + ".5060"
	for i, p := range packets {
		direction, rest, _ := strings.Cut(p, " ")
		from, to := client, vip
		if direction == "<" {
			from, to = vip, client
		}
		fmt.Fprintf(&b, "1700000000.%06d IP %s > %s: Flags %s\n", i*100000, from, to, rest)
	}
	return b.String()
}

func parseOne(t *testing.T, packets ...string) Stream {
	t.Helper()
	streams, err := parseCapture(strings.NewReader(wire(client, packets...)))
	if err != nil || len(streams) != 1 {
		t.Fatalf("%d streams, %v, expected one", len(streams), err)
	}
	return streams[0]
}

// The options as tcpdump -S prints them.
const (
	syn    = "> [S], seq 1000, win 64240, options [mss 1460,sackOK,TS val 1 ecr 0,nop,wscale 7], length 0"
	synAck = "< [S.], seq 5000, ack 1001, win 65160, options [mss 1460], length 0"
	ack    = "> [.], ack 5001, win 502, options [nop,nop,TS val 2 ecr 2], length 0"
	invite = "> [P.], seq 1001:1501, ack 5001, win 502, length 500: SIP: INVITE sip:service@203.0.113.10:5060 SIP/2.0"
	ok     = "< [P.], seq 5001:5301, ack 1501, win 509, length 300: SIP: SIP/2.0 200 OK"
	fin    = "> [F.], seq 1501, ack 5301, win 502, length 0"
	finAck = "< [F.], seq 5301, ack 1502, win 509, length 0"
)

func TestCapture(t *testing.T) {
	type seen struct {
		SYNs, Resets, Gaps, Repeats int
		Out, In                     uint32
		Continuous                  bool
	}
	for _, test := range []struct {
		name    string
		packets []string
		want    seen
	}{
		{"a whole connection", []string{syn, synAck, ack, invite, ok, fin, finAck}, seen{SYNs: 1, Out: 500, In: 300, Continuous: true}},
		{
			"a hole from the client",
			[]string{syn, synAck, invite, "> [P.], seq 1502:1600, ack 5001, win 502, length 98"},
			seen{SYNs: 1, Gaps: 1, Out: 598},
		},
		{
			"a hole from the server",
			[]string{syn, synAck, "< [P.], seq 5002:5302, ack 1001, win 509, length 300"},
			seen{SYNs: 1, Gaps: 1, In: 300},
		},
		{"a hole before FIN", []string{syn, synAck, fin}, seen{SYNs: 1, Gaps: 1}},
		{"sent again", []string{syn, synAck, invite, invite, ok, ok}, seen{SYNs: 1, Repeats: 2, Out: 500, In: 300, Continuous: true}},
		{
			"a part sent again", []string{syn, synAck, invite, "> [P.], seq 1201:1301, ack 5001, win 502, length 100", fin},
			seen{SYNs: 1, Repeats: 1, Out: 500, Continuous: true},
		},
		{
			// As Linux does: one segment with the lost bytes and those that came since.
			"sent again with more",
			[]string{syn, synAck, invite, "> [P.], seq 1001:1701, ack 5001, win 502, length 700", "> [F.], seq 1701, ack 5001, win 502, length 0"},
			seen{SYNs: 1, Repeats: 1, Out: 700, Continuous: true},
		},
		{
			"sent again with FIN", []string{syn, synAck, invite, "> [FP.], seq 1001:1501, ack 5001, win 502, length 500", fin},
			seen{SYNs: 1, Repeats: 2, Out: 500, Continuous: true},
		},
		{
			"numbers wrap around",
			[]string{
				"> [S], seq 4294967290, win 64240, length 0", "> [P.], seq 4294967291:4, ack 1, win 502, length 9",
				"> [P.], seq 4294967291:4, ack 1, win 502, length 9", "> [P.], seq 4:14, ack 1, win 502, length 10",
			},
			seen{SYNs: 1, Repeats: 1, Out: 19, Continuous: true},
		},
		{
			"a hole across the wrap",
			[]string{"> [S], seq 4294967290, win 64240, length 0", "> [P.], seq 1:10, ack 1, win 502, length 9"},
			seen{SYNs: 1, Gaps: 1, Out: 9},
		},
		{
			"a reset from the server", []string{syn, synAck, invite, "< [R.], seq 5001, ack 1501, win 0, length 0"},
			seen{SYNs: 1, Resets: 1, Out: 500},
		},
		{
			"a reset after the client's own FIN ends what has ended", []string{syn, synAck, invite, fin, "< [R.], seq 5001, ack 1502, win 0, length 0"},
			seen{SYNs: 1, Out: 500, Continuous: true},
		},
		{
			"a reset after the server's FIN", []string{syn, synAck, invite, ok, finAck, "< [R.], seq 5302, ack 1501, win 0, length 0"},
			seen{SYNs: 1, Resets: 1, Out: 500, In: 300},
		},
		{"a reset without an acknowledgement", []string{syn, "< [R], seq 0, win 0, length 0"}, seen{SYNs: 1, Resets: 1}},
		{"a second SYN", []string{syn, synAck, invite, strings.Replace(syn, "1000", "9000", 1)}, seen{SYNs: 2, Out: 500}},
		{"a SYN sent again", []string{syn, syn, synAck, invite}, seen{SYNs: 2, Out: 500}},
		{"a SYN with ECN", []string{strings.Replace(syn, "[S]", "[SEW]", 1), synAck, invite}, seen{SYNs: 1, Out: 500, Continuous: true}},
		{"without its beginning", []string{invite, ok, fin}, seen{Out: 500, In: 300}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := parseOne(t, test.packets...)
			got := seen{s.SYNs, s.Resets, s.Gaps, s.Repeats, s.bytesOut, s.bytesIn, s.Continuous()}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
			if s.Packets != len(test.packets) || s.Client != client {
				t.Errorf("%d packets of %s, expected %d of %s", s.Packets, s.Client, len(test.packets), client)
			}
		})
	}
}

func TestCaptureTells(t *testing.T) {
	s := parseOne(t, syn, synAck, ack, invite, ok)
	if got := s.Last.Sub(s.First); got != 400*time.Millisecond || s.largestGap != 100*time.Millisecond {
		t.Errorf("lasted %s with a silence of %s, expected 400ms and 100ms", got, s.largestGap)
	}
	want := client + " -> " + lab.VIP.String() + ".5060: 5 packets in 0.4 s, 500 bytes out, 300 bytes in, 1 SYN, 0 resets, 0 gaps, 0 retransmissions, longest silence 0.1 s"
	if got := s.String(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestCaptureKeepsConnectionsApart(t *testing.T) {
	other := "198.51.100.10.40002"
	streams, err := parseCapture(strings.NewReader(wire(other, syn, synAck, invite) + wire(client, syn, synAck, ack)))
	if err != nil || len(streams) != 2 || streams[0].Client != client || streams[1].Client != other {
		t.Fatalf("%v, %v, expected %s and %s", streams, err, client, other)
	}
	if streams[0].bytesOut != 0 || streams[1].bytesOut != 500 || !streams[0].Continuous() || !streams[1].Continuous() {
		t.Errorf("%v", streams)
	}
	six := "1700000000.000000 IP6 2001:db8:c1::10.40001 > 2001:db8:10::10.5060: Flags [S], seq 5, win 64800, length 0\n" +
		"1700000000.100000 IP6 2001:db8:10::10.5060 > 2001:db8:c1::10.40001: Flags [S.], seq 9, ack 6, win 64260, length 0\n"
	streams, err = parseCapture(strings.NewReader(six))
	if err != nil || len(streams) != 1 || streams[0].Client != "2001:db8:c1::10.40001" || streams[0].SYNs != 1 || streams[0].Packets != 2 {
		t.Errorf("IPv6: %+v, %v", streams, err)
	}
	if streams, err := parseCapture(strings.NewReader("")); len(streams) != 0 || err != nil {
		t.Errorf("%v, %v from nothing", streams, err)
	}
}

// TestCaptureNotUnderstood: a packet that is left out would pass for a hole, or
// hide one.
func TestCaptureNotUnderstood(t *testing.T) {
	for _, line := range []string{
		"tcpdump: pcap_loop: truncated dump file",
		"1700000000.000000 ARP, Request who-has 10.0.0.1",
		"1700000000.000000 IP 198.51.100.10 > 203.0.113.10: ICMP echo request, id 1, seq 1, length 64",
		"",
	} {
		if streams, err := parseCapture(strings.NewReader(wire(client, syn) + line + "\n")); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%q", line)) {
			t.Errorf("%q: %v, %v", line, streams, err)
		}
	}
}
