package sysctl

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/reconcile"
	"pgregory.net/rapid"
)

var (
	_ reconcile.Table[plan.Sysctl, string] = (*Kernel)(nil)
	_ reconcile.Table[plan.Sysctl, string] = (*Fake)(nil)
)

// tree writes files under a new root, as the kernel prints them.
func tree(t *testing.T, files map[string]string) string {
	root := t.TempDir()
	for name, value := range files {
		name = filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(value), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestPath(t *testing.T) {
	for key, want := range map[plan.Sysctl]string{
		"net.ipv4.vs.sync_threshold":       "net/ipv4/vs/sync_threshold",
		"net.ipv4.conf.eth0/7.rp_filter":   "net/ipv4/conf/eth0.7/rp_filter",
		"net.ipv4.conf.mw-dc2-a.rp_filter": "net/ipv4/conf/mw-dc2-a/rp_filter",
	} {
		if got := path(key); got != want {
			t.Errorf("path(%q) = %q, want %q", key, got, want)
		}
	}
}

func TestConvergesAndThenWritesNothing(t *testing.T) {
	root := tree(t, map[string]string{
		"net/ipv4/vs/sync_threshold":     "3\t50\n",
		"net/ipv4/vs/conntrack":          "0\n",
		"net/ipv4/conf/eth0.7/rp_filter": "2\n",
		"net/ipv4/ip_forward":            "1\n",
	})
	want := map[plan.Sysctl]string{
		"net.ipv4.vs.sync_threshold":     "0 0",
		"net.ipv4.vs.conntrack":          "0",
		"net.ipv4.conf.eth0/7.rp_filter": "0",
	}
	k := New(root, keysOf(want))
	if err := reconcile.Run(t.Context(), reconcile.Bind(k, want, nil)).Err(); err != nil {
		t.Fatal(err)
	}
	if k.Changes() != 2 {
		t.Errorf("%d writes, want 2: what is right is left alone", k.Changes())
	}
	r := reconcile.Run(t.Context(), reconcile.Bind(k, want, nil))
	if r.Err() != nil || len(r.Done) != 0 || k.Changes() != 2 {
		t.Errorf("second run: %+v, %d writes", r, k.Changes())
	}
	b, err := os.ReadFile(filepath.Join(root, "net/ipv4/vs/sync_threshold"))
	if err != nil || string(b) != "0 0\n" {
		t.Errorf("file holds %q, %v", b, err)
	}
}

func TestMissingIsNamedAndStopsNothingElse(t *testing.T) {
	root := tree(t, map[string]string{"net/core/rmem_max": "1\n"})
	want := map[plan.Sysctl]string{
		"net.ipv4.vs.conntrack":          "0",
		"net.ipv4.conf.mw-x/y.rp_filter": "0",
		"net.core.rmem_max":              "2",
	}
	err := reconcile.Run(t.Context(), reconcile.Bind(New(root, keysOf(want)), want, nil)).Err()
	if err == nil {
		t.Fatal("no error for missing parameters")
	}
	for _, part := range []string{"net.ipv4.vs.conntrack", "module ip_vs", "net.ipv4.conf.mw-x/y.rp_filter", "device mw-x.y"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error does not say %q: %v", part, err)
		}
	}
	if b, _ := os.ReadFile(filepath.Join(root, "net/core/rmem_max")); string(b) != "2\n" {
		t.Errorf("rmem_max is %q", b)
	}
}

func TestNoWayOutOfRoot(t *testing.T) {
	root := tree(t, map[string]string{"sys/kernel/x": "1\n", "secret": "1\n"})
	k := New(filepath.Join(root, "sys"), nil)
	for _, key := range []plan.Sysctl{"//.secret", "//./.secret", "kernel.//.//.secret"} {
		c := reconcile.Change[plan.Sysctl, string]{Op: reconcile.Create, Key: key, New: "2"}
		if k.Apply(t.Context(), c) == nil {
			t.Errorf("wrote to %q", key)
		}
	}
}

func TestRandomWalk(t *testing.T) {
	files := map[string]string{"a/b": "0\n", "a/c": "1\t2\n", "a/d.e/f": "x\n"}
	root := tree(t, files)
	value := rapid.SampledFrom([]string{"0", "1", "1 2", "3 50", "x"})
	key := rapid.SampledFrom([]plan.Sysctl{"a.b", "a.c", "a.d/e.f"})
	fake := map[plan.Sysctl]string{"a.b": "0", "a.c": "1 2", "a.d/e.f": "x"}
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.MapOf(key, value).Draw(t, "want")
		k, f := New(root, keysOf(want)), NewFake(fake, keysOf(want))
		for _, table := range []reconcile.Table[plan.Sysctl, string]{k, f} {
			if err := reconcile.Run(t.Context(), reconcile.Bind(table, want, nil)).Err(); err != nil {
				t.Fatal(err)
			}
			if r := reconcile.Run(t.Context(), reconcile.Bind(table, want, nil)); r.Err() != nil || len(r.Done) > 0 {
				t.Fatalf("second run: %+v", r)
			}
		}
		fake = f.values
		for key, v := range fake {
			if got, err := k.get(key); err != nil || got != v {
				t.Fatalf("kernel has %s = %q, %v; fake prints:\n%s", key, got, err, f)
			}
		}
	})
}

func keysOf(want map[plan.Sysctl]string) []plan.Sysctl {
	keys := make([]plan.Sysctl, 0, len(want))
	for k := range want {
		keys = append(keys, k)
	}
	return keys
}
