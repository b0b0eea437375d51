package drill

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/medway-lb/medway/integration/lab"
)

// story makes a record of lines, each a second after the one before: "etcd KEY VALUE" (two
// or more pairs are one revision; the value - deletes), or "ROUTER SESSION MED" (- withdraws).
func story(t *testing.T, lines ...string) Record {
	t.Helper()
	r := Record{Topology: lab.Default().WithLVS(2)}
	now := time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC)
	for i, line := range lines {
		now = now.Add(time.Second)
		f := strings.Fields(line)
		if f[0] == "etcd" {
			c := lab.Change{At: now, Revision: int64(i), Put: map[string]string{}, Unleased: map[string]bool{}}
			for k := 1; k+1 < len(f); k += 2 {
				key := "/medway/v1/" + f[k]
				switch {
				case f[k+1] == "-":
					c.Deleted = append(c.Deleted, key)
				case strings.HasPrefix(f[k], "owners"):
					c.Put[key] = fmt.Sprintf(`{"node":%q}`, f[k+1])
				case strings.HasPrefix(f[k], "claims"):
					c.Put[key] = fmt.Sprintf(`{"med":%q}`, f[k+1])
				case strings.HasPrefix(f[k], "alive"):
					c.Put[key] = fmt.Sprintf(`{"since":%q}`, f[k+1])
				default:
					c.Put[key] = f[k+1]
				}
			}
			r.Changes = append(r.Changes, c)
			continue
		}
		e := lab.RouteEvent{Time: now, Router: f[0], Session: f[1], Prefix: netip.PrefixFrom(lab.VIP, 32), Kind: lab.RouteReceived, MED: lab.NoMED}
		switch f[2] {
		case "-":
			e.Kind = lab.RouteWithdrawn
		case "lost":
			e.Kind = lab.RouteLost
		default:
			if _, err := fmt.Sscan(f[2], &e.MED); err != nil {
				t.Fatal(err)
			}
		}
		r.Routes = append(r.Routes, e)
	}
	return r
}

// begun is a lab at rest: dc1-lvs-a is active.
var begun = []string{
	"etcd target_state/sip-1 dc1",
	"etcd alive/dc1-lvs-a t1 alive/dc1-lvs-b t1 owners/dc1/sip-1 dc1-lvs-a owners/dc2/sip-1 dc2-lvs-a",
	"dc1-edge dc1-lvs-a 101", "dc1-edge dc1-lvs-b 111", "dc1-edge dc2-edge 521", "transit dc2-edge 521",
	"etcd claims/dc1-lvs-a/sip-1 100",
	"dc1-edge dc1-lvs-a 100", "dc2-edge dc1-edge 100", "transit dc1-edge 100",
}

func after(lines ...string) []string { return append(append([]string{}, begun...), lines...) }

func TestPromises(t *testing.T) {
	for name, c := range map[string]struct {
		lines  []string
		broken []string
		seen   int
	}{
		"at rest": {lines: begun, seen: 1},
		"a standby as low as the owner": {
			lines: after("dc1-edge dc1-lvs-b 100"), broken: []string{"S1: at 03:00:11.000 dc1-edge held MED 100 from dc1-lvs-b for 203.0.113.10/32, and 100 from dc1-lvs-a"}, seen: 1,
		},
		"the other site lower, at the provider only": {
			lines: after("transit dc2-edge 50"), broken: []string{"S1: at 03:00:11.000 transit held MED 50 from dc2-edge"}, seen: 1,
		},
		"a switch in order": {
			lines: after("etcd target_state/sip-1 dc2", "etcd claims/dc2-lvs-a/sip-1 50", "dc2-edge dc2-lvs-a 50", "transit dc2-edge 50", "transit dc1-edge 500"),
			seen:  2,
		},
		"a switch that begins too high": {
			lines:  after("etcd target_state/sip-1 dc2", "etcd claims/dc2-lvs-a/sip-1 100", "dc2-edge dc2-lvs-a 100", "transit dc2-edge 100"),
			broken: []string{"S1: at 03:00:13.000 dc2-edge held MED 100 from dc1-edge", "S1: at 03:00:14.000 transit held MED 100 from dc1-edge"}, seen: 2,
		},
		"before it has announced nobody is judged": {
			lines: after("etcd owners/dc1/sip-1 -", "dc1-edge dc1-lvs-b 50", "etcd owners/dc1/sip-1 dc1-lvs-b"), seen: 1,
		},
		"the old owner's stale route is beaten": {
			lines: after("etcd alive/dc1-lvs-a - owners/dc1/sip-1 -", "etcd owners/dc1/sip-1 dc1-lvs-b", "etcd claims/dc1-lvs-b/sip-1 50", "dc1-edge dc1-lvs-b 50"), seen: 2,
		},
		"the old owner's stale route wins": {
			lines:  after("etcd alive/dc1-lvs-a - owners/dc1/sip-1 -", "etcd owners/dc1/sip-1 dc1-lvs-b", "etcd claims/dc1-lvs-b/sip-1 100", "dc1-edge dc1-lvs-b 100"),
			broken: []string{"S1: at 03:00:14.000 dc1-edge held MED 100 from dc1-lvs-a"}, seen: 2,
		},
		"an agent that starts anew": {
			lines: after("etcd alive/dc1-lvs-a t2", "dc1-edge dc1-lvs-a 150"), seen: 1,
		},
		"an agent that leaves its place": {
			lines: after("dc1-edge dc1-lvs-a 150"), broken: []string{"S1: at 03:00:11.000 dc1-edge held MED 111 from dc1-lvs-b"}, seen: 1,
		},
		"what etcd told late": {
			lines: after("transit dc2-edge 50", "etcd target_state/sip-1 dc2"), seen: 1,
		},
		"a provider without a route": {
			lines: after("transit x lost"), broken: []string{"S2: at 03:00:11.000 transit had no route"}, seen: 1,
		},
		"two switches of their own accord": {
			lines:  after("etcd target_state/sip-1 dc2 locks/sip-1 x", "etcd target_state/sip-1 dc1 locks/sip-1 y"),
			broken: []string{"S3: revision 11"}, seen: 1,
		},
		"two switches of their own accord, unlocked between": {
			lines: after("etcd target_state/sip-1 dc2 locks/sip-1 x", "etcd locks/sip-1 -", "etcd target_state/sip-1 dc1 locks/sip-1 y"), seen: 1,
		},
		"an owner overwritten": {
			lines: after("etcd owners/dc1/sip-1 dc1-lvs-b"), broken: []string{"S4: revision 10 makes dc1-lvs-b the owner in dc1, over dc1-lvs-a"}, seen: 1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			v := story(t, c.lines...).Promises("sip-1")
			if v.Seen != c.seen || len(v.Broken) != len(c.broken) {
				t.Errorf("%s\n%s\nexpected %d seen, and broken %q", v, strings.Join(v.Broken, "\n"), c.seen, c.broken)
				return
			}
			for i, want := range c.broken {
				if !strings.HasPrefix(v.Broken[i], want) {
					t.Errorf("broken: %q, expected %q", v.Broken[i], want)
				}
			}
		})
	}
}
