package integration

import (
	"bytes"
	"context"
	"encoding/pem"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/medway-lb/medway/integration/lab"
	"github.com/medway-lb/medway/pkg/pki"
	"github.com/medway-lb/medway/pkg/store"
)

// upEtcd builds the lab's network, routers and etcd, which need no IPVS.
func upEtcd(t *testing.T) *lab.Lab {
	t.Helper()
	missing := ""
	for _, program := range []string{"bird", "nsenter", filepath.Join(programs(), "etcdctl"), filepath.Join(programs(), "medwayctl")} {
		if _, err := exec.LookPath(program); err != nil {
			missing = program
		}
	}
	if os.Geteuid() != 0 {
		missing = "root"
	}
	if missing != "" {
		if os.Getenv("MEDWAY_REQUIRE_KERNEL") == "1" {
			t.Fatalf("MEDWAY_REQUIRE_KERNEL=1, and this test needs %s", missing)
		}
		t.Skipf("SKIPPED: needs %s", missing)
	}
	opts := lab.Options{
		Dir: t.TempDir(), Prefix: fmt.Sprintf("mwe%d-", os.Getpid()), RoutingOnly: true, BinDir: programs(), Progress: t.Output(),
	}
	t.Cleanup(func() {
		if err := lab.Clean(opts); err != nil {
			t.Error(err)
		}
	})
	l, err := lab.Up(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// etcdctl runs it on a node as a user; a user without a certificate is "".
func etcdctl(t *testing.T, l *lab.Lab, user, node string, args ...string) (string, error) {
	t.Helper()
	args = append([]string{filepath.Join(l.BinDir(), "etcdctl")}, args...)
	if user == "" {
		args = append([]string{"env", "-u", "ETCDCTL_CERT", "-u", "ETCDCTL_KEY"}, args...)
	}
	return l.OutputAs(t.Context(), user, node, args...)
}

// TestEtcdRoles: the roles are those of the architecture's table, as etcdctl
// shows them.
func TestEtcdRoles(t *testing.T) {
	l := upEtcd(t)
	roles := map[string]string{
		"medway-node-dc1-lvs-a": `Role medway-node-dc1-lvs-a
KV Read:
	[/medway/status/, /medway/status0) (prefix /medway/status/)
	[/medway/v1/, /medway/v10) (prefix /medway/v1/)
KV Write:
	[/medway/history/, /medway/history0) (prefix /medway/history/)
	/medway/status/dc1-lvs-a
	/medway/v1/alive/dc1-lvs-a
	[/medway/v1/claims/dc1-lvs-a/, /medway/v1/claims/dc1-lvs-a0) (prefix /medway/v1/claims/dc1-lvs-a/)
	/medway/v1/epoch
	/medway/v1/joined/dc1-lvs-a
	[/medway/v1/locks/, /medway/v1/locks0) (prefix /medway/v1/locks/)
	/medway/v1/nodes/dc1-lvs-a
	[/medway/v1/owners/dc1/, /medway/v1/owners/dc10) (prefix /medway/v1/owners/dc1/)
	[/medway/v1/target_state/, /medway/v1/target_state0) (prefix /medway/v1/target_state/)
`,
		"medway-operator": `Role medway-operator
KV Read:
	[/medway/, /medway0) (prefix /medway/)
KV Write:
	[/medway/, /medway0) (prefix /medway/)
`,
		"medway-viewer": `Role medway-viewer
KV Read:
	[/medway/evacuations/, /medway/evacuations0) (prefix /medway/evacuations/)
	[/medway/history/, /medway/history0) (prefix /medway/history/)
	[/medway/status/, /medway/status0) (prefix /medway/status/)
	[/medway/switchovers/, /medway/switchovers0) (prefix /medway/switchovers/)
	[/medway/v1/, /medway/v10) (prefix /medway/v1/)
KV Write:
`,
	}
	for _, node := range hosts[1:] {
		roles["medway-node-"+node] = strings.NewReplacer("dc1-lvs-a", node, "owners/dc1", "owners/"+node[:3]).Replace(roles["medway-node-dc1-lvs-a"])
	}
	show := func(args ...string) string {
		t.Helper()
		out, err := etcdctl(t, l, lab.Root, lab.Witness, args...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if got, want := show("role", "list"), "medway-node-dc1-lvs-a\nmedway-node-dc1-lvs-b\nmedway-node-dc2-lvs-a\nmedway-node-dc2-lvs-b\nmedway-operator\nmedway-viewer\n"; got != want {
		t.Errorf("roles are\n%sexpected\n%s", got, want)
	}
	for role, want := range roles {
		if diff := cmp.Diff(want, show("role", "get", role)); diff != "" {
			t.Errorf("%s: %s", role, diff)
		}
	}
	for user, role := range map[string]string{
		"root": "root", "operator": "medway-operator", "coordinator": "medway-operator", "viewer": "medway-viewer",
		"dc1-lvs-a": "medway-node-dc1-lvs-a", "dc1-lvs-b": "medway-node-dc1-lvs-b", "dc2-lvs-a": "medway-node-dc2-lvs-a",
	} {
		if got, want := show("user", "get", user), fmt.Sprintf("User: %s\nRoles: %s\n", user, role); got != want {
			t.Errorf("user get shows %q, expected %q", got, want)
		}
	}
	if got := show("auth", "status"); !strings.HasPrefix(got, "Authentication Status: true\n") {
		t.Error(got)
	}
	refusals(t, l)
	strangers(t, l)
	secrets(t, l)
}

// refusals: what etcd does not let a node, a viewer and an operator do.
func refusals(t *testing.T, l *lab.Lab) {
	t.Helper()
	const node = "dc1-lvs-a"
	try := func(allowed bool, user string, args ...string) {
		t.Helper()
		out, err := etcdctl(t, l, user, node, args...)
		switch {
		case allowed && err != nil:
			t.Errorf("%s may not %q: %v", user, args, err)
		case !allowed && (err == nil || !strings.Contains(out, "permission denied")):
			t.Errorf("%s may %q: %v\n%s", user, args, err, out)
		}
	}
	mine := []string{
		"nodes/dc1-lvs-a", "alive/dc1-lvs-a", "joined/dc1-lvs-a", "claims/dc1-lvs-a/sip-1", "owners/dc1/sip-1",
		"target_state/sip-1", "locks/sip-1", "epoch", // every node's
	}
	intent := []string{
		"vips/sip-1", "pools/sbc", "backends/sbc/dc1-sbc1", "drains/sbc/dc1-sbc1", "settings", "ladder",
		"node_drains/dc1-lvs-a", "pauses/sip-1", "pause",
	}
	theirs := []string{
		"nodes/dc1-lvs-b", "alive/dc1-lvs-b", "joined/dc1-lvs-b", "claims/dc1-lvs-b/sip-1",
		"nodes/dc2-lvs-a", "alive/dc2-lvs-a", "claims/dc2-lvs-a/sip-1", "owners/dc2/sip-1",
		"nodes/dc1-lvs-ab", "alive/dc1-lvs-ab", "claims/dc1-lvs-ab/sip-1", "claims/dc1-lvs-a", "owners/dc10/sip-1", "owners/dc1",
	}
	for _, key := range mine {
		try(true, node, "put", "/medway/v1/"+key, "x")
	}
	try(true, node, "put", "/medway/status/dc1-lvs-a", "x")
	try(true, node, "put", "/medway/history/sip-1/1", "x")
	try(true, node, "get", "--prefix", "/medway/status/")
	for _, key := range append(intent, theirs...) {
		try(false, node, "put", "/medway/v1/"+key, "x")
		try(false, node, "del", "/medway/v1/"+key)
	}
	for _, args := range [][]string{
		{"put", "/medway/status/dc2-lvs-a", "x"}, {"put", "/elsewhere", "x"},
		{"del", "--prefix", "/medway/v1/"}, {"del", "--prefix", "/medway/v1/claims/"}, {"get", "--prefix", "/medway/"}, {"get", "--prefix", ""},
		{"user", "add", "mallory", "--no-password"}, {"role", "grant-permission", "medway-node-dc1-lvs-a", "write", "/medway/v1/settings"},
		{"auth", "disable"}, {"move-leader", "1"}, {"defrag"},
	} {
		try(false, node, args...)
	}
	out, err := l.OutputAs(t.Context(), node, node, "env", "ETCDCTL_ENDPOINTS="+l.Endpoints()[1],
		filepath.Join(l.BinDir(), "etcdctl"), "snapshot", "save", filepath.Join(t.TempDir(), "db"))
	if err == nil || !strings.Contains(out, "permission denied") {
		t.Errorf("a node may take all of etcd away: %v\n%s", err, out)
	}
	try(true, node, "get", "--prefix", "/medway/v1/")

	// Another node's lease is its own.
	out, err = etcdctl(t, l, "dc2-lvs-a", "dc2-lvs-a", "lease", "grant", "600")
	fields := strings.Fields(out) // lease 694d8f2b6c1e0a05 granted with TTL(600s)
	if err != nil || len(fields) < 2 {
		t.Fatal(err, out)
	}
	try(true, "dc2-lvs-a", "put", "--lease", fields[1], "/medway/v1/alive/dc2-lvs-a", "x")
	try(false, node, "lease", "revoke", fields[1])
	try(false, node, "lease", "keep-alive", "--once", fields[1])
	try(true, "dc2-lvs-a", "lease", "keep-alive", "--once", fields[1])

	for _, prefix := range []string{"v1/", "status/", "history/", "switchovers/", "evacuations/"} {
		try(true, lab.Viewer, "get", "--prefix", "/medway/"+prefix)
	}
	for _, args := range [][]string{
		{"get", "--prefix", "/medway/"}, {"get", "--prefix", "/medway/grants/"}, {"get", "--prefix", "/medway/sessions/"}, // who may do what
		{"put", "/medway/v1/target_state/sip-1", "dc2"}, {"put", "/medway/status/x", "x"}, {"del", "/medway/v1/nodes/dc1-lvs-a"},
		{"get", "/elsewhere"}, {"auth", "disable"},
	} {
		try(false, lab.Viewer, args...)
	}
	for _, key := range append(mine, intent...) {
		try(true, lab.Operator, "put", "/medway/v1/"+key, "x")
	}
	try(true, lab.Operator, "del", "--prefix", "/medway/")
	for _, args := range [][]string{{"put", "/elsewhere", "x"}, {"user", "list"}, {"auth", "disable"}, {"get", "--prefix", "/medway"}} {
		try(false, lab.Operator, args...)
	}
}

// strangers: who has no certificate of the lab's CA, or one that is for
// something else, gets nowhere.
func strangers(t *testing.T, l *lab.Lab) {
	t.Helper()
	look := func(port string, cert, key string) error {
		config, err := store.TLS(l.CA(), cert, key)
		if err != nil {
			t.Fatal(err)
		}
		return store.Reach(t.Context(), store.Config{
			Endpoints: []string{"https://10.1.0.5:" + port}, TLS: config,
			Dial: func(ctx context.Context, address string) (net.Conn, error) {
				return l.Dial(ctx, "dc1-lvs-a", "tcp", address)
			},
		})
	}
	expect := func(what string, err error, want string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, expected it to contain %q", what, err, want)
		}
	}
	if out, err := etcdctl(t, l, "", "dc1-lvs-a", "--command-timeout", "1s", "get", "--prefix", "/medway/v1/"); err == nil {
		t.Errorf("etcdctl without a certificate: %s", out)
	}
	expect("no certificate", look("2379", "", ""), "asks for a client's certificate")
	other, _, err := pki.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Client("root", time.Hour); err != nil {
		t.Fatal(err)
	}
	cert, key := other.Files("root")
	expect("root of another CA", look("2379", cert, key), "refuses this client's certificate")

	// The door of members is for members: a node's certificate is good for the clients' only.
	cert, key = l.Certificate("dc1-lvs-a")
	if err := look("2379", cert, key); err != nil {
		t.Errorf("a node at the clients' port: %v", err)
	}
	expect("a node at the members' port", look("2380", cert, key), "refuses this client's certificate")
	expect("root at the members' port", look("2380", l.Dir()+"/pki/root.pem", l.Dir()+"/pki/root.key"), "refuses this client's certificate")
	if cert, key = l.Certificate("dc2-etcd"); strings.Contains(fmt.Sprint(look("2380", cert, key)), "refuses") {
		t.Error("a member is refused at the members' port")
	}
	// And a member's certificate is nobody's at the clients'.
	if out, err := etcdctl(t, l, "dc2-etcd", "dc2-etcd", "get", "--prefix", "/medway/v1/"); err == nil || !strings.Contains(out, "user name is empty") && !strings.Contains(out, "permission denied") {
		t.Errorf("a member's certificate as a client's: %v\n%s", err, out)
	}
}

// secrets: keys are in their own files, for root alone, and nowhere else.
func secrets(t *testing.T, l *lab.Lab) {
	t.Helper()
	keys := map[string][]byte{}
	err := filepath.WalkDir(filepath.Join(l.Dir(), "pki"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".key" {
			return err
		}
		info, err := d.Info()
		if err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: mode %v, %v", path, info.Mode(), err)
		}
		text, err := os.ReadFile(path)
		if block, _ := pem.Decode(text); block != nil {
			keys[path] = bytes.TrimSpace(bytes.Split(text, []byte("\n"))[1])
		}
		return err
	})
	if err != nil || len(keys) != 15 {
		t.Fatalf("%d keys, %v", len(keys), err)
	}
	read := 0
	err = filepath.WalkDir(l.Dir(), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || filepath.Ext(path) == ".key" {
			return err
		}
		text, err := os.ReadFile(path)
		read++
		for key, secret := range keys {
			if bytes.Contains(text, secret) {
				t.Errorf("%s is in %s", key, path)
			}
		}
		return err
	})
	if err != nil || read < 10 {
		t.Errorf("%d files, %v", read, err)
	}
}
