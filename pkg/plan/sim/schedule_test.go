package sim

import (
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/medway-lb/medway/pkg/state"
)

// event is one thing that happens. Every event means something in every world,
// or nothing, so that any part of a schedule is a schedule.
type event struct {
	op   op
	node uint8
	arg  uint16
	// after is how long after the one before it happens, in milliseconds.
	after int32
}

type op uint8

// What happens. Those after opFaults are faults, or what people do.
const (
	opTurn  op = iota
	opStale    // a turn on what the node has seen already
	opSee
	opStep
	opFlush
	opApply
	opAnswer
	opRenew
	opLate
	opStart
	opHeal
	opFaults
	opTarget op = iota - 1
	opSameTarget
	opNoTarget
	opBadTarget
	opExpire
	opCrash
	opRestart
	opReboot
	opCut
	opLose
	opOwnerPut
	opOwnerDelete
	opClaimBad
	opClaimEdit
	opVIP
	opVIPBad
	opLadder
	opSession
	opBreak
	opWithdraw
	opDrain
	opLock
	opUnlock
	opPause
	opParity
	opDeaf
	opForget
	opStop
	opRestore
	opUsurp
	opNumber
)

var opNames = [opNumber]string{
	"turn", "turn without news", "see", "step", "flush", "apply", "answer", "renew", "late write", "start", "heal",
	"target put", "the same target put again", "target deleted", "malformed target", "lease ended", "crash", "restart", "reboot", "cut off from etcd", "answer lost",
	"owner's key put by hand", "owner's key deleted by hand", "malformed claim", "claim changed by hand",
	"VIP deleted or put again", "malformed VIP", "another ladder", "session lost", "can't serve", "withdrawn by hand",
	"drained", "locked by hand", "lock removed", "paused", "parity reached", "rates unknown", "a person forgets a node", "told to stop", "etcd restored from a backup", "another machine takes the name",
}

// schedule is a world, what happens in it, and how it ends.
type schedule struct {
	setup
	events []event
	end    ending
}

// ending says what is well again after the events.
type ending struct {
	target int
	// faulty are bits of nodes that stay dead, cut off, unable or drained; how
	// has two bits for each.
	faulty, how int
	// switchover: a person's at the end. death: the target's site dies.
	switchover, death bool
	// stops are bits of nodes that are told to stop at once, and start again.
	stops int
	// forget: a person forgets those that stay dead.
	forget bool
}

// generate makes the schedule of a seed.
func generate(seed uint64) schedule {
	r := rand.New(rand.NewPCG(seed, 7))
	s := schedule{setup: setup{sites: topologies[r.IntN(len(topologies))], automatic: r.IntN(3) == 0, preference: r.IntN(4) == 0}}
	if r.IntN(3) == 0 {
		s.ladder = r.IntN(len(ladders))
	}
	nodes := 0
	for _, n := range s.sites {
		nodes += n
	}
	// Each schedule has some kinds of faults only: with all of them few get anywhere.
	var faults []op
	some := 1 + r.IntN(3)
	for f := opFaults; f < opNumber; f++ {
		if r.IntN(5) < some && (f != opLadder || r.IntN(4) == 0) {
			faults = append(faults, f)
		}
	}
	often := 3 + r.IntN(20) // one in so many
	calm := 4 + r.IntN(8)   // turns that go well, in sixteen
	length := 10 + r.IntN(80)
	s.events = make([]event, length)
	for i := range s.events {
		e := event{node: uint8(r.IntN(nodes)), arg: uint16(r.Uint32()), after: int32(r.IntN(200))}
		if r.IntN(12) == 0 {
			e.after = int32(r.IntN(4000))
		}
		switch x := r.IntN(16); {
		case len(faults) > 0 && r.IntN(often) == 0:
			e.op = faults[r.IntN(len(faults))]
		case x < calm:
			e.op = opTurn
		default:
			e.op = opStale + op(r.IntN(int(opFaults-opStale)))
		}
		s.events[i] = e
	}
	if r.IntN(4) == 0 {
		s.events = s.events[:r.IntN(2)*r.IntN(length)/2] // after nothing, or half of it at most
		newScript(&s, r).play()
	}
	s.end = ending{target: r.IntN(len(s.sites)), switchover: r.IntN(8) == 0, death: s.automatic && r.IntN(4) == 0}
	if r.IntN(8) == 0 {
		s.end.stops = r.IntN(1 << nodes)
	}
	if !s.end.switchover && r.IntN(3) == 0 {
		s.end.faulty, s.end.how = r.IntN(1<<nodes), r.IntN(1<<(2*maxNodes))
		if s.end.forget = r.IntN(4) == 0; s.end.forget {
			s.end.how = 0 // all dead
		}
	}
	return s
}

// run lets a schedule happen, up to the first promise that is broken.
func (s schedule) run(g glue, trace func(string)) *world {
	w := newWorld(s.setup)
	w.glue, w.trace = g, trace
	for _, n := range w.nodes {
		w.start(n, false)
	}
	for _, e := range s.events {
		w.pass(int64(e.after))
		w.happen(e)
		w.check()
		if w.fail != "" {
			return w
		}
	}
	w.finish(s.end)
	return w
}

func (w *world) happen(e event) {
	n := w.nodes[e.node]
	arg := int(e.arg)
	if w.trace != nil {
		w.say("%s: %s (%d)", opNames[e.op], n.self.Name, arg)
	}
	switch e.op {
	case opTurn:
		stop := 11
		if arg%4 == 0 {
			stop = arg / 4 % 11
		}
		w.turn(n, stop, arg)
	case opStale:
		w.staleTurn(n, arg)
	case opSee:
		if n.up && n.fromStore && n.seen < w.store.revision {
			w.see(n, n.seen+1+int64(arg)%(w.store.revision-n.seen))
		}
	case opStep:
		w.step(n)
	case opFlush:
		if n.up && n.decided && !n.deaf {
			n.link.establish(w.now)
		}
		if arg%2 == 0 {
			n.link.flush(w.now)
		}
	case opApply:
		for k, x := range n.writes {
			if x != nil && (arg%2 == 0 || k == arg/2%int(kinds)) {
				w.apply(x)
			}
		}
	case opAnswer:
		for k := range kinds {
			w.answer(n, k, false)
		}
	case opRenew:
		w.renew(n)
	case opLate:
		w.makeLate(arg)
	case opStart:
		if !n.up {
			w.start(n, false)
		}
	case opHeal:
		w.heal(n, arg)
	default:
		w.count(fault(e.op))
		w.fault(e.op, n, arg)
	}
}

// makeLate lets etcd make a write of which its node knows nothing more.
func (w *world) makeLate(arg int) {
	if len(w.late) == 0 {
		return
	}
	i := arg % len(w.late)
	x := w.late[i]
	w.late = append(w.late[:i:i], w.late[i+1:]...)
	w.apply(x)
	if !x.committed {
		return
	}
	w.count(madeLate)
	if n := w.nodes[x.node]; w.glue == glueLateAnswer && x.kind == claimWrite && n.started == x.process {
		n.memory.Committed(x.claim, x.revision)
	}
}

// heal ends one of a node's troubles.
func (w *world) heal(n *node, arg int) {
	drain := keyDrain + keyID(n.index)
	switch {
	case n.cut && arg%2 == 0:
		w.cut(n, false)
	case n.deaf:
		n.deaf = false
	case n.broken:
		n.broken = false
	case w.store.now().Nodes[n.self.Name].MachineID != n.self.Name:
		w.store.put(entry{key: keyNode + keyID(n.index), value: n.key("")})
	case n.withdrawn:
		n.withdrawn = false
		w.count(resumed)
	case w.store.present[drain].value != nil:
		w.store.put(entry{key: drain})
	case n.deafTo != 0:
		n.deafTo = 0
	case w.store.present[keyPause].value != nil:
		w.store.put(entry{key: keyPause})
	case w.store.present[keyVIP].value == nil:
		w.toggleVIP()
	}
}

var order = []byte(`{"since":"2026-01-01T00:00:00Z"}`)

// fault lets one thing go wrong, or a person do something.
func (w *world) fault(o op, n *node, arg int) {
	owner := keyOwner + keyID(n.site)
	claim := keyClaim + keyID(n.index)
	switch o {
	case opTarget:
		w.putTarget(siteNames[arg%len(w.sites)])
	case opSameTarget:
		w.putTarget(w.target)
	case opNoTarget:
		w.store.put(entry{key: keyTarget})
	case opBadTarget:
		bad := [][]byte{[]byte("dc9"), []byte("dc 1"), []byte("")}[arg%3]
		if len(bad) == 0 {
			bad = []byte{' '}
		}
		w.store.put(entry{key: keyTarget, value: bad, malformed: true})
	case opExpire:
		// That of this process, or of one before it.
		for id, l := range w.store.leases {
			if l.node == n.index && l.alive && (int64(id) != n.lease || arg%2 == 0) {
				w.store.expire(int64(id))
			}
		}
	case opCrash, opRestart, opReboot:
		if n.up && n.fromStore && (n.hold == nil || w.glue == glueSavesWhileHeld) {
			n.saved = n.generation
			n.disk = n.seen - int64(arg/4)%max(1, n.seen-w.store.first+1)
			n.disk = max(n.disk, min(n.seen, w.laddered)) // see opVIPBad
		}
		w.crash(n)
		if o == opReboot && arg%4 == 3 && !n.cut && (!w.restored || !w.joined[w.store.now().Epoch.Word]) {
			// With another disk. Where no epoch says so it could not know of a restore.
			n.saved, n.disk = w.store.generation(), 0
			w.count(diskLost)
		}
		if o != opCrash {
			w.start(n, o == opReboot)
		}
	case opCut:
		w.cut(n, true)
	case opLose:
		if arg%4 < 2 {
			w.step(n)
		}
		for k := range kinds {
			w.answer(n, k, true)
		}
		if arg%2 == 0 {
			w.makeLate(len(w.late) - 1) // it comes a moment too late
		}
	case opOwnerPut:
		e := entry{key: owner, value: w.owners[arg%len(w.nodes)]}
		switch other := w.nodes[arg/8%len(w.nodes)]; {
		case arg/64%3 == 0:
			e.value, e.malformed = garbage, true
		case arg/64%3 == 1 && other.lease != 0 && w.store.leases[other.lease].alive:
			e.value, e.lease = w.owners[n.index], other.lease // a person may attach a lease
		}
		w.store.put(e)
	case opOwnerDelete:
		w.store.put(entry{key: owner})
	case opClaimBad:
		w.store.put(entry{key: claim, value: garbage, malformed: true})
	case opClaimEdit:
		if n.up { // one that is dead has nobody to mend it
			med := []state.MED{state.NoMED, 0, w.line(), state.MED(arg / 4 % 300)}[arg%4]
			w.store.put(entry{key: claim, value: claims[med]})
			n.edited = true
		}
	case opVIP:
		w.toggleVIP()
	case opVIPBad:
		// Where the ladder has changed, a node whose disk is older would start on
		// the one before: PROTOCOL has one ladder for all.
		if w.store.present[keyVIP].value != nil && !w.twoLadders {
			w.store.put(entry{key: keyVIP, value: garbage, malformed: true})
		}
	case opLadder:
		w.reladder(arg % len(ladders))
	case opSession:
		n.deaf = arg%4 == 0
		n.link.lose(w.now)
		if n.up && n.decided && arg%4 > 1 {
			n.link.establish(w.now) // before the node looks
			n.link.flush(w.now)
		}
	case opBreak:
		n.broken = true
	case opWithdraw:
		n.withdrawn, n.atOnce = true, arg%2 == 0
	case opDrain:
		w.store.put(entry{key: keyDrain + keyID(n.index), value: order})
	case opLock:
		w.store.put(entry{key: keyLock, value: lockValue})
	case opUnlock:
		w.unlock()
	case opPause:
		w.store.put(entry{key: keyPause, value: order})
	case opParity:
		n.parity = true
	case opDeaf:
		n.deafTo = arg
	case opForget:
		w.forget(n, arg)
	case opStop:
		w.tell(n)
	case opRestore:
		w.restore(arg)
	case opUsurp:
		w.store.put(entry{key: keyNode + keyID(n.index), value: n.key("another")})
	}
}

func (s schedule) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "sites %v, ladder %d, automatic %t, preference %t, end %+v\n", s.sites, s.ladder, s.automatic, s.preference, s.end)
	return b.String()
}

// shrink leaves out of a schedule what the same promise is broken without.
func shrink(s schedule, g glue) schedule {
	promise := s.run(g, nil).fail
	breaks := func(events []event, end ending, c setup) bool {
		return schedule{c, events, end}.run(g, nil).fail == promise
	}
	for size := max(1, len(s.events)/2); ; {
		shorter := false
		for from := 0; from < len(s.events); {
			to := min(from+size, len(s.events))
			without := append(append([]event(nil), s.events[:from]...), s.events[to:]...)
			if to < len(s.events) {
				// Time goes on all the same, or else it doesn't.
				sum := int32(0)
				for _, e := range s.events[from:to] {
					sum += e.after
				}
				kept := append([]event(nil), without...)
				kept[from].after += sum
				if !breaks(without, s.end, s.setup) && breaks(kept, s.end, s.setup) {
					without = kept
				}
			}
			if breaks(without, s.end, s.setup) {
				s.events, shorter = without, true
			} else {
				from = to
			}
		}
		if size == 1 && !shorter {
			break
		}
		size = max(1, size/2)
	}
	for _, simpler := range []func(*schedule){
		func(s *schedule) { s.ladder = 0 },
		func(s *schedule) { s.automatic, s.end.death = false, false },
		func(s *schedule) { s.preference = false },
		func(s *schedule) { s.end.faulty = 0 },
		func(s *schedule) { s.end.stops = 0 },
		func(s *schedule) { s.end.switchover = false },
		func(s *schedule) { s.end.death = false },
	} {
		try := s
		if simpler(&try); breaks(try.events, try.end, try.setup) {
			s = try
		}
	}
	for i := range s.events {
		try := append([]event(nil), s.events...)
		try[i].after = 0
		if breaks(try, s.end, s.setup) {
			s.events = try
		}
	}
	return s
}
