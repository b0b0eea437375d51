package plan

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/medway-lb/medway/pkg/state"
)

// twoSites is a snapshot with one VIP, one LVS host and one backend a site, in
// which some keys have other values.
func twoSites(t *testing.T, others ...string) *state.Snapshot {
	t.Helper()
	values := map[string]string{
		"vips/sip-1":             `{"addresses":["203.0.113.10"],"services":[{"protocol":"tcp","port":5060,"pool":"sbc"}],"groups":{"dc1":"g1","dc2":"g2"}}`,
		"pools/sbc":              `{"thresholds":{"upper":25000,"lower":20000}}`,
		"backends/sbc/dc1-sbc1":  `{"site":"dc1","address":"10.1.0.21"}`,
		"backends/sbc/dc2-sbc1":  `{"site":"dc2","address":"10.2.0.21"}`,
		"nodes/dc1-lvs-a":        `{"machine_id":"a","site":"dc1","group":"g1","ipv4":"10.1.0.11","sync_address":"169.254.1.1"}`,
		"nodes/dc2-lvs-a":        `{"machine_id":"b","site":"dc2","group":"g2","ipv4":"10.2.0.11","sync_address":"169.254.1.2"}`,
		"nodes/a-stranger-group": `{"machine_id":"c","site":"dc2","group":"g3","ipv4":"10.2.0.99","sync_address":"169.254.1.3"}`,
	}
	for i := 0; i < len(others); i += 2 {
		values[others[i]] = others[i+1]
	}
	c := state.NewCache()
	for key, value := range values {
		c.Put(state.Prefix+key, []byte(value), 1, 0)
	}
	s := c.Snapshot()
	for _, f := range s.Faults {
		if !f.Notice {
			t.Fatalf("faults in the example: %v", s.Faults)
		}
	}
	return s
}

var dc1 = Self{Name: "dc1-lvs-a", Site: "dc1", Group: "g1", IPv4: netip.MustParseAddr("10.1.0.11"), Uplink: "eth0"}

// dualStack is twoSites with addresses of both families for everything, and a
// service over UDP.
func dualStack(t *testing.T, others ...string) *state.Snapshot {
	t.Helper()
	return twoSites(t, append([]string{
		"vips/sip-1", `{"addresses":["203.0.113.10","2001:db8:10::10"],"groups":{"dc1":"g1","dc2":"g2"},"services":[
			{"protocol":"tcp","port":5060,"pool":"sbc"},
			{"protocol":"udp","port":5060,"pool":"sbc","persistence":"1m","persistence_engine":"sip","one_packet":true}]}`,
		"backends/sbc/dc1-sbc1", `{"site":"dc1","address":"10.1.0.21","address6":"2001:db8:1::21"}`,
		"backends/sbc/dc2-sbc1", `{"site":"dc2","address":"10.2.0.21","address6":"2001:db8:2::21"}`,
		"nodes/dc1-lvs-a", `{"machine_id":"a","site":"dc1","group":"g1","ipv4":"10.1.0.11","ipv6":"2001:db8:1::11","sync_address":"169.254.1.1"}`,
		"nodes/dc2-lvs-a", `{"machine_id":"b","site":"dc2","group":"g2","ipv4":"10.2.0.11","ipv6":"2001:db8:2::11","sync_address":"169.254.1.2"}`,
	}, others...)...)
}

// withoutIPv4 takes a node's IPv4 address away.
func withoutIPv4(s *state.Snapshot, node string) {
	n := s.Nodes[node]
	n.IPv4 = netip.Addr{}
	s.Nodes[node] = n
}

func rules(lines ...string) Rules { return Rules(strings.Join(lines, "\n")) }

// ipv4Chains are the chains of twoSites on dc1-lvs-a.
func ipv4Chains() map[Chain]Rules {
	return map[Chain]Rules{
		{IPv4, "mangle", "MEDWAY-SYNC-OUT"}: rules("-d 224.0.0.81/32 -o sync01 -j TEE --gateway 169.254.1.2"),
		{IPv4, "mangle", "MEDWAY-SYNC-IN"}: rules(
			"-d 224.0.0.81/32 -i mw-dc2-lvs-a -j TEE --gateway 169.254.0.1",
			"-d 224.0.0.81/32 -i sync01 -j ACCEPT",
		),
		{IPv4, "raw", "MEDWAY-RAW"}: rules(
			"! -d 224.0.0.81/32 -i mw-dc2-lvs-a -j DROP",
			"-d 224.0.0.81/32 -i sync01 -j ACCEPT",
			"-d 203.0.113.10/32 -j CT --notrack",
		),
		{IPv4, "filter", "MEDWAY-INPUT"}: rules(
			"-s 10.2.0.11/32 -p ipencap -j RETURN",
			"-d 224.0.0.81/32 -i sync01 -j ACCEPT",
			"-d 224.0.0.81/32 -j DROP",
			"-p ipencap -j DROP",
			"-d 203.0.113.10/32 -p tcp -m tcp --dport 5060 -j RETURN",
			"-d 203.0.113.10/32 -p icmp -m icmp --icmp-type 8 -j RETURN",
			"-d 203.0.113.10/32 -p icmp -m icmp --icmp-type 3/4 -j RETURN",
			"-d 203.0.113.10/32 -j DROP",
		),
	}
}

// A host without anything of IPv6 has no rule of IPv6, nor a parameter.
func TestIPv4Alone(t *testing.T) {
	h := KernelOf(twoSites(t), dc1)
	if diff := cmp.Diff(ipv4Chains(), h.Chains); diff != "" {
		t.Error(diff)
	}
	for key := range h.Sysctls {
		if strings.HasPrefix(string(key), "net.ipv6.") {
			t.Errorf("%s is planned", key)
		}
	}
}

func TestBothFamilies(t *testing.T) {
	s := dualStack(t)
	h := KernelOf(s, dc1)
	chains := ipv4Chains()
	input := Chain{IPv4, "filter", "MEDWAY-INPUT"}
	chains[input] = Rules(strings.Replace(string(chains[input]), "tcp --dport 5060 -j RETURN\n",
		"tcp --dport 5060 -j RETURN\n-d 203.0.113.10/32 -p udp -m udp --dport 5060 -j RETURN\n", 1))
	chains[Chain{IPv6, "raw", "MEDWAY-RAW"}] = rules("-d 2001:db8:10::10/128 -j CT --notrack")
	chains[Chain{IPv6, "filter", "MEDWAY-INPUT"}] = rules(
		"-p ipencap -j DROP",
		"-p ipv6 -j DROP",
		"-s 2001:db8:10::10/128 ! -i lo -j DROP",
		"-d 2001:db8:10::10/128 -p tcp -m tcp --dport 5060 -j RETURN",
		"-d 2001:db8:10::10/128 -p udp -m udp --dport 5060 -j RETURN",
		"-d 2001:db8:10::10/128 -p ipv6-icmp -m icmp6 --icmpv6-type 128 -j RETURN",
		"-d 2001:db8:10::10/128 -p ipv6-icmp -m icmp6 --icmpv6-type 2 -j RETURN",
		"-d 2001:db8:10::10/128 -j DROP",
	)
	if diff := cmp.Diff(chains, h.Chains); diff != "" {
		t.Error(diff)
	}
	for c := range h.Chains {
		found := false
		for j := range h.Jumps {
			found = found || j.Family == c.Family && j.Table == c.Table && j.To == c.Name
		}
		if !found {
			t.Errorf("nothing leads to %s", c)
		}
	}
	for _, vip := range s.VIPs["sip-1"].Addresses {
		if _, ok := h.Addresses[VIPAddress(vip)]; !ok {
			t.Errorf("%s is not on medway0: %v", vip, h.Addresses)
		}
		want := map[netip.Addr]bool{netip.MustParseAddr("10.1.0.21"): true, netip.MustParseAddr("10.2.0.21"): true}
		if vip.Is6() {
			want = map[netip.Addr]bool{netip.MustParseAddr("2001:db8:1::21"): true, netip.MustParseAddr("2001:db8:2::21"): true}
		}
		got := map[netip.Addr]bool{}
		for k := range h.Destinations {
			if k.Service.Addr == vip {
				got[k.Addr] = true
			}
		}
		if !maps.Equal(got, want) {
			t.Errorf("%s has destinations %v, expected those of its own family: %v", vip, got, want)
		}
		udp := Service{Scheduler: "wrr", Persistence: time.Minute, Engine: "sip", OnePacket: true}
		if got := h.Services[ServiceKey{UDP, vip, 5060}]; got != udp {
			t.Errorf("%s: UDP service %+v, expected %+v", vip, got, udp)
		}
	}
	if h.Sysctls["net.ipv6.conf.medway0.disable_ipv6"] != "0" {
		t.Error("IPv6 may be off on medway0")
	}
}

// A backend without an address of a service's family is no destination of it.
func TestBackendOfOneFamily(t *testing.T) {
	s := dualStack(t, "backends/sbc/dc1-sbc1", `{"site":"dc1","address":"10.1.0.21"}`)
	for k := range KernelOf(s, dc1).Destinations {
		if k.Addr.Is6() != k.Service.Addr.Is6() {
			t.Errorf("%s: the families differ", k)
		}
		if k.Service.Addr.Is6() && k.Addr != netip.MustParseAddr("2001:db8:2::21") {
			t.Errorf("%s: dc1-sbc1 has no IPv6 address", k)
		}
	}
}

// What a node can't be the next hop of is said.
func TestAddressOfAFamilyThatTheNodeLacks(t *testing.T) {
	s := dualStack(t)
	both := dc1
	both.IPv6 = netip.MustParseAddr("2001:db8:1::11")
	only6 := both
	only6.IPv4 = netip.Addr{}
	for _, c := range []struct {
		self Self
		want string
	}{
		{both, ""},
		{dc1, `field addresses[1]: value "2001:db8:10::10"`},
		{only6, `field addresses[0]: value "203.0.113.10"`},
	} {
		faults := slices.DeleteFunc(Faults(s, c.self), func(f state.Fault) bool { return f.Key != "/medway/v1/vips/sip-1" })
		switch {
		case c.want == "" && len(faults) == 0:
		case c.want != "" && len(faults) == 1 && faults[0].Notice && strings.HasPrefix(faults[0].Reason, c.want):
		default:
			t.Errorf("%s, %s: faults %v, expected %q", c.self.IPv4, c.self.IPv6, faults, c.want)
		}
	}
}

func TestTunnelsTakeTheFamilyThatBothHave(t *testing.T) {
	v4 := Link{Kind: IPIP, Local: netip.MustParseAddr("10.1.0.11"), Remote: netip.MustParseAddr("10.2.0.11"), TTL: 64, MTU: 1480}
	v6 := Link{Kind: IP6Tnl, Local: netip.MustParseAddr("2001:db8:1::11"), Remote: netip.MustParseAddr("2001:db8:2::11"), TTL: 64, MTU: 1460}
	both := dc1
	both.IPv6 = v6.Local
	only6 := both
	only6.IPv4 = netip.Addr{}
	for _, c := range []struct {
		name     string
		self     Self
		peerIPv4 bool
		want     Link
	}{
		{"both have both: the smaller header", both, true, v4},
		{"this node has IPv4 only", dc1, true, v4},
		{"this node has IPv6 only", only6, true, v6},
		{"the peer has IPv6 only", both, false, v6},
		{"no family in common", dc1, false, Link{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := dualStack(t)
			if !c.peerIPv4 {
				withoutIPv4(s, "dc2-lvs-a")
			}
			h := KernelOf(s, c.self)
			if got := h.Links["mw-dc2-lvs-a"]; got != c.want {
				t.Errorf("tunnel %+v, expected %+v", got, c.want)
			}
			input4, input6 := string(h.Chains[Chain{IPv4, "filter", "MEDWAY-INPUT"}]), string(h.Chains[Chain{IPv6, "filter", "MEDWAY-INPUT"}])
			if in, want := strings.Contains(input4, "-s 10.2.0.11/32 -p ipencap -j RETURN\n"), c.want.Kind == IPIP; in != want {
				t.Errorf("the peer's IPv4 packets are let in: %v, expected %v", in, want)
			}
			if in, want := strings.HasPrefix(input6, "-s 2001:db8:2::11/128 -p ipencap -j RETURN\n"), c.want.Kind == IP6Tnl; in != want {
				t.Errorf("the peer's IPv6 packets are let in: %v, expected %v:\n%s", in, want, input6)
			}
			master := uint16(1452)
			if c.want.Kind == IP6Tnl {
				master = 1432
			}
			if m, b := h.Daemons[Master].MaxLen, h.Daemons[Backup].MaxLen; m != master || b != 1452 {
				t.Errorf("the master sends up to %d bytes and the backup takes %d, expected %d and 1452", m, b, master)
			}
			faults := Faults(s, c.self)
			faults = slices.DeleteFunc(faults, func(f state.Fault) bool { return !strings.Contains(f.Key, "/nodes/") })
			if c.want != (Link{}) {
				if len(faults) != 0 {
					t.Errorf("faults %v", faults)
				}
				return
			}
			if len(faults) != 1 || faults[0].Key != "/medway/v1/nodes/dc2-lvs-a" || !strings.Contains(faults[0].Reason, "no address of a family") {
				t.Errorf("faults %v", faults)
			}
			if _, ok := h.Sysctls["net.ipv4.conf.mw-dc2-lvs-a.rp_filter"]; ok {
				t.Error("a tunnel that does not exist has a parameter")
			}
		})
	}
}

// An explicit length that no IPv6 tunnel could carry would be lost without a word.
func TestMaxLengthFitsEveryTunnel(t *testing.T) {
	s := dualStack(t)
	s.Settings.Sync.MaxLength = 1450
	withoutIPv4(s, "dc2-lvs-a")
	self := dc1
	self.IPv6 = netip.MustParseAddr("2001:db8:1::11")
	h := KernelOf(s, self)
	if m, b := h.Daemons[Master].MaxLen, h.Daemons[Backup].MaxLen; m != 1432 || b != 1450 {
		t.Errorf("master %d, backup %d", m, b)
	}
}

// IPv6 tunnels need rules of IPv6 though no VIP does.
func TestTunnelOverIPv6AloneIsClosedToStrangers(t *testing.T) {
	s := twoSites(t)
	n := s.Nodes["dc2-lvs-a"]
	n.IPv4, n.IPv6 = netip.Addr{}, netip.MustParseAddr("2001:db8:2::11")
	s.Nodes["dc2-lvs-a"] = n
	self := dc1
	self.IPv6 = netip.MustParseAddr("2001:db8:1::11")
	want := map[Chain]Rules{{IPv6, "filter", "MEDWAY-INPUT"}: rules(
		"-s 2001:db8:2::11/128 -p ipencap -j RETURN", "-p ipencap -j DROP", "-p ipv6 -j DROP")}
	if diff := cmp.Diff(want, KernelOf(s, self).ChainsOf(IPv6)); diff != "" {
		t.Error(diff)
	}
}

func TestIPv6AddressIsHeldBackFromOlderNodes(t *testing.T) {
	self := dc1
	self.IPv6 = netip.MustParseAddr("2001:db8:1::11")
	newer := func(node, last string) []string {
		return []string{"nodes/" + node, `{"machine_id":"` + node + `","site":"dc2","group":"g2","ipv4":"10.2.0.` + last + `","sync_address":"169.254.2.` + last + `","schema":2}`}
	}
	all := append(newer("dc2-lvs-a", "11"), newer("a-stranger-group", "12")...)
	only6 := self
	only6.IPv4 = netip.Addr{}
	for _, c := range []struct {
		name string
		s    *state.Snapshot
		self Self
		want netip.Addr
	}{
		{"others know schema 1", twoSites(t), self, netip.Addr{}},
		{"all others know schema 2", twoSites(t, all...), self, self.IPv6},
		{"one of them does not", twoSites(t, all[:2]...), self, netip.Addr{}},
		{"there is nothing else to publish", twoSites(t), only6, self.IPv6},
	} {
		if got := PublishedIPv6(c.s, c.self); got != c.want {
			t.Errorf("%s: %s, expected %s", c.name, got, c.want)
		}
	}
}

// A host that was given another name leaves its old key behind.
func TestOneTunnelToAnAddress(t *testing.T) {
	s := dualStack(t)
	twin := s.Nodes["dc2-lvs-a"]
	s.Nodes["dc2-lvs-b"] = twin
	s.Nodes["dc1-old-name"] = s.Nodes["dc1-lvs-a"]
	h := KernelOf(s, dc1)
	for name, l := range h.Links {
		if l.Remote.IsValid() && name != "mw-dc2-lvs-a" {
			t.Errorf("%s to %s", name, l.Remote)
		}
	}
}

func TestReversePath(t *testing.T) {
	s := twoSites(t)
	self := dc1
	self.Uplink = "eth0.7"
	h := KernelOf(s, self)
	for _, device := range []string{"all", "eth0/7", "sync01", "sync01p", "mw-dc2-lvs-a"} {
		if key := Sysctl("net.ipv4.conf." + device + ".rp_filter"); h.Sysctls[key] != "0" {
			t.Errorf("%s is %q, expected 0", key, h.Sysctls[key])
		}
	}
	s.Settings.Sysctls = map[string]string{"net.ipv4.conf.all.rp_filter": "1", "net.ipv4.conf.eth1.rp_filter": "1"}
	if got := KernelOf(s, self).Sysctls["net.ipv4.conf.all.rp_filter"]; got != "1" {
		t.Errorf("the operator's word is not kept: %q", got)
	}
	faults := Faults(s, self)
	if len(faults) != 1 || faults[0].Key != "/medway/v1/settings" || !strings.Contains(faults[0].Reason, `net.ipv4.conf.all.rp_filter: value "1"`) {
		t.Errorf("faults %v", faults)
	}
}

// A connection that is in use must not run out on the nodes that are only told of it.
func TestTimeoutsOutlastSync(t *testing.T) {
	s := twoSites(t)
	if faults := Faults(s, dc1); len(faults) != 0 {
		t.Fatalf("by default: %v", faults)
	}
	s.Settings.Timeouts.UDP, s.Settings.Timeouts.TCP = 29*time.Second, 30*time.Second
	faults := Faults(s, dc1)
	if len(faults) != 1 || !faults[0].Notice || !strings.HasPrefix(faults[0].Reason, `field timeouts.udp: value "29s": expected at least 30s`) {
		t.Errorf("faults %v", faults)
	}
}

// A VIP that leaves stays closed, in its own family, as long as it stands.
func TestClosing(t *testing.T) {
	h := KernelOf(twoSites(t), dc1)
	planned, old4, old6 := netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("203.0.113.99"), netip.MustParseAddr("2001:db8::99")
	leaving := h.Unplanned([]netip.Addr{old6, planned, old4})
	if diff := cmp.Diff([]netip.Addr{old4, old6}, leaving, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Fatal(diff)
	}
	chains := ipv4Chains()
	chains[Chain{IPv4, "filter", "MEDWAY-INPUT"}] += "\n-d 203.0.113.99/32 -j DROP"
	chains[Chain{IPv6, "filter", "MEDWAY-INPUT"}] = "-d 2001:db8::99/128 -j DROP"
	closing := h.Closing(leaving)
	if diff := cmp.Diff(chains, closing.Chains); diff != "" {
		t.Error(diff)
	}
	if _, ok := closing.Jumps[Jump{IPv6, "filter", "INPUT", "MEDWAY-INPUT"}]; !ok {
		t.Error("nothing leads to the chain of IPv6")
	}
	if diff := cmp.Diff(ipv4Chains(), h.Chains); diff != "" || len(h.JumpsOf(IPv6)) > 0 {
		t.Error("the plan itself was changed", diff)
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

// In ARP mode a VIP stands on no device of the plan's, and neighbours may ask for it.
func TestKernelOfInARPMode(t *testing.T) {
	s, self := dualStack(t), dc1
	withBGP := KernelOf(s, self)
	self.Segment = "eth0"
	h := KernelOf(s, self)
	if _, made := h.Links[VIPLink]; made {
		t.Error("medway0 is planned")
	}
	if _, set := h.Sysctls["net.ipv6.conf.medway0.disable_ipv6"]; set {
		t.Error("a parameter of medway0 is planned")
	}
	for _, a := range s.VIPs["sip-1"].Addresses {
		if _, planned := h.Addresses[VIPAddress(a)]; planned || !h.Segment[a] {
			t.Errorf("%s: on medway0 %t, on the segment %t", a, planned, h.Segment[a])
		}
		if left := h.Unplanned([]netip.Addr{a}); len(left) > 0 {
			t.Errorf("%s counts as unplanned", a)
		}
	}
	if got, want := len(h.VIPs()), len(withBGP.VIPs()); got != want || got == 0 {
		t.Errorf("%d VIPs, %d with BGP", got, want)
	}
	input := Chain{IPv6, "filter", "MEDWAY-INPUT"}
	want := strings.Replace(string(withBGP.Chains[input]), "-d 2001:db8:10::10/128 -j DROP",
		"-d 2001:db8:10::10/128 -p ipv6-icmp -m icmp6 --icmpv6-type 135 -j RETURN\n"+
			"-d 2001:db8:10::10/128 -p ipv6-icmp -m icmp6 --icmpv6-type 136 -j RETURN\n-d 2001:db8:10::10/128 -j DROP", 1)
	if diff := cmp.Diff(want, string(h.Chains[input])); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(withBGP.Services, h.Services); diff != "" {
		t.Error(diff)
	}
}

// TestDrainedBackend has weight 0 everywhere and stays: a destination that went would
// take its connections with it.
func TestDrainedBackend(t *testing.T) {
	s := twoSites(t, "drains/sbc/dc1-sbc1", `{"since":"2024-11-22T17:00:00Z"}`)
	for _, self := range []Self{dc1, {Name: "dc2-lvs-a", Site: "dc2", Group: "g2", IPv4: netip.MustParseAddr("10.2.0.11"), Uplink: "eth0"}} {
		weights := map[string]uint16{}
		for k, d := range KernelOf(s, self).Destinations {
			weights[k.Addr.String()] = d.Weight
		}
		want := map[string]uint16{"10.1.0.21": 0, "10.2.0.21": map[string]uint16{"dc1": 2, "dc2": 50000}[self.Site]}
		if diff := cmp.Diff(want, weights); diff != "" {
			t.Errorf("%s: %s", self.Name, diff)
		}
	}
}
