package integration

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestEtcdDocs follows docs/etcd.md to the letter: three members, on loopback
// addresses in place of the sites', and every command in its order.
func TestEtcdDocs(t *testing.T) {
	bin, err := filepath.Abs(programs())
	if err != nil {
		t.Fatal(err)
	}
	for _, program := range []string{"etcd", "etcdctl", "etcdutl", "medwayctl"} {
		if _, err := os.Stat(filepath.Join(bin, program)); err != nil {
			t.Skipf("SKIPPED: needs bin/%s", program)
		}
	}
	text, err := os.ReadFile("../docs/etcd.md")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	// 10.1.0.5 becomes 127.1.0.5, which every Linux has.
	here := strings.NewReplacer("10.", "127.", "/etc/etcd", dir+"/pki", "/var/lib/etcd", dir+"/data").Replace(string(text))
	blocks := regexp.MustCompile("(?s)```(sh|yaml)\n(.*?)```").FindAllStringSubmatch(here, -1)
	var script strings.Builder // all so far: a shell's environment goes on
	members := 0
	for _, block := range blocks {
		if block[1] == "yaml" {
			for n := 1; n <= 3; n++ {
				startMember(t, bin, dir, block[2], n)
				members++
			}
			continue
		}
		var exports strings.Builder
		for line := range strings.Lines(block[2]) {
			if strings.HasPrefix(line, "export ") {
				exports.WriteString(line)
			}
		}
		// A dry run says by its status that there is something to do.
		lines := strings.ReplaceAll(block[2], "--dry-run\n", "--dry-run || test $? = 2\n")
		cmd := exec.CommandContext(t.Context(), "bash", "-euxc", script.String()+lines)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		t.Logf("%s", out)
		script.WriteString(exports.String())
	}
	if members != 3 || len(blocks) < 7 {
		t.Errorf("%d members and %d blocks: are they still written as this test reads them?", members, len(blocks))
	}
	for _, file := range []string{"medway.db", "repaired.db", "data-restored/member/snap/db"} {
		if info, err := os.Stat(filepath.Join(dir, file)); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// startMember starts the n-th member as the first one's file says.
func startMember(t *testing.T, bin, dir, first string, n int) {
	t.Helper()
	var out strings.Builder
	for line := range strings.Lines(first) {
		if !strings.HasPrefix(line, "initial-cluster:") {
			line = strings.ReplaceAll(line, "etcd1", fmt.Sprintf("etcd%d", n))
			line = strings.ReplaceAll(line, "127.1.0.5", fmt.Sprintf("127.%d.0.5", n))
			line = strings.ReplaceAll(line, dir+"/data", fmt.Sprintf("%s/data%d", dir, n))
		}
		out.WriteString(line)
	}
	file := fmt.Sprintf("%s/etcd%d.yaml", dir, n)
	if err := os.WriteFile(file, []byte(out.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(bin, "etcd"), "--config-file", file)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		stop := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
		defer stop.Stop()
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(file, log.String())
		}
	})
}
