package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/medway-lb/medway/agent/internal/link/nstest"
	"github.com/medway-lb/medway/pkg/state"
)

// program starts one of the built programs in the test's namespace, with its
// output in a file, and ends it with the test.
func program(t *testing.T, log, name string, args ...string) *exec.Cmd {
	t.Helper()
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	cmd := exec.Command(filepath.Join(programs(), name), args...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

// programs is the directory of the built programs.
func programs() string {
	if dir := os.Getenv("MEDWAY_BIN"); dir != "" {
		return dir
	}
	return "../bin"
}

// until waits for something that must happen.
func until(t *testing.T, what string, happened func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); !happened(); time.Sleep(200 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// The real agent on a real kernel: what somebody changes by hand is back within
// the resync time, named in the log and counted in the status; what the agent
// changes when it starts is not called drift.
func TestKernelDriftIsMendedAndTold(t *testing.T) {
	namespace(t)
	dir := t.TempDir()
	log := filepath.Join(dir, "agent.log")
	t.Cleanup(func() {
		if text, _ := os.ReadFile(log); t.Failed() {
			t.Logf("the agent's log:\n%s", text)
		}
	})
	const endpoint = "http://127.0.0.1:2379"
	program(t, filepath.Join(dir, "etcd.log"), "etcd", "--data-dir", filepath.Join(dir, "etcd"), "--unsafe-no-fsync",
		"--listen-client-urls", endpoint, "--advertise-client-urls", endpoint)
	etcdctl := func(args ...string) (string, error) {
		out, err := exec.Command(filepath.Join(programs(), "etcdctl"), append([]string{"--endpoints", endpoint, "--command-timeout", "30s"}, args...)...).Output()
		return string(out), err
	}
	until(t, "etcd serves", func() bool { _, err := etcdctl("get", "x"); return err == nil })
	for key, value := range stored {
		if key == "settings" {
			value = `{"resync_interval":"2s","timeouts":{"tcp":"7200s"}}`
		}
		if _, err := etcdctl("put", state.Prefix+key, value); err != nil {
			t.Fatal(err)
		}
	}
	config := filepath.Join(dir, "agent.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, `
node: dc1-lvs-a
site: dc1
group: edge1
addresses: {ipv4: 10.1.0.11}
uplink: eth0
etcd: {endpoints: [%q], insecure: true}
bgp: {as: 65001, router_id: 10.1.0.11, neighbors: [{address: 10.1.0.1, as: 65001}]}
state_dir: %q
`, endpoint, filepath.Join(dir, "state")), 0o600); err != nil {
		t.Fatal(err)
	}

	// planned is what `medway-agent plan` says is left to do in the kernel.
	planned := func() []string {
		cmd := exec.Command(filepath.Join(programs(), "medway-agent"), "plan", "-c", config, "-o", "json")
		out, err := cmd.Output()
		exit := 0
		if e := (*exec.ExitError)(nil); errors.As(err, &e) {
			exit = e.ExitCode()
		}
		var doc struct {
			Changes []struct{ Table, Key string }
		}
		if err := json.Unmarshal(out, &doc); err != nil || exit == 1 {
			t.Fatalf("plan: exit code %d, %v: %s", exit, err, out)
		}
		if all := len(doc.Changes); (all > 0) != (exit == 2) {
			t.Errorf("exit code %d with %d changes", exit, all)
		}
		var keys []string
		for _, c := range doc.Changes {
			if c.Table != announcementTable {
				keys = append(keys, c.Key)
			}
		}
		return keys
	}
	logged := func(from int) string {
		text, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		return string(text[from:])
	}
	drift := func() (out struct {
		Mended string
		Last   []string
		At     string
	}) {
		text, err := etcdctl("get", "--print-value-only", state.StatusPrefix+"dc1-lvs-a")
		if err != nil {
			t.Fatal(err)
		}
		var status struct{ Drift *json.RawMessage }
		if err := json.Unmarshal([]byte(text), &status); err == nil && status.Drift != nil {
			if err := json.Unmarshal(*status.Drift, &out); err != nil {
				t.Fatalf("%s: %v", text, err)
			}
		}
		return out
	}
	start := func() *exec.Cmd {
		return program(t, log, "medway-agent", "run", "-c", config, "--log-format", "json")
	}

	if len(planned()) == 0 {
		t.Error("nothing is planned for a bare host")
	}
	agent := start()
	until(t, "the kernel is as planned", func() bool { return len(planned()) == 0 })
	until(t, "the agent has said so", func() bool { return strings.Contains(logged(0), "+ ipvsadm -A -t 203.0.113.10:5060 -s sed") })

	damage := map[string]string{ // by hand: what the log then says
		"ipvsadm -d -t 203.0.113.10:5060 -r 10.2.0.21:5060": "mended `ipvsadm -a -t 203.0.113.10:5060 -r 10.2.0.21:5060 -i -w 2 -x 25000 -y 20000` (destination was missing)",
		"ipvsadm -D -t 203.0.113.11:5061":                   "mended `ipvsadm -A -t 203.0.113.11:5061 -s sed` (service was missing)",
		"iptables -t mangle -F MEDWAY-SYNC-OUT":             "(its rules were others)",
		"iptables -D INPUT -j MEDWAY-INPUT":                 "mended `iptables -t filter -I INPUT 1 -j MEDWAY-INPUT` (jump was missing)",
		// At one stroke: the agent may look between any two commands, and then the chain is full again.
		`printf '*raw\n-D PREROUTING -j MEDWAY-RAW\n-F MEDWAY-RAW\n-X MEDWAY-RAW\nCOMMIT\n' | iptables-restore --noflush`: "iptables -t raw -N MEDWAY-RAW",
		"ip link del mw-dc2-lvs-a":                     "(link was missing)",
		"ip addr del 203.0.113.11/32 dev medway0":      "mended `ip addr add 203.0.113.11/32 dev medway0` (address was missing)",
		"ipvsadm --stop-daemon master":                 "(sync daemon was missing)",
		"sysctl -qw net.ipv4.vs.sync_threshold='3 50'": "(sysctl was 3 50)",
		"ipvsadm -A -t 203.0.113.10:9999 -s rr":        "mended `ipvsadm -D -t 203.0.113.10:9999` (service is not in the plan)",
		"ip neigh del 169.254.0.1 dev sync01p":         "(neighbor was missing)",
		"ipvsadm --set 60 0 0":                         "mended `ipvsadm --set 7200 0 0` (timeout was 60)",
		"ip route del 169.254.7.3/32 dev mw-dc2-lvs-b": "mended `ip route add 169.254.7.3/32 dev mw-dc2-lvs-b proto 109 scope link` (route was missing)",
		"ipvsadm -E -u 203.0.113.10:5060 -s rr -p 300": "(service was -s rr -p 300)",
	}
	if text := logged(0); strings.Contains(text, "drift") || drift().Mended != "" {
		t.Errorf("the start counts as drift: %+v\n%s", drift(), text)
	}
	for by := range damage {
		nstest.Run(t, "sh", "-ec", by)
	}
	until(t, "what was changed is back", func() bool { return len(planned()) == 0 })
	until(t, "it is counted", func() bool { var n int; _, _ = fmt.Sscan(drift().Mended, &n); return n >= len(damage) })
	for by, says := range damage {
		if !strings.Contains(logged(0), says) {
			t.Errorf("after %s the log lacks %q", by, says)
		}
	}
	if d := drift(); len(d.Last) != driftShown || !strings.HasPrefix(d.Last[0], "mended `") || d.At == "" {
		t.Errorf("the status says %+v", d)
	}
	for _, theirs := range []string{"-a -t 192.0.2.1:80 -r 192.0.2.2:80 -m", "stranger:", "-A INPUT -s 192.0.2.66/32 -j DROP"} {
		if !strings.Contains(kernelNow(t), theirs) {
			t.Errorf("%s is gone", theirs)
		}
	}

	// What changed while no agent ran is adopted, and not called drift.
	if err := agent.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = agent.Wait()
	before := len(logged(0))
	nstest.Run(t, "ipvsadm", "-d", "-t", "203.0.113.10:5060", "-r", "10.2.0.21:5060")
	if left := planned(); len(left) != 1 {
		t.Errorf("planned beside no agent: %q", left)
	}
	start()
	until(t, "the agent mends that too", func() bool { return len(planned()) == 0 })
	until(t, "and says so", func() bool {
		return strings.Contains(logged(before), "+ ipvsadm -a -t 203.0.113.10:5060 -r 10.2.0.21:5060 -i -w 2 -x 25000 -y 20000")
	})
	if strings.Contains(logged(before), "drift") {
		t.Errorf("what changed while no agent ran is called drift:\n%s", logged(before))
	}
}
