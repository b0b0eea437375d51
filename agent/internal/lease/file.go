package lease

import (
	"encoding/json"
	"os"
	"time"

	"github.com/medway-lb/medway/pkg/store"
)

// file keeps the number of a lease over a restart of the process. After a boot
// the connection table is empty, so what the node owned is not resumed then.
type file struct {
	path, bootID string
	ttl          time.Duration
	// spent says that the file has nothing more to tell this process.
	spent bool
}

// kept is the file's content.
type kept struct {
	Lease  int64  `json:"lease"`
	BootID string `json:"boot_id"`
	// TTL is what was asked for: a lease of another time to live is not resumed.
	TTL time.Duration `json:"ttl_ns"`
}

// read returns the lease of the process before; 0 where there is none to resume.
func (f *file) read() int64 {
	if f.spent {
		return 0
	}
	text, err := os.ReadFile(f.path)
	if err != nil {
		return 0
	}
	return decode(text, f.bootID, f.ttl)
}

// decode reads what write wrote. Whatever is not that is no lease to resume: a new
// one is always safe.
func decode(text []byte, bootID string, ttl time.Duration) int64 {
	var k kept
	if json.Unmarshal(text, &k) != nil || k.BootID != bootID || k.TTL != ttl {
		return 0
	}
	return k.Lease
}

func (f *file) write(lease int64) error {
	f.spent = true
	text, err := json.Marshal(kept{Lease: lease, BootID: f.bootID, TTL: f.ttl})
	if err != nil {
		return err
	}
	return store.ReplaceFile(f.path, append(text, '\n'))
}
