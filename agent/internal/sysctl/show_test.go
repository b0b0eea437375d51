package sysctl

import (
	"os/exec"
	"testing"

	"pgregory.net/rapid"

	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/reconcile"
)

func TestShow(t *testing.T) {
	for value, want := range map[string]string{
		"1": "sysctl -w net.ipv4.vs.sync_threshold=1", "0 0": `sysctl -w net.ipv4.vs.sync_threshold="0 0"`,
		"$(reboot)": `sysctl -w net.ipv4.vs.sync_threshold='$(reboot)'`,
	} {
		text := show(reconcile.Change[plan.Sysctl, string]{Op: reconcile.Update, Key: "net.ipv4.vs.sync_threshold", Old: "3 50", New: value})
		if len(text.Commands) != 1 || text.Commands[0].Line != want || text.Old != "3 50" || text.New != value {
			t.Errorf("%q: %+v, expected %s", value, text, want)
		}
	}
}

// A shell reads any value back as it is.
func TestQuotedIsOneWord(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		value := rapid.StringOfN(rapid.RuneFrom([]rune(`a0 "'$()\;&|<>*?!#~{}`+"`")), 0, 12, -1).Draw(t, "value")
		out, err := exec.Command("sh", "-c", "printf %s "+quoted(value)).Output()
		if err != nil || string(out) != value {
			t.Fatalf("%q as %s is %q to a shell, %v", value, quoted(value), out, err)
		}
	})
}
