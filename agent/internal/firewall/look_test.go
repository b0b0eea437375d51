package firewall

import (
	"os"
	"path/filepath"
	"testing"
)

func TestAbsentOnlyWhereThatIsSure(t *testing.T) {
	const none, missing = "kernel/net/netfilter/nf_conntrack.ko\n", "-"
	for _, test := range []struct {
		name, loaded, builtin string
		absent                bool
	}{
		{"neither", "x_tables 45056 0 - Live 0x0\nnfnetlink 20480 0\n", none, true},
		{"nftables", "nfnetlink 20480 1\nnf_tables 303104 0 - Live 0x0\n", none, false},
		{"the older iptables", "ip_tables 36864 0 - Live 0x0\n", none, false},
		{"IPv6 only", "ip6_tables 36864 0 - Live 0x0\n", none, false},
		{"built in", "", "kernel/net/netfilter/nf_tables.ko\n", false},
		{"used by another's name only", "tables 1 0 nf_tables_x, Live 0x0\n", none, true},
		{"a kernel without modules", missing, none, false},
		{"nobody knows what is built in", "", missing, false},
	} {
		files := make([]string, 2)
		for i, text := range []string{test.loaded, test.builtin} {
			files[i] = filepath.Join(t.TempDir(), "modules")
			if text == missing {
				continue
			}
			if err := os.WriteFile(files[i], []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got := absent(files[0], files[1]); got != test.absent {
			t.Errorf("%s: %v", test.name, got)
		}
	}
}
