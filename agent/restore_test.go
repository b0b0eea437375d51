package agent

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/medway-lb/medway/pkg/store"
)

// backup saves the store as `etcdctl snapshot save` does.
func (n *node) backup() string {
	n.t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{n.etcd.client}})
	if err != nil {
		n.t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	r, err := c.Snapshot(n.t.Context())
	if err != nil {
		n.t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	path := filepath.Join(n.t.TempDir(), "medway.db")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		n.t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if _, err := io.Copy(f, r); err != nil {
		n.t.Fatal(err)
	}
	return path
}

// bump are the flags with which docs/etcd.md restores.
var bump = []string{"--bump-revision", "1000000000", "--mark-compacted"}

// restore puts a backup in the place of the store, under the same cluster id.
func (n *node) restore(backup string, flags ...string) {
	n.t.Helper()
	tool, err := exec.Command("go", "tool", "-n", "go.etcd.io/etcd/etcdutl/v3").Output()
	if err != nil {
		n.t.Fatal("build etcdutl: ", err)
	}
	n.etcd.kill()
	n.etcd.dir += "-restored"
	cmd := exec.Command(strings.TrimSpace(string(tool)), append([]string{"snapshot", "restore", backup, "--data-dir", n.etcd.dir,
		"--name", "m", "--initial-cluster", "m=http://" + n.etcd.peer, "--initial-advertise-peer-urls", "http://" + n.etcd.peer}, flags...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		n.t.Fatalf("restore: %v: %s", err, out)
	}
	n.etcd.start(n.t)
}

// word is what a key holds, "" where it is absent.
func (n *node) word(key string) string {
	n.t.Helper()
	return string(n.get(key).Value)
}

func (n *node) joins(epoch string, names ...string) {
	n.t.Helper()
	eventually(n.t, "the epoch is "+epoch+"...", func() bool { return strings.HasPrefix(n.word("epoch"), epoch) })
	for _, name := range names {
		eventually(n.t, name+" has joined", func() bool { return n.word("joined/"+name) == n.word("epoch") })
	}
}

// silentNode is the key of a node whose agent never runs.
const silentNode = `{"machine_id":"other","site":"dc1","group":"dc1-edge1","ipv4":"192.0.2.12","sync_address":"169.254.9.9","schema":3}`

// TestARestoredBackup: nothing moves, and no VIP goes, until every node has
// written its claims anew; then the store's intent is in force.
func TestARestoredBackup(t *testing.T) {
	for name, flags := range map[string][]string{"behind": nil, "bumped": bump} {
		t.Run(name, func(t *testing.T) {
			n := newActive(t)
			other := newFakes()
			config := testConfig(t, "dc2-lvs-a", "dc2", n.etcd.client)
			_, stop := run(t, config, other.host())
			n.joins("1-", "dc1-lvs-a", "dc2-lvs-a")
			n.put("nodes/dc1-lvs-b", silentNode, "joined/dc1-lvs-b", n.word("epoch"))
			n.claims(claim100)
			backup := n.backup()

			// All that follows is lost: dc2 takes the traffic, and there is another VIP.
			n.put("target_state/v", "dc2", "vips/w", vipValue("203.0.113.11"), "target_state/w", "dc1")
			n.announces("203.0.113.10/32 500, 203.0.113.11/32 100")
			eventually(t, "dc2 is active", func() bool { return other.speaker.routes() == "203.0.113.10/32 100, 203.0.113.11/32 522" })
			n.claims(claimNone)
			eventually(t, "on disk", func() bool {
				s, err := store.LoadSnapshot(n.agent.snapshotFile(), "dc1-lvs-a")
				return err == nil && strings.Contains(listed(s), "vips/w")
			})

			n.restore(backup, flags...)
			n.joins("2-", "dc1-lvs-a", "dc2-lvs-a")
			still := func() bool {
				return n.speaker.routes() == "203.0.113.10/32 500, 203.0.113.11/32 100" &&
					other.speaker.routes() == "203.0.113.10/32 100, 203.0.113.11/32 522" &&
					n.kernel.addresses() == "203.0.113.10, 203.0.113.11"
			}
			n.stays("nothing moves", still)
			n.claims(claimNone) // the backup's was 100
			if got := n.word("claims/dc2-lvs-a/v"); got != claim100 {
				t.Errorf("dc2 claims %s", got)
			}
			if got := n.word("claims/dc1-lvs-a/w"); got != claim100 {
				t.Errorf("dc1 claims %s for what is not in the backup", got)
			}
			eventually(t, "who is waited for is shown", func() bool { return n.fault("joined/dc1-lvs-b", "medwayctl forget dc1-lvs-b") })

			// Over a restart, too: it takes its place above the line, and keeps the VIP.
			epoch := n.get("epoch")
			n.restart()
			n.announces("203.0.113.10/32 510, 203.0.113.11/32 101")
			n.stays("nothing moves", func() bool {
				return n.speaker.routes() == "203.0.113.10/32 510, 203.0.113.11/32 101" && n.kernel.addresses() == "203.0.113.10, 203.0.113.11"
			})
			if now := n.get("epoch"); now.ModRevision != epoch.ModRevision {
				t.Errorf("another epoch: %s after %s", now.Value, epoch.Value)
			}

			n.delete("nodes/dc1-lvs-b") // forgotten
			n.announces("203.0.113.10/32 100")
			n.claims(claim100)
			eventually(t, "dc2 has left", func() bool { return other.speaker.routes() == "203.0.113.10/32 521" })
			if n.kernel.addresses() != "203.0.113.10" || n.fault("joined", "") {
				t.Errorf("%s, %v", n.kernel.addresses(), n.status().Faults)
			}

			// It is over for good: what is on disk continues what is in the store.
			eventually(t, "on disk", func() bool {
				s, err := store.LoadSnapshot(n.agent.snapshotFile(), "dc1-lvs-a")
				return err == nil && strings.Contains(listed(s), "epoch=2-")
			})
			n.restart()
			n.announces("203.0.113.10/32 100")
			stop()
			if got := n.word("epoch"); got != string(epoch.Value) || n.fault("etcd", "") {
				t.Errorf("another epoch after it was over: %s, %v", got, n.status().Faults)
			}
		})
	}
}

// listed is what a snapshot on disk holds.
func listed(s store.Snapshot) string {
	var lines []string
	for _, e := range s.Entries {
		lines = append(lines, strings.TrimPrefix(e.Key, "/medway/v1/")+"="+string(e.Value))
	}
	return strings.Join(lines, "\n")
}

// TestANodeYoungerThanTheBackup puts itself back.
func TestANodeYoungerThanTheBackup(t *testing.T) {
	n := newActive(t)
	n.claims(claim100)
	backup := n.backup()
	other := newFakes()
	a, _ := run(t, testConfig(t, "dc2-lvs-a", "dc2", n.etcd.client), other.host())
	n.put("target_state/v", "dc2")
	n.announces("203.0.113.10/32 500")
	eventually(t, "dc2 is active", func() bool { return other.speaker.routes() == "203.0.113.10/32 100" })
	n.restore(backup, bump...)
	n.joins("2-", "dc1-lvs-a", "dc2-lvs-a")
	n.announces("203.0.113.10/32 100")
	eventually(t, "dc2 has left", func() bool { return other.speaker.routes() == "203.0.113.10/32 521" })
	for _, line := range other.journal.since(0) {
		if strings.Contains(line, "kernel: ") && line != "kernel: 203.0.113.10" {
			t.Errorf("dc2: %s", line)
		}
	}
	if a.view().foreign != nil {
		t.Error(a.view().foreign)
	}
}

// TestAnEpochPutByAPerson makes all nodes write their claims anew.
func TestAnEpochPutByAPerson(t *testing.T) {
	n := newActive(t)
	n.claims(claim100)
	before := n.get("claims/dc1-lvs-a/v").ModRevision
	n.put("epoch", "1764000000-restored")
	n.joins("1764000000-restored", "dc1-lvs-a")
	if now := n.get("claims/dc1-lvs-a/v"); now.ModRevision <= before || string(now.Value) != claim100 {
		t.Errorf("the claim was not written anew: %s", now.Value)
	}
	n.stays("announces 100", func() bool { return n.speaker.routes() == "203.0.113.10/32 100" })
	n.put("epoch", "Not A Word!")
	eventually(t, "the fault is shown", func() bool { return n.fault("epoch", "") })
	n.stays("announces 100", func() bool { return n.speaker.routes() == "203.0.113.10/32 100" })
}

// TestTheEpochIsPutAgain where a person deletes it, and joined where that is deleted.
func TestTheEpochIsPutAgain(t *testing.T) {
	n := newActive(t)
	n.claims(claim100)
	n.joins("1-", "dc1-lvs-a")
	n.delete("epoch")
	n.joins("1-", "dc1-lvs-a")
	n.delete("joined/dc1-lvs-a")
	n.joins("1-", "dc1-lvs-a")
	n.announces("203.0.113.10/32 100")
}

// TestAgentsRaceForTheEpoch: all find the restore at the same time, and one puts
// the epoch.
func TestAgentsRaceForTheEpoch(t *testing.T) {
	n := newActive(t)
	names := []string{"dc1-lvs-a"}
	for _, name := range []string{"dc1-lvs-b", "dc1-lvs-c", "dc2-lvs-a", "dc2-lvs-b"} {
		n.beside(name, name[:3]).run()
		names = append(names, name)
	}
	n.joins("1-", names...)
	n.claims(claim100)
	backup := n.backup()
	n.put("settings", settingsValue) // which is lost
	n.restore(backup, bump...)
	n.joins("2-", names...)
	n.announces("203.0.113.10/32 100")

	c, err := clientv3.New(clientv3.Config{Endpoints: []string{n.etcd.client}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	r, err := c.Get(t.Context(), "/medway/v1/epoch")
	if err != nil {
		t.Fatal(err)
	}
	// The backup's was the first version of the key.
	if kv := r.Kvs[0]; kv.Version != 2 {
		t.Errorf("the epoch was put %d times after the restore, last as %s", kv.Version-1, kv.Value)
	}
}

// TestASpoiledJoinedKeyIsMended: others who start anew could not read it, and wait.
func TestASpoiledJoinedKeyIsMended(t *testing.T) {
	n := newActive(t)
	n.joins("1-", "dc1-lvs-a")
	n.put("joined/dc1-lvs-a", "Not A Word!")
	n.joins("1-", "dc1-lvs-a")
}

// TestANewNodeWaitsForAnEpochThatCanBeRead: with a key of its own all others would
// wait for it to join what nobody can read.
func TestANewNodeWaitsForAnEpochThatCanBeRead(t *testing.T) {
	a := newActive(t)
	a.joins("1-", "dc1-lvs-a")
	word := a.word("epoch")
	a.put("epoch", "Not A Word!")
	b := a.beside("dc1-lvs-b", "dc1")
	b.run()
	eventually(t, "b sees it", func() bool { return b.fault("epoch", "") })
	b.stays("b has no key", func() bool { return a.get("nodes/dc1-lvs-b").ModRevision == 0 })
	a.put("epoch", word)
	a.joins("1-", "dc1-lvs-a", "dc1-lvs-b")
}
