package lease

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lease")
	before := file{path: path, bootID: "boot", ttl: 5 * time.Second}
	if got := before.read(); got != 0 {
		t.Errorf("no file, but %d", got)
	}
	if err := before.write(4711); err != nil {
		t.Fatal(err)
	}
	if got := before.read(); got != 0 {
		t.Errorf("resumes the lease %d, which it has got itself", got)
	}
	for name, c := range map[string]struct {
		now  file
		want int64
	}{
		"the next process":         {file{path: path, bootID: "boot", ttl: 5 * time.Second}, 4711},
		"after a boot":             {file{path: path, bootID: "another", ttl: 5 * time.Second}, 0},
		"with another lease_ttl":   {file{path: path, bootID: "boot", ttl: 6 * time.Second}, 0},
		"that it could not resume": {file{path: path, bootID: "boot", ttl: 5 * time.Second, spent: true}, 0},
	} {
		if got := c.now.read(); got != c.want {
			t.Errorf("%s: %d, expected %d", name, got, c.want)
		}
	}
	for _, text := range []string{"", "4711", "{", "null", `{"lease":"4711","boot_id":"boot","ttl_ns":5000000000}`} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		now := file{path: path, bootID: "boot", ttl: 5 * time.Second}
		if got := now.read(); got != 0 {
			t.Errorf("%q: %d", text, got)
		}
	}
}
