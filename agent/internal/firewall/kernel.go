// Package firewall makes medway's own iptables chains, and the jumps to them,
// what they should be. Chains and rules of others are read over and left alone.
package firewall

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync/atomic"

	"github.com/coreos/go-iptables/iptables"
	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/reconcile"
)

// lockWait is how many seconds a program waits for the xtables lock
// (iptables(8), -w), which others hold for milliseconds.
const lockWait = 5

// Kernel is one family's rules in the network namespace of the calling thread.
// Its tables are not for concurrent use.
type Kernel struct {
	family        plan.Family
	ipt           *iptables.IPTables
	save, restore string
	// missing is why the family has no programs.
	missing error
	// none is true where there can be no rules: see LookOnly.
	none    bool
	changes atomic.Uint64
}

// New finds the programs for one family. Those of IPv6 may be missing, as may
// IPv6 itself: that is an error where a rule of IPv6 is wanted, and else none.
func New(family plan.Family) (*Kernel, error) {
	k := &Kernel{family: family}
	if err := k.find(); err != nil {
		k.missing = fmt.Errorf("%s is not usable: %w", family.Tables(), err)
	}
	if family == plan.IPv4 {
		return k, k.missing
	}
	return k, nil
}

func (k *Kernel) find() (err error) {
	protocol := iptables.ProtocolIPv4
	if k.family == plan.IPv6 {
		protocol = iptables.ProtocolIPv6
	}
	if k.ipt, err = iptables.New(iptables.IPFamily(protocol), iptables.Timeout(lockWait)); err != nil {
		return err
	}
	if k.save, err = exec.LookPath(k.family.Tables() + "-save"); err != nil {
		return err
	}
	k.restore, err = exec.LookPath(k.family.Tables() + "-restore")
	return err
}

// Changes counts the program runs so far that changed something, or tried to.
func (k *Kernel) Changes() uint64 { return k.changes.Load() }

// Chains returns the table of the family's chains whose names begin with
// plan.ChainPrefix, in the tables filter, mangle and raw. It is given what will
// be wanted, since a host where nothing is need not have the family.
func (k *Kernel) Chains(want map[plan.Chain]plan.Rules) reconcile.Table[plan.Chain, plan.Rules] {
	return chains{k, want}
}

// Jumps returns the table of the jumps from built-in chains to medway's. It is
// given what will be wanted, as Chains is, and since a wanted jump in the wrong
// place is to be made again and an unwanted one to be deleted wherever it stands.
func (k *Kernel) Jumps(want map[plan.Jump]struct{}) reconcile.Table[plan.Jump, struct{}] {
	return jumps{k, want, new(ruleset)}
}

// read gets the rules of all tables from one run of one program: a run costs
// 5 ms, whatever it prints. Where nothing is wanted of IPv6, what can't be read
// is nobody's business.
func (k *Kernel) read(ctx context.Context, wanted bool) (ruleset, error) {
	rs, err := k.rules(ctx)
	if err != nil && k.family == plan.IPv6 && !wanted {
		return nil, nil
	}
	return rs, err
}

func (k *Kernel) rules(ctx context.Context) (ruleset, error) {
	if k.missing != nil {
		return nil, k.missing
	}
	if k.none {
		return nil, nil
	}
	out, err := program(ctx, "", k.save)
	if err != nil {
		return nil, err
	}
	return parse(out)
}

// own returns an error unless a chain may be changed here.
func (k *Kernel) own(family plan.Family, table, chain string) error {
	if family != k.family {
		return fmt.Errorf("chain %s of %s is not one of %s", chain, family.Tables(), k.family.Tables())
	}
	return own(table, chain)
}

// commit makes the changes of one table at once: all of them or, on an error,
// none.
func (k *Kernel) commit(ctx context.Context, table string, lines ...string) error {
	if k.missing != nil {
		return k.missing
	}
	k.changes.Add(1)
	in := "*" + table + "\n" + strings.Join(lines, "\n") + "\nCOMMIT\n"
	if _, err := program(ctx, in, k.restore, "--noflush", "-w", fmt.Sprint(lockWait)); err != nil {
		return fmt.Errorf("%w; the input was:\n%s", err, in)
	}
	return nil
}

func program(ctx context.Context, in, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(in), &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

type chains struct {
	*Kernel
	want map[plan.Chain]plan.Rules
}

func (t chains) Read(ctx context.Context) (map[plan.Chain]plan.Rules, error) {
	rs, err := t.read(ctx, len(t.want) > 0)
	return rs.chains(t.family), err
}

// Apply swaps the rules of one chain as a whole, so that no packet meets half
// of them, or deletes it.
func (t chains) Apply(ctx context.Context, c reconcile.Change[plan.Chain, plan.Rules]) error {
	if err := t.own(c.Key.Family, c.Key.Table, c.Key.Name); err != nil {
		return err
	}
	// Naming a chain makes it, or empties it (iptables-restore, --noflush).
	lines := []string{":" + c.Key.Name + " - [0:0]"}
	if c.Op == reconcile.Delete {
		there, err := t.ipt.ChainExists(c.Key.Table, c.Key.Name)
		if err != nil || !there {
			return err
		}
		return t.commit(ctx, c.Key.Table, append(lines, "-X "+c.Key.Name)...)
	}
	for _, rule := range split(c.New) {
		lines = append(lines, "-A "+c.Key.Name+" "+written(rule))
	}
	return t.commit(ctx, c.Key.Table, lines...)
}

type jumps struct {
	*Kernel
	want map[plan.Jump]struct{}
	// last is what was read last, for Show.
	last *ruleset
}

func (t jumps) Read(ctx context.Context) (map[plan.Jump]struct{}, error) {
	rs, err := t.read(ctx, len(t.want) > 0)
	*t.last = rs
	return rs.jumps(t.family, t.want), err
}

// Apply puts one jump first in its built-in chain, or deletes it.
func (t jumps) Apply(ctx context.Context, c reconcile.Change[plan.Jump, struct{}]) error {
	j := c.Key
	if err := t.own(j.Family, j.Table, j.To); err != nil {
		return err
	}
	if strings.HasPrefix(j.From, plan.ChainPrefix) {
		return fmt.Errorf("%s: it does not start from a built-in chain", j)
	}
	if c.Op == reconcile.Delete {
		return t.remove(j)
	}
	rs, err := t.rules(ctx)
	if err != nil {
		return err
	}
	// Old copies go and the new one comes at the same moment: there is no
	// time without the rules behind it.
	var lines []string
	for range rs.copies(j) {
		lines = append(lines, "-D "+j.From+" -j "+j.To)
	}
	return t.commit(ctx, j.Table, append(lines, "-I "+j.From+" 1 -j "+j.To)...)
}

// remove deletes the copies of a jump one by one, until there is none.
func (t jumps) remove(j plan.Jump) error {
	for {
		err := t.ipt.Delete(j.Table, j.From, "-j", j.To)
		if e := (*iptables.Error)(nil); errors.As(err, &e) && e.IsNotExist() {
			return nil
		}
		t.changes.Add(1)
		if err != nil {
			return err
		}
	}
}
