package lab

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// upRouting builds the lab's routing part (no IPVS needed) beside any other lab.
func upRouting(t *testing.T) *Lab {
	t.Helper()
	missing := ""
	for _, program := range []string{"bird", "nsenter"} {
		if _, err := exec.LookPath(program); err != nil {
			missing = program
		}
	}
	opts := Options{
		Dir: t.TempDir(), Prefix: fmt.Sprintf("mwt%d-", os.Getpid()), RoutingOnly: true,
		BinDir: "../../bin", Progress: t.Output(),
	}
	if _, err := os.Stat(opts.BinDir + "/etcd"); err != nil {
		missing = "bin/etcd"
	}
	if os.Getuid() != 0 {
		missing = "root"
	}
	if missing != "" {
		if os.Getenv("MEDWAY_REQUIRE_KERNEL") == "1" {
			t.Fatalf("MEDWAY_REQUIRE_KERNEL=1, and this test needs %s", missing)
		}
		t.Skipf("SKIPPED: needs %s", missing)
	}
	t.Cleanup(func() {
		if err := Clean(opts); err != nil {
			t.Error(err)
		}
	})
	l, err := Up(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// announce stands in for an agent: a BIRD on the LVS host that announces the VIP, both
// addresses, with a MED of the ladder and the community of its role.
func announce(t *testing.T, l *Lab, node string, med int) {
	t.Helper()
	n, _ := l.Topology().Node(node)
	site, _ := l.Topology().Site(n.Site)
	config := fmt.Sprintf(`router id %[1]s;
filter role { bgp_med = %[4]d; bgp_community.add((65001, %[4]d)); accept; }
protocol device {}
protocol static { ipv4; route %[2]s/32 blackhole; }
protocol static { ipv6; route %[5]s/128 blackhole; }
protocol bgp up { local %[1]s as 65001; neighbor %[3]s as 65001; direct; connect delay time 1;
ipv4 { import none; next hop self; export filter role; };
ipv6 { import none; next hop address %[6]s; export filter role; }; }
`, n.Addr, VIP, site.Addr(1), med, VIP6, n.Addr6)
	if err := os.MkdirAll(l.path(node), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(l.path(node, "bird.conf"), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	if d, err := l.Daemon(node, "announcer"); err == nil && d.Alive() {
		if _, err := l.Birdc(node, "configure"); err != nil {
			t.Fatal(err)
		}
		return
	}
	if _, err := l.Start(node, "announcer", "bird", "-f", "-c", l.path(node, "bird.conf"), "-s", l.path(node, "bird.ctl")); err != nil {
		t.Fatal(err)
	}
}

// wantRoutes waits until the router holds exactly these "session MED" routes to either
// address of the VIP, best first. For a provider that ignores MEDs it is the length of
// the AS path.
func wantRoutes(t *testing.T, l *Lab, router string, want ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	err := until(ctx, 20*time.Millisecond, func() error {
		routes, err := l.Routes(router)
		if err != nil {
			return err
		}
		provider, _ := l.topo.Provider(router)
		got := map[netip.Addr][]string{}
		for _, r := range routes {
			to := r.Prefix.Addr()
			if r.Best != (len(got[to]) == 0) {
				return fmt.Errorf("best route is not the first: %+v", routes)
			}
			what := r.MED
			if provider.IgnoresMED {
				what = r.Path
			}
			got[to] = append(got[to], fmt.Sprintf("%s %d", r.Session, what))
		}
		for _, vip := range []netip.Addr{VIP, VIP6} {
			if fmt.Sprint(got[vip]) != fmt.Sprint(want) {
				return fmt.Errorf("routes to %s %v, want %v", vip, got[vip], want)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatalf("%s: %v\n%s", router, err, l.routerTail(router))
	}
}

// The MED of each site is visible everywhere, whatever each edge prefers; the lowest wins.
func TestRouting(t *testing.T) {
	l := upRouting(t)
	events, err := l.FollowRoutes(t.Context(), Transit)
	if err != nil {
		t.Fatal(err)
	}
	announce(t, l, "dc1-lvs-a", 100)
	announce(t, l, "dc1-lvs-b", 110)
	announce(t, l, "dc2-lvs-a", 500)
	announce(t, l, "dc2-lvs-b", 510)
	wantRoutes(t, l, Transit, "dc1-edge 100", "dc2-edge 500")
	wantRoutes(t, l, Transit2, "dc1-edge 2", "dc2-edge 4")
	wantRoutes(t, l, "dc1-edge", "dc1-lvs-a 100", "dc1-lvs-b 110", "dc2-edge 500")
	wantRoutes(t, l, "dc2-edge", "dc1-edge 100", "dc2-lvs-a 500", "dc2-lvs-b 510")
	if meds, err := l.MEDs(); err != nil || !maps.Equal(meds, map[string]int{"dc1-lvs-a": 100, "dc1-lvs-b": 110, "dc2-lvs-a": 500, "dc2-lvs-b": 510}) {
		t.Errorf("MEDs %v, %v", meds, err)
	}

	// Where the owner goes, its standby's route is there already.
	if err := l.Stop(t.Context(), "dc1-lvs-a", "announcer", syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	wantRoutes(t, l, Transit, "dc1-edge 110", "dc2-edge 500")
	wantRoutes(t, l, Transit2, "dc1-edge 3", "dc2-edge 4")
	announce(t, l, "dc1-lvs-a", 100)
	wantRoutes(t, l, Transit, "dc1-edge 100", "dc2-edge 500")

	announce(t, l, "dc2-lvs-a", 50) // forced
	wantRoutes(t, l, Transit, "dc2-edge 50", "dc1-edge 100")
	wantRoutes(t, l, Transit2, "dc2-edge 1", "dc1-edge 2")
	announce(t, l, "dc1-lvs-b", 510)
	announce(t, l, "dc1-lvs-a", 500)
	announce(t, l, "dc2-lvs-a", 100) // normalised
	wantRoutes(t, l, Transit, "dc2-edge 100", "dc1-edge 500")
	wantRoutes(t, l, Transit2, "dc2-edge 2", "dc1-edge 4")
	wantRoutes(t, l, "dc1-edge", "dc2-edge 100", "dc1-lvs-a 500", "dc1-lvs-b 510")
	for _, router := range []string{Transit, Transit2} {
		for _, vip := range []netip.Addr{VIP, VIP6} {
			if out, err := l.Output(t.Context(), router, "ip", "route", "get", vip.String()); err != nil || !strings.Contains(out, "dev dc2-edge") {
				t.Errorf("%s: kernel route: %s %v", router, out, err)
			}
		}
	}
	// What tells roles apart stays inside, and so does the MED for one who ignores it.
	if out, err := l.Birdc(Transit2, "show route all where net ~ 203.0.113.0/24"); err != nil || strings.Contains(out, "community") || strings.Contains(out, "med:") {
		t.Errorf("%s: %v\n%s", Transit2, err, out)
	}
	for _, node := range []string{"dc2-lvs-b", "dc2-lvs-a"} {
		if err := l.Stop(t.Context(), node, "announcer", syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	wantRoutes(t, l, Transit, "dc1-edge 500")

	best := map[string]bool{}
	for e := range events {
		best[fmt.Sprintf("%s %s %d %s", e.Kind, e.Session, e.MED, e.Prefix.Addr())] = true
		if best["withdrawn dc2-edge -1 "+VIP.String()] && best["withdrawn dc2-edge -1 "+VIP6.String()] {
			break
		}
	}
	for _, want := range []string{"received dc1-edge 100", "received dc1-edge 500", "best dc2-edge 50", "best dc2-edge 100"} {
		for _, vip := range []netip.Addr{VIP, VIP6} {
			if want := fmt.Sprintf("%s %s", want, vip); !best[want] {
				t.Errorf("no event %q in %v", want, best)
			}
		}
	}
}

// A cut cable isolates nobody from the witness, and a lab can be attached to and cleaned
// by another process.
func TestCutsAndOpen(t *testing.T) {
	up := upRouting(t)
	l, err := Open(up.Dir())
	if err != nil {
		t.Fatal(err)
	}
	for _, opts := range []Options{up.opts, {Dir: t.TempDir(), Prefix: up.opts.Prefix}} {
		if err := Vacant(opts); err == nil {
			t.Errorf("a lab with prefix %s in %s would take this one's place", opts.Prefix, opts.Dir)
		}
	}
	if err := l.Put(t.Context(), Witness, "/medway/v1/owners/dc1/"+VIPName, `{"node":"dc1-lvs-b"}`); err != nil {
		t.Fatal(err)
	}
	for site, want := range map[string]string{"dc1": "dc1-lvs-b", "dc2": ""} {
		if owner, err := l.Owner(t.Context(), site); owner != want || err != nil {
			t.Errorf("owner in %s: %q, %v, expected %q", site, owner, err, want)
		}
	}
	reach := func(node, addr string) error {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		return until(ctx, 50*time.Millisecond, func() error {
			ctx, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			conn, err := l.Dial(ctx, node, "tcp4", addr)
			if err != nil {
				return err
			}
			return conn.Close()
		})
	}
	for _, cable := range [][2]string{{Witness, "dc1-edge"}, {"dc2-edge", Witness}, {"dc1-edge", "dc2-edge"}} {
		if err := l.Cut(cable[0], cable[1]); err != nil {
			t.Fatal(err)
		}
		for _, node := range []string{"dc1-etcd", "dc2-etcd"} {
			if err := reach(node, "10.3.0.5:2379"); err != nil {
				t.Errorf("with %v cut, from %s to the witness: %v", cable, node, err)
			}
		}
		if err := l.Mend(cable[0], cable[1]); err != nil {
			t.Fatal(err)
		}
	}
	for _, to := range []string{"10.1.0.5:2379", "10.2.0.5:2379"} {
		if err := reach(Witness, to); err != nil {
			t.Errorf("after mending, from the witness to %s: %v", to, err)
		}
	}
	if err := l.Blackhole(t.Context(), "dc1-etcd", "dc1-edge"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if conn, err := l.Dial(ctx, "dc1-etcd", "tcp4", "10.3.0.5:2379"); err == nil {
		conn.Close()
		t.Error("a connection through a black hole")
	} else if !errors.Is(err, context.DeadlineExceeded) && !os.IsTimeout(err) {
		t.Errorf("a black hole was noticed: %v", err)
	}
	if err := l.Unblackhole(t.Context(), "dc1-etcd", "dc1-edge"); err != nil {
		t.Fatal(err)
	}
	if err := reach("dc1-etcd", "10.3.0.5:2379"); err != nil {
		t.Error(err)
	}
	if err := l.Down(); err != nil {
		t.Fatal(err)
	}
	if names, err := namespaces(l.opts.Prefix); err != nil || len(names) > 0 {
		t.Errorf("namespaces left: %v %v", names, err)
	}
}

// A recorded pid that now belongs to another process is not touched.
func TestStopSparesStrangers(t *testing.T) {
	l := testLab(t, Options{})
	stranger := exec.Command("sleep", "60")
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stranger.Process.Kill(); _ = stranger.Wait() }()
	d := &Daemon{Node: Transit, Name: "bird", PID: stranger.Process.Pid, StartTime: 1, BootID: bootID()}
	if err := l.record(d); err != nil {
		t.Fatal(err)
	}
	if err := l.Stop(t.Context(), Transit, "bird", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, state, err := processStat(stranger.Process.Pid); err != nil || state == "Z" {
		t.Errorf("the stranger was ended: %s %v", state, err)
	}
}
