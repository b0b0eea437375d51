package bench

import (
	"math"
	"slices"
	"time"
)

// Samples are repeated measurements of one thing.
type Samples []time.Duration

// Quantile is the smallest sample that a share q of all does not exceed
// (nearest rank); 0 of none.
func (s Samples) Quantile(q float64) time.Duration {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	return sorted[max(0, int(math.Ceil(q*float64(len(sorted))))-1)]
}

// plus adds measurements of steps that follow each other, sample by sample.
func plus(steps ...Samples) Samples {
	n := len(steps[0])
	for _, s := range steps {
		n = min(n, len(s))
	}
	sum := make(Samples, n)
	for _, s := range steps {
		for i := range sum {
			sum[i] += s[i]
		}
	}
	return sum
}
