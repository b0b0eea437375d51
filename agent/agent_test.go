package agent

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"go.uber.org/zap"

	"github.com/medway-lb/medway/agent/internal/bgp"
	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/store/etcdtest"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

func TestAnAgentBecomesActiveAndFollowsTheTarget(t *testing.T) {
	n := newActive(t)
	n.claims(claim100)
	n.put("target_state/v", "dc2")
	// Nobody is there to take over: it stays (R6).
	eventually(t, "waits", func() bool { return n.vip().Role == "leaving" })
	n.stays("announces 100", func() bool { return n.speaker.routes() == "203.0.113.10/32 100" })
	other := newFakes()
	run(t, testConfig(t, "dc2-lvs-a", "dc2", n.etcd.client), other.host())
	eventually(t, "the new site forces", func() bool { return other.speaker.routes() == "203.0.113.10/32 50" })
	n.announces("203.0.113.10/32 500")
	n.claims(claimNone)
	eventually(t, "the new site normalises", func() bool { return other.speaker.routes() == "203.0.113.10/32 100" })
}

func TestNothingIsAnnouncedBeforeTheKernelHoldsIt(t *testing.T) {
	n := newNode(t)
	n.kernel.broken = errors.New("no luck")
	n.run()
	eventually(t, "two runs", func() bool { return n.kernel.ran() >= 2 })
	if n.speaker.isStarted() {
		t.Error("BGP speaks before the kernel has had a chance")
	}
	// It fails for good: BGP starts, so that the other VIPs have their routes.
	eventually(t, "started", n.speaker.isStarted)
	n.stays("announces nothing", func() bool { return n.speaker.routes() == "" })
	if !n.fault("kernel", "203.0.113.10 is not announced") || n.vip().Role != "not announced" {
		t.Errorf("status %v", n.status())
	}
	n.kernel.set(func(k *fakeKernel) { k.broken = nil })
	n.announces("203.0.113.10/32 100")
}

func TestAKernelThatHoldsAnAddressBarelyIsTheLastResort(t *testing.T) {
	n := newNode(t)
	n.kernel.lacking[netip.MustParseAddr("203.0.113.10")] = bare
	n.run()
	n.announces("203.0.113.10/32 900")
	n.kernel.set(func(k *fakeKernel) { clear(k.lacking) })
	n.announces("203.0.113.10/32 100")
}

func TestAnUnreadableKernelIsTheLastResort(t *testing.T) {
	n := newNode(t)
	n.kernel.broken, n.kernel.unreadable = errors.New("no luck"), errors.New("no netlink")
	n.run()
	n.announces("203.0.113.10/32 900")
}

// TestWhatIsNoTextIsShownAllTheSame: it must not cost the whole status.
func TestWhatIsNoTextIsShownAllTheSame(t *testing.T) {
	n := newNode(t)
	n.kernel.broken = errors.New("no \xff\nluck" + strings.Repeat("\x00", 1<<20))
	n.run()
	eventually(t, "shown in etcd", func() bool {
		value := n.get("/medway/status/dc1-lvs-a").Value
		return strings.Contains(string(value), `no \\xff\\nluck`) && len(value) < 1<<14
	})
}

// TestTheActiveNodeStaysThroughShortFailures: only what lasts moves its calls.
func TestTheActiveNodeStaysThroughShortFailures(t *testing.T) {
	n := newActive(t)
	n.put("vips/v", vipValue("203.0.113.10", "203.0.113.11"))
	n.announces("203.0.113.10/32 100, 203.0.113.11/32 100")

	// What serving does not need: shown, but nothing moves.
	n.kernel.set(func(k *fakeKernel) { k.broken = errors.New("no sysctl") })
	n.stays("active", func() bool { return n.vip().GetMed() == 100 })
	if !n.fault("kernel", "no sysctl") {
		t.Error("not shown")
	}
	// What serving needs.
	n.kernel.set(func(k *fakeKernel) { k.lacking[netip.MustParseAddr("203.0.113.11")] = absent })
	n.announces("203.0.113.10/32 900, 203.0.113.11/32 900")
	n.claims(claimNone)
	n.kernel.set(func(k *fakeKernel) { k.broken = nil; clear(k.lacking) })
	n.announces("203.0.113.10/32 100, 203.0.113.11/32 100")
}

// TestAnAddressOfAFamilyThatTheHostLacks is left out and shown, and keeps nothing
// else from being announced.
func TestAnAddressOfAFamilyThatTheHostLacks(t *testing.T) {
	n := newActive(t)
	n.put("vips/v", vipValue("203.0.113.10", "2001:db8:10::10"))
	eventually(t, "the fault is shown", func() bool { return n.fault("vips/v", "no address of its family") })
	n.put("vips/v", vipValue("203.0.113.10", "2001:db8:10::10", "203.0.113.11"))
	n.announces("203.0.113.10/32 100, 203.0.113.11/32 100")
	if want := announcements(n.agent.view().snapshot, n.agent.self, nil, nil); len(want) != 2 {
		t.Errorf("plan would announce %v", want)
	}
	// One that could announce nothing leaves the VIP to others.
	n.put("vips/w", vipValue("2001:db8:10::11"), "target_state/w", "dc1")
	eventually(t, "the other VIP can't be served", func() bool {
		return slices.ContainsFunc(n.status().Vips, func(v *medwayv1.VIPStatus) bool { return v.Vip == "w" && v.GetMed() == 900 })
	})
	n.restart()
	n.announces("203.0.113.10/32 100, 203.0.113.11/32 100")
}

// TestARouterThatDoesNotSpeakTheFamily: it is shown that the VIP is announced to
// nobody.
func TestARouterThatDoesNotSpeakTheFamily(t *testing.T) {
	n := newActive(t)
	if n.fault("bgp", "") {
		t.Errorf("faults %v", n.status().Faults)
	}
	n.speaker.change(func(s *fakeSpeaker) { s.families = []plan.Family{plan.IPv6} })
	eventually(t, "the fault is shown", func() bool { return n.fault("bgp", "no router has 203.0.113.10") })
	n.speaker.change(func(s *fakeSpeaker) { s.down = true })
	eventually(t, "without a session that says more", func() bool { return !n.fault("bgp", "no router has") })
}

// TestANewAddressIsAnnouncedOnceTheKernelHoldsIt, and keeps nothing else.
func TestANewAddressIsAnnouncedOnceTheKernelHoldsIt(t *testing.T) {
	n := newActive(t)
	n.kernel.set(func(k *fakeKernel) { k.lacking[netip.MustParseAddr("203.0.113.11")] = absent })
	n.put("vips/v", vipValue("203.0.113.10", "203.0.113.11"))
	eventually(t, "the fault is shown", func() bool { return n.fault("kernel", "203.0.113.11 is not announced") })
	n.stays("active with one address", func() bool { return n.speaker.routes() == "203.0.113.10/32 100" })
	n.kernel.set(func(k *fakeKernel) { clear(k.lacking) })
	n.announces("203.0.113.10/32 100, 203.0.113.11/32 100")
}

// TestAnAddressThatGoesLosesItsRouteFirst, and the kernel's part a settle delay
// after routers have taken that.
func TestAnAddressThatGoesLosesItsRouteFirst(t *testing.T) {
	n := newActive(t)
	n.put("vips/v", vipValue("203.0.113.10", "203.0.113.11"))
	n.announces("203.0.113.10/32 100, 203.0.113.11/32 100")
	n.speaker.change(func(s *fakeSpeaker) { s.pending = true })
	n.put("vips/v", vipValue("203.0.113.11"))
	n.announces("203.0.113.11/32 100")
	n.stays("the kernel keeps it while routers may have the route",
		func() bool { return n.kernel.addresses() == "203.0.113.10, 203.0.113.11" })
	n.speaker.change(func(s *fakeSpeaker) { s.pending = false })
	eventually(t, "the kernel let go", func() bool { return n.kernel.addresses() == "203.0.113.11" })
	if got := n.speaker.routes(); got != "203.0.113.11/32 100" {
		t.Errorf("announces %s", got)
	}
}

func TestAnAddressThatMovesToAnotherVIPStays(t *testing.T) {
	n := newActive(t)
	from := n.journal.len()
	n.delete("vips/v")
	n.put("vips/w", vipValue("203.0.113.10"), "target_state/w", "dc1")
	eventually(t, "the other VIP is active", func() bool {
		return n.speaker.routes() == "203.0.113.10/32 100" && len(n.status().Vips) == 1 && n.status().Vips[0].Vip == "w"
	})
	for _, line := range n.journal.since(from) {
		if line == "kernel: " {
			t.Errorf("the address was gone in between: %q", n.journal.since(from))
		}
	}
}

// TestADeletedVIPIsTakenDownInOrder: a farewell, no route, the kernel; and neither
// claim nor ownership stays behind.
func TestADeletedVIPIsTakenDownInOrder(t *testing.T) {
	n := newActive(t)
	from := n.journal.len()
	n.delete("vips/v")
	eventually(t, "the kernel let go", func() bool { return n.kernel.addresses() == "" })
	want := []string{"announce: 203.0.113.10/32 900 shutdown", "announce: ", "kernel: "}
	if got := n.journal.since(from); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got %q, expected %q", got, want)
	}
	n.claims(claimNone)
	eventually(t, "no owner", func() bool { return n.get("owners/dc1/v").ModRevision == 0 })
	eventually(t, "out of the status", func() bool { return len(n.status().Vips) == 0 })

	n.put("vips/v", vipValue("203.0.113.10"))
	n.announces("203.0.113.10/32 100")
	n.claims(claim100)
}

// TestAVIPOfAnotherGroupIsTakenDown, so that a node of the other group can own it.
func TestAVIPOfAnotherGroupIsTakenDown(t *testing.T) {
	n := newActive(t)
	config := testConfig(t, "dc1-lvs-c", "dc1", n.etcd.client)
	config.Group = "dc1-edge2"
	config.Addresses.IPv4 = netip.MustParseAddr("192.0.2.13")
	other := newFakes()
	run(t, config, other.host())
	eventually(t, "the other group has a node", func() bool { return n.get("nodes/dc1-lvs-c").ModRevision != 0 })
	n.put("vips/v", strings.ReplaceAll(vipValue("203.0.113.10"), "dc1-edge1", "dc1-edge2"))
	n.announces("")
	n.claims(claimNone)
	eventually(t, "the other group is active", func() bool { return other.speaker.routes() == "203.0.113.10/32 100" })
}

// TestAVIPDeletedWhileNoAgentRan goes in the same order: routers may have kept
// its route over the restart.
func TestAVIPDeletedWhileNoAgentRan(t *testing.T) {
	n := newActive(t)
	n.claims(claim100)
	n.stop()
	n.delete("vips/v")
	n.restart()
	eventually(t, "started", n.speaker.isStarted)
	eventually(t, "the kernel let go", func() bool { return n.kernel.addresses() == "" })
	lines := strings.Join(n.journal.since(0), "\n")
	if strings.Index(lines, "start: ") > strings.LastIndex(lines, "kernel: ") || !strings.Contains(lines, "kernel: 203.0.113.10\n") {
		t.Errorf("the kernel's part went first:\n%s", lines)
	}
	n.claims(claimNone)
}

// TestAClaimLeftBehindIsRaised: the disk knows nothing of the VIP either.
func TestAClaimLeftBehindIsRaised(t *testing.T) {
	n := newActive(t)
	n.claims(claim100)
	n.stop()
	n.delete("vips/v")
	if err := os.Remove(n.agent.snapshotFile()); err != nil {
		t.Fatal(err)
	}
	n.restart()
	n.claims(claimNone)
	eventually(t, "no owner", func() bool { return n.get("owners/dc1/v").ModRevision == 0 })
	// What never concerned this node is left alone.
	n.put("claims/dc1-lvs-z/v", claim100, "owners/dc1/w", `{"node":"dc1-lvs-z"}`)
	n.stays("another's", func() bool {
		return string(n.get("claims/dc1-lvs-z/v").Value) == claim100 && n.get("claims/dc1-lvs-a/w").ModRevision == 0
	})
}

// TestFailedAnnouncementsDecideNothing: what routers were not told is not claimed.
func TestFailedAnnouncementsDecideNothing(t *testing.T) {
	n := newNode(t)
	n.speaker.broken = errors.New("no BGP")
	n.run()
	eventually(t, "the fault is shown", func() bool { return n.fault("bgp", "no BGP") })
	n.stays("no claim", func() bool { return n.get("claims/dc1-lvs-a/v").ModRevision == 0 })
	n.speaker.change(func(s *fakeSpeaker) { s.broken = nil })
	n.announces("203.0.113.10/32 100")
	if n.fault("bgp", "") {
		t.Error("the fault is still shown")
	}

	// Raising: the claim stays as long as routers may have the old route.
	n.speaker.change(func(s *fakeSpeaker) { s.broken = errors.New("no BGP") })
	n.delete("vips/v")
	eventually(t, "the fault is shown", func() bool { return n.fault("bgp", "no BGP") })
	n.stays("claims 100", func() bool { return string(n.get("claims/dc1-lvs-a/v").Value) == claim100 })
	n.speaker.change(func(s *fakeSpeaker) { s.broken = nil })
	n.claims(claimNone)
}

func TestWithoutASessionNothingIsClaimed(t *testing.T) {
	n := newNode(t)
	n.speaker.down = true
	n.run()
	n.announces("203.0.113.10/32 110")
	n.stays("no owner", func() bool { return n.get("owners/dc1/v").ModRevision == 0 })
	n.speaker.change(func(s *fakeSpeaker) { s.down = false })
	n.announces("203.0.113.10/32 100")
}

// TestKeysOfTheNodeAreMended, whoever deleted or changed them.
func TestKeysOfTheNodeAreMended(t *testing.T) {
	n := newActive(t)
	n.claims(claim100)
	for _, key := range []string{"nodes/dc1-lvs-a", "alive/dc1-lvs-a", "owners/dc1/v", "claims/dc1-lvs-a/v"} {
		before := n.get(key)
		if before.ModRevision == 0 {
			t.Fatalf("%s is not there", key)
		}
		leased := before.Lease != 0
		is := func() bool {
			now := n.get(key)
			return string(now.Value) == string(before.Value) && now.ModRevision != before.ModRevision && (now.Lease != 0) == leased
		}
		n.delete(key)
		eventually(t, key+" is back after it was deleted", is)
		for _, value := range []string{"{", `{"med":"7"}`, string(before.Value)} {
			if !leased && value == string(before.Value) || strings.Contains(key, "nodes/") && value != "{" {
				continue // nothing to mend, or another host
			}
			n.put(key, value)
			before.ModRevision = 0
			eventually(t, key+" is back after "+value, is)
		}
	}
	n.announces("203.0.113.10/32 100")
}

func TestALostLeaseIsReplaced(t *testing.T) {
	n := newActive(t)
	before := n.get("owners/dc1/v")
	n.revoke(before.Lease)
	eventually(t, "owns again, under another lease", func() bool {
		now := n.get("owners/dc1/v")
		return now.Lease != 0 && now.Lease != before.Lease && n.get("alive/dc1-lvs-a").Lease == now.Lease
	})
	n.announces("203.0.113.10/32 100")
}

// TestTheAliveKeyCountsSessions: that the node can own a VIP, or no more, is told at
// once, not only after a lease.
func TestTheAliveKeyCountsSessions(t *testing.T) {
	n := newNode(t)
	n.config.LeaseTTL = 10 * patience
	n.run()
	n.announces("203.0.113.10/32 100")
	counts := func(text string) func() bool {
		return func() bool { return strings.Contains(string(n.get("alive/dc1-lvs-a").Value), text) }
	}
	eventually(t, "one session", counts(`"bgp_sessions":1`))
	n.speaker.change(func(s *fakeSpeaker) { s.down = true })
	eventually(t, "none", func() bool { return !counts("bgp_sessions")() })
	n.speaker.change(func(s *fakeSpeaker) { s.down = false })
	eventually(t, "one again", counts(`"bgp_sessions":1`))
	eventually(t, "still under the lease", func() bool { return n.get("alive/dc1-lvs-a").Lease != 0 })
}

// TestAUsurperStopsEverything: another host has taken the name.
func TestAUsurperStopsEverything(t *testing.T) {
	n := newActive(t)
	good := string(n.get("nodes/dc1-lvs-a").Value)
	usurper := strings.Replace(good, n.agent.machineID, "another-machine", 1)
	n.put("nodes/dc1-lvs-a", usurper)
	eventually(t, "the fault is shown", func() bool { return n.fault("node", "another-machine") })
	n.put("target_state/v", "dc2")
	n.stays("nothing moves", func() bool { return n.speaker.routes() == "203.0.113.10/32 100" })
	if got := string(n.get("nodes/dc1-lvs-a").Value); got != usurper {
		t.Errorf("overwrote the other's key: %s", got)
	}
	n.stop()
	a, err := newAgent(n.config, zap.NewNop(), newFakes().host())
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := a.Run(ctx); err == nil || !strings.Contains(err.Error(), "belongs to another host") {
		t.Errorf("started under another's name: %v", err)
	}
}

// TestTheStatusIsNotWrittenForCountersAlone: under calls they change every second.
func TestTheStatusIsNotWrittenForCountersAlone(t *testing.T) {
	n := newActive(t)
	key := "/medway/status/dc1-lvs-a"
	eventually(t, "a status that is at rest", func() bool {
		before := n.get(key)
		n.stays("", func() bool { return true })
		return before.ModRevision != 0 && before.ModRevision == n.get(key).ModRevision
	})
	at := n.get(key).ModRevision
	calls := uint64(0)
	n.stays("not written again", func() bool {
		calls++
		n.kernel.set(func(k *fakeKernel) { k.conns[netip.MustParseAddr("203.0.113.10")] = connections{active: calls} })
		return n.get(key).ModRevision == at
	})
	eventually(t, "the counters are written in the end", func() bool {
		return strings.Contains(string(n.get(key).Value), `"active_connections":"`)
	})
	// Anything else is written at once.
	n.put("target_state/v", "dc2")
	eventually(t, "the role", func() bool { return strings.Contains(string(n.get(key).Value), `"leaving"`) })
}

// TestNewLeavesNothingBehindWhenItFails: the next one finds the host free.
func TestNewLeavesNothingBehindWhenItFails(t *testing.T) {
	t.Parallel()
	config := testConfig(t, "dc1-lvs-a", "dc1", etcdtest.FreeAddress(t))
	bad := newFakes().host()
	bad.kernel = func() (kernel, error) { return nil, errors.New("no IPVS") }
	if _, err := newAgent(config, zap.NewNop(), bad); err == nil || err.Error() != "no IPVS" {
		t.Fatalf("%v", err)
	}
	bad = newFakes().host()
	bad.speaker = func(bgp.Config, *zap.Logger) (speaker, error) { return nil, errors.New("no BGP") }
	if _, err := newAgent(config, zap.NewNop(), bad); err == nil || err.Error() != "no BGP" {
		t.Fatalf("%v", err)
	}
	if _, err := os.Stat(config.socket()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
	f := newFakes()
	a, err := newAgent(config, zap.NewNop(), f.host())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := newAgent(config, zap.NewNop(), newFakes().host()); err == nil || !strings.Contains(err.Error(), "another agent runs") {
		t.Errorf("a second one: %v", err)
	}
	if _, err := os.Stat(config.socket()); err != nil {
		t.Errorf("the second one took the first one's socket: %v", err)
	}
	a.Close()
	if !f.kernel.closed {
		t.Error("the kernel is open")
	}
}

// TestAVIPCanNotTakeWhatTheHostLivesBy: a router's address as a VIP would be closed
// here, and the session with it.
func TestAVIPCanNotTakeWhatTheHostLivesBy(t *testing.T) {
	n := newActive(t)
	for _, address := range []string{"192.0.2.1", "192.0.2.11"} {
		n.put("vips/w", vipValue(address))
		eventually(t, "said of "+address, func() bool { return n.fault("vips/w", `value "`+address+`"`) })
		n.stays("nothing is made of "+address, func() bool {
			return n.kernel.addresses() == "203.0.113.10" && n.speaker.routes() == "203.0.113.10/32 100"
		})
	}
}
