package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/medway-lb/medway/integration/drill"
	"github.com/medway-lb/medway/integration/lab"
)

// TestLabRestoredEtcd restores all members from a backup that is older than a
// switchover, as docs/etcd.md says but without mending it: the agents put it right
// with the rights that they have, and then the backup's target is in force again.
// Nothing else on the hosts changes.
func TestLabRestoredEtcd(t *testing.T) {
	l := up(t)
	settled(t, l)
	backup := filepath.Join(t.TempDir(), "medway.db")
	out, err := l.OutputAs(t.Context(), lab.Root, lab.Witness, "env", "ETCDCTL_ENDPOINTS="+l.Endpoints()[0],
		filepath.Join(l.BinDir(), "etcdctl"), "snapshot", "save", backup)
	if err != nil {
		t.Fatal(err, out)
	}
	key := func(key string) (string, error) {
		value, _, err := l.Get(t.Context(), lab.Witness, "/medway/v1/"+key)
		return value, err
	}
	if epoch, err := key("epoch"); err != nil || !strings.HasPrefix(epoch, "1-") {
		t.Errorf("the epoch is %q before, %v", epoch, err)
	}
	if err := l.SetTarget(t.Context(), "sip-1", "dc2"); err != nil {
		t.Fatal(err)
	}
	until(t, "dc2 is active", func() bool { return med(t, l, "dc2") == 100 && med(t, l, "dc1") > 100 })

	var hosts []string
	kernels := map[string]string{}
	for _, n := range l.Topology().Role(lab.RoleLVS) {
		hosts = append(hosts, n.Name)
		kernels[n.Name] = kernel(t, l, n.Name)
	}
	restoreEtcd(t, l, backup)
	until(t, "every node has joined", func() bool {
		epoch, err := key("epoch") // an error: the members are electing
		for _, host := range hosts {
			if joined, e := key("joined/" + host); err != nil || e != nil || joined != epoch {
				return false
			}
		}
		return strings.HasPrefix(epoch, "2-")
	})
	settled(t, l)
	for _, host := range hosts {
		if after := kernel(t, l, host); after != kernels[host] {
			t.Errorf("%s: the kernel changed:\n%s\nbecame\n%s", host, kernels[host], after)
		}
	}
}

// restoreEtcd puts a backup in the place of what all members have.
func restoreEtcd(t *testing.T, l *lab.Lab, backup string) {
	t.Helper()
	var cluster []string
	for _, m := range l.Topology().Role(lab.RoleEtcd) {
		cluster = append(cluster, fmt.Sprintf("%s=https://%s:2380", m.Name, m.Addr))
		if err := l.StopEtcd(t.Context(), m.Name, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range l.Topology().Role(lab.RoleEtcd) {
		data := filepath.Join(l.Dir(), "etcd", m.Name)
		if err := os.RemoveAll(data); err != nil {
			t.Fatal(err)
		}
		out, err := l.Output(t.Context(), m.Name, filepath.Join(l.BinDir(), "etcdutl"), "snapshot", "restore", backup,
			"--bump-revision", "1000000000", "--mark-compacted", "--data-dir", data, "--name", m.Name,
			"--initial-cluster", strings.Join(cluster, ","), "--initial-cluster-token", "medway-lab",
			"--initial-advertise-peer-urls", fmt.Sprintf("https://%s:2380", m.Addr))
		if err != nil {
			t.Fatal(err, out)
		}
	}
	for _, node := range l.EtcdNodes() {
		if err := l.StartEtcd(node); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "etcd answers", func() bool { return l.EtcdHealthy(t.Context(), lab.Witness) == nil })
}

// until waits for a condition.
func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	err := drill.Until(t.Context(), 2*time.Minute, func() error {
		if !cond() {
			return fmt.Errorf("not yet: %s", what)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
