package firewall

import (
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/reconcile"
)

var input = plan.Chain{Family: plan.IPv4, Table: "filter", Name: "MEDWAY-INPUT"}

func shown(text reconcile.Text) []string {
	var out []string
	for _, c := range text.Commands {
		out = append(out, c.Op.String()+": "+c.Line)
	}
	return out
}

func TestShowChain(t *testing.T) {
	for _, test := range []struct {
		name     string
		op       reconcile.Op
		old, new plan.Rules
		want     []string
	}{
		{"a new one", reconcile.Create, "", "-s 192.0.2.1/32 -p ipencap -j RETURN\n-p ipencap -j DROP", []string{
			"create: iptables -t filter -N MEDWAY-INPUT",
			"create: iptables -t filter -A MEDWAY-INPUT -s 192.0.2.1/32 -p 4 -j RETURN",
			"create: iptables -t filter -A MEDWAY-INPUT -p 4 -j DROP",
		}},
		{"rules that come and go", reconcile.Update, "-s 1\n-s 2\n-s 3", "-s 1\n-s 4\n-s 3\n-s 5", []string{
			"create: iptables -t filter -I MEDWAY-INPUT 2 -s 4",
			"delete: iptables -t filter -D MEDWAY-INPUT -s 2",
			"create: iptables -t filter -A MEDWAY-INPUT -s 5",
		}},
		{"the second of two alike", reconcile.Update, "-s 1\n-s 2\n-s 1", "-s 1\n-s 2", []string{
			"delete: iptables -t filter -D MEDWAY-INPUT 3",
		}},
		{"a comment that a shell would run", reconcile.Update, `-m comment --comment "$(reboot)" -j DROP`, "", []string{
			"delete: iptables -t filter -D MEDWAY-INPUT 1",
		}},
		{"one that goes", reconcile.Delete, "-s 1", "", []string{
			"delete: iptables -t filter -F MEDWAY-INPUT", "delete: iptables -t filter -X MEDWAY-INPUT",
		}},
	} {
		got := chains{}.Show(reconcile.Change[plan.Chain, plan.Rules]{Op: test.op, Key: input, Old: test.old, New: test.new})
		if d := cmp.Diff(test.want, shown(got)); d != "" || got.Table != "chain" {
			t.Errorf("%s: %s %s", test.name, got.Table, d)
		}
	}
}

// The commands, one after the other, make the new rules of the old ones.
func TestShowChainLeadsThere(t *testing.T) {
	rules := rapid.SliceOfN(rapid.SampledFrom([]string{"-s a", "-s b", "-s c", "-s d", `--comment "$x"`, "-p ipencap"}), 0, 8)
	rapid.Check(t, func(t *rapid.T) {
		old, want := rules.Draw(t, "old"), rules.Draw(t, "new")
		text := showChain(reconcile.Change[plan.Chain, plan.Rules]{
			Op: reconcile.Update, Key: input,
			Old: plan.Rules(strings.Join(old, "\n")), New: plan.Rules(strings.Join(want, "\n")),
		})
		now := slices.Clone(old)
		for _, c := range text.Commands {
			verb, rest, _ := strings.Cut(strings.TrimPrefix(c.Line, "iptables -t filter "), " MEDWAY-INPUT ")
			number, rule, _ := strings.Cut(rest, " ")
			n, err := strconv.Atoi(number)
			switch {
			case verb == "-A":
				now = append(now, printed(rest))
			case verb == "-I" && err == nil:
				now = slices.Insert(now, n-1, printed(rule))
			case verb == "-D" && err == nil:
				now = slices.Delete(now, n-1, n)
			case verb == "-D":
				i := slices.Index(now, printed(rest))
				now = slices.Delete(now, i, i+1)
			default:
				t.Fatalf("what is %q?", c.Line)
			}
		}
		if !slices.Equal(now, want) {
			t.Fatalf("%q leads from %q to %q, expected %q", shown(text), old, now, want)
		}
	})
}

func TestShowJump(t *testing.T) {
	jump := plan.Jump{Family: plan.IPv4, Table: "filter", From: "INPUT", To: "MEDWAY-INPUT"}
	const in, out = "create: iptables -t filter -I INPUT 1 -j MEDWAY-INPUT", "delete: iptables -t filter -D INPUT -j MEDWAY-INPUT"
	for _, test := range []struct {
		op     reconcile.Op
		copies int
		want   []string
	}{
		{reconcile.Create, 0, []string{in}}, {reconcile.Create, 2, []string{out, out, in}}, {reconcile.Delete, 1, []string{out}},
	} {
		if d := cmp.Diff(test.want, shown(showJump(reconcile.Change[plan.Jump, struct{}]{Op: test.op, Key: jump}, test.copies))); d != "" {
			t.Errorf("%s, %d copies: %s", test.op, test.copies, d)
		}
	}
}
