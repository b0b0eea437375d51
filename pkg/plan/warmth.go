package plan

import (
	"fmt"
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
	for _, p := range warm {
		counts := t.Peers[p]
		if counts == nil {
			return true, fmt.Sprintf("its connection table was lost, and %s has not told how many connections it knows", p)
		}
		for _, vip := range VIPs(s, self) {
			n := s.Nodes[p]
			if s.VIPs[vip].Groups[n.Site] != n.Group {
				continue
			}
			if own, has := t.Own[vip], counts[vip]; own*100 < has*uint64(s.Settings.Parity) {
				return true, fmt.Sprintf("its connection table was lost, and knows %d of %s's %d connections to %s", own, p, has, vip)
			}
		}
	}
	return false, ""
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
