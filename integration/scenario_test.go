package integration

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/medway-lb/medway/integration/drill"
	"github.com/medway-lb/medway/integration/lab"
)

// up builds a lab for one test; what is to be done before the agents start may be given. Where the kernel can't carry it the test is
// skipped, loudly; make test then runs it in the virtual machine, where
// MEDWAY_REQUIRE_KERNEL=1 makes a skip a failure.
func up(t *testing.T, beforeAgents ...func(context.Context, *lab.Lab) error) *lab.Lab {
	t.Helper()
	return upAs(t, func(*lab.Options) {}, beforeAgents...)
}

// upAs is up, of a lab that differs from the usual one.
func upAs(t *testing.T, change func(*lab.Options), beforeAgents ...func(context.Context, *lab.Lab) error) *lab.Lab {
	t.Helper()
	need(t)
	opts := lab.Options{
		Dir: "/run/medway-test", BinDir: programs(), WANDelay: 5 * time.Millisecond, Progress: t.Output(),
		Prefix: "mwt-", Transient: true, Timeout: 3 * time.Minute,
		BeforeAgents: func(ctx context.Context, l *lab.Lab) error {
			for _, do := range beforeAgents {
				if err := do(ctx, l); err != nil {
					return err
				}
			}
			return nil
		},
	}
	change(&opts)
	l, err := lab.Up(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			agentLogs(t, l)
		}
		if err := l.Down(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func need(t *testing.T) {
	t.Helper()
	err := lab.CheckKernel()
	if os.Geteuid() != 0 {
		err = fmt.Errorf("not root")
	}
	if err == nil {
		return
	}
	if os.Getenv("MEDWAY_REQUIRE_KERNEL") == "1" {
		t.Fatal(err)
	}
	t.Skipf("SKIPPED: needs a kernel with IPVS: %v", err)
}

// programs is the directory of the built programs.
func programs() string {
	if dir := os.Getenv("MEDWAY_BIN"); dir != "" {
		return dir
	}
	return "../bin"
}

// agentLogs shows the end of every agent's log of a test that failed.
func agentLogs(t *testing.T, l *lab.Lab) {
	for _, n := range l.Topology().Role(lab.RoleLVS) {
		text, err := os.ReadFile(filepath.Join(l.Dir(), n.Name, "agent.log"))
		if err != nil {
			continue
		}
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		for _, line := range lines[max(0, len(lines)-25):] {
			t.Logf("%s: %.300s", n.Name, line)
		}
	}
}

// run runs an operator's tool on a node.
func run(t *testing.T, l *lab.Lab, node, command string) string {
	t.Helper()
	out, err := l.Output(t.Context(), node, strings.Fields(command)...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// status is the output of `medwayctl status`.
func status(t *testing.T, l *lab.Lab) string {
	t.Helper()
	return run(t, l, lab.Witness, filepath.Join(l.BinDir(), "medwayctl")+" --command-timeout 30s status")
}

// hosts are the LVS hosts.
var hosts = lvsHosts()

func lvsHosts() (names []string) {
	for _, n := range lab.Default().Role(lab.RoleLVS) {
		names = append(names, n.Name)
	}
	return names
}

// owner is the LVS host that owns the VIP in a site: whichever it is, the lease
// settled it.
func owner(t *testing.T, l *lab.Lab, site string) string {
	t.Helper()
	var name string
	err := drill.Until(t.Context(), settleTime, func() (err error) {
		if name, err = l.Owner(t.Context(), site); err == nil && name == "" {
			err = fmt.Errorf("no node owns the VIP in %s", site)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// standby is another LVS host of a site than the VIP's owner.
func standby(t *testing.T, l *lab.Lab, site string) string {
	t.Helper()
	owner := owner(t, l, site)
	return hosts[slices.IndexFunc(hosts, func(host string) bool { return strings.HasPrefix(host, site+"-") && host != owner })]
}

// ladder is the MED of every LVS host when a site is the target and nothing is under
// way: the owner there has 100 and a standby 110 plus its place among all hosts; in
// the other site it is 500 and 510, plus that place, and 20 for its being the second site.
func ladder(ctx context.Context, l *lab.Lab, target string) (map[string]int, error) {
	meds := map[string]int{}
	for i, s := range l.Topology().Sites {
		owner, err := l.Owner(ctx, s.Name)
		if err == nil && owner == "" {
			err = fmt.Errorf("no node owns the VIP in %s", s.Name)
		}
		if err != nil {
			return nil, err
		}
		for rank, host := range hosts {
			switch mine := strings.HasPrefix(host, s.Name+"-"); {
			case !mine:
			case s.Name == target && host == owner:
				meds[host] = 100
			case s.Name == target:
				meds[host] = 110 + rank
			case host == owner:
				meds[host] = 500 + 20*i + rank
			default:
				meds[host] = 510 + 20*i + rank
			}
		}
	}
	return meds, nil
}

// onLadder says where the MEDs that the edge routers hear are not those of the ladder.
func onLadder(ctx context.Context, l *lab.Lab, target string) error {
	want, err := ladder(ctx, l, target)
	if err != nil {
		return err
	}
	meds, err := l.MEDs()
	if err == nil && !maps.Equal(want, meds) {
		err = fmt.Errorf("MEDs are %v, expected %v", meds, want)
	}
	return err
}

// med is what an edge router has from its own site's LVS hosts, lowest first.
func med(t *testing.T, l *lab.Lab, site string) int {
	t.Helper()
	routes, err := l.Routes(site + "-edge")
	if err != nil {
		t.Fatal(err)
	}
	lowest := lab.NoMED
	for _, r := range routes {
		if strings.HasPrefix(r.Session, site+"-lvs") && (lowest == lab.NoMED || r.MED < lowest) {
			lowest = r.MED
		}
	}
	return lowest
}
