package agent

import (
	"fmt"
	"io"
	"strings"

	"github.com/medway-lb/medway/pkg/reconcile"
)

// mark is how a diff says what a line does.
func mark(op reconcile.Op) string {
	return map[reconcile.Op]string{reconcile.Create: "+", reconcile.Update: "~", reconcile.Delete: "-"}[op]
}

// was says what an updated object was, behind its command.
func was(e reconcile.Edit) string {
	if e.Op != reconcile.Update || e.Old == "" || len(e.Commands) > 0 && e.Commands[0].Op != e.Op {
		return "" // of a chain each rule says what becomes of it
	}
	return fmt.Sprintf("   # was %q", e.Old)
}

// editLines are changes as a diff of commands: what follows the mark is for a
// shell. What no command does is said in words.
func editLines(edits []reconcile.Edit) []string {
	var out []string
	for _, e := range edits {
		if len(e.Commands) == 0 {
			value := e.New
			if e.Op == reconcile.Delete {
				value = e.Old
			}
			out = append(out, strings.TrimRight(mark(e.Op)+" "+e.Key+" "+value, " ")+was(e))
		}
		for i, c := range e.Commands {
			line := mark(c.Op) + " " + c.Line
			if i == 0 {
				line += was(e)
			}
			out = append(out, line)
		}
	}
	return out
}

// Colours of a terminal (ECMA-48, SGR), by mark.
var colours = map[byte]string{'+': "\x1b[32m", '~': "\x1b[33m", '-': "\x1b[31m", '!': "\x1b[31m"}

const noColour = "\x1b[0m"

// Text writes the preview for people.
func (p *Preview) Text(out io.Writer, colour bool) error {
	var b strings.Builder
	line := func(s string) {
		if c := colours[s[0]]; colour && c != "" {
			s = c + s + noColour
		}
		b.WriteString(s + "\n")
	}
	line("# " + p.source())
	if p.NotTaken != nil {
		line(fmt.Sprintf("! not the store that this node knew (%v): none of this happens until \"medway-agent accept\"", p.NotTaken))
	}
	for _, f := range p.Faults {
		if f.Notice {
			line("# " + f.Key + ": " + f.Reason)
		} else {
			line("! not in force, the last good value stays: " + f.Key + ": " + f.Reason)
		}
	}
	add, change, remove := 0, 0, 0
	for i, e := range p.edits {
		if i == 0 || e.Table != p.edits[i-1].Table || (e.Op == reconcile.Delete) != (p.edits[i-1].Op == reconcile.Delete) {
			b.WriteString("\n# " + heading(e) + "\n")
		}
		for _, l := range editLines(p.edits[i : i+1]) {
			line(l)
		}
		switch e.Op {
		case reconcile.Create:
			add++
		case reconcile.Update:
			change++
		case reconcile.Delete:
			remove++
		}
	}
	b.WriteString("\n")
	if len(p.edits) == 0 {
		b.WriteString("No changes: this host is as planned.\n")
	} else {
		fmt.Fprintf(&b, "Plan: %d to add, %d to change, %d to remove.\n", add, change, remove)
	}
	_, err := io.WriteString(out, b.String())
	return err
}

func heading(e reconcile.Edit) string {
	switch {
	case e.Table == announcementTable:
		return "BGP, to every neighbour (by the running agent)"
	case strings.HasSuffix(e.Table, "s"):
		return e.Table + "es"
	}
	return e.Table + "s"
}
