package firewall

import (
	"fmt"
	"slices"
	"strings"

	"github.com/medway-lb/medway/pkg/plan"
)

// tables are those in which medway has chains.
var tables = []string{"filter", "mangle", "raw"}

// own returns an error unless a chain may be changed by medway.
func own(table, chain string) error {
	if !slices.Contains(tables, table) || !strings.HasPrefix(chain, plan.ChainPrefix) {
		return fmt.Errorf("chain %s of table %s is not medway's: its chains begin with %s, in %s",
			chain, table, plan.ChainPrefix, strings.Join(tables, ", "))
	}
	return nil
}

// chain is one chain with its rules, in the words of `iptables -S`.
type chain struct {
	name string
	// policy is that of a built-in chain, "-" for the others.
	policy string
	rules  []string
}

// ruleset is the tables by name, each with its chains in the printed order.
type ruleset map[string][]*chain

func (rs ruleset) chain(table, name string) *chain {
	for _, c := range rs[table] {
		if c.name == name {
			return c
		}
	}
	return nil
}

// parse reads the output of iptables-save(8).
func parse(out string) (ruleset, error) {
	rs := make(ruleset)
	table := ""
	for line := range strings.Lines(out) {
		line = strings.TrimRight(line, "\n")
		switch {
		case line == "" || line == "COMMIT":
		case strings.HasPrefix(line, "#"):
			// iptables on nftables leaves out a table that nft(8) has
			// filled with what it can't print. What can't be read is not empty.
			for _, t := range tables {
				if strings.HasPrefix(line, "# Table `"+t+"' is incompatible") {
					return nil, fmt.Errorf("iptables can't read table %s: %s", t, line[2:])
				}
			}
		case line[0] == '*':
			table = line[1:]
		case line[0] == ':':
			f := strings.Fields(line[1:])
			if len(f) < 2 {
				return nil, fmt.Errorf("iptables-save printed %q", line)
			}
			rs[table] = append(rs[table], &chain{name: f[0], policy: f[1]})
		default:
			name, rule, _ := strings.Cut(strings.TrimPrefix(line, "-A "), " ")
			c := rs.chain(table, name)
			if c == nil {
				return nil, fmt.Errorf("iptables-save printed %q in table %s without the chain", line, table)
			}
			c.rules = append(c.rules, printed(rule))
		}
	}
	return rs, nil
}

// protocol is one with several names, some of which are known only on hosts
// with /etc/protocols (Debian: netbase). Rules have the name, as most hosts print
// it, and the number is written, which all hosts can read.
type protocol struct{ name, number string }

var (
	ipencap   = protocol{"ipencap", "4"}
	ipv6      = protocol{"ipv6", "41"}
	icmpv6    = protocol{"ipv6-icmp", "58"}
	protocols = map[string]protocol{
		"4": ipencap, "ipip": ipencap, "ipv4": ipencap, "ipencap": ipencap,
		"41": ipv6, "ipv6": ipv6,
		"58": icmpv6, "icmpv6": icmpv6, "ipv6-icmp": icmpv6,
	}
)

func printed(rule string) string { return named(rule, func(p protocol) string { return p.name }) }

func written(rule string) string { return named(rule, func(p protocol) string { return p.number }) }

// named gives the protocol of a rule, the word after -p, another of its names. No
// regular expression: a look at the kernel does this for every rule.
func named(rule string, as func(protocol) string) string {
	at := strings.Index(" "+rule, " -p ")
	if at < 0 {
		return rule
	}
	at += len("-p ")
	word, _, _ := strings.Cut(rule[at:], " ")
	p, ok := protocols[word]
	if !ok {
		return rule
	}
	return rule[:at] + as(p) + rule[at+len(word):]
}

func split(rules plan.Rules) []string {
	if rules == "" {
		return nil
	}
	return strings.Split(string(rules), "\n")
}

// chains returns medway's.
func (rs ruleset) chains(family plan.Family) map[plan.Chain]plan.Rules {
	have := make(map[plan.Chain]plan.Rules)
	for _, table := range tables {
		for _, c := range rs[table] {
			if own(table, c.name) == nil {
				have[plan.Chain{Family: family, Table: table, Name: c.name}] = plan.Rules(strings.Join(c.rules, "\n"))
			}
		}
	}
	return have
}

// jumps returns the jumps from built-in chains to medway's, but not those of
// want that aren't in their place: in it once, with none but medway's jumps
// before it.
func (rs ruleset) jumps(family plan.Family, want map[plan.Jump]struct{}) map[plan.Jump]struct{} {
	have := make(map[plan.Jump]struct{})
	for _, table := range tables {
		for _, c := range rs[table] {
			if c.policy == "-" {
				continue
			}
			head := true
			for _, rule := range c.rules {
				to, ok := strings.CutPrefix(rule, "-j ")
				if !ok || own(table, to) != nil {
					head = false
					continue
				}
				j := plan.Jump{Family: family, Table: table, From: c.name, To: to}
				if _, wanted := want[j]; !wanted || head && rs.copies(j) == 1 {
					have[j] = struct{}{}
				}
			}
		}
	}
	return have
}

// copies counts how often a jump stands in its chain.
func (rs ruleset) copies(j plan.Jump) int {
	n := 0
	if c := rs.chain(j.Table, j.From); c != nil {
		for _, rule := range c.rules {
			if rule == "-j "+j.To {
				n++
			}
		}
	}
	return n
}
