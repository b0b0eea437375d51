package integration

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/medway-lb/medway/integration/drill"
	"github.com/medway-lb/medway/integration/lab"
)

// TestLabTraffic: calls over IPv6 and over UDP switch between the sites, there
// and back, as those over TCP and IPv4 do (TestLabSwitchover); and so do those
// that come over a provider who ignores MEDs. Before the switches, with the calls
// up, somebody changes by hand what medway owns (drift); what others own is left
// alone from the agents' first start to the VIP's end (foreign).
func TestLabTraffic(t *testing.T) {
	others := foreign{}
	l := up(t, others.make)
	others.check(t, l, "the agents' first start")

	kinds, err := drill.ParseTraffic([]string{"tcp", "tcp6", "udp", "udp6", "tcp@clients2", "udp6@clients2"})
	if err != nil {
		t.Fatal(err)
	}
	const calls = 20
	report, err := drill.Run(t.Context(), l, drill.Options{
		Calls: calls, Traffic: kinds, Dir: t.TempDir(), Story: t.Output(),
		Before: func(ctx context.Context) error {
			drift(t, l)
			others.check(t, l, "resyncs")
			return nil
		},
		After: func(_ context.Context, s drill.Switch) error {
			followed(t, l, s.To)
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("\n%s", report.Summary())
	for _, fault := range report.Faults() {
		t.Error(fault)
	}
	if len(report.Kinds) != len(kinds) || len(report.Switches) != 2 {
		t.Errorf("%d kinds of calls and %d switches, expected %d and 2", len(report.Kinds), len(report.Switches), len(kinds))
	}
	for _, k := range report.Kinds {
		if k.Established != calls || k.Stats.Successful != calls {
			t.Errorf("%s: %d calls were established, %d ended well, expected %d", k.Traffic, k.Established, k.Stats.Successful, calls)
		}
	}
	for i, s := range report.Switches {
		// By virtual service: two kinds that come in turns may find one backend each.
		spread := map[drill.Traffic]map[string]int{}
		for j, c := range s.Calls {
			service := drill.Traffic{UDP: kinds[j].UDP, IPv6: kinds[j].IPv6}
			if spread[service] == nil {
				spread[service] = map[string]int{}
			}
			for backend, n := range c.Alive.Alive {
				spread[service][backend] += n
				if !strings.HasPrefix(backend, "dc1-") && n > kinds[j].Astray() {
					t.Errorf("switch %d: %d calls of %s are answered by %s", i, n, kinds[j], backend)
				}
			}
		}
		// The calls were made in dc1, at both of its backends: every answer must
		// still come from there.
		for service, alive := range spread {
			for _, backend := range []string{"dc1-sbc1", "dc1-sbc2"} {
				if alive[backend] < 2 {
					t.Errorf("switch %d: calls of %s are not spread over dc1's backends: %v", i, service, alive)
				}
			}
		}
	}

	restart(t, l)
	others.check(t, l, "a restart of the agents")
	removed(t, l)
	others.check(t, l, "the VIP's end")
}

// followed waits until birdc shows that the provider who ignores MEDs prefers the
// site for both addresses, by a shorter path: the switch is complete when that
// leads there, and the paths of rest come a moment later. Never is there a MED to go by.
func followed(t *testing.T, l *lab.Lab, site string) {
	t.Helper()
	for _, prefix := range []string{lab.VIP.String() + "/32", lab.VIP6.String() + "/128"} {
		err := drill.Until(t.Context(), settleTime, func() error {
			out := run(t, l, lab.Transit2, "birdc -s "+filepath.Join(l.Dir(), lab.Transit2, "bird.ctl")+" show route all "+prefix)
			if strings.Contains(out, "BGP.med") {
				t.Errorf("%s has a MED for %s:\n%s", lab.Transit2, prefix, out)
			}
			best, worse, _ := strings.Cut(out, "\n                     unicast") // BIRD prints the best one first
			switch {
			case !strings.Contains(best, "unicast ["+site+"-edge") || !strings.Contains(best, "BGP.as_path: 65001 65001\n"):
				return fmt.Errorf("%s's best path to %s is not the active one of %s:\n%s", lab.Transit2, prefix, site, out)
			case !strings.Contains(worse, "BGP.as_path: 65001 65001 65001 65001\n"):
				return fmt.Errorf("%s's other path to %s is not that of a backup:\n%s", lab.Transit2, prefix, out)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// removed deletes the VIP's key: its routes, addresses and services go from
// every host.
func removed(t *testing.T, l *lab.Lab) {
	t.Helper()
	run(t, l, lab.Witness, filepath.Join(l.BinDir(), "etcdctl")+" --command-timeout=30s del /medway/v1/vips/"+lab.VIPName)
	err := drill.Until(t.Context(), settleTime, func() error {
		for _, node := range hosts {
			for tool, gone := range map[string][]string{
				"ipvsadm -Sn":     {lab.VIP.String(), lab.VIP6.String()},
				"ip address show": {lab.VIP.String(), lab.VIP6.String()},
			} {
				out, err := l.Output(t.Context(), node, strings.Fields(tool)...)
				if err != nil {
					return err
				}
				for _, text := range gone {
					if strings.Contains(out, text) {
						return fmt.Errorf("%s: `%s` still shows %s:\n%s", node, tool, text, out)
					}
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
