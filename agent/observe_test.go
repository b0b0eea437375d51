package agent

import (
	"math"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

// A rate that is known stays known, though ticks are never quite on time: one that
// comes and goes puts automatic switchovers off, and who verifies a planned one.
func TestARateOnceKnownStaysKnown(t *testing.T) {
	address := netip.MustParseAddr("203.0.113.10")
	addresses := map[string][]netip.Addr{"v": {address}}
	random := rand.New(rand.NewPCG(1, 2))
	var o observations
	begin := time.Now()
	late := func(i int) time.Time {
		return begin.Add(time.Duration(i)*observeInterval + time.Duration(random.IntN(5_000_000)))
	}
	known := 0
	for i := range 1000 {
		now := late(i)
		packets := uint64(now.Sub(begin).Milliseconds()) // 1000 a second
		rate, ok := o.sample(now, map[netip.Addr]arrivals{address: {packets: packets}}, addresses)["v"]
		if ok {
			known++
		}
		switch {
		case !ok && (known > 0 || i > 5):
			t.Fatalf("look %d: not known, though it was %d times", i, known)
		case ok && math.Abs(rate-1000) > 1:
			t.Fatalf("look %d: %.1f packets a second, expected 1000", i, rate)
		}
		if n := len(o.samples["v"]); n > int(rateWindow/observeInterval)+1 {
			t.Fatalf("look %d: %d samples are kept", i, n)
		}
	}
}
