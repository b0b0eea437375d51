package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"
)

// files writes a directory of files, name to text.
func files(t *testing.T, texts map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range texts {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const (
	vipText = `kind: VIP
name: sip-1
addresses: [203.0.113.10]
groups: {dc1: g1, dc2: g2}
services:
  - {protocol: tcp, port: 5060, pool: sbc}
`
	poolText    = "kind: Pool\nname: sbc\nscheduler: sed\n"
	backendText = "kind: Backend\npool: sbc\nname: b1\nsite: dc1\naddress: 10.1.1.21\n"
)

func TestReadObjects(t *testing.T) {
	dir := files(t, map[string]string{
		"b/pool.yml":   poolText + "--- # with a word\n" + backendText,
		"a-vip.yaml":   "# what we serve\n---\n" + vipText + "---\n# nothing more\n",
		"empty.yaml":   "# all commented out\n---\n\n",
		"notes.txt":    "kind: Nonsense",
		"b/swap.yaml~": "kind: Nonsense",
	})
	objects, err := readObjects([]string{dir}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, o := range objects {
		got = append(got, o.Key.String()+" "+string(o.Value))
	}
	want := []string{
		`/medway/v1/vips/sip-1 {"addresses":["203.0.113.10"],"services":[{"protocol":"tcp","port":5060,"pool":"sbc"}],"groups":{"dc1":"g1","dc2":"g2"}}`,
		`/medway/v1/pools/sbc {"scheduler":"sed"}`,
		`/medway/v1/backends/sbc/b1 {"site":"dc1","address":"10.1.1.21"}`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestBadFilesSayWhereAndWhat: all that is wrong is said at once, each with the
// line on which the object begins.
func TestBadFilesSayWhereAndWhat(t *testing.T) {
	for _, test := range []struct {
		name  string
		texts map[string]string
		want  []string // "DIR" stands for the directory
	}{
		{"nothing", nil, []string{"DIR: expected at least one object"}},
		{"comments only", map[string]string{"a.yaml": "# one\n---\n# two\n"}, []string{"DIR: expected at least one object"}},
		{
			"two faults in two files",
			map[string]string{"a.yaml": poolText + "---\n" + "kind: Pol\nname: x\n", "b.yaml": "\n\n---\nkind: Pool\nname: X\n"},
			[]string{`DIR/a.yaml:5:1: field kind: value "Pol"`, `DIR/b.yaml:5:1: Pool X: field name: value "X"`},
		},
		{
			"twice in one file", map[string]string{"a.yaml": poolText + "---\n" + poolText},
			[]string{"DIR/a.yaml:5:1: Pool sbc is in DIR/a.yaml:1:1 already"},
		},
		{
			"twice in two files", map[string]string{"a.yaml": poolText, "b/c.yaml": poolText},
			[]string{"DIR/b/c.yaml:1:1: Pool sbc is in DIR/a.yaml:1:1 already"},
		},
		{"not YAML", map[string]string{"a.yaml": "---\nkind: [\n"}, []string{"DIR/a.yaml:2:7: "}},
		{"duplicate field", map[string]string{"a.yaml": poolText + "scheduler: rr\n"}, []string{"DIR/a.yaml:4:1: ", `"scheduler" already defined`}},
		{"unknown field", map[string]string{"a.yaml": poolText + "schedular: rr\n"}, []string{`DIR/a.yaml:4:1: Pool sbc: field schedular: unknown in schema 2: expected one of scheduler`}},
		{"a list", map[string]string{"a.yaml": "- kind: Pool\n"}, []string{"DIR/a.yaml:1:1: ", "expected an object"}},
		{"beside the marker", map[string]string{"a.yaml": poolText + "--- {kind: Pol}\n"}, []string{`DIR/a.yaml:4:6: field kind: value "Pol"`}},
		{"after the end of a document", map[string]string{"a.yaml": poolText + "...\nkind: Pol\n"}, []string{`DIR/a.yaml:5:1: field kind: value "Pol"`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := files(t, test.texts)
			_, err := readObjects([]string{dir}, nil)
			if err == nil {
				t.Fatal("accepted")
			}
			for _, want := range test.want {
				if want = strings.ReplaceAll(want, "DIR", dir); !strings.Contains(err.Error(), want) {
					t.Errorf("error %q, expected it to contain %q", err, want)
				}
			}
		})
	}
	if _, err := readObjects([]string{"/nowhere"}, nil); err == nil || !strings.Contains(err.Error(), "/nowhere") {
		t.Errorf("%v", err)
	}
}

// TestStandardInput, and several paths, are one set of objects.
func TestStandardInput(t *testing.T) {
	dir := files(t, map[string]string{"a.yaml": poolText})
	objects, err := readObjects([]string{"-", dir}, strings.NewReader(vipText))
	if err != nil || len(objects) != 2 {
		t.Errorf("%d objects, %v", len(objects), err)
	}
	_, err = readObjects([]string{dir, "-"}, strings.NewReader(poolText+"---\nkind: Pool\n"))
	for _, want := range []string{"stdin:5:1: Pool: field name: missing", "stdin:1:1: Pool sbc is in " + dir + "/a.yaml:1:1 already"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, expected it to contain %q", err, want)
		}
	}
	if _, err = readObjects([]string{"-"}, strings.NewReader("")); err == nil || !strings.Contains(err.Error(), "-: expected at least one object") {
		t.Error(err)
	}
}

// entries are what is stored, key below the prefix to value.
func entries(values map[string]string) (out []store.Entry) {
	for key, value := range values {
		out = append(out, store.Entry{Key: state.Prefix + key, Value: []byte(value), ModRevision: 5})
	}
	return out
}

// TestCheckTogether: what is right by itself may be wrong beside what is stored.
func TestCheckTogether(t *testing.T) {
	const (
		node  = `{"machine_id":"m","site":"dc1","group":"g1","ipv4":"10.1.0.11","sync_address":"169.254.3.4"`
		other = `{"addresses":["203.0.113.10"],"groups":{"dc1":"g1"},"services":[{"protocol":"tcp","port":5060,"pool":"sbc"}]}`
	)
	newer := vipText + "announcement:\n  communities: [\"1:2\"]\n  roles: {backup: {prepend: 2}}\n"
	for _, test := range []struct {
		name, text string
		stored     map[string]string
		want       []string // parts of the error; "-" is none
		notice     string
	}{
		{"a missing pool", vipText, nil, []string{`stdin:6:33: VIP sip-1: field services[0].pool: pool "sbc" does not exist`}, ""},
		{"a pool that comes with it", vipText + "---\n" + poolText, nil, []string{"-"}, `VIP sip-1: field services[0].pool: pool "sbc" has no backend with an IPv4 address`},
		{"another VIP's address", vipText, map[string]string{"pools/sbc": "{}", "vips/other": other}, []string{`stdin:3:13: VIP sip-1: field addresses[0]: value "203.0.113.10": expected one that VIP other does not have`}, ""},
		{
			"two of them in the files", vipText + "---\n" + poolText + "---\n" + strings.Replace(vipText, "sip-1", "sip-2", 1), nil,
			[]string{`stdin:14:13: VIP sip-2: field addresses[0]`}, "",
		},
		{"two backends with one address", poolText + "---\n" + backendText + "---\n" + strings.Replace(backendText, "b1", "b2", 1), nil, []string{`stdin:15:1: Backend sbc/b2: field address`}, ""},
		{"what was wrong before", backendText, map[string]string{"vips/other": "?", "pools/sbc": "{}"}, []string{"-"}, ""},
		{
			"a field that a node does not know", newer + "---\n" + poolText, map[string]string{"nodes/n-old": node + "}", "nodes/n-new": node + `,"schema":2}`},
			[]string{"stdin:9:3: VIP sip-1: field announcement.roles needs schema 2; node n-old knows 1: upgrade its agent first, or, if the node is gone for good: etcdctl del /medway/v1/nodes/n-old"}, "",
		},
		{"a field that all nodes know", newer + "---\n" + poolText, map[string]string{"nodes/n-new": node + `,"schema":2}`}, []string{"-"}, ""},
		{"a node newer than this tool", newer + "---\n" + poolText, map[string]string{"nodes/n": node + `,"schema":3,"of_schema_3":1}`}, []string{"-"}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			objects, err := readObjects([]string{"-"}, strings.NewReader(test.text))
			if err != nil {
				t.Fatal(err)
			}
			notices, err := checkTogether(entries(test.stored), 9, objects)
			for _, want := range test.want {
				if want == "-" && err != nil || want != "-" && (err == nil || !strings.Contains(err.Error(), want)) {
					t.Errorf("error %v, expected %q", err, want)
				}
			}
			if test.notice != "" && !strings.Contains(strings.Join(notices, "\n"), test.notice) {
				t.Errorf("notices %q, expected %q", notices, test.notice)
			}
		})
	}
}

func TestDiff(t *testing.T) {
	objects, err := readObjects([]string{"-"}, strings.NewReader(poolText+"weights: {local: 5}\n"))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ name, have, want string }{
		{"the same", `{"scheduler":"sed","weights":{"local":5}}`, "  /medway/v1/pools/sbc\n"},
		{"new", "", "+ /medway/v1/pools/sbc\n    + scheduler: \"sed\"\n    + weights.local: 5\n"},
		{"changed", `{"scheduler":"rr","thresholds":{"upper":7}}`, "~ /medway/v1/pools/sbc\n    ~ scheduler: \"rr\" -> \"sed\"\n    - thresholds.upper: 7\n    + weights.local: 5\n"},
		{"no JSON", "\x1b[31m", "~ /medway/v1/pools/sbc\n    - \"\\x1b[31m\"\n    + scheduler: \"sed\"\n    + weights.local: 5\n"},
	} {
		var out bytes.Buffer
		writeDiff(&out, objects[0], []byte(test.have), test.have != "")
		if diff := cmp.Diff(test.want, out.String()); diff != "" {
			t.Errorf("%s: %s", test.name, diff)
		}
	}
}

// TestManyObjects: more than one transaction holds.
func TestManyObjects(t *testing.T) {
	url, client := etcd(t)
	_ = stored(t, client)
	text := vipText + "---\n" + poolText
	for i := range 300 {
		text += "---\n" + strings.NewReplacer("b1", fmt.Sprintf("b%d", i), "10.1.1.21", fmt.Sprintf("10.1.%d.%d", i/200, 1+i%200)).Replace(backendText)
	}
	dir := files(t, map[string]string{"all.yaml": text})
	out, err := run(t, "apply", "-f", dir, "--insecure", "--endpoints", url)
	if have := stored(t, client); err != nil || len(have) != 302 || !strings.HasSuffix(have["/medway/v1/vips/sip-1"], " @4") || !strings.HasSuffix(have["/medway/v1/pools/sbc"], " @2") {
		t.Errorf("%d stored, VIP %s, %v\n%.300s", len(have), have["/medway/v1/vips/sip-1"], err, out)
	}
}

// run runs the tool as a person does.
func run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var out bytes.Buffer
	cmd := command()
	cmd.SetArgs(args)
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	err := cmd.ExecuteContext(ctx)
	return out.String(), err
}

func TestFlagsAreChecked(t *testing.T) {
	dir := files(t, map[string]string{"a.yaml": poolText})
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"status", "--endpoints", "http://127.0.0.1:1"}, `flag --endpoints: value "http://127.0.0.1:1": expected https://, or --insecure`},
		{[]string{"apply", "-f", dir, "--endpoints", "https://127.0.0.1:1,127.0.0.1:2"}, `value "127.0.0.1:2": expected https://`},
		{[]string{"apply", "-f", dir, "--dry-run", "--endpoints", "http://127.0.0.1:1"}, "expected https://"},
		{[]string{"apply"}, `"filename" not set`},
		{[]string{"apply", "-f", dir, "more"}, "unknown command"},
		{[]string{"status", "-o", "yaml"}, `flag --output: value "yaml": expected table or json`},
		{[]string{"status", "--cacert", "/nowhere/ca"}, "flag --cacert: open /nowhere/ca"},
		{[]string{"status", "--cacert", filepath.Join(dir, "a.yaml")}, "expected a file with PEM certificates"},
		{[]string{"status", "--cert", "/nowhere/c"}, "flags --cert and --key: open /nowhere/c"},
		{[]string{"status", "--key", "/nowhere/k"}, "flags --cert and --key"},
	} {
		if out, err := run(t, test.args...); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q: error %v, expected it to contain %q\n%s", test.args, err, test.want, out)
		}
	}
}

// etcd starts a real server of its own, and returns its URL and a client.
func etcd(t *testing.T) (string, *store.Client) {
	t.Helper()
	url := startEtcd(t, "http")
	client, err := store.Open(store.Config{Endpoints: []string{url}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return url, client
}

// startEtcd starts a real server; flags are beyond the usual.
func startEtcd(t *testing.T, scheme string, flags ...string) (url string) {
	t.Helper()
	binary, err := exec.Command("go", "tool", "-n", "go.etcd.io/etcd/server/v3").Output()
	if err != nil {
		t.Fatal("build etcd: ", err)
	}
	var urls []string
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		urls = append(urls, "http://"+l.Addr().String())
		_ = l.Close()
	}
	urls[0] = strings.Replace(urls[0], "http", scheme, 1)
	cmd := exec.Command(strings.TrimSpace(string(binary)), append(flags, "--data-dir", t.TempDir(), "--unsafe-no-fsync", "--log-level", "error",
		"--listen-client-urls", urls[0], "--advertise-client-urls", urls[0],
		"--listen-peer-urls", urls[1], "--initial-advertise-peer-urls", urls[1], "--initial-cluster", "default="+urls[1])...)
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
	return urls[0]
}

// stored is everything of medway's in etcd.
func stored(t *testing.T, client *store.Client) map[string]string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	entries, _, err := client.List(ctx, state.Prefix)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, e := range entries {
		out[e.Key] = fmt.Sprintf("%s @%d", e.Value, e.ModRevision)
	}
	return out
}

func write(t *testing.T, client *store.Client, key, value string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if ok, _, err := client.Commit(ctx, nil, []store.Put{{Key: key, Value: []byte(value)}}, nil); !ok || err != nil {
		t.Fatal(ok, err)
	}
}

// TestApplyAndStatus is the tool against a real etcd.
func TestApplyAndStatus(t *testing.T) {
	url, client := etcd(t)
	_ = stored(t, client) // waits until it serves
	do := func(args ...string) (string, error) {
		return run(t, append(args, "--insecure", "--endpoints", url)...)
	}
	dir := files(t, map[string]string{"vip.yaml": vipText, "pool.yaml": poolText + "---\n" + backendText})

	out, err := do("apply", "-f", dir, "--dry-run")
	if !errors.Is(err, errDiffers) || !strings.HasSuffix(out, "3 of 3 objects differ\n") || len(stored(t, client)) != 0 {
		t.Fatalf("dry run: %v\n%s%v", err, out, stored(t, client))
	}
	out, err = do("apply", "-f", dir)
	if err != nil || !strings.Contains(out, "3 of 3 objects written at revision 2") {
		t.Fatalf("%v\n%s", err, out)
	}
	before := stored(t, client)
	if len(before) != 3 || before["/medway/v1/pools/sbc"] != `{"scheduler":"sed"} @2` {
		t.Errorf("stored: %v", before)
	}
	out, err = do("apply", "-f", dir)
	if diff := cmp.Diff(before, stored(t, client)); err != nil || diff != "" || !strings.HasSuffix(out, "0 of 3 objects differ\n") {
		t.Errorf("applied again: %v\n%s%s", err, out, diff)
	}

	wrong := files(t, map[string]string{
		"good.yaml": strings.Replace(poolText, "sed", "rr", 1), "z-wrong.yaml": strings.Replace(backendText, "b1", "B1", 1),
	})
	out, err = do("apply", "-f", wrong)
	if diff := cmp.Diff(before, stored(t, client)); err == nil || diff != "" {
		t.Errorf("one wrong object, yet something was written: %v\n%s%s", err, out, diff)
	}
	out, err = do("apply", "-f", filepath.Join(wrong, "good.yaml"))
	if err != nil || !strings.Contains(out, "~ /medway/v1/pools/sbc\n    ~ scheduler: \"sed\" -> \"rr\"\n1 of 1 objects written") {
		t.Errorf("%v\n%s", err, out)
	}

	write(t, client, state.StatusPrefix+"n1", `{"node":"n1","site":"dc1","vips":[{"vip":"sip-1","role":"active","med":100,"claim":"100","reason":"owner"}]}`)
	write(t, client, state.StatusPrefix+"n2", `garbage`)
	write(t, client, "/medway/v1/target_state/sip-1", "dc9")
	out, err = do("status")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"sip-1  - (key is wrong)", "sip-1 on n1: owner", `/medway/v1/target_state/sip-1: site "dc9"`, "/medway/status/n2: "} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
	if out, err = do("status", "sip-2"); err == nil || !strings.Contains(err.Error(), `VIP "sip-2" does not exist`) {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err = do("status", "-o", "json"); err != nil || !strings.Contains(out, `"med": 100`) {
		t.Errorf("%v\n%s", err, out)
	}
}
