package bgp

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"go.uber.org/zap"
)

// Each benchmark's ns/op is the time from the call of Set to what it says.

// lines passes on whole lines as they come.
type lines struct {
	mu   sync.Mutex
	rest []byte
	out  chan string
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rest = append(l.rest, b...)
	for {
		line, rest, ok := bytes.Cut(l.rest, []byte("\n"))
		if !ok {
			return len(b), nil
		}
		l.rest = rest
		l.out <- string(line)
	}
}

// BenchmarkMEDChangeToBIRD: one MED is changed; BIRD's import filter has seen it.
func BenchmarkMEDChangeToBIRD(b *testing.B) {
	log := &lines{out: make(chan string, 100)}
	r := &router{as: 65001, log: log}
	l := newLab(b, r)
	s := newSpeaker(b, l.ns, l.config())
	s.set(ann(vip1, 1))
	s.start(false)
	eventually(b, 20*time.Second, "flushed", s.flushed)
	med := uint32(100)
	for b.Loop() {
		med++
		want := fmt.Sprintf("medway %s %d", vip1, med)
		s.set(ann(vip1, med))
		for seen := false; !seen; {
			select {
			case line := <-log.out:
				seen = strings.HasSuffix(line, want)
			case <-time.After(10 * time.Second):
				b.Fatalf("BIRD does not say %q", want)
			}
		}
	}
}

// BenchmarkMEDChange: one MED is changed; a router that does nothing else has
// read the UPDATE.
func BenchmarkMEDChange(b *testing.B) { benchmarkSet(b, 1) }

// BenchmarkThousandRoutes: the MED of 1,000 routes is changed at once; the last
// of their UPDATEs has been read.
func BenchmarkThousandRoutes(b *testing.B) { benchmarkSet(b, 1000) }

func benchmarkSet(b *testing.B, n int) {
	read := make(chan int, 10000)
	updates := 0
	r := newRawRouter(b, func(w wire) {
		if !w.greet() {
			return
		}
		_ = w.SetDeadline(time.Time{})
		go func() {
			for tick := time.NewTicker(time.Second); ; <-tick.C {
				if _, err := w.Write(keepalive); err != nil {
					tick.Stop()
					return
				}
			}
		}()
		for {
			m, err := bgp.ParseBGPMessage(w.next(bgp.BGP_MSG_UPDATE), &bgp.MarshallingOption{Use2ByteAS: true})
			if err != nil {
				return
			}
			read <- len(m.Body.(*bgp.BGPUpdate).NLRI)
		}
	})
	s := startRaw(b, r, zap.NewNop())
	await := func(routes int) {
		for routes > 0 {
			select {
			case n := <-read:
				routes -= n
				updates++
			case <-time.After(30 * time.Second):
				b.Fatalf("%d routes did not come", routes)
			}
		}
	}
	await(1)
	med := uint32(100)
	for b.Loop() {
		med++
		if err := s.Set(b.Context(), many(n, med)); err != nil {
			b.Fatal(err)
		}
		await(n)
	}
	b.ReportMetric(float64(updates)/float64(b.N), "updates/op")
}
