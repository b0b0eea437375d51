package ipvs

import (
	"strings"
	"testing"
)

const perCPU = `       Total Incoming Outgoing         Incoming         Outgoing
CPU    Conns  Packets  Packets            Bytes            Bytes
  0        3       1f        0             1388                0
  1        1        2        0               70                0
  ~        4       20        0             13F0                0

     Conns/s   Pkts/s   Pkts/s          Bytes/s          Bytes/s
           0        5        0              128                0
`

func TestParsePackets(t *testing.T) {
	if n, err := parsePackets(perCPU); err != nil || n != 33 {
		t.Errorf("%d, %v; expected 33", n, err)
	}
	head, _, _ := strings.Cut(perCPU, "  0 ")
	for _, bad := range []string{"", strings.ReplaceAll(perCPU, "1f", "no"), head} {
		if n, err := parsePackets(bad); err == nil {
			t.Errorf("%d of %q", n, bad)
		}
	}
}
