package agent

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/medway-lb/medway/pkg/plan"
)

const active, standby = "203.0.113.10/32 100", "203.0.113.10/32 111"

// pair is an active node and its standby in the same site.
func newPair(t *testing.T) (n *node, other *fakes, stopOther func()) {
	t.Helper()
	n = newActive(t)
	n.claims(claim100)
	other = newFakes()
	_, stopOther = run(t, testConfig(t, "dc1-lvs-b", "dc1", n.etcd.client), other.host())
	eventually(t, "the other is the standby", func() bool { return other.speaker.routes() == standby })
	n.awaitAble("dc1-lvs-a")
	n.awaitAble("dc1-lvs-b")
	return n, other, stopOther
}

// awaitAble waits until a node has told that routers hear it.
func (n *node) awaitAble(name string) {
	n.t.Helper()
	eventually(n.t, name+" is able", func() bool {
		s := n.agent.view().snapshot
		return s != nil && plan.Able(s, name, "v")
	})
}

// TestARestartIsWithoutATrace: the VIP is handed over first, and the next process
// finds the lease and the ownership as they were; nobody else takes over.
func TestARestartIsWithoutATrace(t *testing.T) {
	n, other, _ := newPair(t)
	for range 3 {
		owner, from, standbys := n.get("owners/dc1/v"), n.journal.len(), other.journal.len()
		n.stop()
		if got := n.journal.since(from); !slices.Equal(got, []string{"announce: 203.0.113.10/32 900 shutdown", "announce: "}) {
			t.Errorf("when it stops: %q", got)
		}
		if got := string(n.get("claims/dc1-lvs-a/v").Value); got != claimNone {
			t.Errorf("stopped with the claim %s", got)
		}
		if got := n.get("owners/dc1/v"); got.ModRevision != owner.ModRevision || got.Lease != n.get("alive/dc1-lvs-a").Lease {
			t.Errorf("stopped with the owner %+v, was %+v", got, owner)
		}
		n.restart()
		<-n.agent.Ready()
		n.awaitAble("dc1-lvs-a")
		n.announces(active)
		if got := n.get("owners/dc1/v"); got.ModRevision != owner.ModRevision || got.Lease != owner.Lease {
			t.Errorf("the owner's key is %+v, was %+v", got, owner)
		}
		if got := n.get("alive/dc1-lvs-a"); got.Lease != owner.Lease {
			t.Errorf("the alive key is bound to %x, expected %x", got.Lease, owner.Lease)
		}
		for _, line := range n.journal.since(0) {
			if !strings.HasPrefix(line, "kernel: ") && !strings.HasSuffix(line, "/32 101") && !strings.HasSuffix(line, active) {
				t.Errorf("when it starts: %q, expected the places of an owner alone", line)
			}
		}
		if got := other.journal.since(standbys); len(got) != 0 {
			t.Errorf("the standby moved: %q", got)
		}
		n.awaitAble("dc1-lvs-a")
	}
}

// TestWithoutAStandbyRoutersKeepTheRoute: there is nobody to hand over to.
func TestWithoutAStandbyRoutersKeepTheRoute(t *testing.T) {
	n := newActive(t)
	n.claims(claim100)
	from := n.journal.len()
	n.stop()
	if got := n.journal.since(from); len(got) != 0 {
		t.Errorf("when it stops: %q", got)
	}
	if got := string(n.get("claims/dc1-lvs-a/v").Value); got != claim100 {
		t.Errorf("claims %s", got)
	}
	n.restart()
	n.announces(active)
}

// TestWithoutEtcdRoutersKeepTheRoute: who else lives can't be known (R7).
func TestWithoutEtcdRoutersKeepTheRoute(t *testing.T) {
	n, _, _ := newPair(t)
	n.etcd.kill()
	eventually(t, "not fresh", func() bool { return strings.Contains(n.vip().Reason, "etcd can't be reached") })
	from := n.journal.len()
	n.stop()
	if got := n.journal.since(from); len(got) != 0 {
		t.Errorf("when it stops: %q", got)
	}
}

// TestTwoThatStopAtOnce do not hand over to each other, not even for a moment: only
// who sees that it is not counted on any more, and that the other one is, goes.
func TestTwoThatStopAtOnce(t *testing.T) {
	for i := range 5 { // who is first is chance
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			n, other, stopOther := newPair(t)
			mine, others := n.journal.len(), other.journal.len()
			var all sync.WaitGroup
			for _, stop := range []func(){n.stop, stopOther} {
				all.Go(stop)
			}
			all.Wait()
			if a, b := n.journal.since(mine), other.journal.since(others); len(a) > 0 && len(b) > 0 {
				t.Errorf("both went: %q, %q", a, b)
			}
			if n.speaker.routes() == "" && other.speaker.routes() == "" {
				t.Error("no route is left")
			}
		})
	}
}

// TestAHandOverHasALimit: a router that takes nothing, or packets that go on
// coming, do not keep an agent from stopping.
func TestAHandOverHasALimit(t *testing.T) {
	for name, spoil := range map[string]func(n *node){
		"router":  func(n *node) { n.speaker.change(func(s *fakeSpeaker) { s.pending = true }) },
		"packets": func(n *node) { n.kernel.set(func(k *fakeKernel) { k.pps = 1000 }) },
	} {
		t.Run(name, func(t *testing.T) {
			n, _, _ := newPair(t)
			spoil(n)
			n.stop() // waits for the end
			if got := n.speaker.routes(); got != "" {
				t.Errorf("announces %s", got)
			}
			if name == "packets" && n.kernel.looked < 3 {
				t.Errorf("looked %d times whether packets come", n.kernel.looked)
			}
		})
	}
}

// TestALeaseThatIsNotToBeResumed: a new one is got, and what the node owned goes
// over to it.
func TestALeaseThatIsNotToBeResumed(t *testing.T) {
	for name, spoil := range map[string]func(n *node){
		"another boot's": func(n *node) {
			n.edit("lease", bootID(), "another-boot")
		},
		"another node's": func(n *node) {
			lease := n.get("alive/dc1-lvs-a").Lease
			n.put("alive/dc1-lvs-b", string(n.get("alive/dc1-lvs-a").Value))
			n.edit("lease", fmt.Sprint(lease), fmt.Sprint(lease+1))
		},
		"damaged":                 func(n *node) { n.edit("lease", "{", "") },
		"of another time to live": func(n *node) { n.config.LeaseTTL *= 2 },
	} {
		t.Run(name, func(t *testing.T) {
			n := newActive(t)
			before := n.get("owners/dc1/v")
			n.stop()
			spoil(n)
			n.restart()
			n.announces(active)
			owner, alive := n.get("owners/dc1/v"), n.get("alive/dc1-lvs-a")
			if owner.Lease == before.Lease || owner.Lease != alive.Lease || owner.Lease == 0 {
				t.Errorf("the owner's lease is %x, that of the alive key %x, before %x", owner.Lease, alive.Lease, before.Lease)
			}
		})
	}
}

// TestALeaseThatRanOutIsReplaced, while no agent ran.
func TestALeaseThatRanOutIsReplaced(t *testing.T) {
	n := newActive(t)
	before := n.get("owners/dc1/v").Lease
	n.stop()
	n.revoke(before)
	n.restart()
	n.announces(active)
	if now := n.get("owners/dc1/v").Lease; now == 0 || now == before {
		t.Errorf("owns by the lease %x, before %x", now, before)
	}
}

// edit changes a word in a file of the state directory.
func (n *node) edit(file, was, is string) {
	n.t.Helper()
	path := n.config.StateDir + "/" + file
	text, err := os.ReadFile(path)
	if err != nil {
		n.t.Fatal(err)
	}
	if !strings.Contains(string(text), was) {
		n.t.Fatalf("%s does not hold %q: %s", file, was, text)
	}
	if err := os.WriteFile(path, []byte(strings.Replace(string(text), was, is, 1)), 0o600); err != nil {
		n.t.Fatal(err)
	}
}
