package drill

import (
	"bytes"
	"net"
	"testing"
	"time"
)

// A server that leaves requests unanswered is a gap as long as these lasted, told once.
func TestPulse(t *testing.T) {
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	conn, err := net.Dial("udp", server.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	p := newPulse(t.Context(), conn)
	defer p.stop()
	if err := server.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	var last, longest time.Time
	buf := make([]byte, 1<<16)
	for i := range 12 {
		n, from, err := server.ReadFrom(buf)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.HasPrefix(buf[:n], []byte("OPTIONS ")) {
			t.Fatalf("request %q", buf[:n])
		}
		if i == 3 {
			last = time.Now()
		}
		if i > 3 && i < 9 {
			continue
		}
		if i == 9 {
			longest = time.Now()
		}
		if _, err := server.WriteTo([]byte("SIP/2.0 200 OK\r\n\r\n"), from); err != nil {
			t.Fatal(err)
		}
	}
	silence := longest.Sub(last)
	// Two requests' time is left for answers that were heard late.
	if gap := p.longest(); gap < silence-2*pulseInterval {
		t.Errorf("the gap is %s, and nothing was answered for %s", gap, silence)
	}
	if gap := p.longest(); gap >= silence {
		t.Errorf("the gap is told again: %s", gap)
	}
}
