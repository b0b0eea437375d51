package firewall

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/coreos/go-iptables/iptables"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/medway-lb/medway/agent/internal/link/nstest"
	"github.com/medway-lb/medway/pkg/plan"
	"pgregory.net/rapid"
)

func kernel(t *testing.T) *Kernel {
	t.Helper()
	nstest.Enter(t, nstest.TEE)
	k, err := New(iptables.ProtocolIPv4)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// test is a *testing.T or a *rapid.T.
type test interface {
	nstest.TB
	Context() context.Context
}

// agrees runs k to h, compares with what `iptables -S` prints, and runs it again.
func agrees(t test, k *Kernel, h plan.Host) {
	t.Helper()
	if err := run(t.Context(), k, h).Err(); err != nil {
		t.Fatalf("first run: %v", err)
	}
	seen := plan.Host{Chains: make(map[plan.Chain]plan.Rules), Jumps: make(map[plan.Jump]struct{})}
	for _, table := range tables {
		see(seen, table, nstest.Run(t, "iptables", "-t", table, "-S"))
	}
	if d := cmp.Diff(h, seen, cmpopts.EquateEmpty()); d != "" {
		t.Fatalf("wanted -, iptables -S shows +:\n%s", d)
	}
	before := k.Changes()
	if r := run(t.Context(), k, h); r.Err() != nil || len(r.Done) > 0 || k.Changes() != before {
		t.Fatalf("second run: %+v, %d program runs", r, k.Changes()-before)
	}
}

// see adds what `iptables -S` prints of medway's in one table.
func see(h plan.Host, table, out string) {
	for line := range strings.Lines(out) {
		f := strings.SplitN(strings.TrimSpace(line), " ", 3)
		c := plan.Chain{Table: table, Name: f[1]}
		switch ours := strings.HasPrefix(f[1], "MEDWAY-"); {
		case f[0] == "-N" && ours:
			h.Chains[c] = ""
		case f[0] == "-A" && ours:
			h.Chains[c] = plan.Rules(strings.TrimPrefix(string(h.Chains[c])+"\n"+f[2], "\n"))
		case f[0] == "-A" && strings.HasPrefix(f[2], "-j MEDWAY-"):
			h.Jumps[plan.Jump{Table: table, From: f[1], To: f[2][3:]}] = struct{}{}
		}
	}
}

// The shipped rules are printed back letter for letter: else every run would
// find drift.
func TestKernelShippedRules(t *testing.T) {
	k := kernel(t)
	agrees(t, k, shipped())
	agrees(t, k, plan.Host{})
}

func TestKernelMendsDrift(t *testing.T) {
	k := kernel(t)
	for _, damage := range []string{
		"-I INPUT 1 -s 192.0.2.7 -j ACCEPT",
		"-A INPUT -j MEDWAY-INPUT",
		"-D INPUT -j MEDWAY-INPUT",
		"-F MEDWAY-INPUT",
		"-F INPUT",
		"-N MEDWAY-OLD",
		"-I MEDWAY-INPUT 1 -j ACCEPT",
		"-t raw -D MEDWAY-RAW 1",
		"-t mangle -R MEDWAY-SYNC-OUT 1 -d 224.0.0.81 -o sync01 -j TEE --gateway 169.254.7.8",
		"-t mangle -I POSTROUTING 1 -j MEDWAY-SYNC-IN",
	} {
		agrees(t, k, shipped())
		nstest.Run(t, "iptables", strings.Fields(damage)...)
		before := k.Changes()
		agrees(t, k, shipped())
		if k.Changes() == before {
			t.Errorf("iptables %s: not noticed", damage)
		}
		out := nstest.Run(t, "iptables", "-S", "INPUT", "1")
		if out != "-A INPUT -j MEDWAY-INPUT\n" {
			t.Errorf("iptables %s: after it the first rule is %q", damage, out)
		}
	}
}

func TestKernelLeavesStrangersAlone(t *testing.T) {
	k := kernel(t)
	for _, rule := range []string{
		"-N THEIRS",
		"-A THEIRS -s 192.0.2.7 -j DROP",
		"-A INPUT -s 192.0.2.8 -j THEIRS",
		"-P FORWARD DROP",
		"-t mangle -A POSTROUTING -o lo -j RETURN",
		"-t nat -N MEDWAY-NAT",
	} {
		nstest.Run(t, "iptables", strings.Fields(rule)...)
	}
	show := "for t in filter mangle raw nat; do iptables -t $t -S; done"
	before := nstest.Run(t, "sh", "-c", show)
	agrees(t, k, shipped())
	all := nstest.Run(t, "sh", "-c", show)
	for line := range strings.Lines(before) {
		if !strings.Contains(all, line) {
			t.Errorf("lost %s", line)
		}
	}
	agrees(t, k, plan.Host{})
	if d := cmp.Diff(before, nstest.Run(t, "sh", "-c", show)); d != "" {
		t.Error(d)
	}
}

// A rule of the operator's that leads to a chain of medway's keeps the chain,
// whole: nothing is emptied on the way.
func TestKernelChainInUseIsKeptWhole(t *testing.T) {
	k := kernel(t)
	agrees(t, k, shipped())
	nstest.Run(t, "iptables", "-A", "FORWARD", "-i", "lo", "-j", "MEDWAY-INPUT")
	before := nstest.Run(t, "iptables", "-S", "MEDWAY-INPUT")
	if err := run(t.Context(), k, plan.Host{}).Err(); err == nil || !strings.Contains(err.Error(), "MEDWAY-INPUT") {
		t.Errorf("error: %v", err)
	}
	if d := cmp.Diff(before, nstest.Run(t, "iptables", "-S", "MEDWAY-INPUT")); d != "" {
		t.Error(d)
	}
	nstest.Run(t, "iptables", "-D", "FORWARD", "-i", "lo", "-j", "MEDWAY-INPUT")
	agrees(t, k, plan.Host{})
}

// A rule that the kernel refuses leaves the chain as it was.
func TestKernelRefusedRulesChangeNothing(t *testing.T) {
	k := kernel(t)
	agrees(t, k, shipped())
	before := nstest.Run(t, "iptables", "-S", "MEDWAY-INPUT")
	h := shipped()
	h.Chains[plan.Chain{Table: "filter", Name: "MEDWAY-INPUT"}] = rules("-j DROP", "-j NONSENSE")
	if err := run(t.Context(), k, h).Err(); err == nil {
		t.Error("no error")
	}
	if d := cmp.Diff(before, nstest.Run(t, "iptables", "-S", "MEDWAY-INPUT")); d != "" {
		t.Error(d)
	}
}

func TestKernelRandomWalk(t *testing.T) {
	k := kernel(t)
	nstest.Run(t, "iptables", "-A", "INPUT", "-s", "192.0.2.7", "-j", "ACCEPT")
	nstest.Steps(t, 25)
	rapid.Check(t, func(t *rapid.T) {
		agrees(t, k, anyHost().Draw(t, "host"))
		out := nstest.Run(t, "iptables", "-S", "INPUT")
		if want := "-A INPUT -s 192.0.2.7/32 -j ACCEPT\n"; !strings.HasSuffix(out, want) {
			t.Fatalf("the operator's rule is not where it was:\n%s", out)
		}
	})
}

// ip6tables takes the same road.
func TestKernelIPv6(t *testing.T) {
	nstest.Enter(t)
	k, err := New(iptables.ProtocolIPv6)
	if err != nil {
		t.Fatal(err)
	}
	c := plan.Chain{Table: "filter", Name: "MEDWAY-INPUT"}
	h := plan.Host{
		Chains: map[plan.Chain]plan.Rules{c: "-d 2001:db8::10/128 -j DROP"},
		Jumps:  map[plan.Jump]struct{}{{Table: "filter", From: "INPUT", To: c.Name}: {}},
	}
	if err := run(t.Context(), k, h).Err(); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("-N %[1]s\n-A %[1]s %[2]s\n", c.Name, h.Chains[c])
	if got := nstest.Run(t, "ip6tables", "-S", c.Name); got != want {
		t.Errorf("ip6tables prints %q, want %q", got, want)
	}
	if r := run(t.Context(), k, h); r.Err() != nil || len(r.Done) > 0 {
		t.Errorf("second run: %+v", r)
	}
}
