package plan

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/medway-lb/medway/pkg/state"
)

// newTableOwner is dc1-a among nodes that sync with it.
func newTableOwner(t *testing.T) (*member, Self) {
	m := newMember(t, "dc1-a")
	s := m.in.Snapshot
	for i, n := range []string{"dc1-a", "dc1-b", "dc2-a", "dc2-b"} {
		node := s.Nodes[n]
		node.IPv4 = netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)})
		node.SyncAddress = SyncAddress(n)
		s.Nodes[n] = node
	}
	self := m.in.Self
	self.IPv4 = s.Nodes["dc1-a"].IPv4
	return m, self
}

func TestR9ANodeWhoseTableWasLostIsColdUntilItHasCaughtUp(t *testing.T) {
	start := time.Unix(1000, 0)
	m, self := newTableOwner(t)
	s := m.in.Snapshot
	lost := Table{LostAt: start, Own: map[string]uint64{"v": 90}, Peers: map[string]map[string]uint64{
		"dc1-b": {"v": 100}, "dc2-a": {"v": 99}, "dc2-b": {"v": 0, "another": 1000},
	}}
	expect := func(what string, table Table, fresh bool, after time.Duration, reason string) {
		t.Helper()
		cold, why := Cold(s, self, fresh, table, 14*time.Second, start.Add(after))
		if cold != (reason != "") || !strings.Contains(why, reason) {
			t.Errorf("%s: cold %t, %q; expected %q", what, cold, why, reason)
		}
	}
	expect("never lost", Table{}, false, 0, "")
	expect("parity", lost, true, 0, "")
	expect("etcd gone", lost, false, 0, "etcd can't be reached")
	expect("the longest silence is over", Table{LostAt: start}, false, 300*time.Second, "")
	lost.Own["v"] = 89
	expect("less", lost, true, 299*time.Second, "knows 89 of dc1-b's 100 connections to v")
	delete(lost.Peers, "dc1-b")
	lost.Own["v"] = 100
	expect("a peer has not told", lost, true, 0, "dc1-b has not told")
	m.alive("dc1-b", func(a *state.Alive) { a.Cold = true })
	expect("nor does it know them", lost, true, 0, "")
	lost.Own = nil
	for n := range s.Alive {
		m.alive(n, func(a *state.Alive) { a.Cold = true })
	}
	expect("no warm node is left", lost, true, 0, "")
	lost.WarmAt = start.Add(100 * time.Second)
	expect("the last one has just gone", lost, true, 113*time.Second, "have just gone")
	expect("it does not come back", lost, true, 114*time.Second, "")
}

// TestConnectionsAreUnboundUntilTheyAreToldOfAgain: services of the VIP were away.
func TestConnectionsAreUnboundUntilTheyAreToldOfAgain(t *testing.T) {
	start := time.Unix(1000, 0)
	m, self := newTableOwner(t)
	s := m.in.Snapshot
	address := netip.MustParseAddr("203.0.113.10")
	v := s.VIPs["v"]
	v.Addresses = []netip.Addr{netip.MustParseAddr("2001:db8:10::10"), address}
	s.VIPs["v"] = v
	table := Table{
		Remade: map[netip.Addr]time.Time{address: start}, Own: map[string]uint64{"v": 90},
		Peers: map[string]map[string]uint64{"dc1-b": {"v": 100}, "dc2-a": {"v": 99}, "dc2-b": {"v": 0}},
	}
	expect := func(what string, after time.Duration, reason string) {
		t.Helper()
		why := Unbound(s, self, table, "v", start.Add(after))
		if (why != "") != (reason != "") || !strings.Contains(why, reason) {
			t.Errorf("%s: %q, expected %q", what, why, reason)
		}
	}
	expect("two refreshes are not over", 20*time.Second-1, "told of again")
	expect("parity", 20*time.Second, "")
	table.Own["v"] = 89
	expect("less", 299*time.Second, "knows 89 of dc1-b's 100 connections to v")
	expect("the longest silence is over", 300*time.Second, "")
	delete(table.Peers, "dc1-b")
	expect("a peer has not told", 20*time.Second, "dc1-b has not told")
	m.alive("dc1-b", func(a *state.Alive) { a.Cold = true })
	table.Own["v"] = 99
	expect("nor does it know them", 20*time.Second, "")
	table.Remade = map[netip.Addr]time.Time{netip.MustParseAddr("203.0.113.11"): start}
	expect("another VIP's", 0, "")
}
