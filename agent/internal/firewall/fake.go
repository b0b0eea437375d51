package firewall

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/reconcile"
)

// Fake is one family's rules in memory.
type Fake struct {
	family  plan.Family
	rules   ruleset
	changes uint64
}

// NewFake returns a kernel with the built-in chains, all of them empty.
func NewFake(family plan.Family) *Fake {
	f := &Fake{family: family, rules: make(ruleset)}
	for table, names := range map[string][]string{
		"filter": {"INPUT", "FORWARD", "OUTPUT"},
		"mangle": {"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"},
		"raw":    {"PREROUTING", "OUTPUT"},
	} {
		for _, name := range names {
			f.rules[table] = append(f.rules[table], &chain{name: name, policy: "ACCEPT"})
		}
	}
	return f
}

// Changes counts the changes so far.
func (f *Fake) Changes() uint64 { return f.changes }

// Chains is as Kernel.Chains.
func (f *Fake) Chains(map[plan.Chain]plan.Rules) reconcile.Table[plan.Chain, plan.Rules] {
	return fakeChains{f}
}

// Jumps is as Kernel.Jumps.
func (f *Fake) Jumps(want map[plan.Jump]struct{}) reconcile.Table[plan.Jump, struct{}] {
	return fakeJumps{f, want}
}

// String prints as `iptables -S`, or `ip6tables -S`, does, table after table.
func (f *Fake) String() string {
	var b strings.Builder
	for _, table := range tables {
		fmt.Fprintf(&b, "# %s -t %s -S\n", f.family.Tables(), table)
		for _, c := range f.rules[table] {
			if c.policy == "-" {
				fmt.Fprintf(&b, "-N %s\n", c.name)
			} else {
				fmt.Fprintf(&b, "-P %s %s\n", c.name, c.policy)
			}
		}
		for _, c := range f.rules[table] {
			for _, rule := range c.rules {
				fmt.Fprintf(&b, "-A %s %s\n", c.name, rule)
			}
		}
	}
	return b.String()
}

type fakeChains struct{ *Fake }

func (t fakeChains) Read(context.Context) (map[plan.Chain]plan.Rules, error) {
	return t.rules.chains(t.family), nil
}

func (t fakeChains) Apply(_ context.Context, c reconcile.Change[plan.Chain, plan.Rules]) error {
	table, name := c.Key.Table, c.Key.Name
	if err := own(table, name); err != nil {
		return err
	}
	t.changes++
	if c.Op != reconcile.Delete {
		ch := t.rules.chain(table, name)
		if ch == nil {
			ch = &chain{name: name, policy: "-"}
			t.rules[table] = append(t.rules[table], ch)
		}
		ch.rules = split(c.New)
		return nil
	}
	for _, ch := range t.rules[table] {
		for _, rule := range ch.rules {
			if strings.HasSuffix(rule, "-j "+name) {
				return fmt.Errorf("%s: in use by %s", c.Key, ch.name)
			}
		}
	}
	t.rules[table] = slices.DeleteFunc(t.rules[table], func(ch *chain) bool { return ch.name == name })
	return nil
}

type fakeJumps struct {
	*Fake
	want map[plan.Jump]struct{}
}

func (t fakeJumps) Read(context.Context) (map[plan.Jump]struct{}, error) {
	return t.rules.jumps(t.family, t.want), nil
}

func (t fakeJumps) Apply(_ context.Context, c reconcile.Change[plan.Jump, struct{}]) error {
	j := c.Key
	if err := own(j.Table, j.To); err != nil {
		return err
	}
	from, rule := t.rules.chain(j.Table, j.From), "-j "+j.To
	if from == nil || c.Op != reconcile.Delete && t.rules.chain(j.Table, j.To) == nil {
		return fmt.Errorf("%s: there is no such chain", j)
	}
	t.changes++
	from.rules = slices.DeleteFunc(from.rules, func(r string) bool { return r == rule })
	if c.Op != reconcile.Delete {
		from.rules = slices.Insert(from.rules, 0, rule)
	}
	return nil
}
