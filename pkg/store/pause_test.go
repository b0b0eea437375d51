package store

import (
	"testing"
	"time"
)

// A hundred agents that lost etcd in the same moment come back one after another.
func TestAttemptsAreSpread(t *testing.T) {
	t.Parallel()
	buckets := [4]int{}
	for range 1000 {
		d := spread(maxPause, 0.5)
		if d < maxPause/2 || d > maxPause*3/2 {
			t.Fatalf("%v: expected %v, more or less by half", d, maxPause)
		}
		buckets[min(3, 4*(d-maxPause/2)/maxPause)]++
	}
	for i, n := range buckets {
		if n < 100 {
			t.Errorf("only %d of 1000 in quarter %d", n, i)
		}
	}
	p := pause{}
	began := time.Now()
	for range 3 {
		p.sleep(t.Context())
	}
	if took := time.Since(began); took < (minPause+2*minPause+4*minPause)/2 {
		t.Errorf("three pauses in %v: they do not grow", took)
	}
}
