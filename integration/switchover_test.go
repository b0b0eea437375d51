package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/medway-lb/medway/integration/drill"
	"github.com/medway-lb/medway/integration/lab"
	"github.com/medway-lb/medway/integration/sbc/idle"
	"github.com/medway-lb/medway/pkg/plan"
)

// TestLabSwitchover is the main promise: established calls go on, new ones go
// to the new site, there and back, ten times in a row; before that, that the
// host is as the article has it, and that an agent can be stopped and started
// under calls.
func TestLabSwitchover(t *testing.T) {
	l := up(t)
	article(t, l)
	report, err := drill.Run(t.Context(), l, drill.Options{
		Rounds: 10, Dir: t.TempDir(), Story: t.Output(),
		Before: func(context.Context) error {
			restart(t, l)
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("\n%s", report.Summary())
	for _, fault := range report.Faults() {
		t.Error(fault)
	}
	if report.Established() < 50 || len(report.Switches) != 20 {
		t.Errorf("%d calls and %d switches, expected at least 50 and 20", report.Established(), len(report.Switches))
	}
	for i, s := range report.Switches {
		// The calls were made in dc1: every answer must still come from there.
		for backend, n := range s.Calls[0].Alive.Alive {
			if !strings.HasPrefix(backend, "dc1-") {
				t.Errorf("switch %d: %d calls are answered by %s", i, n, backend)
			}
		}
	}
}

// article checks each command of the article that describes the original
// system through the tool that shows its effect.
func article(t *testing.T, l *lab.Lab) {
	t.Helper()
	const here, there = "dc1-lvs-a", "dc2-lvs-a"
	type check struct{ article, node, tool, want string }
	checks := []check{
		{"the service, with sed", here, "ipvsadm -Sn", "-A -t 203.0.113.10:5060 -s sed"},
		{"near backend, tunnel, 50000", here, "ipvsadm -Sn", "-a -t 203.0.113.10:5060 -r 10.1.0.21:5060 -i -w 50000"},
		{"near backend, tunnel, 50000", here, "ipvsadm -Sn", "-a -t 203.0.113.10:5060 -r 10.1.0.22:5060 -i -w 50000"},
		{"far backend, tunnel, 2", here, "ipvsadm -Sn", "-a -t 203.0.113.10:5060 -r 10.2.0.21:5060 -i -w 2"},
		{"the same pool mirrored", there, "ipvsadm -Sn", "-a -t 203.0.113.10:5060 -r 10.1.0.21:5060 -i -w 2"},
		{"the same pool mirrored", there, "ipvsadm -Sn", "-a -t 203.0.113.10:5060 -r 10.2.0.21:5060 -i -w 50000"},
		{"thresholds", here, "ipvsadm -ln --thresholds", "10.1.0.21:5060 25000 20000"},
		{"--start-daemon master", here, "ipvsadm -ln --daemon", "master sync daemon (mcast=sync01, syncid=10, maxlen=1452, group=224.0.0.81, port=8848, ttl=1)"},
		{"--start-daemon backup", here, "ipvsadm -ln --daemon", "backup sync daemon (mcast=sync01, syncid=10, maxlen=1452, group=224.0.0.81, port=8848, ttl=1)"},
		{"timeouts", here, "ipvsadm -ln --timeout", "900 120 300"},
		{"... reached from POSTROUTING", here, "iptables -t mangle -S", "-A POSTROUTING -j MEDWAY-SYNC-OUT"},
		{"... reached from PREROUTING", here, "iptables -t mangle -S", "-A PREROUTING -j MEDWAY-SYNC-IN"},
		{"the way into sync01", here, "ip neigh show dev sync01p", "169.254.0.1 lladdr 02:6d:77:00:00:01 PERMANENT"},
		{"the VIP", here, "ip -4 addr show dev medway0", "inet 203.0.113.10/32"},
		{"every packet synced", here, "sysctl net.ipv4.vs.sync_threshold", "net.ipv4.vs.sync_threshold = 0 0"},
		{"the VIP is closed but for its service", here, "iptables -S MEDWAY-INPUT", "-A MEDWAY-INPUT -d 203.0.113.10/32 -j DROP"},
	}
	for _, peer := range l.Topology().Role(lab.RoleLVS) {
		if peer.Name == here {
			continue
		}
		checks = append(checks,
			check{"TEE to every other LVS", here, "iptables -t mangle -S", tee(peer.Name)},
			check{"TEE of what comes from every other LVS", here, "iptables -t mangle -S", "-A MEDWAY-SYNC-IN -d 224.0.0.81/32 -i mw-" + peer.Name + " -j TEE --gateway 169.254.0.1"},
			check{"an ipip tunnel to every other LVS, with a TTL of its own", here, "ip -d link show mw-" + peer.Name, "ipip remote " + peer.Addr.String() + " local 10.1.0.11 ttl 64"})
	}
	settled(t, l)
	meds, err := ladder(t.Context(), l, "dc1")
	if err != nil {
		t.Fatal(err)
	}
	for host, med := range meds {
		edge := strings.Split(host, "-")[0] + "-edge"
		checks = append(checks, check{"each MED", edge, "birdc -s " + filepath.Join(l.Dir(), edge, "bird.ctl") + " show route all protocol '" + host + "' 203.0.113.10/32", fmt.Sprintf("BGP.med: %d ", med)})
	}
	for _, c := range checks {
		// The host that announces first may not have a tunnel to the last one yet.
		err := drill.Until(t.Context(), settleTime, func() error {
			out, err := l.Output(t.Context(), c.node, strings.Fields(c.tool)...)
			if out = strings.Join(strings.Fields(out), " "); err == nil && !strings.Contains(out, c.want) {
				err = fmt.Errorf("%s: `%s` does not show %q:\n%.1500s", c.node, c.tool, c.want, out)
			}
			return err
		})
		if err != nil {
			t.Errorf("%s: %v", c.article, err)
		}
	}
}

// tee is the rule that duplicates sync messages to a host, as iptables shows it.
func tee(host string) string {
	return fmt.Sprintf("-A MEDWAY-SYNC-OUT -d 224.0.0.81/32 -o sync01 -j TEE --gateway %s", plan.SyncAddress(host))
}

// restart stops the agent of each site's owner and starts it again under calls. Other people's
// monitors must see no change: a second run of an agent on a correct kernel
// makes none.
func restart(t *testing.T, l *lab.Lab) {
	t.Helper()
	for _, node := range []string{owner(t, l, "dc1"), owner(t, l, "dc2")} {
		before := kernel(t, l, node)
		saw := watch(t, l, node)
		if err := l.StopAgent(t.Context(), node, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if err := l.StartAgent(node); err != nil {
			t.Fatal(err)
		}
		settled(t, l)
		for _, line := range saw() {
			t.Errorf("%s: after a restart of the agent %s", node, line)
		}
		if after := kernel(t, l, node); after != before {
			t.Errorf("%s: a restart of the agent changed the kernel:\n%s\nbecame\n%s", node, before, after)
		}
	}
}

// watch follows by other people's monitors what medway owns on a host. What it
// returns ends them and gives what they saw.
func watch(t *testing.T, l *lab.Lab, node string) func() []string {
	t.Helper()
	outputs := map[string]*bytes.Buffer{}
	var running []*exec.Cmd
	for _, tool := range []string{"ip monitor link address route neigh", "xtables-monitor --event"} {
		out := &bytes.Buffer{}
		cmd := l.Command(t.Context(), node, strings.Fields(tool)...)
		cmd.Stdout, cmd.Stderr = out, out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		outputs[tool] = out
		running = append(running, cmd)
	}
	return func() (saw []string) {
		for _, cmd := range running {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			// One that had ended by itself has seen nothing, whatever it did not say.
			if state, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !state.Signaled() {
				t.Errorf("%s: `%s` did not watch to the end: %s", node, strings.Join(cmd.Args, " "), cmd.ProcessState)
			}
		}
		for tool, out := range outputs {
			for line := range strings.Lines(out.String()) {
				if owned(line) {
					saw = append(saw, fmt.Sprintf("`%s` saw: %s", tool, line))
				}
			}
		}
		return saw
	}
}

// owned says whether a monitor's line is about what medway owns: neighbours of
// the uplink, and those of multicast groups (NOARP), come and go by themselves.
func owned(line string) bool {
	if strings.HasSuffix(strings.TrimSpace(line), " NOARP") {
		return false
	}
	for _, name := range []string{"medway0", "sync01", "mw-", "MEDWAY-", "proto 109"} {
		if strings.Contains(line, name) {
			return true
		}
	}
	return false
}

// kernel is what the tools show of a host's IPVS, whose changes no monitor tells.
func kernel(t *testing.T, l *lab.Lab, node string) string {
	t.Helper()
	return run(t, l, node, "ipvsadm -Sn") + run(t, l, node, "ipvsadm -ln --daemon") + run(t, l, node, "ipvsadm -ln --timeout")
}

// settled waits until all hosts announce what they should with dc1 as target.
func settled(t *testing.T, l *lab.Lab) {
	t.Helper()
	err := drill.Until(t.Context(), 2*time.Minute, func() error {
		if err := onLadder(t.Context(), l, "dc1"); err != nil {
			return err
		}
		for _, node := range []string{"dc1-edge", "dc2-edge"} {
			sessions, err := l.Sessions(node)
			if err != nil {
				return err
			}
			for peer, state := range sessions {
				if state != "Established" {
					return fmt.Errorf("%s: session with %s is %s", node, peer, state)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestLabIdleConnections: a phone that says one word in 20 seconds, on a
// balancer that forgets after 30, is alive after a switch.
func TestLabIdleConnections(t *testing.T) {
	l := up(t)
	if err := drill.ApplySettings(t.Context(), l, "timeouts: {tcp: 30s}\n"); err != nil {
		t.Fatal(err)
	}
	const phones = 20
	cmd := l.Command(t.Context(), lab.Clients, filepath.Join(l.BinDir(), "sbc"), "idle", lab.VIP.String()+":5060",
		"-n", strconv.Itoa(phones), "--every", "20s", "--timeout", "15s", "--stdin")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, t.Output()
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	connected := time.Now()
	wait := func(what string, until func() bool) {
		t.Helper()
		if err := drill.Until(t.Context(), 2*time.Minute, func() error {
			if !until() {
				return errors.New(what)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	// Later than the last burst plus the time after which an entry that is not synced again is forgotten.
	wait("the phones' first entries have not had time to run out", func() bool { return time.Since(connected) > 45*time.Second })
	if err := l.SetTarget(t.Context(), lab.VIPName, "dc2"); err != nil {
		t.Fatal(err)
	}
	switched := time.Now()
	wait("dc2 has not taken over", func() bool { return onLadder(t.Context(), l, "dc2") == nil })
	wait("not every phone has spoken since the switch", func() bool { return time.Since(switched) > 45*time.Second })
	stdin.Close()
	err = cmd.Wait()
	var result idle.Result
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if jsonErr := json.Unmarshal([]byte(lines[len(lines)-1]), &result); jsonErr != nil {
		t.Fatalf("sbc idle: %v: %s", jsonErr, out.String())
	}
	t.Logf("%+v", result)
	if err != nil || result.Alive != phones || result.Moved != 0 || result.Pings < 3*phones {
		t.Errorf("of %d idle connections %d are alive, %d moved, after %d pings (%v)", phones, result.Alive, result.Moved, result.Pings, err)
	}
}

// lost is a report's word for at least one call.
const lost = `[1-9][0-9]* of 20 established calls were lost`

// TestLabNegativeControls: without any one of what switching rests on, the demo
// loses calls and says so with its exit status.
func TestLabNegativeControls(t *testing.T) {
	need(t)
	for name := range drill.Sabotages {
		t.Run(name, func(t *testing.T) {
			kinds := []string{"tcp"}
			if name == "tee" {
				kinds = append(kinds, "tcp6", "udp", "udp6") // the one on which every kind rests alike
			}
			out := t.TempDir()
			cmd := exec.CommandContext(t.Context(), filepath.Join(programs(), "medway-lab"), "--dir", "/run/medway-test",
				"demo", "--prefix", "mwt-", "--calls", "20", "--out", out, "--sabotage", name, "--traffic", strings.Join(kinds, ","))
			text, err := cmd.CombinedOutput()
			t.Logf("%s", text)
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != 1 {
				t.Fatalf("the demo ended with %v, expected exit status 1", err)
			}
			for _, kind := range kinds {
				what := lost
				if len(kinds) > 1 {
					what = kind + ": " + lost
				}
				if !regexp.MustCompile(what).Match(text) {
					t.Errorf("the demo failed, but not for lost calls over %s", kind)
				}
			}
		})
	}
}

// TestLabTargetIsDown: a target put to a site that can't serve leaves the
// serving site as it is, and status says what it waits for.
func TestLabTargetIsDown(t *testing.T) {
	l := up(t)
	dead := []string{"dc2-lvs-a", "dc2-lvs-b"}
	for _, node := range dead {
		if err := errors.Join(l.StopAgent(t.Context(), node, syscall.SIGKILL), l.Cut(node, "dc2-edge")); err != nil {
			t.Fatal(err)
		}
	}
	until := func(what string, try func() error) {
		t.Helper()
		if err := drill.Until(t.Context(), 2*time.Minute, try); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	until("the dead nodes' leases", func() error {
		s := status(t, l)
		for _, node := range dead {
			if !regexp.MustCompile(node + ` .*silent`).MatchString(s) {
				return fmt.Errorf("status does not call %s silent:\n%s", node, s)
			}
		}
		return nil
	})
	events, err := l.FollowRoutes(t.Context(), "dc1-edge")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.SetTarget(t.Context(), lab.VIPName, "dc2"); err != nil {
		t.Fatal(err)
	}
	until("status", func() error {
		if s := status(t, l); !strings.Contains(s, "waits for a node of dc2") {
			return fmt.Errorf("status does not say what dc1 waits for:\n%s", s)
		}
		return nil
	})
	if m := med(t, l, "dc1"); m != 100 {
		t.Errorf("dc1 announces %d while nobody can take over, expected 100", m)
	}
	serves := owner(t, l, "dc1")
	for quiet := time.After(5 * time.Second); quiet != nil; { // twice the settle delay, after which dc1 would leave
		select {
		case e := <-events:
			// Its standby is a backup site's from now on, for which there is nothing to wait.
			if e.Session == serves || e.Kind != lab.RouteReceived {
				t.Errorf("dc1-edge saw a route change: %+v", e)
			}
		case <-quiet:
			quiet = nil
		}
	}
	// When the site comes back, the order is carried out.
	for _, node := range dead {
		if err := errors.Join(l.Mend(node, "dc2-edge"), l.StartAgent(node)); err != nil {
			t.Fatal(err)
		}
	}
	until("switch", func() error { return onLadder(t.Context(), l, "dc2") })
}
