package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/medway-lb/medway/agent/internal/link/nstest"
	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"
)

// stored is a host with every kind of object in its plan, by key.
var stored = map[string]string{
	"settings": `{"timeouts":{"tcp":"7200s"}}`,
	"vips/sip-1": `{"addresses":["203.0.113.10","2001:db8:10::10"],"groups":{"dc1":"edge1","dc2":"edge2"},"services":[
		{"protocol":"tcp","port":5060,"pool":"sbc"},{"protocol":"udp","port":5060,"pool":"sbc","persistence":"300s","persistence_engine":"sip","one_packet":true}]}`,
	"vips/sip-2":             `{"addresses":["203.0.113.11"],"groups":{"dc1":"edge1","dc2":"edge2"},"services":[{"protocol":"tcp","port":5061,"pool":"sbc"}]}`,
	"pools/sbc":              `{"scheduler":"sed","weights":{"local":50000,"remote":2},"thresholds":{"upper":25000,"lower":20000}}`,
	"backends/sbc/dc1-sbc1":  `{"site":"dc1","address":"10.1.0.21","address6":"2001:db8:1::21"}`,
	"backends/sbc/dc2-sbc1":  `{"site":"dc2","address":"10.2.0.21"}`,
	"nodes/dc2-lvs-a":        `{"machine_id":"m2","site":"dc2","group":"edge2","ipv4":"10.2.0.11","sync_address":"169.254.7.2","version":"test"}`,
	"nodes/dc2-lvs-b":        `{"machine_id":"m3","site":"dc2","group":"edge2","ipv4":"10.2.0.12","sync_address":"169.254.7.3","version":"test"}`,
	"nodes/dc2-lvs-c":        `{"machine_id":"m4","site":"dc2","group":"edge2","ipv6":"2001:db8:2::13","sync_address":"169.254.7.4","version":"test","schema":2}`,
	"target_state/sip-1":     `dc1`,
	"backends/sbc/malformed": `{"site":"dc1","address":"10.1.0.21"`,
}

func planConfig(t *testing.T) Config {
	return Config{
		Node: "dc1-lvs-a", Site: "dc1", Group: "edge1", Uplink: "eth0", StateDir: t.TempDir(),
		Addresses: Addresses{IPv4: netip.MustParseAddr("10.1.0.11"), IPv6: netip.MustParseAddr("2001:db8:1::11")},
		Etcd:      Etcd{Endpoints: []string{"http://127.0.0.1:1"}, Insecure: true},
	}
}

// save puts intent on the disk as a running agent does, but for the keys in without.
func save(t *testing.T, c Config, without ...string) {
	t.Helper()
	s := store.Snapshot{Node: c.Node, Revision: 7}
	for key, value := range stored {
		if !slices.ContainsFunc(without, func(w string) bool { return strings.HasPrefix(key, w) }) {
			s.Entries = append(s.Entries, store.Entry{Key: state.Prefix + key, Value: []byte(value), ModRevision: 5})
		}
	}
	if err := store.SaveSnapshot(filepath.Join(c.StateDir, "snapshot"), s); err != nil {
		t.Fatal(err)
	}
}

// namespace is a host with its uplink and nothing of medway's.
func namespace(t *testing.T) {
	t.Helper()
	nstest.Enter(t, nstest.Dummy, nstest.IPIP, nstest.IPVS, nstest.TEE)
	for _, line := range []string{
		"ip link add eth0 type dummy", "ip addr add 10.1.0.11/24 dev eth0", "ip addr add 2001:db8:1::11/64 dev eth0 nodad", "ip link set eth0 up",
		// What isn't medway's.
		"ip link add stranger type dummy", "ip addr add 192.0.2.1/24 dev eth0", "iptables -A INPUT -s 192.0.2.66 -j DROP",
		"ipvsadm -A -t 192.0.2.1:80 -s rr", "ipvsadm -a -t 192.0.2.1:80 -r 192.0.2.2 -m",
	} {
		nstest.Run(t, "sh", "-ec", line)
	}
}

// paste runs what a preview's text says in a shell, as an operator would: all
// lines that have a mark, without it. Routes have no command.
func paste(t *testing.T, p *Preview) {
	t.Helper()
	var text bytes.Buffer
	if err := p.Text(&text, false); err != nil {
		t.Fatal(err)
	}
	var script []string
	for line := range strings.Lines(text.String()) {
		if len(line) > 2 && strings.IndexAny(line, "+~-") == 0 && !strings.HasPrefix(line[2:], "route ") {
			script = append(script, line[2:])
		}
	}
	if out, err := exec.Command("sh", "-exc", strings.Join(script, "")).CombinedOutput(); err != nil {
		t.Fatalf("the plan\n%s\nin a shell: %v\n%s", &text, err, out)
	}
}

// kernelNow is what the operator's tools say of the host.
func kernelNow(t *testing.T) string {
	t.Helper()
	return nstest.Run(t, "sh", "-ec", `ipvsadm -Sn | sort; ipvsadm -ln --daemon; ipvsadm -ln --timeout; for f in iptables ip6tables; do $f-save | grep -v '^#' | sed 's/ \[.*//'; done
		ip -d -o link | sed 's/^[0-9]*: //' | sort; ip -o addr | cut -d' ' -f2- | sort; ip route show table all proto 109; ip neigh show nud permanent; sysctl net.ipv4.vs`)
}

// asPlanned pastes what is left to change, and insists that nothing is then.
func asPlanned(t *testing.T, look func() *Preview) {
	t.Helper()
	paste(t, look())
	if p := look(); p.Changes() {
		var text bytes.Buffer
		_ = p.Text(&text, false)
		t.Fatalf("after everything was pasted:\n%s", &text)
	}
}

// What plan prints does what it says: pasted into a shell, it leaves nothing to
// change; and so does what the agent's adapters then find. Both ways.
func TestKernelPlanPasted(t *testing.T) {
	namespace(t)
	c := planConfig(t)
	look := func() *Preview {
		t.Helper()
		cache, p, err := c.stored(t.Context(), FromDisk)
		if err != nil {
			t.Fatal(err)
		}
		// An agent that announces what it should: there is no command for that.
		announcing := func(context.Context) ([]plan.Announcement, []string, error) {
			return announcements(cache.Snapshot(), c.self(), nil, nil), nil, nil
		}
		if err := p.look(t.Context(), cache.Snapshot(), c.self(), announcing); err != nil {
			t.Fatal(err)
		}
		return p
	}
	empty := kernelNow(t)
	save(t, c)
	look()
	if after := kernelNow(t); after != empty {
		t.Fatalf("looking changed the host from\n%s\nto\n%s", empty, after)
	}
	asPlanned(t, look)
	full := kernelNow(t)
	for _, want := range []string{
		"-a -t 203.0.113.10:5060 -r 10.1.0.21:5060 -i -w 50000", "-A -u 203.0.113.10:5060 -s sed -p 300 --pe sip", "-A -u [2001:db8:10::10]:5060", "-a -t [2001:db8:10::10]:5060 -r [2001:db8:1::21]:5060 -i -w 50000",
		"-A MEDWAY-INPUT -d 2001:db8:10::10/128 -j DROP", "ip6tnl ipip6 remote 2001:db8:2::13",
		"master sync daemon (mcast=sync01", "Timeout (tcp tcpfin udp): 7200", "mw-dc2-lvs-a", "-A MEDWAY-INPUT -d 203.0.113.10/32 -j DROP",
	} {
		if !strings.Contains(full, want) {
			t.Errorf("after pasting, the host lacks %q:\n%s", want, full)
		}
	}

	trap := filepath.Join(t.TempDir(), "pasted")
	// Each is several changes by hand: a look at an emulated machine takes seconds.
	for name, damage := range map[string]string{
		"gone": `
			ipvsadm -d -t 203.0.113.10:5060 -r 10.2.0.21:5060; ipvsadm -D -t 203.0.113.11:5061; ipvsadm --stop-daemon master
			ip addr del 203.0.113.10/32 dev medway0; ip link del mw-dc2-lvs-a; ip link del mw-dc2-lvs-c; ip addr del 2001:db8:10::10/128 dev medway0; ip neigh del 169.254.0.1 dev sync01p
			ip route del 169.254.7.3/32 dev mw-dc2-lvs-b proto 109; iptables -D INPUT -j MEDWAY-INPUT; iptables -t mangle -D MEDWAY-SYNC-OUT 1
			iptables -t raw -F MEDWAY-RAW; iptables -t raw -D PREROUTING -j MEDWAY-RAW; iptables -t raw -X MEDWAY-RAW`,
		"all devices gone": `ip link del medway0; ip link del sync01; ip link del mw-dc2-lvs-a
			ipvsadm -D -t 203.0.113.10:5060; ipvsadm -D -u 203.0.113.10:5060; iptables -F MEDWAY-INPUT`,
		"all devices down":    `ip link set medway0 down; ip link set sync01 down; ip link set mw-dc2-lvs-a down`,
		"half a pair is down": `ip link set sync01p down; ip link set mw-dc2-lvs-a down mtu 1300`,
		"other values": `
			ipvsadm -e -t 203.0.113.10:5060 -r 10.2.0.21:5060 -i -w 7; ipvsadm -E -u 203.0.113.10:5060 -s rr
			ipvsadm -E -t 203.0.113.10:5060 -s sed -p 60; ipvsadm --set 60 30 20
			ipvsadm --stop-daemon backup; ipvsadm --start-daemon backup --mcast-interface sync01 --syncid 3
			sysctl -w net.ipv4.vs.sync_threshold='3 50' net.ipv4.conf.all.rp_filter=2; ip link set sync01p mtu 1400
			ip link set sync01 address 02:00:00:00:00:99; ip link set mw-dc2-lvs-b mtu 1300
			ip link set mw-dc2-lvs-a type ipip local 10.1.0.11 remote 10.2.0.99 ttl 64
			ip neigh replace 169.254.0.1 lladdr 02:00:00:00:00:07 dev sync01p nud permanent`,
		"other modes": `
			ipvsadm -e -t 203.0.113.10:5060 -r 10.2.0.21:5060 -g -w 2
			ip link set mw-dc2-lvs-a type ipip local 10.1.0.11 remote 10.2.0.11 ttl inherit nopmtudisc
			ip link del mw-dc2-lvs-b; ip link add mw-dc2-lvs-b type ipip external; ip link del sync01; ip link add sync01 type veth peer name other`,
		"IPv6": `
			ip6tables -D MEDWAY-INPUT 3; ip6tables -A MEDWAY-INPUT -s 2001:db8::7 -j ACCEPT; ip6tables -D INPUT -j MEDWAY-INPUT
			ipvsadm -d -t [2001:db8:10::10]:5060 -r [2001:db8:1::21]:5060; ipvsadm -E -u [2001:db8:10::10]:5060 -s sed -p 300
			ip link set mw-dc2-lvs-c type ip6tnl local 2001:db8:1::11 remote 2001:db8:2::99 hoplimit 64 encaplimit 4 mode any`,
		"more than is planned": `
			ipvsadm -a -t 203.0.113.10:5060 -r 10.9.0.9:5060 -i; ipvsadm -A -t 203.0.113.10:9999 -s wlc
			ip addr add 203.0.113.99/24 dev medway0; ip link add mw-old type ipip local 10.1.0.11 remote 10.2.0.77 ttl 64
			ip route add 169.254.9.9/32 dev mw-dc2-lvs-a proto 109 scope link; iptables -A INPUT -j MEDWAY-INPUT
			iptables -t raw -N MEDWAY-OLD; iptables -t raw -A MEDWAY-OLD -s 192.0.2.1 -j RETURN; iptables -t raw -A PREROUTING -j MEDWAY-OLD`,
		"rules in another order": `
			iptables -D MEDWAY-INPUT 2; iptables -I MEDWAY-INPUT 3 -s 192.0.2.9 -j ACCEPT; iptables -I INPUT 1 -s 192.0.2.7 -j ACCEPT
			iptables -A MEDWAY-INPUT -m comment --comment '$(touch ` + trap + `); "x"' -j ACCEPT
			iptables -I MEDWAY-INPUT 2 -p 4 -j DROP; iptables -I MEDWAY-INPUT 1 -p 4 -j DROP`,
	} {
		t.Log(name) // no subtest: it would be another goroutine, in another namespace
		nstest.Run(t, "sh", "-ec", damage)
		if p := look(); !p.Changes() {
			t.Errorf("nothing is seen of %s", damage)
		}
		asPlanned(t, look)
	}

	t.Log("a VIP, a node and a backend go")
	save(t, c, "vips/sip-2", "nodes/dc2-lvs-b", "backends/sbc/dc2")
	asPlanned(t, look)
	if now := kernelNow(t); strings.Contains(now, "203.0.113.11") || strings.Contains(now, "10.2.0.21") || strings.Contains(now, "mw-dc2-lvs-b") {
		t.Errorf("left:\n%s", now)
	}
	save(t, c)
	asPlanned(t, look)

	t.Log("all goes")
	d, _, err := readDataplane()
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	nothing := func() *Preview {
		edits, err := d.preview(t.Context(), plan.Host{})
		if err != nil {
			t.Fatal(err)
		}
		return &Preview{Source: FromEtcd, edits: edits}
	}
	asPlanned(t, nothing)
	now := kernelNow(t)
	for _, ours := range []string{"MEDWAY", "medway0", "sync01", "mw-", "203.0.113.", "2001:db8:10::", "sync daemon", "proto 109"} {
		if strings.Contains(now, ours) {
			t.Errorf("%s is left:\n%s", ours, now)
		}
	}
	for _, theirs := range []string{"-a -t 192.0.2.1:80 -r 192.0.2.2:80 -m", "stranger:", "192.0.2.1/24", "-A INPUT -s 192.0.2.66/32 -j DROP"} {
		if !strings.Contains(now, theirs) {
			t.Errorf("%s is gone:\n%s", theirs, now)
		}
	}
	if _, err := os.Stat(trap); err == nil {
		t.Error("a rule's comment was run as a command")
	}
}

// The document's form is for programs: fields come, and none goes.
func TestKernelPlanAsJSON(t *testing.T) {
	namespace(t)
	c := planConfig(t)
	save(t, c)
	p, err := Plan(t.Context(), c, "", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := p.JSON(&out); err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Source, Reason, Saved string
		Revision              int64
		Faults                []struct {
			Key, Reason string
			Notice      bool
		}
		Changes []struct {
			Table, Op, Key, Old, New string
			Commands                 []string
		}
	}
	decoder := json.NewDecoder(&out)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&doc); err != nil {
		t.Fatal(err)
	}
	if doc.Source != FromDisk || doc.Revision != 7 || doc.Saved == "" || !strings.Contains(doc.Reason, "etcd can't be reached") {
		t.Errorf("source %+v", doc)
	}
	if len(doc.Changes) == 0 || doc.Changes[0].Table != "link" || doc.Changes[0].Op != "create" || len(doc.Changes[0].Commands) == 0 {
		t.Errorf("changes %+v", doc.Changes)
	}
}
