package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/medway-lb/medway/coordinator/internal/access"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"
	"github.com/medway-lb/medway/pkg/store/etcdtest"
)

// secure starts an etcd with certificates of `medwayctl certs`. as makes the
// flags that make the tool a user's.
func secure(t *testing.T, flags ...string) (url string, as func(user string) []string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "pki")
	if out, err := run(t, "certs", "--dir", dir, "--server", "etcd1=127.0.0.1", "--client", "root", "--client", "alice", "--client", "grafana", "--client", "n1"); err != nil {
		t.Fatal(err, out)
	}
	file := func(name string) string { return filepath.Join(dir, name) }
	url, _ = etcdtest.Start(t, "https", append(flags, "--cert-file", file("etcd1.pem"), "--key-file", file("etcd1.key"), "--trusted-ca-file", file("ca.pem"), "--bcrypt-cost", "4")...)
	return url, func(user string) []string {
		return []string{"--endpoints", url, "--cacert", file("ca.pem"), "--cert", file(user + ".pem"), "--key", file(user + ".key"), "--command-timeout", "20s"}
	}
}

// connect is a client as the flags say.
func connect(t *testing.T, flags []string) *store.Client {
	t.Helper()
	config, err := store.TLS(flags[3], flags[5], flags[7])
	if err != nil {
		t.Fatal(err)
	}
	client, err := store.Open(store.Config{Endpoints: flags[1:2], TLS: config})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

// wanted is what etcd should hold for users.
func wanted(t *testing.T, nodes, operators, viewers []string) store.Access {
	t.Helper()
	p, err := access.ParsePeople(nodes, operators, viewers)
	if err != nil {
		t.Fatal(err)
	}
	return p.Access()
}

func TestInitEtcd(t *testing.T) {
	url, as := secure(t, "--client-cert-auth")
	root := connect(t, as("root"))
	stored := func() store.Access {
		t.Helper()
		a, err := root.Access(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	do := func(user string, args ...string) (string, error) { return run(t, append(args, as(user)...)...) }
	expect := func(what, out string, err error, want ...string) {
		t.Helper()
		for _, text := range want {
			if err == nil || !strings.Contains(err.Error(), text) {
				t.Errorf("%s: error %v, expected it to contain %q\n%s", what, err, text, out)
			}
		}
	}
	empty := stored()

	// Who would lock himself out, and agents that would be locked out, stop it all.
	out, err := do("alice", "init-etcd", "--operator", "alice")
	expect("not root", out, err, `nothing was changed`, `user "alice"`, "medwayctl certs --client root", "etcdctl user grant-role alice root")
	out, err = run(t, "init-etcd", "--endpoints", url, "--cacert", as("root")[3], "--command-timeout", "1s")
	expect("no certificate", out, err, "asks for a client's certificate, and none was given")
	lease, err := root.Grant(t.Context(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	write(t, root, "/medway/v1/nodes/n2", `{"machine_id":"0123456789abcdef0123456789abcdef","site":"dc2","group":"g2","ipv4":"10.2.0.11","sync_address":"169.254.9.9","version":"1"}`)
	if _, _, err := root.Commit(t.Context(), nil, []store.Put{{Key: "/medway/v1/alive/n2", Value: []byte(`{}`), Lease: lease.ID()}}, nil); err != nil {
		t.Fatal(err)
	}
	out, err = do("root", "init-etcd", "--node", "n1=dc1")
	expect("an agent at work", out, err, "nothing was changed: agents are at work", "--node n2=dc2")
	setUp := []string{"init-etcd", "--node", "n1=dc1", "--node", "n2=dc3", "--operator", "alice", "--viewer", "grafana"}
	out, err = do("root", append(setUp, "--dry-run")...)
	if !errors.Is(err, errDiffers) || !strings.Contains(out, "+ enable authentication\nnote: node n2 may work in site dc3, but says that it is in dc2\n") || !strings.HasSuffix(out, " changes, none made\n") {
		t.Errorf("dry run: %v\n%s", err, out)
	}
	if diff := cmp.Diff(empty, stored()); diff != "" {
		t.Fatalf("something was changed: %s", diff)
	}

	out, err = do("root", setUp...)
	if err != nil || !strings.HasSuffix(out, "45 changes made\n") {
		t.Fatalf("%v\n%s", err, out)
	}
	full := stored()
	if diff := cmp.Diff(wanted(t, []string{"n1=dc1", "n2=dc3"}, []string{"alice"}, []string{"grafana"}), full); diff != "" {
		t.Error(diff)
	}
	for _, args := range [][]string{setUp, {"init-etcd"}, {"init-etcd", "--viewer", "grafana"}, {"init-etcd", "--dry-run"}} {
		if out, err := do("root", args...); err != nil || !strings.HasSuffix(out, "nothing to change\n") {
			t.Errorf("again, %q: %v\n%s", args, err, out)
		}
	}

	// From now on the tool can do what its user may.
	dir := files(t, map[string]string{"a.yaml": poolText})
	out, err = do("grafana", "apply", "-f", dir)
	expect("a viewer applies", out, err, `write /medway/v1/pools/sbc: etcd's permissions do not allow it to user "grafana"`)
	if out, err := do("grafana", "status"); err != nil {
		t.Errorf("a viewer looks: %v\n%s", err, out)
	}
	for _, user := range []string{"grafana", "n1"} {
		for _, prefix := range []string{state.GrantPrefix, state.SessionPrefix, "/medway/"} {
			if _, _, err := connect(t, as(user)).List(t.Context(), prefix); !errors.Is(err, store.ErrDenied) {
				t.Errorf("%s reads %s: %v", user, prefix, err)
			}
		}
	}
	if _, _, err := connect(t, as("alice")).List(t.Context(), state.SessionPrefix); err != nil { // a coordinator is an operator
		t.Errorf("an operator reads sessions: %v", err)
	}
	if out, err := do("alice", "apply", "-f", dir); err != nil {
		t.Errorf("an operator applies: %v\n%s", err, out)
	}
	out, err = do("alice", "init-etcd", "--operator", "mallory")
	expect("an operator makes users", out, err, "only root may set up etcd")
	out, err = do("n1", "apply", "-f", dir)
	if err != nil || !strings.Contains(out, "0 of 1 objects differ") { // it may read
		t.Errorf("a node applies nothing new: %v\n%s", err, out)
	}
	out, err = do("n1", "apply", "-f", files(t, map[string]string{"a.yaml": strings.Replace(poolText, "sed", "rr", 1)}))
	expect("a node applies", out, err, `user "n1"`, "pools/sbc")

	// A right that someone has added goes; a node that is not named goes by --prune only.
	everywhere := store.PrefixRange("/medway/v1/claims/")
	if err := root.ChangeAccess(t.Context(), store.AccessChange{Verb: store.GrantRights, Role: "medway-node-n1", Range: everywhere, Rights: store.Rights{Write: true}}); err != nil {
		t.Fatal(err)
	}
	if out, err := do("root", "init-etcd", "-o", "json"); err != nil {
		t.Error(err)
	} else {
		var got struct {
			Made    bool
			Changes []map[string]string
		}
		if err := json.Unmarshal([]byte(out), &got); err != nil || !got.Made || len(got.Changes) != 1 || got.Changes[0]["verb"] != "revoke" || got.Changes[0]["key"] != "/medway/v1/claims/" {
			t.Errorf("%v\n%s", err, out)
		}
	}
	if diff := cmp.Diff(full, stored()); diff != "" {
		t.Error(diff)
	}
	out, err = do("root", "init-etcd", "--prune", "--node", "n1=dc1")
	expect("prune takes an agent at work away", out, err, "--node n2=dc2")
	if err := lease.Revoke(t.Context()); err != nil {
		t.Fatal(err)
	}
	out, err = do("root", "init-etcd", "--prune", "--node", "n1=dc1")
	if err != nil || !strings.Contains(out, "- user alice\n- user grafana\n- user n2\n- role medway-node-n2\nnote: node n2 was here") {
		t.Errorf("prune: %v\n%s", err, out)
	}
	if diff := cmp.Diff(wanted(t, []string{"n1=dc1"}, nil, nil), stored()); diff != "" {
		t.Error(diff)
	}
}

// A server that checks certificates but does not take their names would shut
// everybody out: that is seen, and taken back.
func TestInitEtcdWithoutClientCertAuth(t *testing.T) {
	_, as := secure(t)
	out, err := run(t, append([]string{"init-etcd", "--operator", "alice"}, as("root")...)...)
	if err == nil || !strings.Contains(err.Error(), "--client-cert-auth") || !strings.Contains(err.Error(), "authentication was disabled again") {
		t.Fatalf("%v\n%s", err, out)
	}
	a, err := connect(t, as("root")).Access(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, left := a.Users["medway-init-etcd"]; a.Enabled || left {
		t.Errorf("left behind: %+v", a)
	}
}

func TestInitEtcdOverPlainHTTP(t *testing.T) {
	url, _ := etcdtest.Start(t, "http")
	out, err := run(t, "init-etcd", "--operator", "alice", "--insecure", "--endpoints", url, "--command-timeout", "20s")
	if err == nil || !strings.Contains(err.Error(), "shows no certificate with a common name") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestCerts(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	args := []string{"certs", "--dir", dir, "--server", "etcd1=10.1.0.5,etcd1.example.com", "--client", "alice", "--coordinator", "web=10.1.0.5,medway.example.com", "--days", "30"}
	out, err := run(t, args...)
	until := time.Now().Add(30 * 24 * time.Hour).Format(time.DateOnly)
	for _, want := range []string{"+ " + dir + "/ca.pem: authority, until ", "+ " + dir + "/etcd1.pem: etcd member etcd1, until " + until, "+ " + dir + "/alice.pem: user alice, until " + until, "+ " + dir + "/web.pem: coordinator web, until " + until} {
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("%v: %q is not in\n%s", err, want, out)
		}
	}
	before := map[string]string{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		before[e.Name()] = string(text)
		info, err := e.Info()
		if want := os.FileMode(0o644); err != nil || strings.HasSuffix(e.Name(), ".key") && info.Mode() != 0o600 || strings.HasSuffix(e.Name(), ".pem") && info.Mode() != want {
			t.Errorf("%s: mode %v, %v", e.Name(), info.Mode(), err)
		}
		if strings.Contains(out, strings.TrimSpace(string(text))) {
			t.Errorf("%s is in the output", e.Name())
		}
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 || len(before) != 8 {
		t.Errorf("directory %v %v with %d files", info.Mode(), err, len(before))
	}
	out, err = run(t, args...)
	if err != nil || strings.Contains(out, "+") || strings.Count(out, "until") != 4 {
		t.Errorf("again: %v\n%s", err, out)
	}
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"--server", "etcd1=10.9.9.9"}, "etcd1.pem is there already and is another one"},
		{[]string{"--server", "alice=10.1.0.5"}, "it is a client's certificate"},
		{[]string{"--client", "etcd1"}, `its common name is ""`},
		{[]string{"--server", "web=10.1.0.5"}, "it is a coordinator's certificate"},
		{[]string{"--coordinator", "etcd1=10.1.0.5"}, "it is an etcd member's certificate"},
		{[]string{"--coordinator", "web=10.1.0.6"}, "web.pem is there already and is another one"},
		{[]string{"--coordinator", "web2"}, "flag --coordinator: value \"web2\": expected NAME=HOST"},
		{[]string{"--server", "etcd1"}, "expected NAME=HOST"},
		{[]string{"--server", "=10.1.0.5"}, "expected NAME=HOST"},
		{[]string{"--server", "../x=10.1.0.5"}, `name "../x"`},
		{[]string{"--client", "../x"}, "flag --client"},
		{[]string{"--client", "ca"}, "the authority's own"},
		{[]string{"--client", "bob", "--days", "0"}, "flag --days: value 0"},
		{[]string{"--client", "bob", "--days", "36500"}, "but the authority ends"},
		{[]string{"--client", "bob", "--days", "9223372036854775807"}, "expected 1 to 36500"},
		{[]string{"--client", "bob", "--server", "e2=https://10.1.0.6:2379"}, `host "https://10.1.0.6:2379": expected an address or a DNS name`},
		{[]string{"--client", "bob", "--server", "e2=10.1.0.6,,e2.example.com"}, `host ""`},
		{[]string{"--client", "bob", "--server", "bob=10.1.0.6"}, `name "bob": it is given twice`},
		{[]string{"--client", "bob", "--client", "ca"}, "the authority's own"},
	} {
		if out, err := run(t, append([]string{"certs", "--dir", dir}, test.args...)...); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q: error %v, expected it to contain %q\n%s", test.args, err, test.want, out)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != len(before) {
		t.Errorf("what was refused has left something: %v, %v", entries, err)
	}
	for name, text := range before {
		if now, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(now) != text {
			t.Errorf("%s was changed: %v", name, err)
		}
	}
	// A renewal: without its files, a name gets a new certificate.
	if err := os.Remove(filepath.Join(dir, "alice.pem")); err != nil {
		t.Fatal(err)
	}
	if out, err := run(t, args...); err == nil || !strings.Contains(err.Error(), "alice.pem") {
		t.Errorf("a key without its certificate: %v\n%s", err, out)
	}
	if err := os.Remove(filepath.Join(dir, "alice.key")); err != nil {
		t.Fatal(err)
	}
	if out, err := run(t, args...); err != nil || !strings.Contains(out, "+ "+dir+"/alice.pem") {
		t.Errorf("renewed: %v\n%s", err, out)
	}
}
