package drill

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/medway-lb/medway/integration/lab"
	"github.com/medway-lb/medway/integration/sbc/sipp"
)

// pauseOf is the time between two requests of a call, with so many calls of all kinds: more
// than 30 requests in a second are too many for an emulated processor.
func pauseOf(calls int) time.Duration {
	return max(2*time.Second, time.Duration(calls)*time.Second/30)
}

// answer is how long an answer may take: on an emulated processor seconds.
const answer = 20 * time.Second

// Calls are calls that SIPp holds from the clients' namespace.
type Calls struct {
	dir   string
	want  int
	pause time.Duration
	cmd   *exec.Cmd
	done  chan struct{}
	err   error
}

// startCalls begins n calls.
func startCalls(ctx context.Context, l *lab.Lab, t Traffic, dir string, n int, pause time.Duration) (*Calls, error) {
	if err := t.dropResets(ctx, l); err != nil {
		return nil, err
	}
	return start(ctx, l, t, dir, sipp.Run{Scenario: sipp.Call, Calls: n, Rate: 10, Pause: pause})
}

func start(ctx context.Context, l *lab.Lab, t Traffic, dir string, run sipp.Run) (*Calls, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if err := sipp.Prepare(dir); err != nil {
		return nil, err
	}
	run, err := t.run(l, run)
	if err != nil {
		return nil, err
	}
	args, err := run.Args()
	if err != nil {
		return nil, err
	}
	cmd := l.Command(ctx, t.From, append([]string{"sipp"}, args...)...)
	cmd.Dir = dir
	screen, err := os.Create(filepath.Join(dir, "screen"))
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = screen, screen
	if err := cmd.Start(); err != nil {
		screen.Close()
		return nil, fmt.Errorf("sipp: %w", err)
	}
	c := &Calls{dir: dir, want: run.Calls, pause: run.Pause, cmd: cmd, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		defer screen.Close()
		c.err = cmd.Wait()
	}()
	return c, nil
}

// Count is how the calls stand.
type Count struct {
	// Alive calls have had an answer lately; by backend.
	Alive map[string]int
	// Silent calls have had none, Strayed ones one from another backend.
	Silent, Strayed, Ended int
}

// Total is the number of calls that are alive.
func (c Count) Total() int {
	n := 0
	for _, k := range c.Alive {
		n += k
	}
	return n
}

func (c Count) String() string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(c.Alive)) {
		parts = append(parts, fmt.Sprintf("%s %d", name, c.Alive[name]))
	}
	return fmt.Sprintf("%d alive (%s)", c.Total(), strings.Join(parts, ", "))
}

// count counts the calls that had an answer after since.
func (c *Calls) count(since time.Time) (Count, error) {
	events, err := sipp.ReadLog(c.dir)
	if err != nil {
		return Count{}, err
	}
	s := sipp.Summarize(events, since)
	out := Count{Alive: s.Up, Silent: s.Silent, Strayed: s.Strayed}
	for _, n := range s.Down {
		out.Ended += n
	}
	return out, nil
}

// answered waits until every call has had an answer since a moment, or is lost
// for good: then it returns how they stand.
func (c *Calls) answered(ctx context.Context, since time.Time) (Count, error) {
	deadline := since
	if since.IsZero() {
		deadline = time.Now()
	}
	deadline = deadline.Add(c.pause + answer + 10*time.Second)
	for {
		n, err := c.count(since)
		if err != nil || n.Total() == c.want || c.ended() || time.Now().After(deadline) {
			return n, err
		}
		if err := wait(ctx, 200*time.Millisecond); err != nil {
			return n, err
		}
	}
}

func (c *Calls) ended() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// tellEnd lets all calls say BYE.
func (c *Calls) tellEnd() error { return sipp.End(c.dir) }

// end waits, after tellEnd, for SIPp's own verdict.
func (c *Calls) end(ctx context.Context) (sipp.Stats, error) {
	select {
	case <-c.done:
	case <-ctx.Done():
		return sipp.Stats{}, ctx.Err()
	case <-time.After(2*answer + time.Minute):
		return sipp.Stats{}, errors.New("sipp did not end")
	}
	stats, err := sipp.ReadStats(c.dir)
	if err != nil {
		return stats, err
	}
	return stats, nil
}

// kill ends SIPp whatever its calls do.
func (c *Calls) kill() {
	if !c.ended() {
		_ = c.cmd.Process.Kill()
	}
	<-c.done
}

// newCalls makes n short calls and says which backends took them.
func newCalls(ctx context.Context, l *lab.Lab, t Traffic, dir string, n int) (map[string]int, error) {
	c, err := start(ctx, l, t, dir, sipp.Run{Scenario: sipp.NewCalls, Calls: n, Rate: n, Pause: 100 * time.Millisecond})
	if err != nil {
		return nil, err
	}
	defer c.kill()
	select {
	case <-c.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(2 * answer):
	}
	count, err := c.count(time.Time{})
	if err != nil {
		return nil, err
	}
	events, err := sipp.ReadLog(dir)
	if err != nil {
		return nil, err
	}
	if count.Ended != n {
		text, _ := os.ReadFile(filepath.Join(dir, sipp.ErrorFile))
		return nil, fmt.Errorf("%d of %d new calls succeeded: %.2000s", count.Ended, n, text)
	}
	return sipp.Summarize(events, time.Time{}).Down, nil
}

// wait waits, unless ctx ends.
func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
