package drill

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/medway-lb/medway/integration/lab"
	"github.com/medway-lb/medway/integration/sbc/sipp"
)

// Options say what a drill does.
type Options struct {
	// Calls that are held throughout; default 60.
	Calls int
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
}

// newCallsPerSwitch is how many calls are made to see where new ones land.
const newCallsPerSwitch = 10

// Report is what a drill saw.
type Report struct {
	Established int
	// Entries are distinct connections in `ipvsadm -lnc` of the first site.
	Entries  int
	Switches []Switch
	// Final is how the calls stood before they were told to end, Stats SIPp's
	// own totals after.
	Final   Count
	Stats   sipp.Stats
	Resets  int
	Streams []Stream

	Started time.Time
	Samples []Sample
	Routes  []lab.RouteEvent
}

// Switch is one switchover.
type Switch struct {
	From, To string
	Put      time.Time
	// Best is when the transit's best path led to the new site, Normal when it
	// did so with the MED of an active site.
	Best, Normal time.Time
	// Steps are the MEDs as the edge routers heard them, in order.
	Steps []Step
	// Alive is how the calls stood when all had been asked again, NewCalls
	// where new ones went.
	Alive    Count
	NewCalls map[string]int
}

// Step is a MED that an edge router heard from an LVS host of its site.
type Step struct {
	After time.Duration // since the put
	Site  string
	MED   int
}

// Lost is the number of established calls that did not live to the end.
func (r Report) Lost() int { return r.Established - r.Stats.Successful }

// Faults says all that a good drill does not have.
func (r Report) Faults() []string {
	var out []string
	fault := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	if r.Lost() != 0 || r.Stats.Failed != 0 {
		fault("%d of %d established calls were lost, SIPp counts %d failed %v", r.Lost(), r.Established, r.Stats.Failed, r.Stats.Why)
	}
	if r.Final.Strayed != 0 {
		fault("%d calls got an answer from another backend than their own", r.Final.Strayed)
	}
	if r.Resets != 0 {
		fault("clients were sent %d TCP resets", r.Resets)
	}
	if r.Entries < r.Established {
		fault("%d entries in the first site's connection table for %d calls", r.Entries, r.Established)
	}
	for _, s := range r.Switches {
		for backend, n := range s.NewCalls {
			if !strings.HasPrefix(backend, s.To+"-") {
				fault("after the switch to %s, %d new calls went to %s", s.To, n, backend)
			}
		}
		if len(s.NewCalls) == 0 {
			fault("after the switch to %s, no new call succeeded", s.To)
		}
		if why := s.disorder(); why != "" {
			fault("switch to %s: %s", s.To, why)
		}
	}
	if len(r.Streams) < r.Established {
		fault("the capture shows %d connections for %d calls", len(r.Streams), r.Established)
	}
	for _, s := range r.Streams {
		if !s.Continuous() {
			fault("on the wire: %s", s)
		}
	}
	return out
}

// The MEDs of the default ladder that a switch is read by.
const force, active, backup = 50, 100, 500

// disorder says where a switch left the order of PROTOCOL: the new site forces
// 50 while the old one stands at 100, the old one goes to its backup value,
// the new one normalises to 100.
func (s Switch) disorder() string {
	stage, old := 0, active
	for _, step := range s.Steps {
		switch {
		case stage == 0 && step.Site == s.To && step.MED == force:
			if old != active {
				return fmt.Sprintf("%s was at %d when %s forced %d", s.From, old, s.To, force)
			}
			stage = 1
		case stage == 1 && step.Site == s.From && step.MED >= backup:
			stage = 2
		case stage == 2 && step.Site == s.To && step.MED == active:
			stage = 3
		case step.Site == s.From:
			old = step.MED
		}
	}
	if stage != 3 {
		return fmt.Sprintf("the steps were %v, expected %s %d, %s at least %d, %s %d", s.Steps, s.To, force, s.From, backup, s.To, active)
	}
	return ""
}

// complete says whether the new site is the usual active one and the old one a
// backup, in whatever order it came about.
func (s Switch) complete() bool {
	last := map[string]int{}
	for _, step := range s.Steps {
		last[step.Site] = step.MED
	}
	return !s.Normal.IsZero() && last[s.To] == active && last[s.From] >= backup
}

func (s Step) String() string {
	return fmt.Sprintf("%s %d (%.2f s)", s.Site, s.MED, s.After.Seconds())
}

// drill is one under way.
type drill struct {
	Options
	lab     *lab.Lab
	calls   *Calls
	sampler *sampler
	routes  <-chan lab.RouteEvent
	report  Report
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
	if _, known := Sabotages[o.Sabotage]; o.Sabotage != "" && !known {
		return Report{}, fmt.Errorf("sabotage %q: expected one of %s", o.Sabotage, SabotageNames())
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	d := &drill{Options: o, lab: l, report: Report{Started: time.Now()}}
	err := d.run(ctx)
	if d.calls != nil {
		d.calls.kill()
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
	d.sampler = startSampler(ctx, d.lab)
	capture, err := startCapture(ctx, d.lab, d.Dir)
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
	if err := d.establish(ctx, from); err != nil {
		return err
	}
	if sabotage.forget {
		if err := waitForgotten(ctx, d.lab, to); err != nil {
			return err
		}
	}
	if d.Before != nil {
		if err := d.Before(ctx); err != nil {
			return err
		}
	}
	for range d.Rounds {
		for _, s := range []Switch{{From: from, To: to}, {From: to, To: from}} {
			if err := d.change(ctx, &s); err != nil {
				return err
			}
			d.report.Switches = append(d.report.Switches, s)
			if s.Alive.Total() < d.report.Established {
				d.say("calls were lost: the drill ends here")
				return d.finish(ctx, capture)
			}
		}
	}
	return d.finish(ctx, capture)
}

// finish ends the calls and collects what the tools have counted.
func (d *drill) finish(ctx context.Context, capture *capture) (err error) {
	if d.report.Stats, err = d.calls.end(ctx); err != nil {
		return err
	}
	d.say("all calls told to end: %d said BYE and were answered, %d failed", d.report.Stats.Successful, d.report.Stats.Failed)
	d.report.Streams, err = capture.stop(ctx)
	for _, s := range d.report.Streams {
		d.report.Resets += s.Resets
	}
	return err
}

// establish sets the calls up and looks at them in the kernel's table.
func (d *drill) establish(ctx context.Context, site string) (err error) {
	d.say("SIPp calls %s from %s: %d calls, each on a TCP connection of its own", lab.VIP, lab.Clients, d.Calls)
	if d.calls, err = startCalls(ctx, d.lab, filepath.Join(d.Dir, "calls"), d.Calls); err != nil {
		return err
	}
	n, err := d.calls.answered(ctx, time.Time{})
	if err != nil {
		return err
	}
	d.report.Established = n.Total()
	if d.report.Established < d.Calls {
		return fmt.Errorf("only %d of %d calls were established: see %s", n.Total(), d.Calls, d.calls.dir)
	}
	d.say("%s", n)
	for _, host := range d.lab.Topology().Role(lab.RoleLVS) {
		entries, err := d.synced(ctx, host.Name)
		if err != nil {
			return err
		}
		d.say("%s: `ipvsadm -lnc` has %d of the %d connections", host.Name, entries, d.Calls)
		if host.Site == site {
			d.report.Entries = max(d.report.Entries, entries)
		}
	}
	return nil
}

// syncTime is how long a new connection may take to be known everywhere: the
// kernel holds sync messages back for up to 2 s.
const syncTime = 15 * time.Second

// synced counts a host's entries once it has all, as an operator would before
// a switch: a connection that is not synced yet would be lost. A sabotaged host
// never gets them.
func (d *drill) synced(ctx context.Context, host string) (entries int, err error) {
	limit := syncTime
	if d.Sabotage != "" {
		limit = 0
	}
	missing := Until(ctx, limit, func() error {
		var out string
		if out, err = d.lab.Output(ctx, host, "ipvsadm", "-lnc"); err != nil {
			return err
		}
		if entries = establishedEntries(out); entries < d.Calls {
			return fmt.Errorf("%s has %d of %d connections", host, entries, d.Calls)
		}
		return nil
	})
	if missing != nil && err == nil && ctx.Err() == nil {
		return entries, nil // the drill goes on, and its report tells what that costs
	}
	return entries, err
}

// establishedEntries counts distinct clients in the output of `ipvsadm -lnc`.
func establishedEntries(out string) int {
	seen := map[string]bool{}
	for line := range strings.Lines(out) {
		// TCP 14:57 ESTABLISHED 198.51.100.10:40001 203.0.113.10:5060 10.1.0.21:5060
		if f := strings.Fields(line); len(f) == 6 && f[0] == "TCP" && f[2] == "ESTABLISHED" {
			seen[f[3]] = true
		}
	}
	return len(seen)
}

// change puts the target and follows what comes of it.
func (d *drill) change(ctx context.Context, s *Switch) error {
	d.say("etcdctl put /medway/v1/target_state/%s %s", lab.VIPName, s.To)
	s.Put = time.Now()
	if err := d.lab.SetTarget(ctx, lab.VIPName, s.To); err != nil {
		return err
	}
	if err := d.followSwitch(ctx, s); err != nil {
		return err
	}
	var err error
	if s.Alive, err = d.calls.answered(ctx, time.Now()); err != nil {
		return err
	}
	d.report.Final = s.Alive
	d.say("calls: %s, %d silent, %d strayed", s.Alive, s.Silent(), s.Alive.Strayed)
	dir := filepath.Join(d.Dir, fmt.Sprintf("new-%d-%s", len(d.report.Switches)+1, s.To))
	s.NewCalls, err = newCalls(ctx, d.lab, dir, newCallsPerSwitch)
	if err != nil {
		d.say("new calls failed: %v", err)
		return nil // the report says it
	}
	d.say("new calls: %s", counts(s.NewCalls))
	return nil
}

// Silent is how many calls had no answer after the switch.
func (s Switch) Silent() int { return s.Alive.Silent }

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
		after := e.Time.Sub(s.Put)
		if after < 0 {
			continue
		}
		switch {
		case e.Kind == lab.RouteReceived && site[e.Router] != "" && strings.HasPrefix(e.Session, site[e.Router]+"-lvs"):
			s.Steps = append(s.Steps, Step{after, site[e.Router], e.MED})
			d.say("  +%.2f s  %s hears MED %d from %s", after.Seconds(), e.Router, e.MED, e.Session)
		case e.Kind == lab.RouteBest && e.Router == lab.Transit:
			d.say("  +%.2f s  transit's best path leads to %s, MED %d", after.Seconds(), site[e.Session], e.MED)
			if site[e.Session] == s.To && s.Best.IsZero() {
				s.Best = e.Time
			}
			if site[e.Session] == s.To && e.MED == 100 {
				s.Normal = e.Time
			}
		case e.Kind == lab.RouteBest:
			d.say("  +%.2f s  %s's own best path has MED %d", after.Seconds(), e.Router, e.MED)
		}
	}
	return nil
}
