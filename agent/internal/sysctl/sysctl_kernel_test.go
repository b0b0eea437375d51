package sysctl

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/medway-lb/medway/agent/internal/link/nstest"
	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/reconcile"
)

func TestKernelSetsWhatSysctlReads(t *testing.T) {
	nstest.Enter(t)
	nstest.Run(t, "ip", "link", "add", "eth0.7", "type", "veth")
	converges(t, map[plan.Sysctl]string{
		"net.ipv4.conf.all.rp_filter":     "0",
		"net.ipv4.conf.eth0/7.rp_filter":  "2",
		"net.ipv4.conf.eth0/7.arp_ignore": "1",
		"net.ipv4.ip_local_port_range":    "20000 30001",
	})
}

func TestKernelSetsIPVSParameters(t *testing.T) {
	nstest.Enter(t, nstest.IPVS)
	converges(t, map[plan.Sysctl]string{
		"net.ipv4.vs.sync_threshold":            "0 0",
		"net.ipv4.vs.sync_refresh_period":       "10",
		"net.ipv4.vs.sync_version":              "1",
		"net.ipv4.vs.sync_ports":                "1",
		"net.ipv4.vs.sync_retries":              "1",
		"net.ipv4.vs.sync_sock_size":            "1048576",
		"net.ipv4.vs.backup_only":               "0",
		"net.ipv4.vs.expire_nodest_conn":        "1",
		"net.ipv4.vs.conn_reuse_mode":           "1",
		"net.ipv4.vs.expire_quiescent_template": "1",
		"net.ipv4.vs.sloppy_tcp":                "0",
		"net.ipv4.vs.drop_entry":                "0",
		"net.ipv4.vs.drop_packet":               "0",
		"net.ipv4.vs.secure_tcp":                "0",
		"net.ipv4.vs.pmtu_disc":                 "1",
	})
}

func TestKernelRefusalNamesTheParameter(t *testing.T) {
	nstest.Enter(t)
	for key, value := range map[plan.Sysctl]string{
		"net.ipv4.ip_local_port_range": "9 1",
		"net.ipv4.conf.none.rp_filter": "1",
	} {
		c := reconcile.Change[plan.Sysctl, string]{Op: reconcile.Create, Key: key, New: value}
		err := New(Root, nil).Apply(t.Context(), c)
		if err == nil || !strings.Contains(err.Error(), string(key)) {
			t.Errorf("%s = %q: %v", key, value, err)
		}
	}
}

// converges sets want, reads it back with sysctl(8), and sees to it that a
// second run writes nothing.
func converges(t *testing.T, want map[plan.Sysctl]string) {
	t.Helper()
	k := New(Root, keysOf(want))
	if err := reconcile.Run(t.Context(), reconcile.Bind(k, want, nil)).Err(); err != nil {
		t.Fatal(err)
	}
	for key, v := range want {
		out, err := exec.Command("sysctl", "-n", string(key)).CombinedOutput()
		if err != nil || normal(string(out)) != v {
			t.Errorf("sysctl -n %s: %q, %v; want %q", string(key), out, err, v)
		}
	}
	before := k.Changes()
	r := reconcile.Run(t.Context(), reconcile.Bind(k, want, nil))
	if r.Err() != nil || len(r.Done) > 0 || k.Changes() != before {
		t.Errorf("second run: %+v, %d writes", r, k.Changes()-before)
	}
}
