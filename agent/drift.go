package agent

import (
	"errors"
	"fmt"
	"math/bits"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/medway-lb/medway/pkg/reconcile"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

const (
	// driftShown is how many mended things the status names.
	driftShown = 10
	// editsLogged is how many changes of one run are logged one by one.
	editsLogged = 50
	// driftRemembered bounds how many objects are counted one by one.
	driftRemembered = 10000
)

// drift is what somebody else changed in the kernel and the agent put right.
type drift struct {
	// The plan of the last run, and what that run left undone of it, are the
	// kernel goroutine's own, as is how often each object was mended since.
	plan   *wanted
	undone map[string]bool
	times  map[string]int

	mu     sync.Mutex
	mended uint64
	last   []string // newest first
	at     time.Time
}

// split parts what a run did into what the plan asked for and what mended
// somebody else's change: once a run has brought a plan about, everything is the
// latter that this run did not leave undone.
func (d *drift) split(w *wanted, r reconcile.Report) (planned, mended []reconcile.Edit) {
	brought := d.plan == w && !d.undone[""]
	for _, e := range r.Done {
		id := e.Table + " " + e.Key
		if brought && !d.undone[id] {
			mended = append(mended, e)
			continue
		}
		planned = append(planned, e)
		delete(d.undone, id)
	}
	if d.plan != w || len(d.times) > driftRemembered {
		d.times = map[string]int{}
	}
	d.plan = w
	if brought {
		return planned, mended // what could not be mended now is somebody else's change later too
	}
	d.undone = map[string]bool{}
	for _, err := range r.Failed {
		if a := (notHere{}); errors.As(err, &a) {
			continue // not medway's to make
		}
		what := "" // a table that could not be read: anything may have been left undone
		if f := (*reconcile.Failure)(nil); errors.As(err, &f) {
			what = f.Table + " " + f.Key
		}
		d.undone[what] = true
	}
	return planned, mended
}

// record counts what was mended and logs it. Of somebody who undoes the same
// thing again and again the log tells less and less often.
func (d *drift) record(log *zap.Logger, mended []reconcile.Edit) {
	var lines []string
	for _, e := range mended {
		id := e.Table + " " + e.Key
		d.times[id]++
		n := d.times[id]
		why := cause(e)
		if n > 1 {
			why += fmt.Sprintf("; mended %d times so far", n)
		}
		line := fmt.Sprintf("mended `%s` (%s)", brief(e), why)
		d.note(line)
		if n <= 3 || bits.OnesCount(uint(n)) == 1 {
			lines = append(lines, "drift: "+line)
		}
	}
	logLines(log.Warn, lines)
}

func (d *drift) note(line string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mended++
	d.at = time.Now()
	d.last = append([]string{readable(line)}, d.last[:min(len(d.last), driftShown-1)]...)
}

// status is for the node's status key; nil while nothing was mended.
func (d *drift) status() *medwayv1.Drift {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.mended == 0 {
		return nil
	}
	return &medwayv1.Drift{
		Mended: d.mended, Last: append([]string(nil), d.last...), At: d.at.UTC().Format(time.RFC3339),
	}
}

// cause says what was found.
func cause(e reconcile.Edit) string {
	switch {
	case e.Op == reconcile.Create:
		return e.Table + " was missing"
	case e.Op == reconcile.Delete:
		return e.Table + " is not in the plan"
	case e.Table == "chain":
		return "its rules were others"
	}
	return e.Table + " was " + e.Old
}

// brief is an edit's commands in one line, but not hundreds of a chain's rules.
func brief(e reconcile.Edit) string {
	const most = 3
	more := len(e.Commands) - most
	if more <= 1 {
		return e.String()
	}
	e.Commands = e.Commands[:most]
	return fmt.Sprintf("%s; and %d more", e, more)
}

// briefLines are changes as a diff, one line each.
func briefLines(edits []reconcile.Edit) []string {
	var lines []string
	for _, e := range edits {
		lines = append(lines, mark(e.Op)+" "+brief(e)+was(e))
	}
	return lines
}

// logLines logs one line after the other, up to a limit.
func logLines(log func(string, ...zap.Field), lines []string) {
	for i, line := range lines {
		if i == editsLogged && len(lines) > editsLogged+1 {
			log(fmt.Sprintf("... and %d more", len(lines)-i))
			return
		}
		log(line)
	}
}
