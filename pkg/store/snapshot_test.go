package store

import (
	"bytes"
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
	if _, err := LoadSnapshot(path, "n"); !errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrDamaged) {
		t.Errorf("missing file: %v", err)
	}
	keep := Entry{Key: "/a/\xff", Value: []byte{0, 1, 0xff}, ModRevision: 1<<62 + 1}
	want := Snapshot{Node: "n", Revision: 7, Cluster: 1<<64 - 1, Entries: []Entry{keep}}
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
	got, err := LoadSnapshot(path, "n")
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
	if err := SaveSnapshot(path, Snapshot{Node: "n", Revision: 7, Entries: []Entry{{Key: "/a", Value: []byte("x")}}}); err != nil {
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
		// A version is not part of the sum: that of a later format may differ.
		if _, err := LoadSnapshot(path, "n"); !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrForeign) {
			t.Fatalf("%q was accepted: %v", bad, err)
		}
		if _, err := os.Stat(path); err != nil {
			t.Fatal("the damaged file is gone")
		}
	}
	for i := range good {
		for _, flip := range []byte{0x01, 0x20, 0xff} {
			bad := append([]byte(nil), good...)
			bad[i] ^= flip
			check(bad)
		}
		check(good[:i])
	}
	check(append(append([]byte(nil), good...), ' '))
}

// A whole snapshot of another node, or of another version of the format, is
// refused and not called damaged.
func TestSnapshotForeign(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "snapshot")
	if err := SaveSnapshot(path, Snapshot{Node: "other", Revision: 7}); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadSnapshot(path, "n"); !errors.Is(err, ErrForeign) || errors.Is(err, ErrDamaged) {
		t.Errorf("of another node: %v", err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, bytes.Replace(good, []byte("/1 "), []byte("/2 "), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadSnapshot(path, "other"); !errors.Is(err, ErrForeign) || errors.Is(err, ErrDamaged) {
		t.Errorf("of another version: %v", err)
	}
}

func TestSnapshotContinues(t *testing.T) {
	t.Parallel()
	s := Snapshot{Cluster: 1, Revision: 10, Entries: []Entry{{Key: "/a", ModRevision: 4}, {Key: "/b", ModRevision: 9}}}
	at := func(cluster uint64, revision int64, entries ...Entry) Update {
		return Update{Cluster: cluster, Revision: revision, Reset: true, Put: entries}
	}
	for name, u := range map[string]Update{
		"the same":             at(1, 10, s.Entries...),
		"later":                at(1, 20, Entry{Key: "/a", ModRevision: 12}, Entry{Key: "/b", ModRevision: 9}, Entry{Key: "/c", ModRevision: 20}),
		"keys deleted":         at(1, 11),
		"a year later":         at(1, 200_000_000, s.Entries...),
		"a key unknown so far": at(1, 10, Entry{Key: "/c", ModRevision: 3}), // under a lease, or malformed, then
	} {
		if err := s.Continues(u); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, u := range map[string]Update{
		"another cluster":       at(2, 20, s.Entries...),
		"empty":                 at(1, 1),
		"behind":                at(1, 9, s.Entries...),
		"bumped":                at(1, 1_000_000_009, s.Entries...),
		"restored, and went on": at(1, 20, Entry{Key: "/a", ModRevision: 4}, Entry{Key: "/b", ModRevision: 7}),
	} {
		if err := s.Continues(u); err == nil {
			t.Errorf("%s: taken for the continuation", name)
		}
	}
}
