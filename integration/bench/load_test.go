package bench

import (
	"testing"
	"time"
)

func TestSender(t *testing.T) {
	at, from, ok := sender("1764039600.123456 IP 10.8.0.11.49999 > 10.8.0.1.3784: BFDv1, Control, State Up, length: 24")
	next, _, _ := sender("1764039600.573456 IP 10.8.0.11.49999 > 10.8.0.1.3784: BFDv1, Control, State Up, length: 24")
	if !ok || from != "10.8.0.11" || (next-at).Round(time.Millisecond) != 450*time.Millisecond {
		t.Errorf("%v from %q, then %v later", at, from, next-at)
	}
	for _, line := range []string{"", "listening on eth0, link-type EN10MB (Ethernet), snapshot length 262144 bytes", "1764039600.1 ARP, Request who-has 10.8.0.1"} {
		if _, from, ok := sender(line); ok {
			t.Errorf("%q is from %q", line, from)
		}
	}
}
