package firewall

import (
	"context"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/medway-lb/medway/agent/internal/link/nstest"
	"github.com/medway-lb/medway/pkg/plan"
	"pgregory.net/rapid"
)

func kernel(t *testing.T, f plan.Family) *Kernel {
	t.Helper()
	nstest.Enter(t, nstest.TEE)
	k, err := New(f)
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
		see(seen, k.family, table, nstest.Run(t, k.family.Tables(), "-t", table, "-S"))
	}
	if d := cmp.Diff(h, seen, cmpopts.EquateEmpty()); d != "" {
		t.Fatalf("wanted -, iptables -S shows +:\n%s", d)
	}
	before := k.Changes()
	if r := run(t.Context(), k, h); r.Err() != nil || len(r.Done) > 0 || k.Changes() != before {
		t.Fatalf("second run: %+v, %d program runs", r, k.Changes()-before)
	}
}

// see adds what `iptables -S` or `ip6tables -S` prints of medway's in one table.
func see(h plan.Host, f plan.Family, table, out string) {
	for line := range strings.Lines(out) {
		w := strings.SplitN(strings.TrimSpace(line), " ", 3)
		c := plan.Chain{Family: f, Table: table, Name: w[1]}
		switch ours := strings.HasPrefix(w[1], "MEDWAY-"); {
		case w[0] == "-N" && ours:
			h.Chains[c] = ""
		case w[0] == "-A" && ours:
			h.Chains[c] = plan.Rules(strings.TrimPrefix(string(h.Chains[c])+"\n"+w[2], "\n"))
		case w[0] == "-A" && strings.HasPrefix(w[2], "-j MEDWAY-"):
			h.Jumps[plan.Jump{Family: f, Table: table, From: w[1], To: w[2][3:]}] = struct{}{}
		}
	}
}

// eachFamily runs a test for IPv4 and for IPv6.
func eachFamily(t *testing.T, test func(t *testing.T, f plan.Family)) {
	for _, f := range []plan.Family{plan.IPv4, plan.IPv6} {
		t.Run(f.Tables(), func(t *testing.T) { test(t, f) })
	}
}

// The shipped rules are printed back letter for letter: else every run would
// find drift.
func TestKernelShippedRules(t *testing.T) {
	eachFamily(t, func(t *testing.T, f plan.Family) {
		k := kernel(t, f)
		agrees(t, k, shipped(f))
		agrees(t, k, plan.Host{})
	})
}

func TestKernelMendsDrift(t *testing.T) {
	eachFamily(t, func(t *testing.T, f plan.Family) {
		k := kernel(t, f)
		damages := []string{
			"-I INPUT 1 -p tcp -j ACCEPT",
			"-A INPUT -j MEDWAY-INPUT",
			"-D INPUT -j MEDWAY-INPUT",
			"-F MEDWAY-INPUT",
			"-F INPUT",
			"-N MEDWAY-OLD",
			"-I MEDWAY-INPUT 1 -j ACCEPT",
			"-D MEDWAY-INPUT 2",
			"-t raw -D MEDWAY-RAW 1",
			"-t raw -F",
		}
		if f == plan.IPv4 {
			damages = append(damages,
				"-t mangle -D MEDWAY-SYNC-OUT 1",
				"-t mangle -R MEDWAY-SYNC-OUT 1 -d 224.0.0.81 -o sync01 -j TEE --gateway 169.254.7.8",
				"-t mangle -I POSTROUTING 1 -j MEDWAY-SYNC-IN")
		}
		for _, damage := range damages {
			agrees(t, k, shipped(f))
			nstest.Run(t, f.Tables(), strings.Fields(damage)...)
			before := k.Changes()
			agrees(t, k, shipped(f))
			if k.Changes() == before {
				t.Errorf("%s %s: not noticed", f.Tables(), damage)
			}
			out := nstest.Run(t, f.Tables(), "-S", "INPUT", "1")
			if out != "-A INPUT -j MEDWAY-INPUT\n" {
				t.Errorf("%s %s: after it the first rule is %q", f.Tables(), damage, out)
			}
		}
		// A whole chain, with what leads to it.
		nstest.Run(t, f.Tables(), "-D", "INPUT", "-j", "MEDWAY-INPUT")
		nstest.Run(t, f.Tables(), "-F", "MEDWAY-INPUT")
		nstest.Run(t, f.Tables(), "-X", "MEDWAY-INPUT")
		agrees(t, k, shipped(f))
	})
}

func TestKernelLeavesStrangersAlone(t *testing.T) {
	eachFamily(t, func(t *testing.T, f plan.Family) {
		k := kernel(t, f)
		for _, rule := range []string{
			"-N THEIRS",
			"-A THEIRS -p tcp -m tcp --dport 22 -j DROP",
			"-A INPUT -p udp -m udp --dport 53 -j THEIRS",
			"-P FORWARD DROP",
			"-t mangle -A POSTROUTING -o lo -j RETURN",
			"-t raw -A PREROUTING -m rpfilter --invert -j DROP",
			"-t nat -N MEDWAY-NAT",
		} {
			nstest.Run(t, f.Tables(), strings.Fields(rule)...)
		}
		show := "for t in filter mangle raw nat; do for p in iptables ip6tables; do $p -t $t -S; done; done"
		before := nstest.Run(t, "sh", "-c", show)
		agrees(t, k, shipped(f))
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
	})
}

// What one family holds is nothing to the other.
func TestKernelFamiliesAreApart(t *testing.T) {
	k4 := kernel(t, plan.IPv4)
	k6, err := New(plan.IPv6)
	if err != nil {
		t.Fatal(err)
	}
	agrees(t, k4, shipped(plan.IPv4))
	agrees(t, k6, shipped(plan.IPv6))
	agrees(t, k4, plan.Host{})
	agrees(t, k6, shipped(plan.IPv6))
	if err := run(t.Context(), k4, shipped(plan.IPv6)).Err(); err == nil || !strings.Contains(err.Error(), "is not one of iptables") {
		t.Errorf("IPv6 rules through iptables: %v", err)
	}
}

// A rule of the operator's that leads to a chain of medway's keeps the chain,
// whole: nothing is emptied on the way.
func TestKernelChainInUseIsKeptWhole(t *testing.T) {
	k := kernel(t, plan.IPv4)
	agrees(t, k, shipped(plan.IPv4))
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
	k := kernel(t, plan.IPv4)
	agrees(t, k, shipped(plan.IPv4))
	before := nstest.Run(t, "iptables", "-S", "MEDWAY-INPUT")
	h := shipped(plan.IPv4)
	h.Chains[plan.Chain{Family: plan.IPv4, Table: "filter", Name: "MEDWAY-INPUT"}] = rules("-j DROP", "-j NONSENSE")
	if err := run(t.Context(), k, h).Err(); err == nil {
		t.Error("no error")
	}
	if d := cmp.Diff(before, nstest.Run(t, "iptables", "-S", "MEDWAY-INPUT")); d != "" {
		t.Error(d)
	}
}

func TestKernelRandomWalk(t *testing.T) {
	k := kernel(t, plan.IPv4)
	nstest.Run(t, "iptables", "-A", "INPUT", "-s", "192.0.2.7", "-j", "ACCEPT")
	nstest.Steps(t, 25)
	rapid.Check(t, func(t *rapid.T) {
		agrees(t, k, anyHost(plan.IPv4).Draw(t, "host"))
		out := nstest.Run(t, "iptables", "-S", "INPUT")
		if want := "-A INPUT -s 192.0.2.7/32 -j ACCEPT\n"; !strings.HasSuffix(out, want) {
			t.Fatalf("the operator's rule is not where it was:\n%s", out)
		}
	})
}

// A VIP as the source of what comes from outside is dropped, wherever it is sent:
// the kernel does that for IPv4 alone.
func TestKernelForgedSource(t *testing.T) {
	k := kernel(t, plan.IPv6)
	agrees(t, k, shipped(plan.IPv6))
	out := nstest.Run(t, "bash", "-ec", `
		unshare -n sleep 60 & stranger=$!
		trap "kill $stranger" EXIT
		until [ "$(readlink /proc/$stranger/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.01; done
		there() { nsenter -t $stranger -n "$@"; }
		ip link add eth0 type veth peer name far netns $stranger
		ip addr add 2001:db8:1::11/64 dev eth0 nodad; there ip addr add 2001:db8:1::99/64 dev far nodad
		ip addr add 2001:db8:10::10/128 dev lo nodad; there ip addr add 2001:db8:10::10/128 dev lo nodad
		ip link set eth0 up; there ip link set lo up; there ip link set far up
		send() { bash -c "echo x >/dev/udp/$1/5060"; }
		send 2001:db8:10::10 # through lo
		there bash -c "echo x >/dev/udp/2001:db8:1::11/5060"
		ip6tables -nvxL MEDWAY-INPUT
		there ip route add 2001:db8:1::11/128 dev far src 2001:db8:10::10
		there bash -c "echo x >/dev/udp/2001:db8:1::11/5060"
		for i in $(seq 100); do
			if ip6tables -nvxL MEDWAY-INPUT | grep -q '^ *1 .*DROP .*!lo '; then echo dropped; exit; fi
			sleep 0.05
		done
		ip6tables -nvxL MEDWAY-INPUT`)
	if !strings.HasSuffix(out, "\ndropped\n") || !regexp.MustCompile(`(?m)^ *0 .*DROP .*!lo `).MatchString(out) {
		t.Errorf("expected the last of three packets to be dropped:\n%s", out)
	}
}
