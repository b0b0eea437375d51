package drill

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/medway-lb/medway/integration/lab"
)

// Options say what a drill does.
type Options struct {
	// Calls that are held throughout, of each kind; default 60.
	Calls int
	// Traffic is the kinds of calls; default TCP over IPv4.
	Traffic []Traffic
	// Rounds of switching there and back; default 1.
	Rounds int
	// Dir takes what the drill leaves: SIPp's files, the capture, the report.
	Dir string
	// Story gets a line for each thing that happens; default none.
	Story io.Writer
	// Sabotage names what is taken away, for a negative control; "" is nothing.
	Sabotage string
	// Before is called when the calls are up, before the first switch.
	Before func(context.Context) error
	// After is called after each switch, when all calls have been asked again.
	After func(context.Context, Switch) error
}

// newCallsPerSwitch is how many calls of each kind are made to see where new ones land.
const newCallsPerSwitch = 10

// drill is one under way.
type drill struct {
	Options
	lab     *lab.Lab
	calls   []*Calls // by kind
	sampler *sampler
	routes  <-chan lab.RouteEvent
	// leads is the site that a provider's best path to an address leads to.
	leads map[path]string
	// heard are the MEDs that the edge routers have of their sites' LVS hosts.
	heard  map[path]int
	report Report
}

// path is one to an address over a router: a provider's best one, or that of an LVS host.
type path struct {
	router string
	vip    netip.Addr
}

// Run holds calls through the VIP and switches it from one site to the other
// and back. The report is as complete as the drill came; an error means that
// it could not be carried out, not that calls were lost.
func Run(ctx context.Context, l *lab.Lab, o Options) (Report, error) {
	if o.Calls == 0 {
		o.Calls = 60
	}
	if o.Rounds == 0 {
		o.Rounds = 1
	}
	if o.Story == nil {
		o.Story = io.Discard
	}
	if o.Traffic == nil {
		o.Traffic = []Traffic{{}}
	}
	o.Traffic = slices.Clone(o.Traffic)
	for i, t := range o.Traffic {
		o.Traffic[i] = t.withDefault()
	}
	if _, known := Sabotages[o.Sabotage]; o.Sabotage != "" && !known {
		return Report{}, fmt.Errorf("sabotage %q: expected one of %s", o.Sabotage, SabotageNames())
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	d := &drill{Options: o, lab: l, leads: map[path]string{}, heard: map[path]int{}, report: Report{Started: time.Now()}}
	err := d.run(ctx)
	for _, c := range d.calls {
		c.kill()
	}
	cancel()
	if d.sampler != nil {
		<-d.sampler.done
		var sampling error
		d.report.Samples, sampling = d.sampler.all()
		err = errors.Join(err, sampling)
	}
	return d.report, err
}

func (d *drill) say(format string, args ...any) {
	fmt.Fprintf(d.Story, "%7.1f s  %s\n", time.Since(d.report.Started).Seconds(), fmt.Sprintf(format, args...))
}

func (d *drill) run(ctx context.Context) (err error) {
	if err := os.MkdirAll(d.Dir, 0o755); err != nil {
		return err
	}
	if d.routes, err = d.lab.FollowRoutes(ctx); err != nil {
		return err
	}
	if err := d.lookAround(ctx); err != nil {
		return err
	}
	d.sampler = startSampler(ctx, d.lab)
	captures, err := d.startCaptures(ctx)
	if err != nil {
		return err
	}
	sites := d.lab.Topology().Sites
	from, to := sites[0].Name, sites[1].Name
	sabotage := Sabotages[d.Sabotage]
	if d.Sabotage != "" {
		d.say("SABOTAGE: %s", sabotage.what)
		if err := sabotage.prepare(ctx, d.lab); err != nil {
			return err
		}
	}
	if err := d.establish(ctx); err != nil {
		return err
	}
	if sabotage.forget {
		if err := waitForgotten(ctx, d.lab, d.Traffic, to); err != nil {
			return err
		}
	}
	if d.Before != nil {
		if err := d.Before(ctx); err != nil {
			return err
		}
		// Entries that it made a host lose come back at the next refresh.
		if err := d.lookAtEntries(ctx); err != nil {
			return err
		}
	}
	for range d.Rounds {
		for _, s := range []Switch{{From: from, To: to}, {From: to, To: from}} {
			if err := d.change(ctx, &s); err != nil {
				return err
			}
			d.report.Switches = append(d.report.Switches, s)
			if s.alive() < d.report.Established() {
				d.say("calls were lost: the drill ends here")
				return d.finish(ctx, captures)
			}
		}
	}
	return d.finish(ctx, captures)
}

// lookAround takes in what stands before the first call.
func (d *drill) lookAround(ctx context.Context) error {
	var owners map[string]string
	err := Until(ctx, switchTimeout, func() (err error) {
		if owners, err = d.owners(ctx); err == nil && len(owners) < len(d.lab.Topology().Sites) {
			err = fmt.Errorf("only these sites have an owner of the VIP: %v", owners)
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, s := range d.lab.Topology().Sites {
		d.say("%s owns the VIP in %s", owners[s.Name], s.Name)
		routes, err := d.lab.Routes(s.Edge())
		if err != nil {
			return err
		}
		for _, r := range routes {
			if n, _ := d.lab.Topology().Node(r.Session); n.Role == lab.RoleLVS {
				d.heard[path{r.Session, r.Prefix.Addr()}] = r.MED
				if r.Prefix.Addr() == lab.VIP {
					d.report.Before = append(d.report.Before, Step{VIP: lab.VIP, Site: s.Name, Node: r.Session, MED: r.MED})
				}
			}
		}
	}
	return nil
}

// owners are the LVS hosts that own the VIP, by site; a site without one is left out.
func (d *drill) owners(ctx context.Context) (map[string]string, error) {
	owners := map[string]string{}
	for _, s := range d.lab.Topology().Sites {
		owner, err := d.lab.Owner(ctx, s.Name)
		if err != nil {
			return nil, err
		}
		if owner != "" {
			owners[s.Name] = owner
		}
	}
	return owners, nil
}

// finish ends the calls and collects what the tools have counted.
func (d *drill) finish(ctx context.Context, captures []*capture) error {
	for i, c := range d.calls {
		if err := c.tellEnd(); err != nil {
			return fmt.Errorf("%s%w", d.report.of(i), err)
		}
	}
	for i, c := range d.calls {
		stats, err := c.end(ctx)
		if err != nil {
			return fmt.Errorf("%s%w", d.report.of(i), err)
		}
		d.report.Kinds[i].Stats = stats
		d.say("%sall calls told to end: %d said BYE and were answered, %d failed", d.report.of(i), stats.Successful, stats.Failed)
	}
	for _, c := range captures {
		streams, err := c.stop(ctx)
		if err != nil {
			return err
		}
		d.report.Streams = append(d.report.Streams, streams...)
	}
	for _, s := range d.report.Streams {
		d.report.Resets += s.Resets
	}
	return nil
}

// startCaptures captures at every node that calls.
func (d *drill) startCaptures(ctx context.Context) ([]*capture, error) {
	nodes := map[string]bool{}
	for _, t := range d.Traffic {
		nodes[t.From] = true
	}
	var all []*capture
	for _, node := range slices.Sorted(maps.Keys(nodes)) {
		c, err := startCapture(ctx, d.lab, node, d.Dir)
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}

// establish sets the calls up and looks at them in the kernel's table.
func (d *drill) establish(ctx context.Context) error {
	for _, t := range d.Traffic {
		what := "a TCP connection"
		if t.UDP {
			what = "a UDP port"
		}
		d.say("SIPp calls %s from %s: %d calls, each on %s of its own", t.VIP(), t.From, d.Calls, what)
		c, err := startCalls(ctx, d.lab, t, filepath.Join(d.Dir, "calls-"+t.String()), d.Calls, pauseOf(d.Calls*len(d.Traffic)))
		if err != nil {
			return err
		}
		d.calls = append(d.calls, c)
		d.report.Kinds = append(d.report.Kinds, Kind{Traffic: t})
	}
	for i, c := range d.calls {
		n, err := c.answered(ctx, time.Time{})
		if err != nil {
			return err
		}
		d.report.Kinds[i].Established = n.Total()
		if n.Total() < d.Calls {
			return fmt.Errorf("%sonly %d of %d calls were established: see %s", d.report.of(i), n.Total(), d.Calls, c.dir)
		}
		d.say("%s%s", d.report.of(i), n)
	}
	return d.lookAtEntries(ctx)
}

// lookAtEntries reports how many of the calls' connections every LVS host knows,
// once each knows all, or a host has had the time for that.
func (d *drill) lookAtEntries(ctx context.Context) error {
	for i := range d.report.Kinds {
		d.report.Kinds[i].Entries = map[string]int{}
	}
	for _, host := range d.lab.Topology().Role(lab.RoleLVS) {
		entries, err := d.synced(ctx, host.Name)
		if err != nil {
			return err
		}
		for i, n := range entries {
			d.report.Kinds[i].Entries[host.Name] = n
		}
	}
	for i, k := range d.report.Kinds {
		d.say("%sof the %d connections `ipvsadm -lnc` has: %s", d.report.of(i), d.Calls, counts(k.Entries))
	}
	return nil
}

// syncTime is how long a connection may take to be known everywhere, also one of
// which a host missed the first message, or that it has lost: the next refresh
// (10 s), the next packet (2 s, and more for many calls), the kernel's hold (2 s), and
// as much again.
const syncTime = 30 * time.Second

// synced counts a host's entries by kind once it has all, as an operator would before
// a switch: a connection that is not synced yet would be lost. A sabotaged host
// never gets them.
func (d *drill) synced(ctx context.Context, host string) (entries []int, err error) {
	limit := syncTime
	if d.Sabotage != "" {
		limit = 0
	}
	missing := Until(ctx, limit, func() error {
		if entries, err = connections(ctx, d.lab, host, d.Traffic); err != nil {
			return err
		}
		for i, n := range entries {
			if n < d.Calls {
				return fmt.Errorf("%s has %d of %d connections of %s", host, n, d.Calls, d.Traffic[i])
			}
		}
		return nil
	})
	if missing != nil && err == nil && ctx.Err() == nil {
		return entries, nil // the drill goes on, and its report tells what that costs
	}
	return entries, err
}

// connections counts a host's entries by kind.
func connections(ctx context.Context, l *lab.Lab, host string, kinds []Traffic) ([]int, error) {
	out, err := l.Output(ctx, host, "ipvsadm", "-lnc")
	if err != nil {
		return nil, err
	}
	entries := make([]int, len(kinds))
	for i, t := range kinds {
		from, _ := l.Topology().Node(t.From)
		entries[i] = t.entries(out, from)
	}
	return entries, nil
}

// change puts the target and follows what comes of it.
func (d *drill) change(ctx context.Context, s *Switch) error {
	var err error
	if s.Owners, err = d.owners(ctx); err != nil {
		return err
	}
	d.say("etcdctl put /medway/v1/target_state/%s %s", lab.VIPName, s.To)
	s.Put, s.Best = time.Now(), map[string]time.Time{}
	for _, p := range d.lab.Topology().Providers {
		s.Best[p.Router] = time.Time{}
	}
	if err := d.lab.SetTarget(ctx, lab.VIPName, s.To); err != nil {
		return err
	}
	if err := d.followSwitch(ctx, s); err != nil {
		return err
	}
	s.Calls = make([]SwitchCalls, len(d.calls))
	now := time.Now()
	for i, c := range d.calls {
		alive, err := c.answered(ctx, now)
		if err != nil {
			return err
		}
		s.Calls[i].Alive, d.report.Kinds[i].Final = alive, alive
		d.say("%scalls: %s, %d silent, %d strayed", d.report.of(i), alive, alive.Silent, alive.Strayed)
	}
	if d.After != nil {
		if err := d.After(ctx, *s); err != nil {
			return err
		}
	}
	var all errgroup.Group
	for i, t := range d.Traffic {
		all.Go(func() error {
			dir := filepath.Join(d.Dir, fmt.Sprintf("new-%s-%d-%s", t, len(d.report.Switches)+1, s.To))
			went, err := newCalls(ctx, d.lab, t, dir, newCallsPerSwitch)
			s.Calls[i].NewCalls = went
			if err != nil {
				return fmt.Errorf("%s%w", d.report.of(i), err)
			}
			return nil
		})
	}
	if err := all.Wait(); err != nil {
		d.say("new calls failed: %v", err) // the report says it too
	}
	for i, c := range s.Calls {
		d.say("%snew calls: %s", d.report.of(i), counts(c.NewCalls))
	}
	return nil
}

// switchTimeout is when a switch counts as not having happened.
const switchTimeout = time.Minute

// followSwitch reads the routers' logs until the new site is best with the MED
// of an active one and the old one is a backup, or the time is up.
func (d *drill) followSwitch(ctx context.Context, s *Switch) error {
	site := map[string]string{} // of an edge router
	for _, x := range d.lab.Topology().Sites {
		site[x.Edge()] = x.Name
	}
	timeout := time.After(switchTimeout)
	for !s.complete() {
		var e lab.RouteEvent
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timeout:
			d.say("after %s the switch is not complete", switchTimeout)
			return nil // the report says it
		case e = <-d.routes:
		}
		d.report.Routes = append(d.report.Routes, e)
		d.step(s, e, site)
	}
	return nil
}

// step takes in what a router's log says of a switch; site is that of an edge router.
// The story tells of the addresses that are called.
func (d *drill) step(s *Switch, e lab.RouteEvent, site map[string]string) {
	vip, after := e.Prefix.Addr(), e.Time.Sub(s.Put)
	if site := site[e.Router]; strings.HasPrefix(e.Session, site+"-lvs") {
		// Whatever else a site's hosts announce, its lowest MED is what counts upstream.
		before := d.best(site, vip)
		switch e.Kind {
		case lab.RouteReceived:
			d.heard[path{e.Session, vip}] = e.MED
		case lab.RouteWithdrawn:
			delete(d.heard, path{e.Session, vip})
		}
		if now := d.best(site, vip); now != before && after >= 0 {
			now.After = after
			s.Steps = append(s.Steps, now)
		}
	}
	if after < 0 {
		return
	}
	tell := func(format string, args ...any) {
		if slices.ContainsFunc(d.Traffic, func(t Traffic) bool { return t.VIP() == vip }) {
			d.say("  +%.2f s  %s%s", after.Seconds(), fmt.Sprintf(format, args...), d.forVIP(vip))
		}
	}
	provider, isProvider := d.lab.Topology().Provider(e.Router)
	switch {
	case e.Kind == lab.RouteReceived && site[e.Router] != "" && strings.HasPrefix(e.Session, site[e.Router]+"-lvs"):
		what := "a standby"
		if s.Owners[site[e.Router]] == e.Session {
			what = "the owner"
		}
		tell("%s hears MED %d from %s, %s", e.Router, e.MED, e.Session, what)
	case e.Kind == lab.RouteBest && isProvider:
		how := fmt.Sprintf("MED %d", e.MED)
		if provider.IgnoresMED {
			how = fmt.Sprintf("%d hops long", e.Path)
		}
		tell("%s's best path leads to %s, %s", e.Router, site[e.Session], how)
		d.leads[path{e.Router, vip}] = site[e.Session]
		all := !slices.ContainsFunc(vips, func(vip netip.Addr) bool { return d.leads[path{e.Router, vip}] != s.To })
		if all && s.Best[e.Router].IsZero() {
			s.Best[e.Router] = e.Time
		}
		if site[e.Session] == s.To && e.MED == active {
			s.Normal = e.Time
		}
	case e.Kind == lab.RouteBest:
		tell("%s's own best path has MED %d", e.Router, e.MED)
	}
}

// best is the lowest MED that a site's edge router has of its LVS hosts.
func (d *drill) best(site string, vip netip.Addr) Step {
	best := Step{VIP: vip, Site: site, MED: lab.NoMED}
	for p, med := range d.heard {
		if p.vip == vip && strings.HasPrefix(p.router, site+"-") && (best.Node == "" || med < best.MED) {
			best.Node, best.MED = p.router, med
		}
	}
	return best
}

// forVIP says which address a line of the story is about, where several are called.
func (d *drill) forVIP(vip netip.Addr) string {
	if slices.ContainsFunc(d.Traffic, func(t Traffic) bool { return t.VIP() != vip }) {
		return fmt.Sprintf(" (%s)", vip)
	}
	return ""
}
