package drill

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/medway-lb/medway/integration/lab"
	"github.com/medway-lb/medway/integration/sbc/sipp"
)

// Held is calls that are held while something happens to the lab.
type Held struct {
	lab   *lab.Lab
	kinds []Traffic
	calls []*Calls
	want  int
	pulse *pulse
}

// Hold begins n calls of each kind (none named: TCP over IPv4), and returns when all are
// established and, unless somebody keeps them from it, known to every LVS host. Dir takes
// SIPp's files.
func Hold(ctx context.Context, l *lab.Lab, kinds []Traffic, n int, dir string) (h *Held, err error) {
	if len(kinds) == 0 {
		kinds = []Traffic{{}}
	}
	h = &Held{lab: l, want: n * len(kinds)}
	defer func() {
		if err != nil {
			h.Kill()
		}
	}()
	for _, t := range kinds {
		t = t.withDefault()
		// A directory that has an earlier log would tell of its calls too.
		sub := filepath.Join(dir, "calls-"+t.String())
		if err := os.RemoveAll(sub); err != nil {
			return h, err
		}
		c, err := startCalls(ctx, l, t, sub, n, pauseOf(h.want))
		if err != nil {
			return h, err
		}
		h.kinds, h.calls = append(h.kinds, t), append(h.calls, c)
	}
	for i, c := range h.calls {
		count, err := c.answered(ctx, time.Time{})
		if err == nil && count.Total() < n {
			err = fmt.Errorf("only %d of %d calls were established: see %s", count.Total(), n, c.dir)
		}
		if err != nil {
			return h, fmt.Errorf("%s: %w", h.kinds[i], err)
		}
	}
	if err := h.synced(ctx, n); err != nil {
		return h, err
	}
	h.pulse, err = startPulse(ctx, l)
	return h, err
}

// synced waits until every LVS host knows the calls; in vain where sync is sabotaged.
func (h *Held) synced(ctx context.Context, n int) error {
	for _, host := range h.lab.Topology().Role(lab.RoleLVS) {
		if d, err := h.lab.Daemon(host.Name, "agent"); err != nil || !d.Alive() {
			continue
		}
		_ = Until(ctx, syncTime, func() error {
			entries, err := connections(ctx, h.lab, host.Name, h.kinds)
			for i := range entries {
				if entries[i] < n && err == nil {
					err = fmt.Errorf("%s has %d of %d connections of %s", host.Name, entries[i], n, h.kinds[i])
				}
			}
			return err
		})
	}
	return ctx.Err()
}

// State is how held calls stand.
type State struct {
	// Calls that were established, and of them those that are alive: at the end, those
	// that said BYE and were answered.
	Established, Alive int
	// Strayed calls got an answer from another backend than their own.
	Strayed int
	// Gap is the longest time without an answer since the last State, as a client sees it
	// who asks every 100 ms.
	Gap time.Duration
}

// Lost tells whether a call was lost.
func (s State) Lost() bool { return s.Alive < s.Established || s.Strayed > 0 }

func (s State) String() string {
	return fmt.Sprintf("established=%d alive=%d lost=%d strayed=%d gap=%.2fs", s.Established, s.Alive, s.Established-s.Alive, s.Strayed, s.Gap.Seconds())
}

// Ask waits until every call has had an answer from now on, or can have none any more.
func (h *Held) Ask(ctx context.Context) (State, error) {
	s, now := State{Established: h.want}, time.Now()
	for i, c := range h.calls {
		count, err := c.answered(ctx, now)
		if err != nil {
			return s, fmt.Errorf("%s: %w", h.kinds[i], err)
		}
		s.Alive += count.Total()
		s.Strayed += count.Strayed
	}
	s.Gap = h.pulse.longest()
	return s, nil
}

// End lets every call say BYE, and returns SIPp's own verdict.
func (h *Held) End(ctx context.Context) (State, error) {
	s := State{Established: h.want, Gap: h.pulse.longest()}
	h.pulse.stop()
	for i, c := range h.calls {
		if err := c.tellEnd(); err != nil {
			return s, fmt.Errorf("%s: %w", h.kinds[i], err)
		}
	}
	for i, c := range h.calls {
		stats, err := c.end(ctx)
		if err != nil {
			return s, fmt.Errorf("%s: %w", h.kinds[i], err)
		}
		s.Alive += stats.Successful
		events, err := sipp.ReadLog(c.dir)
		if err != nil {
			return s, fmt.Errorf("%s: %w", h.kinds[i], err)
		}
		s.Strayed += sipp.Summarize(events, time.Time{}).Strayed
	}
	return s, nil
}

// Trouble tells of the calls that have had no answer since a moment: their backend, and
// when they had the last one; and what SIPp has to say.
func (h *Held) Trouble(since time.Time) string {
	var b strings.Builder
	for i, c := range h.calls {
		events, err := sipp.ReadLog(c.dir)
		if err != nil {
			fmt.Fprintf(&b, "%s: %v\n", h.kinds[i], err)
		}
		last := map[string]sipp.Event{}
		for _, e := range events {
			last[e.CallID] = e
		}
		for _, id := range slices.Sorted(maps.Keys(last)) {
			if e := last[id]; e.At.Before(since) && e.What != "down" {
				fmt.Fprintf(&b, "%s: %s, on %s, was answered last at %s\n", h.kinds[i], id, e.Backend, e.At.Format("15:04:05.000"))
			}
		}
		if text, err := os.ReadFile(filepath.Join(c.dir, sipp.ErrorFile)); err == nil {
			fmt.Fprintf(&b, "%s: %.2000s\n", h.kinds[i], text)
		}
	}
	return b.String()
}

// Kill ends all calls at once, where they are not to be judged any more.
func (h *Held) Kill() {
	for _, c := range h.calls {
		c.kill()
	}
	if h.pulse != nil {
		h.pulse.stop()
	}
}

// NewCalls makes n short calls and says which backends took them, as "dc1-sbc1 5, dc1-sbc2 5".
func NewCalls(ctx context.Context, l *lab.Lab, n int, dir string) (string, error) {
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	went, err := newCalls(ctx, l, Traffic{}.withDefault(), dir, n)
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(counts(went)), nil
}
