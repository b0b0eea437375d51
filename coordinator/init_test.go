package coordinator

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/zap"

	"github.com/medway-lb/medway/pkg/store"
	"github.com/medway-lb/medway/pkg/store/etcdtest"
)

// tree is every file below a directory, with its mode, group and text.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		text, err := os.ReadFile(path)
		out[strings.TrimPrefix(path, dir+"/")] = info.Mode().String() + "\n" + string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestInit goes from an empty directory to a coordinator that serves its first admin.
func TestInit(t *testing.T) {
	dir := t.TempDir()
	s := Setup{
		Path: filepath.Join(dir, "medway", "coordinator.yaml"), Dir: filepath.Join(dir, "medway", "pki"), Admin: "alice", Days: 30,
		Coordinator: "coordinator-1=127.0.0.1,medway.example.com", Servers: []string{"etcd1=127.0.0.1"}, Nodes: []string{"n1=dc1"},
		Endpoints: []string{"https://" + etcdtest.FreeAddress(t)}, DryRun: true,
	}
	do := func(want error) string {
		t.Helper()
		var out bytes.Buffer
		if err := Init(t.Context(), s, &out); !errors.Is(err, want) {
			t.Fatalf("%v, expected %v\n%s", err, want, out.String())
		}
		return out.String()
	}
	refused := func(words string) {
		t.Helper()
		before := tree(t, dir)
		var out bytes.Buffer
		if err := Init(t.Context(), s, &out); err == nil || errors.Is(err, ErrLeft) || !strings.Contains(err.Error(), words) {
			t.Errorf("%v, expected %q\n%s", err, words, out.String())
		}
		same(t, before, tree(t, dir))
	}

	out := do(nil)
	if strings.Count(out, "+ ") != 8 || !strings.Contains(out, "etcd was not asked") || len(tree(t, dir)) != 0 {
		t.Errorf("dry run made %d files, and says\n%s", len(tree(t, dir)), out)
	}
	s.DryRun = false

	// Files first: etcd's members need them.
	out = do(ErrLeft)
	if !strings.Contains(out, "connection refused") || !strings.Contains(out, "left to do:") || strings.Contains(out, "medway_") {
		t.Errorf("without etcd it says\n%s", out)
	}
	made := tree(t, dir)
	for name, text := range made {
		mode := "-rw-r--r--"
		if !strings.HasSuffix(name, ".pem") {
			mode = "-rw-------"
		}
		if !strings.HasPrefix(text, mode) {
			t.Errorf("%s is %.10s, expected %s", name, text, mode)
		}
	}
	if len(made) != 2*7+1 {
		t.Errorf("%d files", len(made))
	}
	if out = do(ErrLeft); strings.Contains(out, "+") {
		t.Errorf("again it makes\n%s", out)
	}
	same(t, made, tree(t, dir))

	file := func(name string) string { return filepath.Join(s.Dir, name) }
	url, _ := etcdtest.Start(t, "https", "--client-cert-auth", "--cert-file", file("etcd1.pem"), "--key-file", file("etcd1.key"),
		"--trusted-ca-file", file("ca.pem"), "--bcrypt-cost", "4")
	s.Endpoints = []string{url}
	refused("is there already and says other things") // the other endpoint
	if err := os.Remove(s.Path); err != nil {
		t.Fatal(err)
	}
	s.Coordinator = "coordinator-1=192.0.2.7"
	refused("coordinator-1.pem is there already and is another one")
	s.Coordinator = "coordinator=127.0.0.1"
	refused("flag --coordinator: value \"coordinator\": expected another name")
	s.Coordinator = "coordinator-1=127.0.0.1"
	s.Group = "no-such-group"
	refused("flag --group")
	group, err := user.LookupGroupId(groupOf(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	s.Group = group.Name

	// Then etcd: a look, and all of it.
	s.DryRun = true
	until(t, "etcd is there", func() error { return reach(s) })
	if out = do(nil); !strings.Contains(out, "+ enable authentication") || !strings.Contains(out, "+ grant alice") || strings.Contains(out, "medway_alice") {
		t.Errorf("dry run says\n%s", out)
	}
	s.DryRun = false
	out = do(nil)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	token := lines[len(lines)-1]
	if !strings.Contains(out, "+ "+s.Path) || !strings.Contains(out, "+ user coordinator: role medway-operator") || !strings.HasPrefix(token, "medway_alice_") {
		t.Fatalf("it says\n%s", out)
	}
	made = tree(t, dir)
	for _, name := range []string{"coordinator.yaml", "pki/coordinator-1.key", "pki/coordinator.key"} {
		if !strings.HasPrefix(made["medway/"+name], "-rw-r-----") {
			t.Errorf("%s is %.10s", name, made["medway/"+name])
		}
	}
	for _, name := range []string{"ca.key", "root.key", "alice.key", "n1.key", "etcd1.key"} {
		if !strings.HasPrefix(made["medway/pki/"+name], "-rw-------") {
			t.Errorf("%s is %.10s", name, made["medway/pki/"+name])
		}
	}
	if out = do(nil); strings.Contains(out, "+") || strings.Contains(out, "medway_") {
		t.Errorf("again it makes\n%s", out)
	}
	same(t, made, tree(t, dir))

	serves(t, s, token)
}

// serves runs a coordinator with the file that was made, and asks it as the admin.
func serves(t *testing.T, s Setup, token string) {
	t.Helper()
	c, err := LoadConfig(s.Path)
	if err != nil {
		t.Fatal(err)
	}
	c.Listen = "127.0.0.1:0"
	server, err := New(c, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	roots, err := store.CertPool(filepath.Join(s.Dir, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	alice, err := tls.LoadX509KeyPair(filepath.Join(s.Dir, "alice.pem"), filepath.Join(s.Dir, "alice.key"))
	if err != nil {
		t.Fatal(err)
	}
	for what, certificates := range map[string][]tls.Certificate{token: nil, "": {alice}} {
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: certificates, MinVersion: tls.VersionTLS12}}
		defer transport.CloseIdleConnections()
		client := http.Client{Transport: transport, Timeout: patience}
		until(t, "it serves", func() error {
			r, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+server.Address().String()+"/medway.v1.Coordinator/GetState", strings.NewReader("{}"))
			if err != nil {
				return err
			}
			r.Header.Set("Content-Type", "application/json")
			if what != "" {
				r.Header.Set("Authorization", "Bearer "+what)
			}
			answer, err := client.Do(r)
			if err != nil {
				return err
			}
			defer func() { _ = answer.Body.Close() }()
			text, err := io.ReadAll(answer.Body)
			if err == nil && (answer.StatusCode != http.StatusOK || !strings.Contains(string(text), `"revision"`)) {
				err = errors.New(string(text))
			}
			return err
		})
	}
}

func reach(s Setup) error {
	c, err := s.config()
	if err != nil {
		return err
	}
	etcd, err := c.Etcd.store()
	if err != nil {
		return err
	}
	return store.Reach(context.Background(), etcd)
}

func groupOf(t *testing.T, path string) string {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(info.Sys().(*syscall.Stat_t).Gid)
}

func same(t *testing.T, before, after map[string]string) {
	t.Helper()
	for name, text := range after {
		if before[name] != text {
			t.Errorf("%s was changed", name)
		}
	}
	if len(before) != len(after) {
		t.Errorf("%d files, before %d", len(after), len(before))
	}
}
