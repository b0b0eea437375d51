package store

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestSnapshot(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "snapshot")
	if _, err := LoadSnapshot(path); !errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrDamaged) {
		t.Errorf("missing file: %v", err)
	}
	keep := Entry{Key: "/a/\xff", Value: []byte{0, 1, 0xff}, ModRevision: 1<<62 + 1}
	want := Snapshot{Revision: 7, Cluster: 1<<64 - 1, Entries: []Entry{keep}}
	for range 2 { // the second replaces the first
		in := want
		in.Entries = []Entry{{Key: "/alive/x", Lease: 5}, keep}
		if err := os.WriteFile(path+".tmp", []byte("left by a crash"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := SaveSnapshot(path, in); err != nil {
			t.Fatal(err)
		}
	}
	got, err := LoadSnapshot(path)
	if err != nil {
		t.Fatal(err)
	}
	if age := time.Since(got.Saved); age < 0 || age > time.Minute {
		t.Errorf("saved %v ago", age)
	}
	got.Saved = time.Time{}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-saved +loaded:\n%s", diff)
	}
	if st, err := os.Stat(path); err != nil || st.Mode() != 0o600 {
		t.Errorf("mode %v %v", st.Mode(), err)
	}
	if files, err := os.ReadDir(filepath.Dir(path)); err != nil || len(files) != 1 {
		t.Errorf("files left: %v %v", files, err)
	}
}

// No single damaged byte, and no shortened file, is taken for a snapshot.
func TestSnapshotDamaged(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "snapshot")
	if err := SaveSnapshot(path, Snapshot{Revision: 7, Entries: []Entry{{Key: "/a", Value: []byte("x")}}}); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	check := func(bad []byte) {
		t.Helper()
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadSnapshot(path); !errors.Is(err, ErrDamaged) {
			t.Fatalf("%q was accepted: %v", bad, err)
		}
		if _, err := os.Stat(path); err != nil {
			t.Fatal("the damaged file is gone")
		}
	}
	for i := range good {
		bad := append([]byte(nil), good...)
		bad[i] ^= 0x20
		check(bad)
		check(good[:i])
	}
	check(append(append([]byte(nil), good...), ' '))
}
