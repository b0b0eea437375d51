package agent

import (
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/medway-lb/medway/agent/internal/link/nstest"
	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/reconcile"
	"github.com/medway-lb/medway/pkg/state"
)

// These tests run the whole data plane on the real kernel, in a namespace of
// their own, and read it through the operator's tools.

var (
	vip4, vip6 = netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("2001:db8:10::10")
	thisNode   = plan.Self{
		Name: "dc1-lvs-a", Site: "dc1", Group: "g1", Uplink: "eth0",
		IPv4: netip.MustParseAddr("10.1.0.11"), IPv6: netip.MustParseAddr("2001:db8:1::11"),
	}
)

// cluster is a node with everything: VIPs of both families, TCP and UDP, a peer
// that is reached over IPv4 and one that is reached over IPv6.
func cluster(t *testing.T) *state.Snapshot {
	t.Helper()
	c := state.NewCache()
	for key, value := range map[string]string{
		"vips/sip-1": `{"addresses":["203.0.113.10","2001:db8:10::10"],"groups":{"dc1":"g1","dc2":"g2"},"services":[
			{"protocol":"tcp","port":5060,"pool":"sbc"},
			{"protocol":"udp","port":5060,"pool":"sbc","persistence":"5m","persistence_engine":"sip","one_packet":true}]}`,
		"pools/sbc":             `{"thresholds":{"upper":25000,"lower":20000}}`,
		"backends/sbc/dc1-sbc1": `{"site":"dc1","address":"10.1.0.21","address6":"2001:db8:1::21"}`,
		"backends/sbc/dc2-sbc1": `{"site":"dc2","address":"10.2.0.21","address6":"2001:db8:2::21"}`,
		"nodes/dc1-lvs-a":       `{"machine_id":"a","site":"dc1","group":"g1","ipv4":"10.1.0.11","ipv6":"2001:db8:1::11","sync_address":"169.254.1.1"}`,
		"nodes/dc2-lvs-a":       `{"machine_id":"b","site":"dc2","group":"g2","ipv4":"10.2.0.11","sync_address":"169.254.1.2"}`,
		"nodes/dc2-lvs-b":       `{"machine_id":"c","site":"dc2","group":"g2","ipv6":"2001:db8:2::12","sync_address":"169.254.1.3"}`,
	} {
		c.Put(state.Prefix+key, []byte(value), 1, 0)
	}
	s := c.Snapshot()
	if len(s.Faults) > 0 {
		t.Fatalf("faults in the example: %v", s.Faults)
	}
	return s
}

// withoutVIPs is the plan for a cluster from which the VIP was deleted.
func withoutVIPs(t *testing.T) plan.Host {
	t.Helper()
	s := *cluster(t)
	s.VIPs = nil
	return plan.KernelOf(&s, thisNode)
}

// openInNamespace opens the data plane of a host with an uplink.
func openInNamespace(t *testing.T) *dataplane {
	t.Helper()
	nstest.Enter(t, nstest.Dummy, nstest.IPIP, nstest.IP6Tnl, nstest.TEE, nstest.IPVS)
	for _, command := range []string{
		// As strict as a hardened host: what medway needs it must set itself.
		"sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1",
		"sysctl -qw net.ipv6.conf.default.disable_ipv6=1",
		"ip link add eth0 type veth peer name far",
		"sysctl -qw net.ipv6.conf.eth0.disable_ipv6=0",
		"ip link set eth0 up", "ip link set far up",
		"ip addr add 10.1.0.11/24 dev eth0", "ip addr add 2001:db8:1::11/64 dev eth0 nodad",
		"ip route add default via 10.1.0.1", "ip -6 route add default via 2001:db8:1::1",
	} {
		shell(t, command)
	}
	d, err := openDataplane()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.close)
	return d
}

func shell(t *testing.T, command string) string {
	t.Helper()
	return nstest.Run(t, "sh", "-ec", command)
}

// mustApply applies a plan, which must change something, and then sees to it
// that nothing is left to change.
func mustApply(t *testing.T, d *dataplane, h plan.Host) []reconcile.Edit {
	t.Helper()
	first := d.apply(t.Context(), h)
	if err := first.Err(); err != nil {
		t.Fatal(err)
	}
	second := d.apply(t.Context(), h)
	if err := second.Err(); err != nil || len(second.Done) > 0 {
		t.Fatalf("the second run: %v, %v", second.Done, err)
	}
	return first.Done
}

// everything is all that the tools show, without what differs from device to
// device of one name: its index and a MAC that the kernel chose.
func everything(t *testing.T) string {
	t.Helper()
	return shell(t, `
		ipvsadm -Sn; ipvsadm -ln --thresholds | sort; ipvsadm -ln --daemon; ipvsadm -ln --timeout
		for p in iptables ip6tables; do $p-save | grep -v '^#' | sed 's/ \[.*//'; done
		ip -o link | sed 's/^[0-9]*: //; s/ qdisc .*//' | sort
		ip tunnel | sort; ip -6 tunnel | sort
		ip maddr show dev sync01 2>/dev/null | grep 'inet  224.0.0.81' || true
		ip -o address | grep -v fe80: | sed 's/^[0-9]*: //' | sort
		ip -4 route show table all | sort; ip -6 route show table all | grep -v fe80: | grep -v multicast | grep -v anycast | sort
		ip neigh show nud permanent | sort
		sysctl net.ipv4.vs
		for d in all eth0 sync01 sync01p mw-dc2-lvs-a mw-dc2-lvs-b; do
			sysctl -e net.ipv4.conf.$d.rp_filter net.ipv4.conf.$d.send_redirects
		done
		sysctl -e net.ipv6.conf.eth0.disable_ipv6 net.ipv6.conf.medway0.disable_ipv6`)
}

// Whatever someone changes by hand is back after one run.
func TestKernelMendsWhatIsBrokenByHand(t *testing.T) {
	d := openInNamespace(t)
	want := plan.KernelOf(cluster(t), thisNode)
	mustApply(t, d, want)
	whole := everything(t)
	for _, part := range []string{
		"-A -t 203.0.113.10:5060 -s sed\n", "-A -u [2001:db8:10::10]:5060 -s wrr -p 300 --pe sip -o\n",
		"-a -t [2001:db8:10::10]:5060 -r [2001:db8:1::21]:5060 -i -w 50000", "-a -u 203.0.113.10:5060 -r 10.2.0.21:5060 -i -w 2",
		"mcast=sync01", "mw-dc2-lvs-a", "ip/ipv6 remote 2001:db8:2::12 local 2001:db8:1::11 encaplimit none hoplimit 64",
		"inet6 2001:db8:10::10/128 scope global nodad deprecated", "net.ipv4.conf.eth0.rp_filter = 0", "net.ipv4.conf.all.rp_filter = 0",
		"net.ipv6.conf.medway0.disable_ipv6 = 0", "-A INPUT -j MEDWAY-INPUT\n", "inet  224.0.0.81",
	} {
		if !strings.Contains(whole, part) {
			t.Fatalf("the tools don't show %q:\n%s", part, whole)
		}
	}
	damages := []string{
		"ipvsadm -d -t 203.0.113.10:5060 -r 10.1.0.21:5060",
		"ipvsadm -d -u [2001:db8:10::10]:5060 -r [2001:db8:2::21]:5060",
		"ipvsadm -e -t 203.0.113.10:5060 -r 10.1.0.21:5060 -i -w 0",
		"ipvsadm -a -t 203.0.113.10:5060 -r 10.1.0.77:5060 -i -w 1",
		"ipvsadm -D -t 203.0.113.10:5060",
		"ipvsadm -D -u [2001:db8:10::10]:5060",
		"ipvsadm -E -u 203.0.113.10:5060 -s rr",
		"ipvsadm -A -t 203.0.113.10:80 -s rr",
		"ipvsadm -C",
		"ipvsadm --set 60 60 60",
		"ipvsadm --stop-daemon master",
		"ipvsadm --stop-daemon backup",
		"iptables -t mangle -D MEDWAY-SYNC-OUT 1",
		"iptables -t mangle -F MEDWAY-SYNC-IN",
		"iptables -D INPUT -j MEDWAY-INPUT",
		"iptables -I INPUT 1 -j ACCEPT; iptables -F INPUT",
		"iptables -D INPUT -j MEDWAY-INPUT; iptables -F MEDWAY-INPUT; iptables -X MEDWAY-INPUT",
		"ip6tables -F MEDWAY-INPUT",
		"ip6tables -t raw -D PREROUTING -j MEDWAY-RAW; ip6tables -t raw -F MEDWAY-RAW; ip6tables -t raw -X MEDWAY-RAW",
		"ip link del mw-dc2-lvs-a",
		"ip link del mw-dc2-lvs-b",
		"ip link set mw-dc2-lvs-b down",
		"ip addr del 203.0.113.10/32 dev medway0",
		"ip addr del 2001:db8:10::10/128 dev medway0",
		"ip addr add 203.0.113.99/32 dev medway0",
		"ip addr del 169.254.1.1/32 dev sync01 || ip addr flush dev sync01",
		"ip route del 169.254.1.2",
		"ip neigh flush dev sync01p nud permanent",
		"sysctl -qw net.ipv4.vs.sync_threshold='3 50'",
		"sysctl -qw net.ipv4.conf.all.rp_filter=1",
		"sysctl -qw net.ipv4.conf.eth0.rp_filter=2",
		"sysctl -qw net.ipv6.conf.medway0.disable_ipv6=1",
		"ip link set medway0 down",
		"ip link del medway0",
		"ip link del sync01",
		"ip link del sync01p; ip link add sync01 type veth peer name sync01p; ip link set sync01 up; ip link set sync01p up",
	}
	all := strings.Join([]string{
		"ipvsadm -C; ipvsadm --stop-daemon master; ipvsadm --stop-daemon backup",
		"for p in iptables ip6tables; do for t in filter mangle raw; do $p -t $t -F; $p -t $t -X; done; done",
		"for l in medway0 sync01 mw-dc2-lvs-a mw-dc2-lvs-b; do ip link del $l; done",
		"sysctl -qw net.ipv4.conf.all.rp_filter=2 net.ipv4.vs.backup_only=1",
	}, "; ")
	for _, damage := range append(damages, all) {
		shell(t, damage)
		if diff := cmp.Diff(whole, everything(t)); diff == "" {
			t.Errorf("%s: no effect", damage)
		}
		if done := mustApply(t, d, want); len(done) == 0 {
			t.Errorf("%s: not said", damage)
		}
		if diff := cmp.Diff(whole, everything(t)); diff != "" {
			t.Errorf("%s: after one run (-before +after):\n%s", damage, diff)
		}
	}
}

// What belongs to others is as it was through start, resync, stop, removal of
// the VIP and of everything.
func TestKernelLeavesOthersAlone(t *testing.T) {
	d := openInNamespace(t)
	for _, theirs := range []string{
		"ipvsadm -A -t 10.1.0.11:80 -s rr; ipvsadm -a -t 10.1.0.11:80 -r 10.1.0.77:80 -m -w 1",
		"ipvsadm -A -t [2001:db8:1::11]:80 -s rr; ipvsadm -a -t [2001:db8:1::11]:80 -r [2001:db8:1::77]:80 -m -w 1",
		"ipvsadm -A -u 198.51.100.7:53 -s wlc -o; ipvsadm -A -f 7 -s rr; ipvsadm -A -f 8 -6 -s rr",
		"ip link add br0 type bridge; ip link set br0 up; ip addr add 192.0.2.1/24 dev br0; ip addr add 2001:db8:99::1/64 dev br0 || true",
		"ip link add mw-theirs type veth peer name mw-theirs2; ip link set mw-theirs up",
		"ip link add office type ipip local 10.1.0.11 remote 192.0.2.99 ttl 64; ip link set office up",
		"ip link add office6 type ip6tnl mode any local 2001:db8:1::11 remote 2001:db8:99::99; ip link set office6 up",
		"ip addr add 203.0.113.77/32 dev lo",
		"ip route add 192.0.2.128/25 dev br0 proto static; ip route add 10.9.0.0/16 via 10.1.0.1 proto bird metric 77",
		"ip -6 route add 2001:db8:77::/48 via 2001:db8:1::1 proto static",
		"ip neigh add 192.0.2.9 dev br0 lladdr 02:00:00:00:00:78 nud permanent",
		"for p in iptables ip6tables; do $p -N THEIRS; $p -A THEIRS -p tcp -m tcp --dport 22 -j ACCEPT; $p -A INPUT -j THEIRS; $p -P FORWARD DROP; done",
		"for p in iptables ip6tables; do $p -t raw -A PREROUTING -m rpfilter --invert -j DROP; $p -t nat -N MEDWAY-NAT; done",
		"iptables -t mangle -A POSTROUTING -o br0 -j RETURN",
	} {
		shell(t, theirs)
	}
	// Parameters and timeouts have no owner: medway sets them for good.
	skip := func(line string) bool {
		return strings.HasPrefix(line, "net.") || strings.HasPrefix(line, "Timeout ") || strings.Contains(line, "sync daemon")
	}
	lines := slices.DeleteFunc(strings.Split(everything(t), "\n"), skip)
	there := func(when string) {
		t.Helper()
		now := strings.Split(everything(t), "\n")
		for _, line := range lines {
			if !slices.Contains(now, line) {
				t.Errorf("%s: lost: %s", when, line)
			}
		}
	}
	h := plan.KernelOf(cluster(t), thisNode)
	mustApply(t, d, h)
	there("start")
	shell(t, "ipvsadm -C; ipvsadm -A -t 10.1.0.11:80 -s rr; ipvsadm -a -t 10.1.0.11:80 -r 10.1.0.77:80 -m -w 1")
	shell(t, "ipvsadm -A -t [2001:db8:1::11]:80 -s rr; ipvsadm -a -t [2001:db8:1::11]:80 -r [2001:db8:1::77]:80 -m -w 1")
	shell(t, "ipvsadm -A -u 198.51.100.7:53 -s wlc -o; ipvsadm -A -f 7 -s rr; ipvsadm -A -f 8 -6 -s rr")
	mustApply(t, d, h)
	there("resync")
	d.close()
	there("stop")
	var err error
	if d, err = openDataplane(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.close)
	mustApply(t, d, h)
	there("second start")
	mustApply(t, d, withoutVIPs(t))
	there("removal of the VIP")
	if now := everything(t); strings.Contains(now, "203.0.113.10") || strings.Contains(now, "2001:db8:10::10") {
		t.Errorf("something of the VIP is left:\n%s", now)
	}
	mustApply(t, d, plan.Host{})
	after := slices.DeleteFunc(strings.Split(everything(t), "\n"), skip)
	if diff := cmp.Diff(lines, after); diff != "" {
		t.Errorf("removal of everything (-before +after):\n%s", diff)
	}
}

// A VIP is not made as long as the firewall can't close it: a daemon on 0.0.0.0
// would answer on it.
func TestKernelNoVIPBeforeItIsClosed(t *testing.T) {
	d := openInNamespace(t)
	want := plan.KernelOf(cluster(t), thisNode)
	broken := plan.KernelOf(cluster(t), thisNode)
	// A rule that the kernel refuses.
	broken.Chains[plan.Chain{Family: plan.IPv6, Table: "filter", Name: "MEDWAY-INPUT"}] += "\n-j NONSENSE"
	report := d.apply(t.Context(), broken)
	addresses := shell(t, "ip -o addr show dev medway0")
	if strings.Contains(addresses, vip6.String()) || !strings.Contains(addresses, vip4.String()) {
		t.Errorf("expected the IPv4 address alone, whose rules are there:\n%s", addresses)
	}
	if err := report.Err(); err == nil || !strings.Contains(err.Error(), "create address 2001:db8:10::10/128 dev medway0: not before the rules of ip6tables close it") {
		t.Errorf("%v", err)
	}
	// Without sync a VIP can be served: rules of other tables don't count.
	mustApply(t, d, plan.Host{})
	broken = plan.KernelOf(cluster(t), thisNode)
	broken.Chains[plan.Chain{Family: plan.IPv4, Table: "mangle", Name: "MEDWAY-SYNC-OUT"}] += "\n-j NONSENSE"
	report = d.apply(t.Context(), broken)
	addresses = shell(t, "ip -o addr show dev medway0")
	if report.Err() == nil || !strings.Contains(addresses, vip6.String()) || !strings.Contains(addresses, vip4.String()) {
		t.Errorf("%v\n%s", report.Err(), addresses)
	}
	mustApply(t, d, want)
}

// While a VIP is taken down it is closed all the time, and its address stays
// until its services are gone.
func TestKernelVIPIsClosedWhileItLeaves(t *testing.T) {
	d := openInNamespace(t)
	mustApply(t, d, plan.KernelOf(cluster(t), thisNode))
	gone := withoutVIPs(t)
	// The address alone, closed, as where a service can't be deleted.
	leaving, err := d.vips(t.Context())
	if err != nil || len(leaving) != 2 {
		t.Fatalf("%v, %v", leaving, err)
	}
	closing := gone.Closing(gone.Unplanned(leaving))
	for _, vip := range leaving {
		rule := fmt.Sprintf("-d %s -j DROP", netip.PrefixFrom(vip, vip.BitLen()))
		c := plan.Chain{Family: plan.FamilyOf(vip), Table: "filter", Name: "MEDWAY-INPUT"}
		if !strings.HasSuffix(string(closing.Chains[c]), rule) {
			t.Errorf("%s: %s does not end with %s", c, closing.Chains[c], rule)
		}
	}
	addresses := d.guardedAddresses(t.Context(), gone)
	for _, c := range deletions(leaving) {
		if err := addresses.Apply(t.Context(), c); err == nil || !strings.Contains(err.Error(), "stays until service ") {
			t.Errorf("%s was deleted before its services: %v", c.Key, err)
		}
	}
	mustApply(t, d, gone)
	if out := shell(t, "ipvsadm -Sn; iptables-save; ip6tables-save; ip addr"); strings.Contains(out, vip4.String()) || strings.Contains(out, vip6.String()) {
		t.Errorf("something is left:\n%s", out)
	}
}

// A VIP that was deleted while no agent ran is found by its address.
func TestKernelFindsWhatWasDeletedMeanwhile(t *testing.T) {
	d := openInNamespace(t)
	mustApply(t, d, plan.KernelOf(cluster(t), thisNode))
	d.close()
	d, err := openDataplane()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.close)
	mustApply(t, d, withoutVIPs(t))
	if out := shell(t, "ipvsadm -Sn"); out != "" {
		t.Errorf("left:\n%s", out)
	}
}

// A host whose kernel has IPv6 off works as one of IPv4 alone, and a VIP of
// IPv6 there is an error that says why.
func TestKernelWithoutIP6Tables(t *testing.T) {
	openInNamespace(t)
	t.Setenv("PATH", onlyWith(t, "iptables", "iptables-save", "iptables-restore"))
	d, err := openDataplane()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.close)
	s := *cluster(t)
	s.VIPs = map[string]state.VIP{}
	v := cluster(t).VIPs["sip-1"]
	v.Addresses = []netip.Addr{vip4}
	s.VIPs["sip-1"] = v
	self := thisNode
	self.IPv6 = netip.Addr{}
	mustApply(t, d, plan.KernelOf(&s, self))
	err = d.apply(t.Context(), plan.KernelOf(cluster(t), self)).Err()
	if err == nil || !strings.Contains(err.Error(), "ip6tables is not usable") || !strings.Contains(err.Error(), "not before the rules of ip6tables close it") {
		t.Errorf("%v", err)
	}
}

// onlyWith is a directory for PATH with some programs and no others.
func onlyWith(t *testing.T, programs ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, p := range programs {
		file, err := exec.LookPath(p)
		if err != nil {
			t.Fatal(err)
		}
		nstest.Run(t, "ln", "-s", file, dir+"/"+p)
	}
	return dir
}

func deletions(vips []netip.Addr) (out []reconcile.Change[plan.Address, struct{}]) {
	for _, vip := range vips {
		out = append(out, reconcile.Change[plan.Address, struct{}]{Op: reconcile.Delete, Key: plan.VIPAddress(vip)})
	}
	return out
}

// In ARP mode a VIP stands on no device of medway's, and its services are known to
// be medway's all the same. A host that comes from BGP mode loses no service.
func TestKernelServesOnASegment(t *testing.T) {
	d := openInNamespace(t)
	mustApply(t, d, plan.KernelOf(cluster(t), thisNode))
	services := shell(t, "ipvsadm -Sn")
	self := thisNode
	self.Segment = "eth0"
	h := plan.KernelOf(cluster(t), self)
	for _, edit := range mustApply(t, d, h) {
		if edit.Table == "service" || edit.Table == "destination" {
			t.Errorf("%s %s", edit.Op, edit.Key)
		}
	}
	if got := shell(t, "ipvsadm -Sn"); got != services {
		t.Errorf("services:\n%s\nexpected:\n%s", got, services)
	}
	if out := shell(t, "ip addr"); strings.Contains(out, "medway0") || strings.Contains(out, vip4.String()) || strings.Contains(out, vip6.String()) {
		t.Errorf("something of a VIP is on a device:\n%s", out)
	}
	have, err := d.held(t.Context(), h)
	if err != nil || have[vip4] != whole || have[vip6] != whole {
		t.Errorf("held: %v, %v", have, err)
	}
	shell(t, "ipvsadm -d -t "+vip4.String()+":5060 -r 10.1.0.21:5060; ipvsadm -D -u "+vip4.String()+":5060")
	if have, err := d.held(t.Context(), h); err != nil || have[vip4] != absent || have[vip6] != whole {
		t.Errorf("without a service: held %v, %v", have, err)
	}
	mustApply(t, d, h)

	s := *cluster(t)
	s.VIPs = nil
	mustApply(t, d, plan.KernelOf(&s, self))
	if out := shell(t, "ipvsadm -Sn; iptables-save; ip6tables-save"); strings.Contains(out, vip4.String()) || strings.Contains(out, vip6.String()) {
		t.Errorf("something is left:\n%s", out)
	}
}
