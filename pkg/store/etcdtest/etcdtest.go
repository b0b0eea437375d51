// Package etcdtest starts real etcd servers for tests.
package etcdtest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// Binary is the path of the server. MEDWAY_BIN names a directory that has it; else it
// is built on the first use, and the go command keeps it in its cache.
var Binary = sync.OnceValues(func() (string, error) {
	if dir := os.Getenv("MEDWAY_BIN"); dir != "" {
		return filepath.Join(dir, "etcd"), nil
	}
	out, err := exec.Command("go", "tool", "-n", "go.etcd.io/etcd/server/v3").Output()
	return strings.TrimSpace(string(out)), err
})

// FreeAddress is one of loopback that nobody else takes until the test ends: no other
// test, since it holds a lock, and no connection, since the kernel gives those ports from
// 32768 on (ip_local_port_range). To listen on port 0 and to hand that on leaves a moment
// in which another takes it.
func FreeAddress(t testing.TB) string {
	t.Helper()
	const first, ports, tries = 20000, 12000, 1000
	dir := filepath.Join(os.TempDir(), "medway-test-ports")
	if err := os.MkdirAll(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	for range tries {
		port := first + rand.IntN(ports)
		lock, err := os.OpenFile(filepath.Join(dir, fmt.Sprint(port)), os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o666)
		if err != nil {
			t.Fatal(err)
		}
		if syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			address := fmt.Sprintf("127.0.0.1:%d", port)
			if l, err := net.Listen("tcp", address); err == nil {
				_ = l.Close()
				t.Cleanup(func() { _ = lock.Close() })
				return address
			}
		}
		_ = lock.Close()
	}
	t.Fatalf("none of the ports from %d to %d is free", first, first+ports-1)
	return ""
}

// Start starts a server of one member, and returns its URL and process. It ends with the
// test; what it had to say is told where the test fails. scheme is "http" or "https",
// flags are beyond the usual.
func Start(t testing.TB, scheme string, flags ...string) (url string, server *os.Process) {
	t.Helper()
	binary, err := Binary()
	if err != nil {
		t.Fatal("build etcd: ", err)
	}
	url, peer := scheme+"://"+FreeAddress(t), "http://"+FreeAddress(t)
	cmd := exec.Command(binary, append(flags, "--data-dir", filepath.Join(t.TempDir(), "etcd"), "--unsafe-no-fsync", "--log-level", "error",
		"--listen-client-urls", url, "--advertise-client-urls", url,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer)...)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(log.String())
		}
	})
	return url, cmd.Process
}
