package agent

import (
	"os"
	"path/filepath"
	"testing"
)

// TestMachineIDOfItsOwn: where the host has none, it is made once; a file that a
// crash left empty holds none.
func TestMachineIDOfItsOwn(t *testing.T) {
	none := filepath.Join(t.TempDir(), "machine-id")
	for name, host := range map[string]string{"no file": "", "not initialised": "uninitialized\n", "empty": "\n"} {
		t.Run(name, func(t *testing.T) {
			dir, etc := t.TempDir(), none
			if host != "" {
				etc = filepath.Join(dir, "etc")
				if err := os.WriteFile(etc, []byte(host), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(filepath.Join(dir, "machine-id"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			id, err := machineIDOf(etc, dir)
			if len(id) < 20 || err != nil {
				t.Fatalf("%q, %v", id, err)
			}
			if again, err := machineIDOf(etc, dir); again != id || err != nil {
				t.Errorf("%q, %v, expected %q", again, err, id)
			}
		})
	}
}
