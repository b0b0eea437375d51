package firewall

import (
	"fmt"
	"regexp"
	"slices"

	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/reconcile"
)

func (chains) Show(c reconcile.Change[plan.Chain, plan.Rules]) reconcile.Text { return showChain(c) }
func (fakeChains) Show(c reconcile.Change[plan.Chain, plan.Rules]) reconcile.Text {
	return showChain(c)
}

func (t jumps) Show(c reconcile.Change[plan.Jump, struct{}]) reconcile.Text {
	return showJump(c, t.last.copies(c.Key))
}

func (t fakeJumps) Show(c reconcile.Change[plan.Jump, struct{}]) reconcile.Text {
	return showJump(c, t.rules.copies(c.Key))
}

func command(op reconcile.Op, f plan.Family, table, format string, args ...any) reconcile.Command {
	return reconcile.Command{Op: op, Line: f.Tables() + " -t " + table + " " + fmt.Sprintf(format, args...)}
}

// showChain says what Apply does at once as one command a rule.
func showChain(c reconcile.Change[plan.Chain, plan.Rules]) reconcile.Text {
	text := reconcile.Text{Table: "chain", Old: string(c.Old), New: string(c.New)}
	family, table, name := c.Key.Family, c.Key.Table, c.Key.Name
	if c.Op == reconcile.Delete {
		text.Commands = []reconcile.Command{command(c.Op, family, table, "-F %s", name), command(c.Op, family, table, "-X %s", name)}
		return text
	}
	if c.Op == reconcile.Create {
		text.Commands = []reconcile.Command{command(c.Op, family, table, "-N %s", name)}
	}
	now := split(c.Old)
	for _, e := range edits(now, split(c.New)) {
		switch {
		case e.op == reconcile.Delete && slices.Index(now, e.rule) == e.at && plain.MatchString(e.rule):
			text.Commands = append(text.Commands, command(e.op, family, table, "-D %s %s", name, written(e.rule)))
		case e.op == reconcile.Delete:
			text.Commands = append(text.Commands, command(e.op, family, table, "-D %s %d", name, e.at+1))
		case e.at == len(now):
			text.Commands = append(text.Commands, command(e.op, family, table, "-A %s %s", name, written(e.rule)))
		default:
			text.Commands = append(text.Commands, command(e.op, family, table, "-I %s %d %s", name, e.at+1, written(e.rule)))
		}
		if e.op == reconcile.Delete {
			now = slices.Delete(slices.Clone(now), e.at, e.at+1)
		} else {
			now = slices.Insert(slices.Clone(now), e.at, e.rule)
		}
	}
	return text
}

// plain are rules in which no shell finds anything to expand. A stranger's
// comment may have anything.
var plain = regexp.MustCompile(`^[-A-Za-z0-9 ./:,_=!+]*$`)

// edit is one rule that comes or goes at a place, counted from 0, among the
// rules as the edits before have left them.
type edit struct {
	op   reconcile.Op
	at   int
	rule string
}

// edits returns the fewest that lead from one list of rules to another. At one
// place what comes is put in before what goes is taken out, so that the chain
// is never more open than before and after.
func edits(from, to []string) []edit {
	at := 0 // most changes leave most rules: what begins alike need not be compared
	for at < len(from) && at < len(to) && from[at] == to[at] {
		at++
	}
	from, to = from[at:], to[at:]
	// common[i][j] is the length of the longest common subsequence of from[i:] and to[j:].
	common := make([][]int32, len(from)+1)
	for i := range common {
		common[i] = make([]int32, len(to)+1)
	}
	for i := len(from) - 1; i >= 0; i-- {
		for j := len(to) - 1; j >= 0; j-- {
			common[i][j] = max(common[i+1][j], common[i][j+1])
			if from[i] == to[j] {
				common[i][j] = common[i+1][j+1] + 1
			}
		}
	}
	var out []edit
	for i, j := 0, 0; i < len(from) || j < len(to); {
		switch {
		case i < len(from) && j < len(to) && from[i] == to[j]:
			i, j, at = i+1, j+1, at+1
		case j < len(to) && (i == len(from) || common[i][j+1] >= common[i+1][j]):
			out = append(out, edit{reconcile.Create, at, to[j]})
			j, at = j+1, at+1
		default:
			out = append(out, edit{reconcile.Delete, at, from[i]})
			i++
		}
	}
	return out
}

// showJump puts a jump in its place, where copies of it stand elsewhere, or
// takes all of them away.
func showJump(c reconcile.Change[plan.Jump, struct{}], copies int) reconcile.Text {
	text := reconcile.Text{Table: "jump"}
	for range copies {
		text.Commands = append(text.Commands, command(reconcile.Delete, c.Key.Family, c.Key.Table, "-D %s -j %s", c.Key.From, c.Key.To))
	}
	if c.Op != reconcile.Delete {
		text.Commands = append(text.Commands, command(reconcile.Create, c.Key.Family, c.Key.Table, "-I %s 1 -j %s", c.Key.From, c.Key.To))
	}
	return text
}
