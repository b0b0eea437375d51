package sim

import "math/rand/v2"

// script writes a scene into a schedule. Chance has handed out its parts.
type script struct {
	*schedule
	r *rand.Rand
	// lead is a node of the first target's site and next one of another; all are
	// all nodes, others those of any site but lead's.
	lead, next  uint8
	all, others []uint8
	site        []uint16 // of each node
	gap         int32    // before the next event, in milliseconds
}

// scenes are courses of events around one rule each, in which the time or the
// order matters that random events seldom have. One of them stands in some of
// the schedules, with chance in its details.
var scenes = []func(*script){
	(*script).leaves, (*script).comesToTheLine, (*script).isForgotten, (*script).losesTable,
	(*script).isSwitchedTo, (*script).hasNoClaim, (*script).stops, (*script).seesItsLast, (*script).losesAnswer,
	(*script).isRestored, (*script).isRestored, // which has many scenes in it
}

func newScript(s *schedule, r *rand.Rand) *script {
	x := &script{schedule: s, r: r}
	for site, count := range s.sites {
		for range count {
			n := uint8(len(x.all))
			x.all, x.site = append(x.all, n), append(x.site, uint16(site))
			if site > 0 {
				x.others = append(x.others, n)
			}
		}
	}
	x.lead, x.next = uint8(r.IntN(s.sites[0])), x.others[r.IntN(len(x.others))]
	return x
}

// play adds one of the scenes, in a world where all is well or was until now.
func (x *script) play() {
	scene := x.r.IntN(len(scenes))
	for range 3 {
		x.each(opTurn, turnTo(12), x.all...)
	}
	scenes[scene](x)
}

// turnTo is the argument of a turn that ends after so many steps of it.
func turnTo(stop int) uint16 {
	if stop > 10 {
		return 1
	}
	return uint16(4 * stop)
}

// do adds an event, and now and then another one before.
func (x *script) do(o op, n uint8, arg uint16) {
	if x.r.IntN(40) == 0 {
		x.events = append(x.events, event{op: op(x.r.IntN(int(opNumber))), node: oneOf(x, x.all...), arg: x.any()})
	}
	x.events = append(x.events, event{op: o, node: n, arg: arg, after: x.gap + int32(x.r.IntN(60))})
	x.gap = 0
}

func (x *script) each(o op, arg uint16, nodes ...uint8) {
	for _, n := range nodes {
		x.do(o, n, arg)
	}
}

// wait lets time pass, in milliseconds.
func (x *script) wait(from, to int) { x.gap += int32(from + x.r.IntN(to-from)) }

// goOn gives nodes turns for a time, in milliseconds.
func (x *script) goOn(ms int, nodes ...uint8) {
	for ms > 0 {
		x.wait(20, 400)
		ms -= int(x.gap)
		x.do(opTurn, oneOf(x, nodes...), x.any())
	}
}

// any is an argument that chance gives.
func (x *script) any() uint16 { return uint16(x.r.Uint32()) }

// oneOf is one of several, by chance.
func oneOf[T any](x *script, a ...T) T { return a[x.r.IntN(len(a))] }

// leaves: the target goes to next, and lead waits until that is at the line (R6);
// meanwhile something changes.
func (x *script) leaves() {
	x.do(opTarget, x.next, x.site[x.next])
	x.goOn(x.r.IntN(800), x.others...)
	x.each(opTurn, turnTo(12), x.next, x.next, x.lead)
	switch x.r.IntN(6) {
	case 0: // out of sight
		x.do(opCut, x.lead, 0)
		x.wait(ttl/2, ttl/2+500)
		x.each(opStep, 0, x.lead)
		x.each(opHeal, 0, x.lead)
	case 1:
		x.do(opOwnerPut, x.next, 128+uint16(x.next))
	case 2:
		x.do(oneOf(x, opClaimEdit, opOwnerDelete, opExpire, opCrash, opClaimBad), x.next, x.any())
		x.goOn(300, x.lead)
	case 3:
		x.do(oneOf(x, opNoTarget, opBadTarget, opTarget), x.lead, 0)
		x.goOn(500, x.all...)
		x.do(opTarget, x.next, x.site[x.next])
	case 4:
		x.do(opStop, oneOf(x, x.lead, x.next), 0)
		x.goOn(500, x.all...)
	default: // routers hear it anew, or no more, and hold what they had
		x.goOn(x.r.IntN(2*settle), x.lead)
		x.do(opSession, x.lead, oneOf[uint16](x, 0, 2, 3))
		x.goOn(settle, x.lead)
	}
	x.goOn(settle+500, x.lead)
	x.goOn(settle, x.all...)
}

// comesToTheLine: next forces the way, and after a quiet time normalises (R5).
// The quiet is broken, or next can't see whether it is.
func (x *script) comesToTheLine() {
	x.do(opTarget, x.next, x.site[x.next])
	x.goOn(settle+500+x.r.IntN(2*settle), x.lead, x.next)
	switch x.r.IntN(4) {
	case 0:
		x.do(opClaimEdit, x.lead, 2)
		x.each(opTurn, turnTo(12), x.next, x.lead)
	case 1:
		x.do(opCut, x.next, 0)
		x.wait(ttl/2, ttl/2+500)
		x.goOn(settle, x.next)
		x.do(opHeal, x.next, 0)
	case 2:
		x.do(opBreak, x.next, 0)
		x.goOn(settle, x.next)
		x.do(opHeal, x.next, 0)
	default:
		x.do(opClaimBad, x.lead, 0)
		x.do(opRestart, x.next, x.any())
		x.each(opTurn, turnTo(12), x.next, x.next)
		x.do(oneOf(x, opStop, opTurn), x.next, turnTo(12))
		x.goOn(settle, x.next)
	}
	x.goOn(normalise, x.lead, x.next)
}

// isForgotten: a person forgets a node and doesn't wait, or the node comes back (R11).
func (x *script) isForgotten() {
	n := oneOf(x, x.lead, x.lead, x.next)
	x.do(opForget, n, x.any()&^8)
	switch x.r.IntN(3) {
	case 0:
		x.wait(0, kept)
	case 1:
		x.goOn(kept, x.all...)
	default:
		x.wait(kept/2, kept)
		x.do(opStart, n, 0)
		x.goOn(settle, x.all...)
		x.do(opCrash, n, 0)
		x.do(opExpire, n, 0)
		x.goOn(kept/2, x.all...)
	}
	x.do(opForget, n, x.any())
	x.do(opLate, n, 0)
}

// losesTable: nodes are cold, and no warm one is left, or comes back (R9).
func (x *script) losesTable() {
	for _, n := range x.all {
		switch x.r.IntN(7) { // or nothing
		case 0:
			x.do(opCrash, n, 0)
			x.do(opExpire, n, 0)
		case 1:
			x.do(opParity, n, 0)
		case 2, 3, 4, 5:
			x.do(opReboot, n, 0)
		}
	}
	if x.r.IntN(4) > 0 {
		x.each(opRenew, 0, x.all...)
	}
	x.goOn(keepalive*x.r.IntN(16)/10+1, x.all...)
}

// isSwitchedTo: the target's site is gone, and its traffic comes to others, while
// something forbids to switch, or has just done so (R10).
func (x *script) isSwitchedTo() {
	x.automatic = true
	for n := range x.sites[0] {
		x.do(opCrash, uint8(n), 0)
		x.do(opExpire, uint8(n), 0)
	}
	x.goOn(x.r.IntN(arriveSettle), x.others...)
	switch x.r.IntN(5) {
	case 0:
		x.do(opPause, x.next, 0)
		x.goOn(x.r.IntN(arriveSettle), x.others...)
		x.do(opHeal, x.next, 1)
	case 1:
		x.do(opLock, x.next, 0)
		x.goOn(x.r.IntN(arriveSettle), x.others...)
		x.do(opUnlock, x.next, 0)
	case 2:
		x.do(opCut, x.next, 0)
	case 3:
		x.do(oneOf(x, opTarget, opSameTarget, opDeaf, opStart), uint8(x.r.IntN(x.sites[0])), 0)
	default:
		x.goOn(x.r.IntN(arriveSettle), x.others...)
		x.do(oneOf(x, opDrain, opBreak, opSession, opExpire, opWithdraw, opOwnerDelete, opStop), x.next, x.any()&^3)
	}
	x.goOn(arriveFor+arriveSettle, x.others...)
}

// hasNoClaim: next owns its site before its first claim is there (R6), which it
// can only while the world is new.
func (x *script) hasNoClaim() {
	x.events = nil
	for range 3 {
		x.do(opTurn, x.lead, turnTo(12))
	}
	x.do(opTurn, x.next, turnTo(4))
	x.each(opStep, 0, x.next)
	x.do(opApply, x.next, 2*uint16(ownerWrite)+1)
	x.do(opTarget, x.next, x.site[x.next])
	x.goOn(settle+500, x.lead)
}

// stops: an agent hands over what routers may need, and does not hear from etcd.
func (x *script) stops() {
	n := oneOf(x, x.lead, x.next)
	x.do(opStop, n, 0)
	x.goOn(2*settle, n)
	for range 12 + x.r.IntN(8) {
		x.wait(20, 300)
		x.do(oneOf(x, opTurn, opStep, opLose), n, x.any()|1)
	}
	x.do(opStart, n, 0)
}

// seesItsLast: a node sees some news, and is cut off before it acts on that (R7).
func (x *script) seesItsLast() {
	n := oneOf(x, x.lead, x.next)
	switch x.r.IntN(4) {
	case 0:
		n = x.next
		x.do(opTarget, n, x.site[n])
	case 1:
		x.do(oneOf(x, opExpire, opClaimEdit, opOwnerPut, opOwnerDelete), oneOf(x, x.all...), x.any())
	default:
		x.do(opDrain, n, 0)
	}
	x.do(opTurn, n, turnTo(oneOf(x, 2, 2, 12)))
	x.do(opCut, n, 0)
	if x.r.IntN(3) == 0 {
		x.do(opSession, n, 0)
	}
	x.wait(ttl/2, ttl-500)
	x.goOn(settle, n)
}

// losesAnswer: next never hears what became of its claim, which is made late (R2).
func (x *script) losesAnswer() {
	x.do(opTarget, x.next, x.site[x.next])
	x.do(opTurn, x.next, turnTo(3))
	x.do(opLose, x.next, x.any())
	switch x.r.IntN(4) {
	case 0:
		x.goOn(settle, x.next)
	case 1:
		x.do(oneOf(x, opTarget, opSameTarget, opOwnerDelete, opRestart), x.next, x.any())
	}
	x.do(opLate, x.next, x.any())
	x.do(oneOf(x, opStep, opTurn), x.next, turnTo(12))
	x.goOn(settle, x.all...)
}

// isRestored: much moves after a backup, and then that is all there is (R13). Nodes
// come back to it one by one, some from their disk; people want something else.
func (x *script) isRestored() {
	if x.r.IntN(2) == 0 {
		x.do(opTarget, x.next, x.site[x.next])
		x.goOn(x.r.IntN(3*settle), x.all...)
		if x.r.IntN(2) == 0 {
			x.goOn(normalise+settle, x.all...)
		}
	}
	switch x.r.IntN(5) {
	case 0:
		x.do(oneOf(x, opDrain, opLock, opUnlock, opPause, opNoTarget), x.lead, 0)
		x.goOn(settle, x.all...)
	case 1: // what the backup lacks
		x.do(opVIP, x.lead, 0)
		x.goOn(x.r.IntN(500), x.all...)
		x.do(opVIP, x.lead, 0)
		x.goOn(3*settle, x.all...)
	case 2: // whoever carries the traffic is silent soon, and has no claim in the backup
		x.do(oneOf(x, opDrain, opWithdraw), x.lead, 1)
		x.do(opRestore, x.lead, 63<<6)
		x.do(oneOf(x, opRestart, opCrash), x.lead, 1)
		x.each(opStart, 0, x.all...)
		x.goOn(2*settle, x.all...)
		return
	}
	for range 1 + x.r.IntN(2) {
		back := uint16(x.r.IntN(40))
		if x.r.IntN(2) == 0 {
			back = uint16(x.r.IntN(8))
		}
		x.do(opRestore, x.lead, back<<6|x.any()&63)
		for range x.r.IntN(4) {
			switch n := oneOf(x, x.all...); x.r.IntN(6) {
			case 0:
				x.do(oneOf(x, opRestart, opReboot, opCrash), n, x.any()|uint16(x.r.IntN(2)*3))
			case 1:
				x.do(opTarget, n, x.site[n])
			case 2:
				x.do(oneOf(x, opBreak, opSession, opStop, opExpire), n, x.any())
			default:
				x.do(opHeal, n, 0)
			}
			x.goOn(x.r.IntN(settle), x.all...)
		}
		x.each(opStart, 0, x.all...)
		x.each(opHeal, 0, x.all...)
		x.goOn(x.r.IntN(3*settle), x.all...)
	}
	x.goOn(settle, x.all...)
}
