package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/medway-lb/medway/pkg/reconcile"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"
)

// beside is another agent on the same etcd, on fakes of its own.
func (n *node) beside(name, site string) *node {
	n.t.Helper()
	other := &node{t: n.t, fakes: newFakes(), etcd: n.etcd, client: n.client, config: testConfig(n.t, name, site, n.etcd.client)}
	other.config.Addresses.IPv4 = netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", 20+len(name)+int(name[2])+int(name[len(name)-1])))
	return other
}

// living puts the keys of a node of dc2 that has no agent: it lives, and says
// that it knows so many connections to v.
func (n *node) living(connections int) {
	n.t.Helper()
	n.put("nodes/dc2-lvs-a", `{"machine_id":"b","site":"dc2","group":"dc2-edge1","ipv4":"192.0.2.99","sync_address":"169.254.1.2","version":"1","schema":3}`,
		"epoch", "1-x", "joined/dc2-lvs-a", "1-x")
	lease, err := n.client.Grant(n.t.Context(), time.Hour)
	if err != nil {
		n.t.Fatal(err)
	}
	puts := []store.Put{
		{Key: "/medway/v1/alive/dc2-lvs-a", Value: []byte(`{"since":"2024-11-22T17:00:00Z","bgp_sessions":1}`), Lease: lease.ID()},
		{Key: "/medway/status/dc2-lvs-a", Value: fmt.Appendf(nil, `{"since":"2024-11-22T17:00:00Z","vips":[{"vip":"v","active_connections":"%d"}]}`, connections)},
	}
	if _, _, err := n.client.Commit(n.t.Context(), nil, puts, nil); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) count(prefix string) int64 {
	n.t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{n.etcd.client}})
	if err != nil {
		n.t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	r, err := c.Get(n.t.Context(), prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		n.t.Fatal(err)
	}
	return r.Count
}

// TestAColdNodeStandsBack: it lost its connection table, and another node knows
// ten connections.
func TestAColdNodeStandsBack(t *testing.T) {
	n := newNode(t)
	n.living(10)
	n.kernel.set(func(k *fakeKernel) { k.lost = true })
	n.run()
	n.announces("203.0.113.10/32 900")
	eventually(t, "says why", func() bool { return strings.Contains(n.vip().Reason, "cold") })
	eventually(t, "says so to the others", func() bool {
		return strings.Contains(string(n.get("alive/dc1-lvs-a").Value), `"cold":true`)
	})
	n.stays("owns nothing", func() bool { return n.get("owners/dc1/v").ModRevision == 0 })
	// The first process has started the sync daemons, and knows no more for that.
	n.kernel.set(func(k *fakeKernel) { k.lost = false })
	n.restart()
	n.announces("203.0.113.10/32 900")
	n.stays("is cold after a restart, too", func() bool { return n.get("owners/dc1/v").ModRevision == 0 })
	n.kernel.set(func(k *fakeKernel) { k.conns[netip.MustParseAddr("203.0.113.10")] = connections{active: 9} })
	n.announces("203.0.113.10/32 100")
	eventually(t, "says that it is warm", func() bool {
		return !strings.Contains(string(n.get("alive/dc1-lvs-a").Value), "cold")
	})
	n.restart()
	n.announces("203.0.113.10/32 100") // and stays so
}

// TestATargetIsTakenOnceConnectionsAreBound: somebody had deleted a service, and
// another node knows ten connections.
func TestATargetIsTakenOnceConnectionsAreBound(t *testing.T) {
	n := newNode(t)
	n.living(10)
	n.put("target_state/v", "dc2", "claims/dc2-lvs-a/v", claim100)
	n.run()
	n.announces("203.0.113.10/32 500")
	n.kernel.set(func(k *fakeKernel) {
		k.done = []reconcile.Edit{{Op: reconcile.Create, Key: "service tcp 203.0.113.10:5060", Text: reconcile.Text{Table: "service"}}}
	})
	eventually(t, "mends the service", func() bool { return n.agent.drift.status() != nil })
	n.put("target_state/v", "dc1")
	n.announces("203.0.113.10/32 101")
	eventually(t, "waits for another refresh", func() bool { return strings.Contains(n.vip().Reason, "told of again") })
	eventually(t, "waits for parity", func() bool { return strings.Contains(n.vip().Reason, "knows 0 of dc2-lvs-a's 10 connections to v") })
	n.kernel.set(func(k *fakeKernel) { k.conns[netip.MustParseAddr("203.0.113.10")] = connections{active: 9} })
	n.announces("203.0.113.10/32 50")
}

// TestAVIPThatTheKernelDoesNotHoldIsToldOf: others would hand over to this node.
func TestAVIPThatTheKernelDoesNotHoldIsToldOf(t *testing.T) {
	n := newNode(t)
	n.kernel.set(func(k *fakeKernel) { k.lacking[netip.MustParseAddr("203.0.113.10")] = absent })
	n.run()
	eventually(t, "says that it can't serve it", func() bool {
		return strings.Contains(string(n.get("alive/dc1-lvs-a").Value), `"unable":["v"]`)
	})
	n.kernel.set(func(k *fakeKernel) { clear(k.lacking) })
	eventually(t, "says that it can", func() bool {
		return !strings.Contains(string(n.get("alive/dc1-lvs-a").Value), "unable")
	})
}

func TestANodeAloneIsNeverCold(t *testing.T) {
	n := newNode(t)
	n.kernel.set(func(k *fakeKernel) { k.lost = true })
	n.run()
	n.announces("203.0.113.10/32 100")
}

// TestDrainOfANode: the other node of the site takes over before the drained one
// falls silent, and gives nothing back when it returns.
func TestDrainOfANode(t *testing.T) {
	a := newActive(t)
	b := a.beside("dc1-lvs-b", "dc1")
	b.run()
	b.announces("203.0.113.10/32 111")
	eventually(t, "b could own it", func() bool {
		return strings.Contains(string(a.get("alive/dc1-lvs-b").Value), `"bgp_sessions":1`)
	})
	a.put("node_drains/dc1-lvs-a", `{"since":"2024-11-22T17:00:00Z","reason":"new kernel"}`)
	a.announces("")
	if got := string(a.get("claims/dc1-lvs-b/v").Value); got != claim100 && got != `{"med":"50"}` {
		t.Errorf("silent before the other one had claimed: %s", got)
	}
	b.announces("203.0.113.10/32 100")
	eventually(t, "says why", func() bool { return strings.Contains(a.vip().Reason, "drained (new kernel)") })
	a.delete("node_drains/dc1-lvs-a")
	a.announces("203.0.113.10/32 110")
}

// siege gives dc2 and dc3 the traffic of many VIPs whose target, dc1, is dead.
func siege(t *testing.T, vips int) (dc2, dc3 *node) {
	dc2 = newNode(t)
	dc2.config.Node, dc2.config.Site, dc2.config.Group = "dc2-lvs-a", "dc2", "dc2-edge1"
	dc3 = dc2.beside("dc3-lvs-a", "dc3")
	for i := range vips {
		vip := fmt.Sprintf("v%d", i)
		dc2.put("vips/"+vip, fmt.Sprintf(`{"addresses":["203.0.113.%d"],"services":[{"protocol":"tcp","port":5060,"pool":"sbc"}],`+
			`"groups":{"dc1":"dc1-edge1","dc2":"dc2-edge1","dc3":"dc3-edge1"},`+
			`"automatic_switchover":{"enabled":true,"share":"20%%","packets_per_second":50,"for":"1s","settle":"1s"}}`, 100+i), "target_state/"+vip, "dc1")
	}
	dc2.delete("vips/v", "target_state/v")
	dc2.run()
	dc3.run()
	return dc2, dc3
}

// TestTwoAgentsRaceToSwitch: each VIP is switched once, whoever is first.
func TestTwoAgentsRaceToSwitch(t *testing.T) {
	const vips = 100
	dc2, dc3 := siege(t, vips)
	for _, n := range []*node{dc2, dc3} {
		n.kernel.set(func(k *fakeKernel) { k.pps = 100 })
	}
	eventually(t, "all are switched", func() bool { return dc2.count("/medway/v1/locks/") == vips })
	dc2.stays("no second switch", func() bool { return dc2.count(state.HistoryPrefix) == vips })
	won := map[string]int{}
	for i := range vips {
		vip := fmt.Sprintf("v%d", i)
		target, lock := string(dc2.get("target_state/"+vip).Value), string(dc2.get("locks/"+vip).Value)
		won[target]++
		if !strings.Contains(lock, fmt.Sprintf(`"from":"dc1","to":"%s"`, target)) {
			t.Errorf("%s: target %s, lock %s", vip, target, lock)
		}
	}
	t.Logf("%v", won)
	// Traffic goes on coming to both sites; the lock holds until a person removes it.
	loser := map[string]string{"dc2": "dc3", "dc3": "dc2"}[string(dc2.get("target_state/v0").Value)]
	dc2.delete("locks/v0")
	eventually(t, "the other site's turn", func() bool { return string(dc2.get("target_state/v0").Value) == loser })
}

// TestAScanIsNoTraffic: each of its packets opens a connection.
func TestAScanIsNoTraffic(t *testing.T) {
	dc2, dc3 := siege(t, 1)
	dc2.kernel.set(func(k *fakeKernel) { k.scanned = 100000 })
	var decided []time.Time // on what is known of both nodes; for is 1s
	times := func(n int) func() bool {
		return func() bool {
			o := &dc2.agent.observed
			o.mu.Lock()
			defer o.mu.Unlock()
			if s := o.samples["v0"]; len(o.rates["v0"]) == 2 && !slices.Contains(decided, s[len(s)-1].at) {
				decided = append(decided, s[len(s)-1].at)
			}
			return len(decided) >= n
		}
	}
	eventually(t, "dc2 knows both rates", times(1))
	eventually(t, "dc2 has decided on them for longer than it takes", times(4))
	if got := dc2.count("/medway/v1/locks/"); got != 0 {
		t.Fatal("switched")
	}
	dc3.kernel.set(func(k *fakeKernel) { k.pps = 51 })
	eventually(t, "what moved is seen beside it", func() bool { return string(dc2.get("target_state/v0").Value) == "dc3" })
}
