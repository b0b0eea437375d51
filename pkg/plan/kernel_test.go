package plan

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/medway-lb/medway/pkg/state"
)

// twoSites is a snapshot with one VIP, one LVS host and one backend a site.
func twoSites(t *testing.T) *state.Snapshot {
	t.Helper()
	c := state.NewCache()
	for key, value := range map[string]string{
		"vips/sip-1":             `{"addresses":["203.0.113.10"],"services":[{"protocol":"tcp","port":5060,"pool":"sbc"}],"groups":{"dc1":"g1","dc2":"g2"}}`,
		"pools/sbc":              `{"thresholds":{"upper":25000,"lower":20000}}`,
		"backends/sbc/dc1-sbc1":  `{"site":"dc1","address":"10.1.0.21"}`,
		"backends/sbc/dc2-sbc1":  `{"site":"dc2","address":"10.2.0.21"}`,
		"nodes/dc1-lvs-a":        `{"machine_id":"a","site":"dc1","group":"g1","ipv4":"10.1.0.11","sync_address":"169.254.1.1"}`,
		"nodes/dc2-lvs-a":        `{"machine_id":"b","site":"dc2","group":"g2","ipv4":"10.2.0.11","sync_address":"169.254.1.2"}`,
		"nodes/a-stranger-group": `{"machine_id":"c","site":"dc2","group":"g3","ipv4":"10.2.0.99","sync_address":"169.254.1.3"}`,
	} {
		c.Put(state.Prefix+key, []byte(value), 1, 0)
	}
	s := c.Snapshot()
	if len(s.Faults) > 0 {
		t.Fatalf("faults in the example: %v", s.Faults)
	}
	return s
}

var dc1 = Self{Name: "dc1-lvs-a", Site: "dc1", Group: "g1", IPv4: netip.MustParseAddr("10.1.0.11"), Uplink: "eth0"}

func TestFirewallRules(t *testing.T) {
	h := KernelOf(twoSites(t), dc1)
	for chain, want := range map[Chain][]string{
		{"mangle", "MEDWAY-SYNC-OUT"}: {"-d 224.0.0.81/32 -o sync01 -j TEE --gateway 169.254.1.2"},
		{"mangle", "MEDWAY-SYNC-IN"}:  {"-d 224.0.0.81/32 -i mw-dc2-lvs-a -j TEE --gateway 169.254.0.1"},
		{"raw", "MEDWAY-RAW"}:         {"-d 203.0.113.10/32 -j CT --notrack"},
		{"filter", "MEDWAY-INPUT"}: {
			"-s 10.2.0.11/32 -p ipencap -j RETURN",
			"-p ipencap -j DROP",
			"-d 224.0.0.81/32 ! -i sync01 -j DROP",
			"-d 203.0.113.10/32 -p tcp -m tcp --dport 5060 -j RETURN",
			"-d 203.0.113.10/32 -p icmp -m icmp --icmp-type 8 -j RETURN",
			"-d 203.0.113.10/32 -p icmp -m icmp --icmp-type 3/4 -j RETURN",
			"-d 203.0.113.10/32 -j DROP",
		},
	} {
		if diff := cmp.Diff(strings.Join(want, "\n"), string(h.Chains[chain])); diff != "" {
			t.Errorf("%s (-want +got):\n%s", chain, diff)
		}
	}
}

// TestMirroredWeights: what is near for one site is far for the other.
func TestMirroredWeights(t *testing.T) {
	s := twoSites(t)
	service := ServiceKey{TCP, netip.MustParseAddr("203.0.113.10"), 5060}
	near := DestinationKey{service, netip.MustParseAddr("10.1.0.21"), 5060}
	far := DestinationKey{service, netip.MustParseAddr("10.2.0.21"), 5060}
	h1 := KernelOf(s, dc1)
	h2 := KernelOf(s, Self{Name: "dc2-lvs-a", Site: "dc2", Group: "g2", IPv4: netip.MustParseAddr("10.2.0.11"), Uplink: "eth0"})
	for _, c := range []struct {
		host Host
		key  DestinationKey
		want uint16
	}{{h1, near, 50000}, {h1, far, 2}, {h2, near, 2}, {h2, far, 50000}} {
		if got := c.host.Destinations[c.key]; got != (Destination{Weight: c.want, Upper: 25000, Lower: 20000}) {
			t.Errorf("%s: got %+v, want weight %d", c.key, got, c.want)
		}
	}
}

// TestMissingPoolRemovesNothing: deleting a pool by mistake must not cut calls.
func TestMissingPoolRemovesNothing(t *testing.T) {
	s := twoSites(t)
	delete(s.Pools, "sbc")
	h := KernelOf(s, dc1)
	service := ServiceKey{TCP, netip.MustParseAddr("203.0.113.10"), 5060}
	if _, planned := h.Services[service]; planned || !h.Kept[service] {
		t.Errorf("service %s: planned %v, kept %v; expected it to be kept as it is", service, planned, h.Kept[service])
	}
}

func TestNamesFitTheKernel(t *testing.T) {
	for _, name := range []string{"a", "dc1-lvs-a", "a-very-long-name-of-a-node-in-a-far-data-centre"} {
		if link := TunnelName(name); len(link) > 15 || !strings.HasPrefix(string(link), TunnelPrefix) {
			t.Errorf("tunnel to %s: %q", name, string(link))
		}
		if a := SyncAddress(name); !a.IsLinkLocalUnicast() || a == ReinjectGateway {
			t.Errorf("sync address of %s: %s", name, a)
		}
	}
}
