package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/medway-lb/medway/pkg/intent"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"
	"github.com/medway-lb/medway/pkg/store/etcdtest"
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

func TestDiff(t *testing.T) {
	objects, err := intent.Read([]string{"-"}, strings.NewReader(poolText+"weights: {local: 5}\n"))
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
		{[]string{"status", "-o", "csv"}, `flag --output: value "csv": expected table, json or yaml`},
		{[]string{"status", "--cacert", "/nowhere/ca"}, "flags --cacert, --cert and --key: open /nowhere/ca"},
		{[]string{"status", "--cacert", filepath.Join(dir, "a.yaml")}, "expected a file with PEM certificates"},
		{[]string{"status", "--cert", "/nowhere/c", "--key", "/nowhere/k"}, "flags --cacert, --cert and --key: open /nowhere/"},
		{[]string{"status", "--cert", "/nowhere/c"}, "flags --cert and --key: one is given"},
		{[]string{"status", "--key", "/nowhere/k"}, "flags --cert and --key: one is given"},
		{[]string{"status", "--insecure", "--endpoints", "https://127.0.0.1:1", "--cert", "/nowhere/c"}, "flags --cert and --key: one is given"},
		{[]string{"status", "--endpoints", "https://127.0.0.1"}, `value "https://127.0.0.1": expected https://HOST:PORT`},
		{[]string{"status", "--endpoints", "https://127.0.0.1:1, https://[::1]"}, `value "https://[::1]": expected https://HOST:PORT`},
		{[]string{"status", "--endpoints", ""}, "flag --endpoints: expected at least one URL"},
		{[]string{"status", "--command-timeout", "0"}, "flag --command-timeout: value 0s: expected more than 0s"},
	} {
		if out, err := run(t, test.args...); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q: error %v, expected it to contain %q\n%s", test.args, err, test.want, out)
		}
	}
}

// etcd starts a real server of its own, and returns its URL and a client.
func etcd(t *testing.T) (string, *store.Client) {
	t.Helper()
	url, _ := etcdtest.Start(t, "http")
	client, err := store.Open(store.Config{Endpoints: []string{url}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return url, client
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
	for _, want := range []string{"sip-1  - (key is wrong)", "sip-1 on n1, when last heard of: owner", `/medway/v1/target_state/sip-1: site "dc9"`, "/medway/status/n2: "} {
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

// TestAnOpenKeyIsSaid, and only that.
func TestAnOpenKeyIsSaid(t *testing.T) {
	dir := files(t, map[string]string{"a.key": "x"})
	file := filepath.Join(dir, "a.key")
	for _, mode := range []os.FileMode{0o600, 0o640, 0o644} {
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
		out, err := run(t, "status", "--cert", "/nowhere/c", "--key", file)
		if warned := strings.Contains(out, "warning: flag --key: value"); err == nil || warned != (mode == 0o644) {
			t.Errorf("mode %o: %v\n%s", mode, err, out)
		}
	}
}
