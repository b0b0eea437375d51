package firewall

import (
	"testing"

	"github.com/medway-lb/medway/pkg/plan"
)

// FuzzParse reads any bytes as the output of iptables-save.
func FuzzParse(f *testing.F) {
	fake := NewFake(plan.IPv4)
	if err := run(f.Context(), fake, shipped(plan.IPv4)).Err(); err != nil {
		f.Fatal(err)
	}
	f.Add(fake.String())
	for _, seed := range []string{
		"", "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j MEDWAY-INPUT\nCOMMIT\n", "*", ":", ":MEDWAY-X -\n", "-A MEDWAY-X\n", "# Table `filter' is incompatible, use 'nft' tool.\n", "*filter\n:A\n",
		"*raw\n:PREROUTING ACCEPT [0:0]\n:MEDWAY-RAW - [0:0]\n-A PREROUTING -j MEDWAY-RAW\n-A PREROUTING -j MEDWAY-RAW\n-A MEDWAY-RAW -p 4 -j DROP\n",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, out string) {
		rs, err := parse(out)
		if err != nil {
			return
		}
		for chain, rules := range rs.chains(plan.IPv4) {
			if err := own(chain.Table, chain.Name); err != nil {
				t.Error(err)
			}
			for _, rule := range split(rules) {
				if got := printed(written(rule)); got != rule {
					t.Errorf("%q comes back as %q", rule, got)
				}
			}
		}
		want := shipped(plan.IPv4).Jumps
		for j := range rs.jumps(plan.IPv4, want) {
			if rs.copies(j) == 0 {
				t.Errorf("%s is nowhere", j)
			}
		}
	})
}
