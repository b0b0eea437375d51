package sim

import (
	"math"

	"github.com/medway-lb/medway/pkg/state"
)

// never is later than any time of a schedule.
const never = math.MaxInt64

// route is a MED that one of a site's routers may hold from a node, until gone
// (milliseconds).
type route struct {
	med  state.MED
	gone int64
}

// link is a node's way to its routers: what it told them, what they may hold and
// what they surely hold.
type link struct {
	up    bool
	since int64 // of the session's state, in this process
	// session numbers the sessions; looked is the one at the node's last decision.
	session, looked int
	// told is what the node announced last, sent what it would say again to a
	// router that comes back. pending: the send queue is not empty.
	told    state.MED
	pending bool
	held    []route
	// sure is what every router holds from sureFrom on; before that still before.
	before, sure state.MED
	sureFrom     int64
}

// send gives routers a new MED, or with NoMED a withdrawal.
func (l *link) send(med state.MED, now int64) {
	l.told = med
	if !l.up {
		return
	}
	l.pending = true
	if now >= l.sureFrom {
		l.before = l.sure
	}
	l.sureFrom = never
	l.hold(med)
}

func (l *link) hold(med state.MED) {
	if med == state.NoMED {
		return
	}
	for i := range l.held {
		if l.held[i].med == med {
			l.held[i].gone = never
			return
		}
	}
	l.held = append(l.held, route{med, never})
}

// flush empties the send queue. Routers take up the last message within a settle
// delay; what they held before is gone just before its end, at the worst.
func (l *link) flush(now int64) {
	if !l.up || !l.pending {
		return
	}
	l.pending = false
	for i := range l.held {
		if r := &l.held[i]; r.med != l.told && r.gone > now+settle-1 {
			r.gone = now + settle - 1
		}
	}
	l.sure, l.sureFrom = l.told, now+settle/2
}

// lose ends the session: routers keep what they have for a while.
func (l *link) lose(now int64) {
	if l.up {
		l.since = now
	}
	l.up, l.pending = false, false
	for i := range l.held {
		if l.held[i].gone > now+kept {
			l.held[i].gone = now + kept
		}
	}
	l.before, l.sure, l.sureFrom = state.NoMED, state.NoMED, now
}

// restart ends the session, as a router sees it that helps a restart.
func (l *link) restart(now int64) {
	before, sure, from := l.before, l.sure, l.sureFrom
	if from > now {
		before, sure, from = state.NoMED, l.surely(now), now
	}
	l.lose(now)
	l.before, l.sure, l.sureFrom = before, sure, from
}

// establish begins a session: all is sent anew, and what the router kept stays
// until it has it.
func (l *link) establish(now int64) {
	if l.up {
		return
	}
	l.up, l.since = true, now
	l.session++
	for i := range l.held {
		l.held[i].gone = never
	}
	l.send(l.told, now)
}

// pass drops what routers hold no more.
func (l *link) pass(now int64) {
	left := l.held[:0]
	for _, r := range l.held {
		if r.gone > now {
			left = append(left, r)
		}
	}
	l.held = left
}

// lowest is the best MED that any router may hold, NoMED for none.
func (l *link) lowest() state.MED {
	low := state.NoMED
	for _, r := range l.held {
		if low == state.NoMED || r.med < low {
			low = r.med
		}
	}
	return low
}

// surely is the worst MED that any router holds now, NoMED if one may hold none.
func (l *link) surely(now int64) state.MED {
	if now >= l.sureFrom {
		return l.sure
	}
	if l.before == state.NoMED || l.told == state.NoMED {
		return state.NoMED
	}
	worst := l.told
	for _, r := range l.held {
		worst = max(worst, r.med)
	}
	return worst
}
