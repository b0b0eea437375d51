package bench

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"time"
)

// Options say how much is measured.
type Options struct {
	// Bin holds the programs, Dir takes data and logs, which should be in memory.
	Bin, Dir string
	// Flips is how many times one VIP is switched, Rounds how many times all.
	Flips, Rounds int
	// VIPs is how many "all" are.
	VIPs int
	// Loads is how many times the kernel's table is loaded, Changes how many times
	// each time a weight is changed and changed back.
	Loads, Changes int
	// Deaths is how many times a host dies.
	Deaths int
	// Load is how long BFD is watched with all processors busy.
	Load time.Duration
	// Rest is how long the agent at rest is watched.
	Rest time.Duration
	// Progress takes a line for each thing that begins.
	Progress io.Writer
}

func (o Options) say(format string, args ...any) {
	fmt.Fprintf(o.Progress, "[bench] "+format+"\n", args...)
}

// restVIPs is how many VIPs the agent at rest has.
const restVIPs = 100

// Native measures what needs no kernel with IPVS: from put to UPDATE, and the
// agent at rest.
func Native(ctx context.Context, o Options) (*Report, error) {
	report := newReport(o.Bin, "etcd", "ExaBGP")
	if err := network(); err != nil {
		return report, err
	}
	router, err := NewRouter(routerAddress, localAS)
	if err != nil {
		return report, err
	}
	defer router.Close()
	e, err := startEtcd(ctx, o.Bin, o.Dir)
	if err != nil {
		return report, err
	}
	defer e.stop()
	gobgp, err := startGoBGP(ctx, o.Dir, router)
	if err != nil {
		return report, err
	}
	defer gobgp.stop()
	exa, err := startExaBGP(ctx, o.Dir, router)
	if err != nil {
		report.missing("ExaBGP", err)
	}
	defer exa.stop()

	n := &native{Options: o, report: report, etcd: e, router: router, gobgp: gobgp, exa: exa}
	for _, part := range []func(context.Context) error{n.one, n.oneOfMany, n.many, n.rest} {
		if err := part(ctx); err != nil {
			return report, err
		}
	}
	return report, nil
}

// network gives the loopback device its addresses.
func network() error {
	commands := []string{"link set lo up"}
	for _, a := range []netip.Addr{routerAddress, goBGPAddress, exaAddress, agentAddress["dc1"], agentAddress["dc2"]} {
		commands = append(commands, "address replace "+a.String()+"/32 dev lo")
	}
	for _, c := range commands {
		if out, err := exec.Command("ip", strings.Fields(c)...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", c, err, out)
		}
	}
	return nil
}

type native struct {
	Options
	report *Report
	etcd   *etcd
	router *Router
	gobgp  *pipe
	exa    *pipe
	// round makes every announcement differ from the one before.
	round uint32
}

// The prefixes that GoBGP alone and ExaBGP announce.
func floorPrefixes(n int) []netip.Prefix {
	prefixes := make([]netip.Prefix, n)
	for i := range prefixes {
		prefixes[i] = vipPrefix(i)
	}
	return prefixes
}

func (n *native) pairs(count int) []pair {
	n.round++
	pairs := make([]pair, count)
	for i := range pairs {
		pairs[i] = pair{fmt.Sprintf("/bench/floor/%04d", i), fmt.Sprint(n.round)}
	}
	return pairs
}

// floor are the steps that any such agent has to take.
type floor struct{ watch, claim, gobgp, exa Samples }

// measure takes every step once for count VIPs.
func (n *native) measure(ctx context.Context, f *floor, count int) error {
	watch, err := n.etcd.putToWatch(ctx, n.pairs(count))
	if err != nil {
		return err
	}
	claim, err := n.etcd.claims(ctx, n.pairs(count))
	if err != nil {
		return err
	}
	gobgp, err := n.gobgp.toWire(ctx, n.router, n.round, floorPrefixes(count))
	if err != nil {
		return err
	}
	f.watch, f.claim, f.gobgp = append(f.watch, watch), append(f.claim, claim), append(f.gobgp, gobgp)
	if n.exa == nil {
		return nil
	}
	exa, err := n.exa.toWire(ctx, n.router, n.round, floorPrefixes(count))
	f.exa = append(f.exa, exa)
	return err
}

func (f *floor) sum() Samples { return plus(f.watch, f.claim, f.gobgp) }

// table makes the rows that every table of switches has.
func (f *floor) table(title string, what string, agent Samples) Table {
	t := Table{Title: title}
	t.add("etcd: put to watch event", f.watch, f.sum())
	t.add("etcd: guarded transaction", f.claim, f.sum())
	t.add("GoBGP alone: call to UPDATE", f.gobgp, f.sum())
	t.add("FLOOR: the three after each other", f.sum(), f.sum())
	t.add("MEDWAY: "+what, agent, f.sum())
	if len(f.exa) > 0 {
		t.add("ExaBGP: API to UPDATE", f.exa, f.sum())
	}
	return t
}

// begin loads intent and starts the agents anew.
func (n *native) begin(ctx context.Context, vips int, settle, quiet time.Duration) (*pairOfAgents, error) {
	if err := n.etcd.delete(ctx, "/medway/"); err != nil {
		return nil, err
	}
	for _, site := range sites {
		if err := os.RemoveAll(n.Dir + "/agent-" + site); err != nil {
			return nil, err
		}
	}
	if err := n.etcd.putAll(ctx, intent(vips, settle, quiet)); err != nil {
		return nil, err
	}
	agents, err := startAgents(n.Bin, n.Dir, n.etcd, n.router)
	if err != nil {
		return nil, err
	}
	if err := agents.settled(ctx, vips, sites[0]); err != nil {
		agents.stop()
		return nil, fmt.Errorf("%d VIPs: %w", vips, err)
	}
	return agents, nil
}

// flips switches VIPs first..first+width-1 to and fro.
func (n *native) flips(ctx context.Context, agents *pairOfAgents, times, first, width int) (*floor, Samples, error) {
	f, found := &floor{}, Samples{}
	site := sites[0]
	for i := range times + 1 {
		site = other(site)
		if err := n.measure(ctx, f, width); err != nil {
			return nil, nil, err
		}
		took, err := agents.flip(ctx, first, first+width, site)
		if err != nil {
			return nil, nil, err
		}
		found = append(found, took)
		if err := agents.settledPart(ctx, first, width, site); err != nil {
			return nil, nil, err
		}
		if i == 0 { // the first of everything warms up
			*f, found = floor{}, nil
		}
	}
	return f, found, nil
}

const (
	fastSettle = 100 * time.Millisecond
	fastQuiet  = 200 * time.Millisecond
)

// one measures switches of one VIP where there is no other.
func (n *native) one(ctx context.Context) error {
	n.say("one VIP, %d switches", n.Flips)
	agents, err := n.begin(ctx, 1, fastSettle, fastQuiet)
	if err != nil {
		return err
	}
	defer agents.stop()
	f, found, err := n.flips(ctx, agents, n.Flips, 0, 1)
	if err != nil {
		return err
	}
	t := f.table("One VIP: put of target_state to UPDATE on the wire", "put to UPDATE", found)
	n.report.Tables = append(n.report.Tables, t)
	ratio := float64(found.Quantile(.5)) / float64(f.sum().Quantile(.5))
	n.report.aim("one VIP, p50 within 2x of the floor", ratio <= 2, "%.2fx", ratio)
	return nil
}

// oneOfMany measures switches of one VIP among many.
func (n *native) oneOfMany(ctx context.Context) error {
	times := max(1, n.Flips/4)
	n.say("one of %d VIPs, %d switches", n.VIPs, times)
	agents, err := n.begin(ctx, n.VIPs, fastSettle, fastQuiet)
	if err != nil {
		return err
	}
	defer agents.stop()
	f, found, err := n.flips(ctx, agents, times, n.VIPs/2, 1)
	if err != nil {
		return err
	}
	t := f.table(fmt.Sprintf("One of %d VIPs: put of target_state to UPDATE on the wire", n.VIPs), "put to UPDATE", found)
	n.report.Tables = append(n.report.Tables, t)
	return nil
}

// many measures switches of all VIPs at once, with the default settle delay: the
// old site rises when the new one has long sent its last UPDATE.
func (n *native) many(ctx context.Context) error {
	n.say("%d VIPs at once, %d times", n.VIPs, n.Rounds)
	agents, err := n.begin(ctx, n.VIPs, time.Second, time.Second)
	if err != nil {
		return err
	}
	defer agents.stop()
	f, found, err := n.flips(ctx, agents, n.Rounds, 0, n.VIPs)
	if err != nil {
		return err
	}
	t := f.table(fmt.Sprintf("%d VIPs at once: first put to last UPDATE on the wire", n.VIPs), "first put to last UPDATE", found)
	n.report.Tables = append(n.report.Tables, t)
	median := found.Quantile(.5)
	n.report.aim(fmt.Sprintf("%d VIPs at once within 0.5 s", n.VIPs), median <= 500*time.Millisecond, "%.3f s (median)", median.Seconds())
	return nil
}

// rest watches agents that have nothing to do.
func (n *native) rest(ctx context.Context) error {
	n.say("an agent at rest with %d VIPs, %s", restVIPs, n.Rest)
	agents, err := n.begin(ctx, restVIPs, time.Second, time.Second)
	if err != nil {
		return err
	}
	defer agents.stop()
	metrics := []string{"etcd_network_client_grpc_sent_bytes_total", "etcd_network_client_grpc_received_bytes_total", "grpc_server_msg_received_total"}
	before, err := n.etcd.counters(ctx, metrics...)
	if err != nil {
		return err
	}
	used := map[string]time.Duration{}
	for _, site := range sites {
		if used[site], err = agents.agents[site].cpu(); err != nil {
			return err
		}
	}
	begin := time.Now()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(n.Rest):
	}
	took := time.Since(begin)
	after, err := n.etcd.counters(ctx, metrics...)
	if err != nil {
		return err
	}
	t := Table{Title: fmt.Sprintf("At rest with %d VIPs, adapters on fakes, %.0f s", restVIPs, took.Seconds())}
	for i, site := range sites {
		a := agents.agents[site]
		cpu, err := a.cpu()
		if err != nil {
			return err
		}
		memory, err := a.memory()
		if err != nil {
			return err
		}
		goroutines, err := a.goroutines(ctx)
		if err != nil {
			return err
		}
		t.say([]string{"active agent", "backup agent"}[i], "%.1f MiB resident, %.2f %% of one CPU, %d goroutines",
			float64(memory)/(1<<20), 100*(cpu-used[site]).Seconds()/took.Seconds(), goroutines)
	}
	rate := func(i int) float64 { return (after[metrics[i]] - before[metrics[i]]) / took.Seconds() }
	t.say("etcd, both agents together", "%.0f bytes/s sent, %.0f bytes/s received, %.1f requests/s", rate(0), rate(1), rate(2))
	n.report.Tables = append(n.report.Tables, t)
	return nil
}
