package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

var (
	// ErrDamaged says that a snapshot file is not what was saved. The file stays
	// where it is, for a person to look at.
	ErrDamaged = errors.New("store: damaged snapshot")
	// ErrForeign says that a snapshot file is whole but not for the reader: that
	// of another node, or in a format that this version doesn't know.
	ErrForeign = errors.New("store: foreign snapshot")
)

// The first word of the file is snapshotName, a slash and the format's version.
const (
	snapshotName    = "medway-snapshot"
	snapshotVersion = "1"
)

// Snapshot is a prefix at one revision, as kept on disk.
type Snapshot struct {
	Node     string // whose snapshot it is
	Revision int64
	Cluster  uint64    // etcd's cluster id
	Saved    time.Time // set by SaveSnapshot; wall clock
	Entries  []Entry
}

// The form on disk. Keys are bytes, as JSON would mend invalid UTF-8 in silence.
type (
	diskSnapshot struct {
		Node     string      `json:"node"`
		Revision int64       `json:"revision"`
		Cluster  uint64      `json:"cluster"`
		Saved    time.Time   `json:"saved"`
		Entries  []diskEntry `json:"entries"`
	}
	diskEntry struct {
		Key         []byte `json:"key"`
		Value       []byte `json:"value"`
		ModRevision int64  `json:"mod_revision"`
	}
)

// SaveSnapshot writes s to path so that a crash leaves either the old file or
// the new one. Entries under a lease are left out: who is alive is never learned
// from a disk. One writer a path.
//
// The file is one line "medway-snapshot/1 <SHA-256 of the rest>", then JSON.
func SaveSnapshot(path string, s Snapshot) error {
	d := diskSnapshot{Node: s.Node, Revision: s.Revision, Cluster: s.Cluster, Saved: time.Now().UTC()}
	for _, e := range s.Entries {
		if e.Lease == 0 {
			d.Entries = append(d.Entries, diskEntry{Key: []byte(e.Key), Value: e.Value, ModRevision: e.ModRevision})
		}
	}
	body, err := json.Marshal(d)
	if err != nil {
		return fmt.Errorf("store: save snapshot: %w", err)
	}
	head := fmt.Sprintf("%s/%s %x\n", snapshotName, snapshotVersion, sha256.Sum256(body))
	if err := ReplaceFile(path, []byte(head), body); err != nil {
		return fmt.Errorf("store: save snapshot: %w", err)
	}
	return nil
}

// ReplaceFile writes a file, with mode 0600, so that a crash leaves either the
// old one or the new one. One writer a path.
func ReplaceFile(path string, parts ...[]byte) error {
	// A fixed name, so that crashes don't leave one file each.
	temp := path + ".tmp"
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(bytes.Join(parts, nil))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes a rename durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// LoadSnapshot reads what SaveSnapshot wrote for a node. A missing file is
// [fs.ErrNotExist], one that can't be trusted [ErrDamaged], and one that is not
// for this reader [ErrForeign].
func LoadSnapshot(path, node string) (Snapshot, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Snapshot{}, fmt.Errorf("store: load snapshot: %w", err)
	}
	head, body, _ := bytes.Cut(data, []byte("\n"))
	version, ok := bytes.CutPrefix(head, []byte(snapshotName+"/"))
	version, sum, found := bytes.Cut(version, []byte(" "))
	switch {
	case !ok || !found:
		return Snapshot{}, fmt.Errorf("%w: %s: does not start with %s/%s", ErrDamaged, path, snapshotName, snapshotVersion)
	case string(sum) != fmt.Sprintf("%x", sha256.Sum256(body)):
		return Snapshot{}, fmt.Errorf("%w: %s: checksum does not match", ErrDamaged, path)
	case string(version) != snapshotVersion:
		return Snapshot{}, fmt.Errorf("%w: %s: format %.20q, expected %q: another version of medway wrote it", ErrForeign, path, version, snapshotVersion)
	}
	var d diskSnapshot
	if err := json.Unmarshal(body, &d); err != nil {
		return Snapshot{}, fmt.Errorf("%w: %s: %w", ErrDamaged, path, err)
	}
	if d.Node != node {
		return Snapshot{}, fmt.Errorf("%w: %s: is that of node %.80q, expected %q", ErrForeign, path, d.Node, node)
	}
	s := Snapshot{Node: d.Node, Revision: d.Revision, Cluster: d.Cluster, Saved: d.Saved}
	for _, e := range d.Entries {
		s.Entries = append(s.Entries, Entry{Key: string(e.Key), Value: e.Value, ModRevision: e.ModRevision})
	}
	return s, nil
}

// Continues says by an error that the store of a complete list can't be the
// continuation of the one that the snapshot was taken from: it was emptied,
// replaced, or restored from a backup. A store restored to a state that is newer
// than all of the snapshot's keys can't be told from one that went on, unless its
// revision was bumped.
func (s Snapshot) Continues(u Update) error {
	if s.Cluster != u.Cluster {
		return fmt.Errorf("cluster %x, not %x", u.Cluster, s.Cluster)
	}
	if u.Revision < s.Revision {
		return fmt.Errorf("revision %d, after %d was seen", u.Revision, s.Revision)
	}
	if bumped(s.Revision, u.Revision) {
		return fmt.Errorf("revision %d, so far after %d that it was bumped by a restore", u.Revision, s.Revision)
	}
	known := make(map[string]int64, len(s.Entries))
	for _, e := range s.Entries {
		known[e.Key] = e.ModRevision
	}
	for _, e := range u.Put {
		if e.ModRevision < known[e.Key] {
			return fmt.Errorf("%s is of revision %d, after %d was seen", e.Key, e.ModRevision, known[e.Key])
		}
	}
	return nil
}
