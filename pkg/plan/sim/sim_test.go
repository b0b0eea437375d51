package sim

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

var (
	seedFlag    = flag.Uint64("sim.seed", 0, "run the schedule of this `seed` alone, and print it")
	manyFlag    = flag.Int("sim.schedules", 100_000, "`number` of schedules")
	fromFlag    = flag.Uint64("sim.from", 1, "the first `seed`")
	forFlag     = flag.Duration("sim.for", 0, "go on for this `time`, whatever the number")
	glueFlag    = flag.String("sim.glue", "", "leave out this `guard` of the code around the decisions")
	plantedFlag = flag.Int("sim.planted", 30_000, "`number` of schedules that must find each planted fault")
	faultFlag   = flag.String("sim.fault", "", "plant only the faults that match this `regexp`")
	briefFlag   = flag.Bool("sim.brief", false, "print nothing but the first promise that is broken")
)

// TestMain steps back: this takes all processors for minutes, and tests of BFD
// beside it have timers.
func TestMain(m *testing.M) {
	_ = syscall.Setpriority(syscall.PRIO_PROCESS, 0, 19)
	os.Exit(m.Run())
}

// TestSchedules runs random schedules. A promise that is broken is printed with
// a short schedule that breaks it, and with the seed to run it again.
func TestSchedules(t *testing.T) {
	g := glue(*glueFlag)
	if *seedFlag != 0 {
		if w := generate(*seedFlag).run(g, func(line string) { t.Log(line) }); w.fail != "" {
			report(t, *seedFlag, w, g)
		}
		return
	}
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // worlds are small and short-lived
	start := time.Now()
	seed, stop := *fromFlag-1, *fromFlag-1+uint64(*manyFlag)
	type failure struct {
		seed uint64
		w    *world
	}
	var next atomic.Uint64
	var failed atomic.Pointer[failure]
	next.Store(seed)
	totals := make([]happened, runtime.GOMAXPROCS(0))
	var wg sync.WaitGroup
	for i := range totals {
		wg.Go(func() {
			for failed.Load() == nil {
				seed := next.Add(1)
				if *forFlag == 0 && seed > stop || *forFlag != 0 && time.Since(start) > *forFlag {
					next.Add(^uint64(0))
					return
				}
				w := generate(seed).run(g, nil)
				if w.fail != "" {
					failed.CompareAndSwap(nil, &failure{seed, w})
				}
				for c, n := range w.happened {
					totals[i][c] += n
				}
			}
		})
	}
	wg.Wait()
	if failed := failed.Load(); failed != nil {
		report(t, failed.seed, failed.w, g)
		return
	}
	var total happened
	for i := range totals {
		for c, n := range totals[i] {
			total[c] += n
		}
	}
	var text strings.Builder
	for c, n := range total {
		if c == int(opFaults) || c > int(opFaults) {
			fmt.Fprintf(&text, "\n%9d %s", n, counter(c))
			if n == 0 && stop-seed >= 10_000 {
				t.Errorf("%s: never happened", counter(c))
			}
		}
	}
	t.Logf("%d schedules in %s, seeds from %d%s", next.Load()-seed, time.Since(start).Round(time.Second/10), seed+1, text.String())
}

// report prints how a seed's schedule broke a promise in w, and the short form of it.
func report(t *testing.T, seed uint64, w *world, g glue) {
	t.Helper()
	if *briefFlag {
		t.Fatalf("%s: %s (seed %d)", w.fail, w.why, seed)
	}
	short := shrink(generate(seed), g)
	var trace strings.Builder
	short.run(g, func(line string) { trace.WriteString(line + "\n") })
	t.Fatalf("%s: %s\n%s%sagain: go test ./pkg/plan/sim -run TestSchedules -v -sim.seed=%d", w.fail, w.why, short, trace.String(), seed)
}
