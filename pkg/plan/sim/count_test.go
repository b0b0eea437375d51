package sim

// counter is something that has happened to a world besides faults.
type counter int

// fault is the counter of a fault.
func fault(o op) counter { return counter(o) }

const (
	decidedWithoutEtcd counter = counter(opNumber) + iota
	startedFromDisk
	guardFailedClaim
	guardFailedTarget
	guardFailedOwner
	guardFailedLock
	lostButMade
	lostNotYetMade
	madeLate
	resumed
	sawMalformed
	vipDeleted
	vipPutAgain
	ladderChanged
	lockRemoved
	forgotten
	forgetRefused
	forgetEnded
	backAfterForget
	handedOver
	keptOverStop
	handOverCutShort
	leaseResumed
	restarted
	diskLost
	restoredEtcd
	foundRestore
	allJoined
	switchedAutomatically
	leftTheLine
	rightfulLowest
	settledOnLadder
	settledInPart
	madeBeforeBroken
	switchedByDeath
	counters
)

var counterNames = map[counter]string{
	decidedWithoutEtcd: "decided without etcd", startedFromDisk: "started from the disk",
	guardFailedClaim: "guard failed: claim", guardFailedTarget: "guard failed: target",
	guardFailedOwner: "guard failed: owner", guardFailedLock: "guard failed: lock or pause",
	lostButMade: "outcome unknown: was made", lostNotYetMade: "outcome unknown: not yet made", madeLate: "made late",
	resumed: "resumed by hand", sawMalformed: "saw a malformed value", vipDeleted: "VIP deleted", vipPutAgain: "VIP put again",
	ladderChanged: "ladder changed", lockRemoved: "lock removed", forgotten: "claim forgotten", forgetRefused: "guard failed: forget", forgetEnded: "forget ended: the node lives", backAfterForget: "back at the line after a forget",
	handedOver: "handed over", keptOverStop: "stopped, and routers keep its route", handOverCutShort: "hand-over cut short",
	leaseResumed: "lease resumed", restarted: "restarted together, unnoticed",
	diskLost: "disk lost", restoredEtcd: "etcd was restored", foundRestore: "a node found a restore", allJoined: "all joined the new epoch",
	switchedAutomatically: "switched automatically", leftTheLine: "left the line",
	rightfulLowest: "S1 held for the rightful node", settledOnLadder: "settled on the ladder",
	settledInPart: "settled with faults left", madeBeforeBroken: "switched over, make before break",
	switchedByDeath: "a site's death switched automatically",
}

func (c counter) String() string {
	if c < counter(opNumber) {
		return opNames[c]
	}
	return counterNames[c]
}

// happened counts what happened.
type happened [counters]int

func (h *happened) count(c counter) { h[c]++ }

func (h *happened) countGuard(key keyID) {
	switch {
	case key == keyTarget:
		h.count(guardFailedTarget)
	case key >= keyClaim && key < keyAlive:
		h.count(guardFailedClaim)
	case key >= keyOwner && key < keyClaim:
		h.count(guardFailedOwner)
	default:
		h.count(guardFailedLock)
	}
}

// glue is a guard of the code around plan.Decide that is left out on purpose.
type glue string

// The guards that the tests of the simulator leave out.
const (
	glueClaimUnguarded    glue = "claim-unguarded"
	glueTargetUnguarded   glue = "target-unguarded"
	glueOwnerUnguarded    glue = "owner-unguarded"
	glueCampaignUnguarded glue = "campaign-unguarded"
	glueSwitchTarget      glue = "switch-target-unguarded"
	glueSwitchOwner       glue = "switch-owner-unguarded"
	glueSwitchLock        glue = "switch-lock-unguarded"
	glueSwitchPause       glue = "switch-pause-unguarded"
	glueAlwaysFlushed     glue = "always-flushed"
	glueDownIsFlushed     glue = "down-is-flushed"
	// A session that came back between two decisions passes for one that was never lost.
	glueSessionsUncompared glue = "sessions-uncompared"
	glueAlwaysFresh        glue = "always-fresh"
	glueLateAnswer         glue = "late-answer-taken"
	// A node that stops hands over before others can see that it goes, or never says so.
	glueStopsUnheard glue = "stops-unheard"
	glueStopsUnsaid  glue = "stops-unsaid"
	// A person's forget does not wait, or looks or guards less than it should.
	glueForgetEarly     glue = "forget-early"
	glueForgetUnwatched glue = "forget-unwatched"
	glueForgetClaim     glue = "forget-claim-unguarded"
	glueForgetAlive     glue = "forget-alive-unguarded"
	// A node goes on under a name that another machine has, does not see that it meets another store, takes what it remembers of the
	// former one for this one's, saves while intent is held, or joins too soon.
	glueRestoreUnseen    glue = "restore-unseen"
	glueMemoryOfOldStore glue = "memory-of-the-old-store"
	glueSavesWhileHeld   glue = "saves-while-held"
	glueUsurperIgnored   glue = "usurper-ignored"
	glueJoinsEarly       glue = "joins-early"
)
