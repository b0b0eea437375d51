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

// ErrDamaged says that a snapshot file is not what was saved. The file stays
// where it is, for a person to look at.
var ErrDamaged = errors.New("store: damaged snapshot")

// snapshotMagic is the first word of the file; the number is the format's version.
const snapshotMagic = "medway-snapshot/1"

// Snapshot is a prefix at one revision, as kept on disk.
type Snapshot struct {
	Revision int64
	Cluster  uint64    // etcd's cluster id
	Saved    time.Time // set by SaveSnapshot; wall clock
	Entries  []Entry
}

// The form on disk. Keys are bytes, as JSON would mend invalid UTF-8 in silence.
type (
	diskSnapshot struct {
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
	d := diskSnapshot{Revision: s.Revision, Cluster: s.Cluster, Saved: time.Now().UTC()}
	for _, e := range s.Entries {
		if e.Lease == 0 {
			d.Entries = append(d.Entries, diskEntry{Key: []byte(e.Key), Value: e.Value, ModRevision: e.ModRevision})
		}
	}
	body, err := json.Marshal(d)
	if err != nil {
		return fmt.Errorf("store: save snapshot: %w", err)
	}
	head := fmt.Sprintf("%s %x\n", snapshotMagic, sha256.Sum256(body))
	if err := writeAtomic(path, []byte(head), body); err != nil {
		return fmt.Errorf("store: save snapshot: %w", err)
	}
	return nil
}

func writeAtomic(path string, parts ...[]byte) error {
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

// LoadSnapshot reads what SaveSnapshot wrote. A missing file is [fs.ErrNotExist];
// one that can't be trusted is [ErrDamaged].
func LoadSnapshot(path string) (Snapshot, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Snapshot{}, fmt.Errorf("store: load snapshot: %w", err)
	}
	head, body, ok := bytes.Cut(data, []byte("\n"))
	if !ok || !bytes.HasPrefix(head, []byte(snapshotMagic+" ")) {
		return Snapshot{}, fmt.Errorf("%w: %s: does not start with %s", ErrDamaged, path, snapshotMagic)
	}
	if want := fmt.Sprintf("%s %x", snapshotMagic, sha256.Sum256(body)); string(head) != want {
		return Snapshot{}, fmt.Errorf("%w: %s: checksum does not match", ErrDamaged, path)
	}
	var d diskSnapshot
	if err := json.Unmarshal(body, &d); err != nil {
		return Snapshot{}, fmt.Errorf("%w: %s: %w", ErrDamaged, path, err)
	}
	s := Snapshot{Revision: d.Revision, Cluster: d.Cluster, Saved: d.Saved}
	for _, e := range d.Entries {
		s.Entries = append(s.Entries, Entry{Key: string(e.Key), Value: e.Value, ModRevision: e.ModRevision})
	}
	return s, nil
}
