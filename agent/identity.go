package agent

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/medway-lb/medway/pkg/store"
)

// machineID tells this host from any other: /etc/machine-id, or where there is
// none (a container) a random word that is kept in dir.
func machineID(dir string) (string, error) { return machineIDOf("/etc/machine-id", dir) }

func machineIDOf(host, dir string) (string, error) {
	if text, err := os.ReadFile(host); err == nil {
		// "uninitialized" is what images have before their first boot (machine-id(5)).
		if id := strings.TrimSpace(string(text)); id != "" && id != "uninitialized" {
			return id, nil
		}
	}
	path := filepath.Join(dir, "machine-id")
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if id := strings.TrimSpace(string(text)); id != "" {
		return id, nil
	}
	id := strings.ToLower(rand.Text())
	return id, store.ReplaceFile(path, []byte(id+"\n"))
}

// bootID does not change while the process lives.
var bootID = sync.OnceValue(func() string {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(text))
})

// lock keeps a second agent of the same name off this host.
func lock(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("another agent runs with state_dir %s: %w", dir, err)
	}
	return f, nil
}

// unlock gives the lock back. Closing the file alone would leave it with a child
// process that is just being forked and has the descriptor until it executes its program.
func unlock(f *os.File) {
	_ = unix.Flock(int(f.Fd()), unix.LOCK_UN)
	f.Close()
}
