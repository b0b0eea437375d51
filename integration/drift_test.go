package integration

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"github.com/medway-lb/medway/integration/drill"
	"github.com/medway-lb/medway/integration/lab"
)

// mendTime is the settings' resync_interval, 10 s, and far more than an emulated
// processor takes to read a kernel, and the tools to print it. How long it took is
// in the test's output.
const mendTime = time.Minute

// settleTime is for what takes several steps, a status among them, which agents write every
// 10 s at most.
const settleTime = 2 * time.Minute

// A harm is what somebody does to a host by hand.
type harm struct {
	what string
	// command is one change: the agent may look between two.
	command string
	// tool shows want before and, once it is mended, again; not in between.
	tool, want string
}

// harms by host: the owner that carries the calls and the one to which they will be
// switched, and the standbys of both. In the site that has the calls a host loses what
// it does not need at the moment, in the other the rest.
func harms(here, there lab.Node, standbyHere, standbyThere string) map[string][]harm {
	rule := tee(there.Name)
	return map[string][]harm{
		here.Name: {
			{"a TEE rule", "iptables -t mangle " + strings.Replace(rule, "-A", "-D", 1), "iptables -t mangle -S MEDWAY-SYNC-OUT", rule},
			{"a chain's rules", "ip6tables -F MEDWAY-INPUT", "ip6tables -S MEDWAY-INPUT", "-A MEDWAY-INPUT -d 2001:db8:10::10/128 -j DROP"},
			{
				"a tunnel", "ip link delete mw-" + there.Name,
				"ip -d link show", fmt.Sprintf("ipip remote %s local %s ttl 64", there.Addr, here.Addr),
			},
		},
		standbyHere: {
			{
				"a whole chain",
				`printf '*mangle\n-D PREROUTING -j MEDWAY-SYNC-IN\n-F MEDWAY-SYNC-IN\n-X MEDWAY-SYNC-IN\nCOMMIT\n' | iptables-restore --noflush`,
				"iptables -t mangle -S", "-A PREROUTING -j MEDWAY-SYNC-IN",
			},
			{"a sync daemon", "ipvsadm --stop-daemon master", "ipvsadm -ln --daemon", "master sync daemon (mcast=sync01"},
			{"a sysctl", "sysctl -qw net.ipv4.vs.expire_nodest_conn=0", "sysctl net.ipv4.vs.expire_nodest_conn", "= 1"},
		},
		there.Name: {
			{
				"a destination of calls", "ipvsadm -d -t 203.0.113.10:5060 -r 10.1.0.21",
				"ipvsadm -Sn", "-a -t 203.0.113.10:5060 -r 10.1.0.21:5060 -i -w 2",
			},
			{"the device of the VIPs", "ip link delete medway0", "ip address show", "inet 203.0.113.10/32"},
			// Last: the switch that comes now waits until the calls are bound to destinations again.
			{"a service", "ipvsadm -D -u 203.0.113.10:5060", "ipvsadm -Sn", "-A -u 203.0.113.10:5060 -s wrr"},
		},
		standbyThere: {
			{
				"a destination over IPv6", "ipvsadm -d -t [2001:db8:10::10]:5060 -r [2001:db8:1::21]:5060",
				"ipvsadm -Sn", "-a -t [2001:db8:10::10]:5060 -r [2001:db8:1::21]:5060 -i -w 2",
			},
			{"a VIP address", "ip address delete 203.0.113.10/32 dev medway0", "ip address show dev medway0", "inet 203.0.113.10/32"},
			{"an IPv6 VIP address", "ip address delete 2001:db8:10::10/128 dev medway0", "ip address show dev medway0", "inet6 2001:db8:10::10/128"},
		},
	}
}

// drift harms all hosts at once, one thing after the other on each, and waits for
// each to be mended. Not a route may move.
func drift(t *testing.T, l *lab.Lab) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events, err := l.FollowRoutes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	meds, err := l.MEDs()
	if err != nil {
		t.Fatal(err)
	}
	had := append(slices.Collect(maps.Values(meds)), lab.NoMED)
	here, _ := l.Topology().Node(owner(t, l, "dc1"))
	there, _ := l.Topology().Node(owner(t, l, "dc2"))
	var all sync.WaitGroup
	for node, list := range harms(here, there, standby(t, l, "dc1"), standby(t, l, "dc2")) {
		all.Go(func() {
			for _, h := range list {
				if err := h.strike(ctx, l, node); err != nil {
					t.Errorf("%s lost %s: %v", node, h.what, err)
					continue
				}
				struck := time.Now()
				if err := drill.Until(ctx, mendTime, func() error { return h.shown(ctx, l, node) }); err != nil {
					t.Errorf("%s lost %s: %v", node, h.what, err)
					continue
				}
				t.Logf("%s lost %s, and had it again after %.1f s", node, h.what, time.Since(struck).Seconds())
			}
		})
	}
	all.Wait()
	cancel()
	for e := range events {
		// A session that began anew brings the routes that it had.
		if e.Kind != lab.RouteReceived || !slices.Contains(had, e.MED) {
			t.Errorf("a route moved when a kernel was changed by hand: %+v", e)
		}
	}
}

func (h harm) strike(ctx context.Context, l *lab.Lab, node string) error {
	if err := h.shown(ctx, l, node); err != nil {
		return fmt.Errorf("even before: %w", err)
	}
	_, err := l.Output(ctx, node, "sh", "-ec", h.command)
	return err
}

func (h harm) shown(ctx context.Context, l *lab.Lab, node string) error {
	out, err := l.Output(ctx, node, strings.Fields(h.tool)...)
	if err == nil && !strings.Contains(strings.Join(strings.Fields(out), " "), h.want) {
		err = fmt.Errorf("`%s` does not show %q:\n%s", h.tool, h.want, out)
	}
	return err
}

// foreign is what other people have on the LVS hosts, as the tools showed it before
// there was an agent: by host, by tool.
type foreign map[string]map[string]string

// foreignObjects look as much like medway's as they can.
var foreignObjects = []string{
	"ipvsadm -A -t 203.0.113.99:5060 -s rr",
	"ipvsadm -a -t 203.0.113.99:5060 -r 10.1.0.99:5060 -i -w 7",
	"ipvsadm -A -u [2001:db8:99::10]:5060 -s wlc -p 60",
	"ipvsadm -A -f 77 -s rr",
	"iptables -t mangle -N FOREIGN-SYNC-OUT",
	"iptables -t mangle -A FOREIGN-SYNC-OUT -d 224.0.0.82/32 -j ACCEPT",
	"iptables -t mangle -A POSTROUTING -j FOREIGN-SYNC-OUT",
	"iptables -N FOREIGN-INPUT",
	"iptables -A FOREIGN-INPUT -p tcp --dport 5070 -j DROP",
	"iptables -A INPUT -j FOREIGN-INPUT",
	"iptables -A INPUT -d 203.0.113.99/32 -j ACCEPT",
	"ip6tables -A INPUT -p tcp --dport 5070 -j DROP",
	"ip link add foreign0 type dummy",
	"ip link set foreign0 up",
	"ip address add 203.0.113.129/32 dev foreign0",
	"ip address add 2001:db8:99::1/64 dev foreign0 nodad",
	"ip link add foreign-tun type ipip remote 10.9.0.11 local any ttl 32",
	"ip route add 203.0.113.160/28 dev foreign0",
	"ip route add 203.0.113.176/28 dev foreign0 proto 110 table 200",
	"ip rule add pref 1500 from 203.0.113.129/32 lookup 200",
	"ip neigh add 203.0.113.161 lladdr 02:6d:77:00:00:99 dev foreign0 nud permanent",
}

// foreignTools show them, line by line.
var foreignTools = []string{
	"ipvsadm -Sn", "iptables -t mangle -S", "iptables -S", "ip6tables -S", "ip -o -d link show", "ip -o address show",
	"ip route show table all", "ip rule show", "ip neigh show",
}

// make is given to up: it puts the objects on every LVS host.
func (f foreign) make(ctx context.Context, l *lab.Lab) error {
	shown := make([]map[string]string, len(hosts))
	var all errgroup.Group
	for i, node := range hosts {
		all.Go(func() (err error) {
			if _, err = l.Output(ctx, node, "sh", "-exc", strings.Join(foreignObjects, "\n")); err == nil {
				shown[i], err = f.read(ctx, l, node)
			}
			return err
		})
	}
	err := all.Wait()
	for i, node := range hosts {
		f[node] = shown[i]
	}
	return err
}

// read returns the lines that are about the objects.
func (foreign) read(ctx context.Context, l *lab.Lab, node string) (map[string]string, error) {
	shown := map[string]string{}
	for _, tool := range foreignTools {
		out, err := l.Output(ctx, node, strings.Fields(tool)...)
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(out) {
			for _, mark := range []string{"203.0.113.99", "2001:db8:99::", "-f 77", "FOREIGN", "5070", "foreign", "203.0.113.1", "lookup 200"} {
				if strings.Contains(line, mark) && !strings.Contains(line, lab.VIP.String()) {
					shown[tool] += line
					break
				}
			}
		}
		if shown[tool] == "" {
			return nil, fmt.Errorf("%s: `%s` shows nothing foreign:\n%s", node, tool, out)
		}
	}
	return shown, nil
}

// check sees to it that every object is as it was.
func (f foreign) check(t *testing.T, l *lab.Lab, after string) {
	t.Helper()
	for _, node := range hosts {
		now, err := f.read(t.Context(), l, node)
		if err != nil {
			t.Error(err)
			continue
		}
		if diff := cmp.Diff(f[node], now); diff != "" {
			t.Errorf("%s: %s changed what is not medway's (-before +after):\n%s", node, after, diff)
		}
	}
}
