package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"
)

// withdrawals are the VIPs that a person has withdrawn on this node. They outlive
// the process, in a file, until the same person or another resumes them.
type withdrawals struct {
	// saving is held while the file is written: one change at a time.
	saving sync.Mutex
	vips   map[string]withdrawal // Agent.mu guards it
	// unreadable is why the file could not be used at the start.
	unreadable error
}

type withdrawal struct {
	Since  time.Time `json:"since"`
	Reason string    `json:"reason,omitempty"`
	now    bool      // without the farewell
}

func (w withdrawal) String() string {
	text := "by hand since " + w.Since.Format(time.RFC3339)
	if w.Reason != "" {
		text += ": " + w.Reason
	}
	return text
}

func (c Config) withdrawalsFile() string { return filepath.Join(c.StateDir, "withdrawn.json") }

// readWithdrawals reads the file; there are none where it is missing or damaged.
func readWithdrawals(path string) (map[string]withdrawal, error) {
	var vips map[string]withdrawal
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return map[string]withdrawal{}, nil
	}
	if err == nil {
		vips, err = decodeWithdrawals(text)
	}
	if err != nil {
		return map[string]withdrawal{}, fmt.Errorf("%s: %w", path, err)
	}
	return vips, nil
}

// decodeWithdrawals reads what setWithdrawals wrote.
func decodeWithdrawals(text []byte) (map[string]withdrawal, error) {
	var vips map[string]withdrawal
	if err := json.Unmarshal(text, &vips); err != nil {
		return nil, err
	}
	if vips == nil {
		return nil, errors.New("null: expected an object")
	}
	return vips, nil
}

// loadWithdrawals reads the file. One that can't be read means that what was
// withdrawn is announced again, which is said.
func (a *Agent) loadWithdrawals() {
	path := a.config.withdrawalsFile()
	vips, err := readWithdrawals(path)
	if err != nil {
		a.withdrawn.unreadable = err
		a.log.Error("what was withdrawn by hand is not known, and announced", zap.Error(err))
		if err := os.Rename(path, path+".damaged"); err != nil {
			a.log.Error("can't put it aside", zap.Error(err))
		}
	}
	for vip, w := range vips {
		a.log.Warn(vip + ": is withdrawn " + w.String())
	}
	a.withdrawn.vips = vips
}

// setWithdrawals changes what is withdrawn, and saves it. The change is in force
// also where it can't be saved: a full disk must not keep a VIP announced.
func (a *Agent) setWithdrawals(change func(map[string]withdrawal)) error {
	a.withdrawn.saving.Lock()
	defer a.withdrawn.saving.Unlock()
	a.mu.Lock()
	vips := maps.Clone(a.withdrawn.vips)
	change(vips)
	a.withdrawn.vips = vips
	a.mu.Unlock()
	poke(a.wake)
	text, err := json.Marshal(vips)
	if err == nil {
		err = store.ReplaceFile(a.config.withdrawalsFile(), append(text, '\n'))
	}
	if err != nil {
		err = fmt.Errorf("done, but can't be kept for the next start: %w", err)
		a.log.Error("withdrawals", zap.Error(err))
	}
	return err
}

// handWithdrawals are what is withdrawn by hand now.
func (a *Agent) handWithdrawals() map[string]withdrawal {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.withdrawn.vips // never changed, only replaced
}

// errUnknownVIP names a VIP that this node does not serve.
type errUnknownVIP struct {
	vip   string
	known []string
}

func (e errUnknownVIP) Error() string {
	if len(e.known) == 0 {
		return fmt.Sprintf("VIP %q: this node serves none", e.vip)
	}
	return fmt.Sprintf("VIP %q: expected one of this node's, %q", e.vip, e.known)
}

// knows refuses a VIP that this node does not serve. While it has no snapshot to
// act on yet, the VIPs of the one on disk count.
func (a *Agent) knows(vip string) error {
	v := a.view()
	a.mu.Lock()
	before := a.before
	a.mu.Unlock()
	var known []string
	switch {
	case v.snapshot != nil:
		known = plan.VIPs(v.snapshot, a.self)
	case before != nil:
		known = slices.Sorted(maps.Keys(before))
	default:
		return fmt.Errorf("VIP %q: which ones this node serves is not known yet: etcd has not answered, and there is no snapshot on disk", vip)
	}
	if !slices.Contains(known, vip) {
		return errUnknownVIP{vip, known}
	}
	return nil
}

// withdrawVIP takes a VIP's routes back until it is resumed, and says what was done.
func (a *Agent) withdrawVIP(vip, reason string, now bool) (string, error) {
	was, already := a.handWithdrawals()[vip]
	if !already {
		if err := a.knows(vip); err != nil {
			return "", err
		}
	}
	reason = state.Printable(reason)
	w := withdrawal{Since: time.Now().UTC().Truncate(time.Second), Reason: reason, now: now}
	if already {
		w.Since, w.now = was.Since, now || was.now
		if reason == "" {
			w.Reason = was.Reason
		}
	}
	err := a.setWithdrawals(func(vips map[string]withdrawal) { vips[vip] = w })
	a.log.Warn(vip+": withdrawn by hand", zap.String("reason", w.Reason), zap.Bool("now", w.now))
	if already {
		return fmt.Sprintf("%s: was withdrawn already, %s", vip, was), err
	}
	return vip + ": withdrawn", err
}

// resumeVIP ends a withdrawal, and says what was done.
func (a *Agent) resumeVIP(vip string) (string, error) {
	if _, withdrawn := a.handWithdrawals()[vip]; !withdrawn {
		if err := a.knows(vip); err != nil {
			return "", err
		}
		return vip + ": is not withdrawn", nil
	}
	err := a.setWithdrawals(func(vips map[string]withdrawal) { delete(vips, vip) })
	a.log.Warn(vip + ": resumed by hand")
	return vip + ": resumed", err
}

// handWithdrawn is what the loop decides with.
func (d *decider) handWithdrawn() map[string]*plan.Withdrawal {
	out := map[string]*plan.Withdrawal{}
	for vip, w := range d.handWithdrawals() {
		out[vip] = &plan.Withdrawal{Reason: w.String(), Now: w.now}
	}
	return out
}
