package bench

import (
	"testing"
	"time"
)

func TestQuantileIsTheNearestRank(t *testing.T) {
	hundred := make(Samples, 100)
	for i := range hundred {
		hundred[99-i] = 1 + time.Duration(i)
	}
	for _, test := range []struct {
		samples Samples
		q       float64
		want    time.Duration
	}{
		{nil, 0.5, 0},
		{Samples{7}, 0.99, 7},
		{Samples{3, 1, 2}, 0.5, 2},
		{Samples{4, 1, 3, 2}, 0.5, 2},
		{hundred, 0.5, 50},
		{hundred, 0.99, 99},
		{hundred, 1, 100},
	} {
		if got := test.samples.Quantile(test.q); got != test.want {
			t.Errorf("quantile %v of %d samples is %d, expected %d", test.q, len(test.samples), got, test.want)
		}
	}
}

func TestStepsAddUpSampleBySample(t *testing.T) {
	sum := plus(Samples{1, 2, 3}, Samples{10, 20}, Samples{100, 200, 300})
	if len(sum) != 2 || sum[0] != 111 || sum[1] != 222 {
		t.Errorf("got %v", sum)
	}
}
