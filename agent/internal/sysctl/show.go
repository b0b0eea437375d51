package sysctl

import (
	"strings"

	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/reconcile"
)

// Show is as reconcile.Table says.
func (k *Kernel) Show(c reconcile.Change[plan.Sysctl, string]) reconcile.Text { return show(c) }

// Show is as Kernel.Show.
func (f *Fake) Show(c reconcile.Change[plan.Sysctl, string]) reconcile.Text { return show(c) }

func show(c reconcile.Change[plan.Sysctl, string]) reconcile.Text {
	text := reconcile.Text{Table: "sysctl", Old: c.Old, New: c.New}
	if c.Op != reconcile.Delete {
		text.Commands = reconcile.Commands(c.Op, "sysctl -w "+string(c.Key)+"="+quoted(c.New))
	}
	return text
}

// quoted makes one word of a shell's command line from any value.
func quoted(value string) string {
	special := func(r rune) bool {
		return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+=:,./@% ", r)
	}
	switch {
	case strings.ContainsFunc(value, special):
		return "'" + strings.ReplaceAll(value, "'", `'\''`) + "'"
	case value == "" || strings.Contains(value, " "):
		return `"` + value + `"`
	}
	return value
}
