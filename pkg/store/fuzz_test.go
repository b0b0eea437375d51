package store

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// FuzzLoadSnapshot reads any bytes as a snapshot file, half of the time with the
// checksum that fits them.
func FuzzLoadSnapshot(f *testing.F) {
	const magic = snapshotName + "/" + snapshotVersion
	for _, body := range []string{
		`{"node":"n","revision":5,"cluster":7,"saved":"2024-11-22T17:00:00Z","entries":[{"key":"L2E=","value":"YQ==","mod_revision":5}]}`,
		`{"node":"n"}`, `{}`, `null`, `[]`, ``, `{"entries":[{"key":5}]}`, `{"entries":[{}]}`, "\xff", `{"revision":9223372036854775808}`,
	} {
		f.Add([]byte(body), true)
		f.Add([]byte(magic+" 00\n"+body), false)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte, signed bool) {
		path, again := filepath.Join(dir, "snapshot"), filepath.Join(dir, "again")
		if signed {
			data = append(fmt.Appendf(nil, "%s %x\n", magic, sha256.Sum256(data)), data...)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := LoadSnapshot(path, "n")
		if err != nil {
			if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrForeign) {
				t.Errorf("%v, expected that it is damaged or foreign", err)
			}
			return
		}
		if err := SaveSnapshot(again, s); err != nil {
			t.Fatal(err)
		}
		got, err := LoadSnapshot(again, "n")
		got.Saved = s.Saved
		for i := range s.Entries {
			// JSON's null and "" are both no bytes.
			if len(s.Entries[i].Value) == 0 {
				s.Entries[i].Value, got.Entries[i].Value = nil, nil
			}
		}
		if diff := cmp.Diff(s, got); err != nil || diff != "" {
			t.Errorf("%v %s", err, diff)
		}
	})
}
