package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestSocketPath: it is found also where the rest of the file is wrong.
func TestSocketPath(t *testing.T) {
	file := filepath.Join(t.TempDir(), "agent.yaml")
	for _, test := range []struct{ text, want string }{
		{"node: dc1-lvs-a\n", "/var/lib/medway/agent.sock"},
		{"state_dir: /srv/medway\nno_such_field: 1\nlease_ttl: long\n", "/srv/medway/agent.sock"},
		{"state_dir: /srv/medway\nsocket: /run/medway/a.sock\n", "/run/medway/a.sock"},
	} {
		if err := os.WriteFile(file, []byte(test.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := SocketPath(file); err != nil || got != test.want {
			t.Errorf("%q: %q %v, expected %q", test.text, got, err, test.want)
		}
	}
	if err := os.WriteFile(file, []byte("socket: [\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := SocketPath(file); err == nil || !strings.HasPrefix(err.Error(), file) {
		t.Errorf("%v", err)
	}
	if _, err := SocketPath(file + ".missing"); err == nil {
		t.Error("a missing file is no error")
	}
}

func TestSocketMustBeAnAbsolutePathThatFits(t *testing.T) {
	config := testConfig(t, "dc1-lvs-a", "dc1", "127.0.0.1:2379")
	config.StateDir = "/var/lib/medway"
	if err := config.Validate(); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"agent.sock", "/" + strings.Repeat("x", 106)} {
		config.Socket = path
		if err := config.Validate(); err == nil || !strings.Contains(err.Error(), "field socket") {
			t.Errorf("%q: %v", path, err)
		}
	}
}
