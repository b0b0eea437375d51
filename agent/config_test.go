package agent

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/medway-lb/medway/agent/internal/bgp"
	"github.com/medway-lb/medway/pkg/state"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// goodConfig is the file of CONFIG.md, without what does not exist yet.
const goodConfig = `node: dc1-lvs-a
site: dc1
group: dc1-edge1
addresses: {ipv4: 10.1.0.11}
uplink: eth0
etcd:
  endpoints: ["https://10.1.0.5:2379", "https://10.2.0.5:2379", "https://10.3.0.5:2379"]
  ca: /etc/medway/ca.pem
  cert: /etc/medway/node.pem
  key: /etc/medway/node.key
bgp:
  as: 65001
  router_id: 10.1.0.11
  neighbors:
    - {address: 10.1.0.1, as: 65001, password_file: /etc/medway/edge1.secret, ttl_security: true, bfd: {interval: 150ms, multiplier: 3}}
    - {address: 10.1.0.2, as: 65002, hold_time: 30s, graceful_restart: 0s}
lease_ttl: 7s
state_dir: /var/tmp/medway
`

func load(t *testing.T, text string) (Config, string, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := LoadConfig(path)
	return c, path, err
}

func TestLoadConfig(t *testing.T) {
	got, _, err := load(t, goodConfig)
	if err != nil {
		t.Fatal(err)
	}
	addr, off, hold := netip.MustParseAddr, time.Duration(0), 30*time.Second
	interval, multiplier := 150*time.Millisecond, uint8(3)
	want := Config{
		Node: "dc1-lvs-a", Site: "dc1", Group: "dc1-edge1", Addresses: Addresses{IPv4: addr("10.1.0.11")}, Uplink: "eth0",
		Etcd: Etcd{
			Endpoints: []string{"https://10.1.0.5:2379", "https://10.2.0.5:2379", "https://10.3.0.5:2379"},
			CA:        "/etc/medway/ca.pem", Cert: "/etc/medway/node.pem", Key: "/etc/medway/node.key",
		},
		BGP: BGP{AS: 65001, RouterID: addr("10.1.0.11"), Neighbors: []Neighbor{
			{
				Address: addr("10.1.0.1"), AS: 65001, PasswordFile: "/etc/medway/edge1.secret", TTLSecurity: true,
				BFD: &BFD{Interval: &interval, Multiplier: &multiplier},
			},
			{Address: addr("10.1.0.2"), AS: 65002, HoldTime: &hold, GracefulRestart: &off},
		}},
		LeaseTTL: 7 * time.Second, StateDir: "/var/tmp/medway",
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
}

func TestConfigDefaults(t *testing.T) {
	text := strings.NewReplacer("lease_ttl: 7s\n", "", "state_dir: /var/tmp/medway\n", "").Replace(goodConfig)
	c, _, err := load(t, text)
	if err != nil {
		t.Fatal(err)
	}
	if c.LeaseTTL != 5*time.Second || c.StateDir != "/var/lib/medway" {
		t.Errorf("lease_ttl %s, state_dir %s, expected 5s and /var/lib/medway", c.LeaseTTL, c.StateDir)
	}
	speaker := c.speaker(nil)
	for i, want := range []struct{ hold, restart time.Duration }{{9 * time.Second, 120 * time.Second}, {30 * time.Second, 0}} {
		n := speaker.Neighbors[i]
		if n.HoldTime != want.hold || n.GracefulRestart != want.restart {
			t.Errorf("neighbour %s: hold time %s and graceful restart %s, expected %s and %s", n.Address, n.HoldTime, n.GracefulRestart, want.hold, want.restart)
		}
		// PROTOCOL R3 waits that long before a lost session counts as flushed.
		if got := c.BGP.kept(n.Address); got != want.hold+want.restart {
			t.Errorf("neighbour %s: routes may be kept for %s, expected %s", n.Address, got, want.hold+want.restart)
		}
	}
}

func TestBFDDefault(t *testing.T) {
	defaults := &bgp.BFD{Interval: 150 * time.Millisecond, Multiplier: 3}
	for text, want := range map[string]*bgp.BFD{
		"":                         defaults,
		", bfd: {}":                defaults,
		", bfd: {enabled: true}":   defaults,
		", bfd: {multiplier: 5}":   {Interval: 150 * time.Millisecond, Multiplier: 5},
		", bfd: {interval: 300ms}": {Interval: 300 * time.Millisecond, Multiplier: 3},
		", bfd: {enabled: false}":  nil,
		", multihop: 2":            nil,
		", multihop: 2, bfd: {enabled: false, interval: 1s}": nil,
	} {
		c, _, err := load(t, strings.Replace(goodConfig, ", hold_time: 30s", text, 1))
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if diff := cmp.Diff(want, c.speaker(nil).Neighbors[1].BFD); diff != "" {
			t.Errorf("%q: %s", text, diff)
		}
	}
}

// TestBadConfigSaysWhereAndWhat: each case is one change of the good file.
func TestBadConfigSaysWhereAndWhat(t *testing.T) {
	for _, test := range []struct {
		name, old, new string
		want           []string
	}{
		{"unknown field", "uplink: eth0", "uplink: eth0\nuplonk: eth1", []string{":6:1: ", "uplonk: unknown: expected one of "}},
		{"unknown field inside", "  ca: ", "  cafile: x\n  ca: ", []string{":8:3: ", "cafile: unknown: expected one of "}},
		{"unknown field of a neighbour", "ttl_security: true", "ttl: true", []string{":15:", "ttl: unknown: expected one of "}},
		{"duplicate field", "site: dc1\n", "site: dc1\nsite: dc2\n", []string{":3:1: ", `"site" already defined`}},
		{"not YAML", "site: dc1\n", "site: [dc1\n", []string{":3:1: "}},
		{"a list", goodConfig, "- node\n", []string{":1:1: a list: expected a mapping"}},
		{"wrong type", "as: 65001\n", "as: many\n", []string{":12:3: field bgp.as: value"}},
		{"negative AS", "as: 65001\n", "as: -1\n", []string{":12:3: field bgp.as: value"}},
		{"AS too large", "as: 65001\n", "as: 4294967296\n", []string{":12:3: field bgp.as: value"}},

		{"no node", "node: dc1-lvs-a\n", "", []string{"field node", "missing: expected a name"}},
		{"bad node", "node: dc1-lvs-a", "node: DC1_LVS", []string{"field node", `"DC1_LVS"`, "1 to 63 of a-z"}},
		{"no site", "site: dc1\n", "", []string{"field site", "missing: expected a name"}},
		{"no group", "group: dc1-edge1\n", "", []string{"field group", "missing: expected a name"}},
		{"no uplink", "uplink: eth0\n", "", []string{"field uplink", "the name of a network device"}},
		{"uplink too long", "eth0", "sixteen-bytes-xx", []string{"field uplink", `"sixteen-bytes-xx"`}},
		{"no address", "addresses: {ipv4: 10.1.0.11}\n", "", []string{"field addresses.ipv4", "IPv4 unicast"}},
		{"IPv6 address", "{ipv4: 10.1.0.11}", `{ipv4: "2001:db8::1"}`, []string{"field addresses.ipv4", `"2001:db8::1"`, "IPv4 unicast"}},
		{"multicast address", "{ipv4: 10.1.0.11}", `{ipv4: 224.0.0.1}`, []string{"field addresses.ipv4", `"224.0.0.1"`}},
		{"reserved address", "{ipv4: 10.1.0.11}", `{ipv4: 240.0.0.1}`, []string{"field addresses.ipv4", `"240.0.0.1"`}},
		{"IPv4 for IPv6", "{ipv4: 10.1.0.11}", `{ipv4: 10.1.0.11, ipv6: 10.1.0.12}`, []string{"field addresses.ipv6", `"10.1.0.12"`, "IPv6 unicast"}},
		{"mapped address", "{ipv4: 10.1.0.11}", `{ipv4: 10.1.0.11, ipv6: "::ffff:10.1.0.11"}`, []string{"field addresses.ipv6", "IPv6 unicast"}},
		{"link-local address", "{ipv4: 10.1.0.11}", `{ipv4: 10.1.0.11, ipv6: "fe80::1"}`, []string{"field addresses.ipv6", "IPv6 unicast"}},
		{"address with a zone", "{ipv4: 10.1.0.11}", `{ipv4: 10.1.0.11, ipv6: "2001:db8::1%eth0"}`, []string{"field addresses.ipv6", "IPv6 unicast"}},
		{"malformed address", "{ipv4: 10.1.0.11}", "{ipv4: 10.1.0}", []string{":4:13: field addresses.ipv4", `"10.1.0"`, "an IPv4 or IPv6 address"}},
		{"prefix for an address", "{ipv4: 10.1.0.11}", "{ipv4: 10.1.0.11/24}", []string{":4:13: field addresses.ipv4", `"10.1.0.11/24"`}},

		{"no endpoints", `["https://10.1.0.5:2379", "https://10.2.0.5:2379", "https://10.3.0.5:2379"]`, "[]", []string{"field etcd.endpoints", "at least one URL"}},
		{"no TLS", "https://10.2.0.5", "http://10.2.0.5", []string{"field etcd.endpoints[1]", `"http://10.2.0.5:2379"`, "insecure: true"}},
		{"no scheme", "https://10.2.0.5", "10.2.0.5", []string{"field etcd.endpoints[1]", `"10.2.0.5:2379"`, "begins with https://"}},
		{"no port", "https://10.2.0.5:2379", "https://10.2.0.5", []string{":7:40: field etcd.endpoints[1]", "https://HOST:PORT"}},
		{"no such port", "https://10.2.0.5:2379", "https://10.2.0.5:65536", []string{":7:40: field etcd.endpoints[1]", "https://HOST:PORT"}},
		{"port 0", "https://10.2.0.5:2379", "https://10.2.0.5:0", []string{":7:40: field etcd.endpoints[1]", "https://HOST:PORT"}},
		{"cert without key", "  key: /etc/medway/node.key\n", "", []string{"field etcd.cert", `"/etc/medway/node.pem"`, "cert and key together"}},
		{"key without cert", "  cert: /etc/medway/node.pem\n", "", []string{"field etcd.cert", "cert and key together"}},

		{"duration without a unit", "lease_ttl: 7s", "lease_ttl: 7", []string{":17:1: field lease_ttl", `"7"`, "a duration, such as"}},
		{"malformed duration", "lease_ttl: 7s", "lease_ttl: 7 seconds", []string{":17:1: field lease_ttl", "7 seconds", "a duration"}},
		{"lease too short", "lease_ttl: 7s", "lease_ttl: 999ms", []string{"field lease_ttl", `"999ms"`, "1s to 10m"}},
		{"lease too long", "lease_ttl: 7s", "lease_ttl: 10m1s", []string{"field lease_ttl", `"10m1s"`, "1s to 10m"}},
		{"uplink with a slash", "eth0", "eth/0", []string{":5:1: field uplink", `"eth/0"`}},
		{"uplink of medway's own", "eth0", "medway0", []string{":5:1: field uplink", `"medway0"`}},
		{"uplink upwards", "eth0", "..", []string{":5:1: field uplink", `".."`}},
		{"uplink with white space", "eth0", `"eth 0"`, []string{":5:1: field uplink", `"eth 0"`}},
		{"uplink with a control character", "eth0", `"eth\e[0m"`, []string{":5:1: field uplink", `"eth\x1b[0m"`}},
		{"a second document", "state_dir: /var/tmp/medway\n", "---\nnode: other\n", []string{":19:1: a second document: expected one"}},
		{"not UTF-8", "state_dir: ", "state_dir: /\xff", []string{":18:13: not UTF-8"}},
		{"an anchor", "site: dc1", "site: &s dc1", []string{":2:7: an anchor, alias or tag"}},
		{"null", "uplink: eth0", "uplink:", []string{":5:1: field uplink: nothing: expected a string"}},
		{"a path in an endpoint", "https://10.2.0.5:2379", "https://10.2.0.5:2379/v3", []string{":7:40: field etcd.endpoints[1]", "https://HOST:PORT"}},
		{"a relative state_dir", "state_dir: /var/tmp/medway", "state_dir: medway", []string{":18:1: field state_dir", `"medway"`, "absolute path"}},
		{"empty state_dir", "state_dir: /var/tmp/medway", `state_dir: ""`, []string{"field state_dir", "absolute path of a directory"}},

		{"no AS", "  as: 65001\n", "", []string{"field bgp.as", `"0"`, "1 to 4294967295"}},
		{"IPv6 router id", "router_id: 10.1.0.11", `router_id: "::1"`, []string{"field bgp.router_id", `"::1"`, "an IPv4 address"}},
		{"the same neighbour twice", "address: 10.1.0.2", "address: 10.1.0.1", []string{"field bgp.neighbors[1].address", "twice"}},
		{"neighbour without an address", "{address: 10.1.0.2, ", "{", []string{"field bgp.neighbors[1].address", `""`, "unicast address"}},
		{"IPv6 neighbour without an IPv6 address", "address: 10.1.0.2", `address: "2001:db8::2"`, []string{"field bgp.neighbors[1].address", "addresses.ipv6 is not set"}},
		{"neighbour without an AS", "as: 65002, ", "", []string{"field bgp.neighbors[1].as", `"0"`}},
		{"hold time too short", "hold_time: 30s", "hold_time: 2s", []string{"field bgp.neighbors[1].hold_time", `"2s"`, "3s to 65535s"}},
		{"hold time in parts of seconds", "hold_time: 30s", "hold_time: 30500ms", []string{"hold_time", `"30.5s"`, "whole seconds"}},
		{"no hold time", "hold_time: 30s", "hold_time: 0s", []string{":16:38: field bgp.neighbors[1].hold_time", `"0s"`, "3s to 65535s"}},
		{"no keepalive", "hold_time: 30s", "keepalive: 0s", []string{"field bgp.neighbors[1].keepalive", `"0s"`, "1s to less than hold_time"}},
		{"no prefixes", "hold_time: 30s", "max_prefixes: 0", []string{"field bgp.neighbors[1].max_prefixes", `"0"`, "1 to 4294967295"}},
		{"a neighbour that is this host", "address: 10.1.0.2", "address: 10.1.0.11", []string{"field bgp.neighbors[1].address", `"10.1.0.11"`, "not of this host"}},
		{"keepalive too long", "hold_time: 30s", "hold_time: 30s, keepalive: 30s", []string{"field bgp.neighbors[1].keepalive", `"30s"`}},
		{"graceful restart too long", "graceful_restart: 0s", "graceful_restart: 4096s", []string{"field bgp.neighbors[1].graceful_restart", `"1h8m16s"`}},
		{"multihop with TTL security", "hold_time: 30s", "multihop: 2, ttl_security: true", []string{"field bgp.neighbors[1].multihop", "ttl_security"}},
		{"multihop of our own AS", "ttl_security: true", "multihop: 2", []string{"field bgp.neighbors[0].multihop", "our own AS"}},
		{"BFD too fast", "interval: 150ms", "interval: 9ms", []string{"field bgp.neighbors[0].bfd.interval", `"9ms"`}},
		{"BFD without an interval", "interval: 150ms", "interval: 0s", []string{"field bgp.neighbors[0].bfd.interval", `"0s"`, "10ms to 1m"}},
		{"BFD without a packet that may be missing", "multiplier: 3", "multiplier: 0", []string{":15:122: field bgp.neighbors[0].bfd.multiplier", `"0"`}},
		{"BFD switched off by another word", "{interval: 150ms, multiplier: 3}", "off", []string{":15:99: field bgp.neighbors[0].bfd", `"off"`}},
		{"BFD over several hops", "hold_time: 30s", "multihop: 2, bfd: {}", []string{"field bgp.neighbors[1].multihop", "none with bfd"}},
		{"BFD multiplier too large", "multiplier: 3", "multiplier: 256", []string{":15:122: field bgp.neighbors[0].bfd.multiplier"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if !strings.Contains(goodConfig, test.old) {
				t.Fatalf("%q is not in the good file", test.old)
			}
			_, path, err := load(t, strings.Replace(goodConfig, test.old, test.new, 1))
			if err == nil {
				t.Fatal("accepted")
			}
			for _, part := range append(test.want, path) {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error %q, expected it to contain %q", err, part)
				}
			}
		})
	}
}

// TestAllThatIsWrongIsSaidAtOnce, and an empty file is no special case.
func TestAllThatIsWrongIsSaidAtOnce(t *testing.T) {
	for name, text := range map[string]string{"empty": "", "comments only": "# nothing\n", "no fields": "{}\n"} {
		_, _, err := load(t, text)
		if err == nil {
			t.Errorf("%s: accepted", name)
			continue
		}
		for _, field := range []string{"node", "site", "group", "addresses.ipv4", "uplink", "etcd.endpoints", "bgp.as", "bgp.router_id", "bgp.neighbors"} {
			if !strings.Contains(err.Error(), "field "+field+":") {
				t.Errorf("%s: field %s is not in %q", name, field, err)
			}
		}
	}
}

func TestPlainEndpointsNeedAWord(t *testing.T) {
	text := strings.NewReplacer("https://", "http://", "  ca: ", "  insecure: true\n  ca: ").Replace(goodConfig)
	c, _, err := load(t, text)
	if err != nil {
		t.Fatal(err)
	}
	if tls, err := c.Etcd.tls(); tls != nil || err != nil {
		t.Errorf("TLS %v, %v, expected none", tls, err)
	}
}

// TestEveryFieldOfANeighbourArrives at the speaker, with the default for the
// router id.
func TestEveryFieldOfANeighbourArrives(t *testing.T) {
	c, _, err := load(t, strings.NewReplacer("  router_id: 10.1.0.11\n", "", "hold_time: 30s",
		"hold_time: 30s, keepalive: 5s, multihop: 3, max_prefixes: 9, password_file: x").Replace(goodConfig))
	if err != nil {
		t.Fatal(err)
	}
	address := netip.MustParseAddr("10.1.0.2")
	got := c.speaker(map[netip.Addr]string{address: "secret"}).Neighbors[1]
	want := bgp.Neighbor{
		Address: address, AS: 65002, HoldTime: 30 * time.Second, Keepalive: 5 * time.Second, Password: "secret",
		Multihop: 3, MaxPrefixes: 9,
	}
	if got != want {
		t.Errorf("%+v, expected %+v", got, want)
	}
}

func TestMissingFilesAreNamed(t *testing.T) {
	if _, err := LoadConfig("/nowhere/agent.yaml"); err == nil || !strings.Contains(err.Error(), "/nowhere/agent.yaml") {
		t.Errorf("%v", err)
	}
	if _, err := (Etcd{CA: "/nowhere/ca.pem"}).tls(); err == nil || !strings.Contains(err.Error(), "field etcd.ca: open /nowhere/ca.pem") {
		t.Errorf("%v", err)
	}
	if _, err := (Etcd{Cert: "/nowhere/c", Key: "/nowhere/k"}).tls(); err == nil || !strings.Contains(err.Error(), "field etcd.cert: open /nowhere/c") {
		t.Errorf("%v", err)
	}
	bgp := BGP{Neighbors: []Neighbor{{PasswordFile: "/nowhere/secret"}}}
	if _, err := bgp.passwords(); err == nil || !strings.Contains(err.Error(), "password_file: stat /nowhere/secret") {
		t.Errorf("%v", err)
	}
}

// TestNoErrorHoldsASecret: what is misplaced or malformed is not shown.
func TestNoErrorHoldsASecret(t *testing.T) {
	const secret = "hunter2"
	for name, text := range map[string]string{
		"a field that is not there": strings.Replace(goodConfig, "password_file: /etc/medway/edge1.secret", "password: "+secret, 1),
		"in an endpoint":            strings.Replace(goodConfig, "https://10.1.0.5", "https://root:"+secret+"@10.1.0.5", 1),
		"beside a fault of YAML":    strings.Replace(goodConfig, "site: dc1", "site: [dc1\npassword: "+secret, 1),
	} {
		if _, _, err := load(t, text); err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCheckFiles: `medway-agent run --check` says what would fail at the start,
// and what etcd would refuse or others could read.
func TestCheckFiles(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	cert, key := certificate(t, time.Now().Add(time.Hour))
	expired, expiredKey := certificate(t, time.Now().Add(-time.Hour))
	good := Config{
		Node: "n1",
		Etcd: Etcd{CA: write("ca.pem", cert, 0o644), Cert: write("c.pem", cert, 0o644), Key: write("k.pem", key, 0o600)},
		BGP:  BGP{Neighbors: []Neighbor{{Address: netip.MustParseAddr("10.1.0.1"), PasswordFile: write("secret", "hunter2\n", 0o640)}}},
	}
	if err := good.CheckFiles(); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		change func(*Config)
		want   []string
	}{
		{"a CA that is none", func(c *Config) { c.Etcd.CA = write("x", "hunter2", 0o600) }, []string{"field etcd.ca", "PEM"}},
		{"a key of another certificate", func(c *Config) { c.Etcd.Key = write("k2.pem", expiredKey, 0o600) }, []string{"field etcd.cert"}},
		{"an expired certificate", func(c *Config) {
			c.Etcd.Cert, c.Etcd.Key = write("e.pem", expired, 0o644), write("e.key", expiredKey, 0o600)
		}, []string{"field etcd.cert", "valid now"}},
		{"a certificate of another node", func(c *Config) { c.Node = "n2" }, []string{"field etcd.cert", `common name is "n1"`, `expected that of this node, "n2"`}},
		{"a key that all may read", func(c *Config) { c.Etcd.Key = write("open.pem", key, 0o644) }, []string{"field etcd.key", "mode 0644", "chmod 600"}},
		{"a password that all may read", func(c *Config) { c.BGP.Neighbors[0].PasswordFile = write("open", "hunter2", 0o604) }, []string{"field bgp.neighbors[0].password_file", "mode 0604"}},
		{"a password that a group may write", func(c *Config) { c.BGP.Neighbors[0].PasswordFile = write("group", "hunter2", 0o660) }, []string{"password_file", "mode 0660"}},
		{"an empty password", func(c *Config) { c.BGP.Neighbors[0].PasswordFile = write("empty", "\n", 0o600) }, []string{"password_file", "one line of 1 to 80 bytes"}},
		{"two passwords", func(c *Config) { c.BGP.Neighbors[0].PasswordFile = write("two", "hunter2\nhunter3\n", 0o600) }, []string{"one line of 1 to 80 bytes"}},
		{"a password too long", func(c *Config) {
			c.BGP.Neighbors[0].PasswordFile = write("long", strings.Repeat("hunter2", 12), 0o600)
		}, []string{"one line of 1 to 80 bytes"}},
		{"a folder", func(c *Config) { c.BGP.Neighbors[0].PasswordFile = dir }, []string{"expected a file"}},
		{"two at once", func(c *Config) {
			c.Etcd.CA, c.BGP.Neighbors[0].PasswordFile = "/nowhere/ca", "/nowhere/secret"
		}, []string{"/nowhere/ca", "/nowhere/secret"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := good
			c.BGP.Neighbors = slices.Clone(good.BGP.Neighbors)
			test.change(&c)
			err := c.CheckFiles()
			if err == nil {
				t.Fatal("accepted")
			}
			for _, part := range test.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error %q, expected it to contain %q", err, part)
				}
			}
			if strings.Contains(err.Error(), "hunter") {
				t.Errorf("a secret in %q", err)
			}
		})
	}
}

// TestAnOpenKeyIsAFault while the agent runs: it is said, and the agent works.
func TestAnOpenKeyIsAFault(t *testing.T) {
	cert, key := certificate(t, time.Now().Add(time.Hour))
	config := testConfig(t, "n1", "dc1", "")
	config.Etcd = Etcd{Endpoints: []string{"https://127.0.0.1:1"}, Cert: filepath.Join(t.TempDir(), "c.pem"), Key: filepath.Join(t.TempDir(), "c.key")}
	for file, text := range map[string]string{config.Etcd.Cert: cert, config.Etcd.Key: key} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	a, err := newAgent(config, testLog(t), newFakes().host())
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	a.status.node = &medwayv1.Status{}
	shown := func() bool {
		for _, f := range a.statusNow().Faults {
			if f.Subject == "etcd" && strings.Contains(f.Reason, "field etcd.key: value") && strings.Contains(f.Reason, "mode 0644") {
				return true
			}
		}
		return false
	}
	if shown() {
		t.Error("of a key that is secret")
	}
	if err := os.Chmod(config.Etcd.Key, 0o644); err != nil {
		t.Fatal(err)
	}
	if !shown() {
		t.Errorf("not shown: %v", a.statusNow().Faults)
	}
}

// certificate makes one, and its key, that is valid until a time.
func certificate(t *testing.T, until time.Time) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "n1"}, NotBefore: until.Add(-2 * time.Hour), NotAfter: until}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: raw}))
}

func FuzzLoadConfig(f *testing.F) {
	for _, seed := range []string{
		"", goodConfig, "node: a\n---\nnode: b\n", "{}", "[]", "a: &x [*x]\n", "? {a: 1}\n: 2\n", "bgp: {neighbors: [{}]}", "lease_ttl: 1e9s", "\xff", "a: |\n  b\n",
	} {
		f.Add([]byte(seed))
	}
	path := filepath.Join(f.TempDir(), "agent.yaml")
	f.Fuzz(func(t *testing.T, text []byte) {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := LoadConfig(path)
		if err != nil {
			for line := range strings.Lines(err.Error()) {
				if line = strings.TrimSuffix(line, "\n"); len(line) > 1000 || state.Line(line) != line {
					t.Errorf("%d bytes, or not printable: %.1000q", len(line), line)
				}
			}
			return
		}
		if err := c.Validate(); err != nil {
			t.Errorf("loaded, but not valid: %v", err)
		}
	})
}

// FuzzSocketPath: a spoilt file must not keep people from the agent by more than
// an error.
func FuzzSocketPath(f *testing.F) {
	for _, seed := range []string{
		"", goodConfig, "socket: /run/a.sock\n", "state_dir: /x\nnode: [", "socket: {a: 1}", "a: &x [*x]\n", "<<: *a", "---\n---\n", "\xff", "socket: !!binary aGk=", "socket: |\n  /a\n",
	} {
		f.Add([]byte(seed))
	}
	path := filepath.Join(f.TempDir(), "agent.yaml")
	f.Fuzz(func(t *testing.T, text []byte) {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if socket, err := SocketPath(path); err == nil && socket == "" {
			t.Errorf("no path, and no error")
		}
	})
}
