package agent

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/medway-lb/medway/pkg/store"
)

// TestAStartWithoutEtcdServesFromDisk, above the line but where the process before
// it stood, and moves to etcd when it comes back.
func TestAStartWithoutEtcdServesFromDisk(t *testing.T) {
	n := newActive(t)
	n.claims(claim100)
	n.stop()
	if st, err := os.Stat(n.agent.snapshotFile()); err != nil || st.Mode() != 0o600 {
		t.Errorf("the snapshot's mode: %v %v", st, err)
	}
	n.etcd.kill()
	n.restart()
	n.announces("203.0.113.10/32 101")
	eventually(t, "says what it acts on", func() bool { return n.status().FromDisk != "" })
	if s := n.agent.source(); s.Source != "disk" || s.Saved == nil || s.Fresh || s.Revision == 0 {
		t.Errorf("%+v", s)
	}
	n.stays("nothing moves", func() bool { return n.speaker.routes() == "203.0.113.10/32 101" })

	n.etcd.start(t)
	n.announces("203.0.113.10/32 100")
	n.claims(claim100)
	eventually(t, "acts on etcd", func() bool { return n.status().FromDisk == "" && n.agent.source().Fresh })
	eventually(t, "the status is written", func() bool {
		return strings.Contains(string(n.get("/medway/status/dc1-lvs-a").Value), `"role":"active"`)
	})
}

func TestARunningAgentStaysWithoutEtcd(t *testing.T) {
	n := newActive(t)
	n.etcd.kill()
	eventually(t, "not fresh", func() bool { return strings.Contains(n.vip().Reason, "etcd can't be reached") })
	n.stays("nothing moves", func() bool { return n.speaker.routes() == "203.0.113.10/32 100" })
	n.etcd.start(t)
	eventually(t, "fresh", func() bool { return n.vip().Reason == "owner in the target site" })
}

// TestAnUnusableSnapshotIsPutAsideAndSaid, and the agent goes on with etcd.
func TestAnUnusableSnapshotIsPutAsideAndSaid(t *testing.T) {
	n := newNode(t)
	path := filepath.Join(n.config.StateDir, "snapshot")
	if err := store.SaveSnapshot(path, store.Snapshot{Node: "dc1-lvs-a", Revision: 1}); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, reason string
		text         []byte
	}{
		{"damaged", "checksum", bytes.Replace(good, []byte("dc1"), []byte("dc2"), 1)},
		{"cut short", "checksum", good[:len(good)-10]},
		{"empty", "does not start with", nil},
		{"of a later format", "another version", bytes.Replace(good, []byte("/1 "), []byte("/2 "), 1)},
	} {
		if err := os.WriteFile(path, test.text, 0o600); err != nil {
			t.Fatal(err)
		}
		n.fakes = newFakes()
		n.run()
		n.announces("203.0.113.10/32 100")
		if !n.fault("snapshot", test.reason) {
			t.Errorf("%s: not shown: %v", test.name, n.status().Faults)
		}
		if kept, err := os.ReadFile(path + ".damaged"); err != nil || !bytes.Equal(kept, test.text) {
			t.Errorf("%s: not kept: %q %v", test.name, kept, err)
		}
		n.stop()
		if _, err := store.LoadSnapshot(path, "dc1-lvs-a"); err != nil {
			t.Errorf("%s: no good one after: %v", test.name, err)
		}
	}

	// That of another node, as on a cloned disk; without etcd it is not used either.
	if err := store.SaveSnapshot(path, store.Snapshot{Node: "dc1-lvs-b", Revision: 1}); err != nil {
		t.Fatal(err)
	}
	n.etcd.kill()
	n.fakes = newFakes()
	n.run()
	eventually(t, "put aside", func() bool { _, err := os.Stat(path + ".damaged"); return err == nil && n.agent.view().unusable != nil })
	if v := n.agent.view(); v.from != nowhere || !strings.Contains(v.unusable.Error(), "dc1-lvs-b") {
		t.Errorf("%+v", v)
	}
	// The host's own status says so, though there is nothing to act on.
	if s := n.local(); s.Snapshot.Source != "none" || !strings.Contains(string(s.Node), "is that of node") || !strings.Contains(string(s.Node), "192.0.2.1") {
		t.Errorf("%+v %s", s.Snapshot, s.Node)
	}
}

// TestASnapshotThatCantBeSavedIsSaid: a start without etcd would go by an old one.
func TestASnapshotThatCantBeSavedIsSaid(t *testing.T) {
	n := newActive(t)
	path := n.agent.snapshotFile()
	eventually(t, "saved", func() bool { return os.Remove(path) == nil })
	eventually(t, "something is in the way", func() bool { return os.MkdirAll(filepath.Join(path, "x"), 0o700) == nil })
	n.put("vips/v", vipValue("203.0.113.10", "203.0.113.11"))
	eventually(t, "said", func() bool { return n.fault("snapshot", "that on disk is old") })
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	eventually(t, "mended", func() bool {
		_, err := store.LoadSnapshot(path, "dc1-lvs-a")
		return err == nil && !n.fault("snapshot", "")
	})
}

// TestAnUnchangedSnapshotIsDatedAnew while etcd confirms it, now and then.
func TestAnUnchangedSnapshotIsDatedAnew(t *testing.T) {
	n := newActive(t)
	n.claims(claim100)
	date := func() time.Time {
		s, err := store.LoadSnapshot(n.agent.snapshotFile(), "dc1-lvs-a")
		if err != nil {
			return time.Time{}
		}
		return s.Saved
	}
	eventually(t, "saved, and at rest", func() bool {
		before := date()
		n.stays("", func() bool { return true })
		return !before.IsZero() && date().Equal(before)
	})
	before := date()
	as := savedAs{n.agent.stores, n.agent.view().snapshot.Revision, time.Now()}
	if n.agent.saveSnapshot(as); !date().Equal(before) {
		t.Error("saved again at once")
	}
	as.at = as.at.Add(-datedInterval)
	eventually(t, "dated anew", func() bool { n.agent.saveSnapshot(as); return date().After(before) })
	before = date()
	n.etcd.kill()
	eventually(t, "not fresh", func() bool { return !n.agent.keeper.Fresh() })
	if n.agent.saveSnapshot(as); !date().Equal(before) {
		t.Error("dated anew though etcd is out of reach")
	}
}

// replaceEtcd puts an etcd with other data in the place of the one that is there.
func (n *node) replaceEtcd() {
	n.t.Helper()
	n.etcd.kill()
	n.etcd.dir += "-other"
	n.etcd.start(n.t)
}

// TestAStrangeStoreIsNotTaken: an emptied etcd takes nothing down, at a restart
// neither; until a person accepts it.
func TestAStrangeStoreIsNotTaken(t *testing.T) {
	n := newActive(t)
	n.claims(claim100)
	n.replaceEtcd()
	eventually(t, "said", func() bool { return n.fault("etcd", "medway-agent accept") })
	n.stays("nothing moves", func() bool {
		return n.speaker.routes() == "203.0.113.10/32 100" && n.kernel.addresses() == "203.0.113.10"
	})
	eventually(t, "said in etcd too", func() bool {
		return strings.Contains(string(n.get("/medway/status/dc1-lvs-a").Value), "medway-agent accept")
	})

	n.restart()
	eventually(t, "said", func() bool { return n.fault("etcd", "medway-agent accept") })
	n.announces("203.0.113.10/32 101") // from its disk, so above the line
	n.stays("nothing moves", func() bool {
		return n.speaker.routes() == "203.0.113.10/32 101" && n.kernel.addresses() == "203.0.113.10"
	})
	if got := n.get("nodes/dc1-lvs-a").ModRevision; got != 0 {
		t.Error("wrote into a store that is not accepted")
	}
	if n.status().FromDisk == "" || n.agent.source().NotTaken == "" {
		t.Errorf("%v %+v", n.status(), n.agent.source())
	}

	// An operator loads the intent again, and has it taken.
	n.put("settings", settingsValue, "pools/sbc", poolValue, "backends/sbc/b1", backendValue,
		"vips/v", vipValue("203.0.113.10"), "target_state/v", "dc1")
	n.stays("nothing moves", func() bool { return n.speaker.routes() == "203.0.113.10/32 101" })
	if !n.agent.accept() {
		t.Fatal("nothing to accept")
	}
	n.announces("203.0.113.10/32 100")
	n.claims(claim100)
	if n.agent.accept() {
		t.Error("accepted twice")
	}
	if n.fault("etcd", "") {
		t.Error("the fault is still shown")
	}
}

// TestAnAcceptedStoreGetsTheClaimAnew: the one that is announced under is missing
// in it, and its revisions are behind those that this process has written at.
func TestAnAcceptedStoreGetsTheClaimAnew(t *testing.T) {
	n := newNode(t)
	for range 500 { // so that the new store stays behind
		n.put("pools/other", poolValue)
	}
	n.run()
	n.announces("203.0.113.10/32 100")
	n.claims(claim100)
	n.replaceEtcd()
	eventually(t, "said", func() bool { return n.fault("etcd", "medway-agent accept") })
	n.put("settings", settingsValue, "pools/sbc", poolValue, "backends/sbc/b1", backendValue,
		"vips/v", vipValue("203.0.113.10"), "target_state/v", "dc1", "claims/dc1-lvs-a/v", claimNone)
	n.agent.accept()
	n.claims(claim100)
	eventually(t, "owner", func() bool { return n.vip().Reason == "owner in the target site" })
	n.announces("203.0.113.10/32 100")
	// It is not stuck: it follows the target and claims again.
	n.put("target_state/v", "dc2")
	eventually(t, "leaves", func() bool { return n.vip().Role == "leaving" })
}

// TestAStoreThatWentOnIsTaken after a restart, whatever was deleted in it.
func TestAStoreThatWentOnIsTaken(t *testing.T) {
	n := newActive(t)
	n.stop()
	n.put("vips/w", vipValue("203.0.113.11"), "target_state/w", "dc1")
	n.delete("vips/v", "target_state/v")
	n.restart()
	n.announces("203.0.113.11/32 100")
	if n.fault("etcd", "") {
		t.Errorf("%v", n.status().Faults)
	}
}

// TestARestartWithoutEtcdMovesNothing, also where another node of the site has a
// better rank; nor does etcd's return.
func TestARestartWithoutEtcdMovesNothing(t *testing.T) {
	n := newNode(t)
	b := n.beside("dc1-lvs-b", "dc1")
	n.config.LeaseTTL, b.config.LeaseTTL = 6*time.Second, 6*time.Second // longer than it takes to come back
	b.run()
	b.announces("203.0.113.10/32 100")
	n.run()
	n.announces("203.0.113.10/32 110")
	eventually(t, "on b's disk", func() bool {
		s, err := store.LoadSnapshot(b.agent.snapshotFile(), "dc1-lvs-b")
		return err == nil && strings.Contains(listed(s), "claims/dc1-lvs-b/v="+claim100) && strings.Contains(listed(s), "nodes/dc1-lvs-a=")
	})
	before := n.journal.len()
	n.etcd.kill()
	b.restart()
	b.announces("203.0.113.10/32 102") // routers had its 100 so far, and prefer it to 110
	b.stays("nothing moves", func() bool { return b.speaker.routes() == "203.0.113.10/32 102" })
	n.etcd.start(t)
	b.announces("203.0.113.10/32 100")
	eventually(t, "a has seen it", func() bool { return n.agent.source().Fresh })
	n.stays("", func() bool { return true })
	if moved := n.journal.since(before); len(moved) > 0 {
		t.Errorf("the standby moved: %q", moved)
	}
}
