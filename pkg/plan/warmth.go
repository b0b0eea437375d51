package plan

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/medway-lb/medway/pkg/state"
)

// Table is what is known of a node's connection table (R9). It is lost with a
// boot, and is not kept up while the sync daemons don't run: calls that come to
// such a node are reset.
type Table struct {
	// LostAt is when the node's process found it lost; zero: it did not.
	LostAt time.Time
	// WarmAt is when a warm node was seen last; zero: never since.
	WarmAt time.Time
	// Own and Peers count established connections by VIP: this node's, and those
	// of nodes that are not cold themselves. A peer that has not told is nil.
	Own   map[string]uint64
	Peers map[string]map[string]uint64
	// Remade is when services or destinations of an address that stood already came
	// to the kernel, by hand and back or because there are more now. A connection
	// that a peer told of while they were missing is bound to no destination: the
	// kernel lists it, and drops its packets, until it is told of it again
	// (ip_vs_proc_conn in net/netfilter/ipvs/ip_vs_sync.c).
	Remade map[netip.Addr]time.Time
}

// Cold says whether a node has to stand back because its connection table has
// not caught up, and why. It has caught up with parity, after the longest
// silence of a phone, or where no warm node is left, which only a snapshot that is
// fresh can tell: at once if there was none, else when the last one has been gone for
// longer than a lapse of its lease may take.
func Cold(s *state.Snapshot, self Self, fresh bool, t Table, lapse time.Duration, now time.Time) (cold bool, reason string) {
	if t.LostAt.IsZero() || !now.Before(t.LostAt.Add(s.Settings.LongestKeepalive)) {
		return false, ""
	}
	if !fresh {
		return true, "its connection table was lost, and etcd can't be reached to learn what others have"
	}
	warm := WarmPeers(s, self)
	if len(warm) == 0 && !t.WarmAt.IsZero() && now.Before(t.WarmAt.Add(lapse)) {
		return true, "its connection table was lost, and the nodes that know the connections have just gone"
	}
	if lack := t.lack(s, warm, VIPs(s, self)...); lack != "" {
		return true, "its connection table was lost, and " + lack
	}
	return false, ""
}

// Unbound is why a node may have connections of a VIP that are bound to no
// destination, "" where it has none. They are bound anew with the next packets of
// their phones: what has a packet in each refresh after two of them, the rest as
// with a node that is cold.
func Unbound(s *state.Snapshot, self Self, t Table, vip string, now time.Time) string {
	var remade time.Time
	for _, a := range s.VIPs[vip].Addresses {
		if at := t.Remade[a]; at.After(remade) {
			remade = at
		}
	}
	switch {
	case remade.IsZero() || !now.Before(remade.Add(s.Settings.LongestKeepalive)):
		return ""
	case now.Before(remade.Add(2 * syncRefresh)):
		return "services or destinations came to the kernel just now, and connections are told of again"
	}
	if lack := t.lack(s, WarmPeers(s, self), vip); lack != "" {
		return "services or destinations came to the kernel, and since then it " + lack
	}
	return ""
}

// lack is what the table lacks of the connections that peers know, "" for nothing.
func (t Table) lack(s *state.Snapshot, peers []string, vips ...string) string {
	for _, p := range peers {
		counts := t.Peers[p]
		for _, vip := range vips {
			n := s.Nodes[p]
			if s.VIPs[vip].Groups[n.Site] != n.Group {
				continue
			}
			if counts == nil {
				return p + " has not told how many connections it knows"
			}
			if own, has := t.Own[vip], counts[vip]; own*100 < has*uint64(s.Settings.Parity) {
				return fmt.Sprintf("knows %d of %s's %d connections to %s", own, p, has, vip)
			}
		}
	}
	return ""
}

// WarmPeers are the other nodes that share a VIP with this one, live, and know
// the connections.
func WarmPeers(s *state.Snapshot, self Self) []string {
	var names []string
	peers, _ := peersOf(s, self)
	for _, p := range peers {
		if a, alive := s.Alive[p.name]; alive && !a.Cold {
			names = append(names, p.name)
		}
	}
	return names
}
