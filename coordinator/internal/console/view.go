package console

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/medway-lb/medway/coordinator/internal/operation"
	"github.com/medway-lb/medway/pkg/state"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// freshTime is how old live numbers may be to count more than a node's status.
const freshTime = 10 * time.Second

// level is how bad something is. Each has a mark and a word beside its colour.
type level string

const (
	good     level = "ok"
	underWay level = "busy"
	notable  level = "look" // to be looked at, some time
	bad      level = "bad"
)

// view is all that is known, for the pages to pick from.
type view struct {
	*operation.Contents
	got *medwayv1.GetStateResponse
	// said are the statuses by node, with the live numbers where they are fresh.
	said map[string]*medwayv1.Status
	now  time.Time
}

func (c *Console) look(v visit) (*view, error) {
	have, got, err := c.API.Look(v.ctx)
	if err != nil {
		return nil, err
	}
	out := &view{Contents: have, got: got, said: maps.Clone(got.Nodes), now: c.now()}
	for node, live := range got.Live {
		at, err := time.Parse(time.RFC3339Nano, live.At)
		if err == nil && out.now.Sub(at) <= freshTime && live.GetStatus().GetNode() == node {
			out.said[node] = live.Status
		}
	}
	return out, nil
}

func (w *view) alive(node string) bool {
	_, alive := w.Alive[node]
	return alive
}

// trouble is something that a person should see.
type trouble struct {
	Level       level
	Where, What string
	// Link is a page about it, "" for none.
	Link string
}

// vipView is a VIP in words and numbers.
type vipView struct {
	Name      string
	Addresses []string
	Services  []string
	Level     level
	// Says is its state in a sentence.
	Says string
	// Active is the site that carries its traffic, "" for none, Target the one that
	// should.
	Active, Target string
	Sites          []siteView
	// Automatic is whether it may switch by itself.
	Automatic   string
	Lock, Pause string
	PausedAll   bool
	Move        *moveView // the last switchover, nil for none
	Plots       []plot
	Troubles    []trouble
}

// Others are the sites that it can be switched to.
func (v *vipView) Others() (sites []string) {
	for _, s := range v.Sites {
		if s.Name != v.Target {
			sites = append(sites, s.Name)
		}
	}
	return sites
}

// Site is one of its sites.
func (v *vipView) Site(name string) siteView {
	for _, s := range v.Sites {
		if s.Name == name {
			return s
		}
	}
	return siteView{Name: name}
}

// siteView is a VIP at a site.
type siteView struct {
	Name           string
	Active, Target bool
	Nodes          []vipNode
	// Told says that a node has told numbers. Connections are those that the node knows
	// that knows most.
	Told        bool
	Connections uint64
	Packets     uint64
	// Parity is how many percent of the active site's connections are known here; "" there.
	Parity    string
	ParityLow bool
	Backends  int
}

// vipNode is a VIP on a node.
type vipNode struct {
	Node, Role, MED, Claim, Reason string
	Connections                    uint64
	Packets                        string
	Owner, Alive                   bool
}

// vip is a VIP as it is now.
func (w *view) vip(name string) *vipView {
	vip := w.VIPs[name]
	v := &vipView{Name: name, Target: w.Targets[name].Site, Automatic: w.automatic(name)}
	for _, a := range vip.Addresses {
		v.Addresses = append(v.Addresses, a.String())
	}
	for _, s := range vip.Services {
		v.Services = append(v.Services, fmt.Sprintf("%s %d to pool %s", s.Protocol, s.Port, s.Pool))
	}
	lowest := uint32(0)
	for _, site := range slices.Sorted(maps.Keys(vip.Groups)) {
		s := w.siteOf(name, site)
		for _, n := range w.NodesOf(site, vip.Groups[site]) {
			if told := w.on(n, name); told != nil && told.Med != nil && w.alive(n) && (v.Active == "" || *told.Med < lowest) {
				v.Active, lowest = site, *told.Med
			}
		}
		v.Sites = append(v.Sites, s)
	}
	for i := range v.Sites {
		v.Sites[i].Active, v.Sites[i].Target = v.Sites[i].Name == v.Active, v.Sites[i].Name == v.Target
	}
	v.compare(w.Settings.Parity)
	if lock, locked := w.Locks[name]; locked {
		v.Lock = state.Line(operation.DescribeLock(lock))
	}
	if order, paused := w.Pauses[""]; paused {
		v.Pause, v.PausedAll = state.Line(operation.DescribeOrder(order)), true
	}
	if order, paused := w.Pauses[name]; paused {
		v.Pause, v.PausedAll = state.Line(operation.DescribeOrder(order)), false
	}
	if r, ok := w.got.Switchovers[name]; ok {
		v.Move = w.move(r)
	}
	v.judge()
	return v
}

// siteOf is what the nodes of a site tell of a VIP.
func (w *view) siteOf(name, site string) siteView {
	vip := w.VIPs[name]
	s := siteView{Name: site}
	owner, _ := w.Owner(site, name)
	for _, n := range w.NodesOf(site, vip.Groups[site]) {
		node := vipNode{Node: n, Role: "has not told", MED: "none", Packets: "–", Owner: owner.Node == n, Alive: w.alive(n)}
		if told := w.on(n, name); told != nil {
			node.Role, node.Claim, node.Reason = state.Line(told.Role), told.Claim, state.Line(told.Reason)
			if told.Med != nil {
				node.MED = fmt.Sprint(*told.Med)
			}
			node.Connections = told.ActiveConnections + told.InactiveConnections
			if told.PacketsPerSecond != nil {
				node.Packets = grouped(*told.PacketsPerSecond)
			}
			if node.Alive {
				s.Told = true
				s.Connections = max(s.Connections, node.Connections)
				s.Packets += told.GetPacketsPerSecond()
			}
		}
		s.Nodes = append(s.Nodes, node)
	}
	pools := map[string]bool{}
	for _, service := range vip.Services {
		pools[service.Pool] = true
	}
	for key, b := range w.Backends {
		if b.Site == site && pools[key.Pool] && !b.Drained {
			s.Backends++
		}
	}
	return s
}

// on is what a node tells of a VIP, nil for nothing.
func (w *view) on(node, vip string) *medwayv1.VIPStatus {
	for _, v := range w.said[node].GetVips() {
		if v.Vip == vip {
			return v
		}
	}
	return nil
}

// compare says how many connections each site knows of those of the active one.
func (v *vipView) compare(least uint32) {
	active := v.Site(v.Active)
	for i := range v.Sites {
		s := &v.Sites[i]
		if s.Active || !s.Told || !active.Told {
			continue
		}
		percent := uint64(100)
		if active.Connections > 0 {
			percent = min(100, s.Connections*100/active.Connections)
		}
		s.Parity = fmt.Sprintf("%d %%", percent)
		s.ParityLow = percent < uint64(least)
	}
}

// automatic says whether a VIP may switch by itself.
func (w *view) automatic(vip string) string {
	_, locked := w.Locks[vip]
	switch {
	case !w.VIPs[vip].Automatic.Enabled:
		return "off"
	case locked:
		return "off: locked"
	case w.Paused(vip):
		return "off: paused"
	}
	return "on"
}

// judge says in a sentence how it is, and what a person should look at.
func (v *vipView) judge() {
	moving := v.Move != nil && v.Move.Running
	link := "/vips/" + v.Name
	switch {
	case moving:
		v.Level, v.Says = underWay, fmt.Sprintf("Moving from %s to %s", v.Move.From, v.Move.To)
	case v.Active == "":
		v.Level, v.Says = bad, "Down: no living node announces it"
	case v.Target == "":
		v.Level, v.Says = bad, fmt.Sprintf("In %s, and no target is set", v.Active)
	case v.Active != v.Target:
		v.Level, v.Says = bad, fmt.Sprintf("In %s, but its target is %s", v.Active, v.Target)
	default:
		v.Level, v.Says = good, "Served by "+v.Active
	}
	add := func(l level, format string, args ...any) {
		v.Troubles = append(v.Troubles, trouble{l, v.Name, fmt.Sprintf(format, args...), link})
	}
	if v.Level == bad {
		add(bad, "%s", v.Says)
	}
	for _, s := range v.Sites {
		ready := slices.ContainsFunc(s.Nodes, func(n vipNode) bool { return n.Alive && n.MED != "none" })
		switch {
		case v.Active == "" || s.Active || moving:
		case !ready:
			add(bad, "%s could not take over: no living node there announces it", s.Name)
		case s.ParityLow:
			add(notable, "%s knows only %s of the connections of %s: a switch there would lose calls", s.Name, s.Parity, v.Active)
		}
	}
	if v.Lock != "" {
		add(notable, "locked, nothing switches it automatically: %s", v.Lock)
	}
	if v.Pause != "" && !v.PausedAll {
		add(notable, "paused, nothing switches it automatically: %s", v.Pause)
	}
	if m := v.Move; m != nil && m.Result == "failed" {
		add(notable, "its last switchover failed: %s", m.Why)
	}
}

// nodeView is a node.
type nodeView struct {
	Name, Site, Version string
	Level               level
	// Word is its state, Says more of it.
	Word, Says string
	Up, Of     int // sessions
	Status     *medwayv1.Status
	Sessions   []*medwayv1.Session
	Drained    string
	Cold       bool
	Since      string
	Troubles   []trouble
}

func (w *view) node(name string) *nodeView {
	n, alive := w.Nodes[name], w.alive(name)
	said := w.said[name]
	v := &nodeView{Name: name, Site: cmp.Or(n.Site, said.GetSite()), Version: cmp.Or(n.Version, said.GetVersion()), Status: said, Sessions: said.GetSessions(), Cold: w.Alive[name].Cold}
	link := "/nodes/" + name
	add := func(l level, what string) {
		v.Troubles = append(v.Troubles, trouble{l, name, state.Line(what), link})
	}
	v.Of = len(v.Sessions)
	for _, s := range v.Sessions {
		if s.Established {
			v.Up++
		} else if alive {
			add(bad, "no BGP session with "+s.Neighbor+because(s.Error))
		}
	}
	if order, drained := w.Drains[name]; drained {
		v.Drained = state.Line(operation.DescribeOrder(order))
		add(notable, "drained "+v.Drained)
	}
	switch {
	case !alive:
		v.Level, v.Word, v.Says = bad, "Silent", "Its agent does not run, or can't reach etcd"
		add(bad, "silent: its agent does not run, or can't reach etcd")
	case v.Drained != "":
		v.Level, v.Word, v.Says = notable, "Drained", "It gives its VIPs to others and announces nothing"
	case v.Cold:
		v.Level, v.Word, v.Says = notable, "Cold", "Its connection table was lost, and has not caught up"
		add(notable, "cold: its connection table was lost, and has not caught up")
	default:
		v.Level, v.Word = good, "Lives"
	}
	if alive {
		v.Since = w.Alive[name].Since.UTC().Format(time.RFC3339)
	}
	if d := said.GetFromDisk(); d != "" && alive {
		add(bad, "acts on its snapshot on disk, saved "+d)
	}
	for _, f := range said.GetFaults() {
		add(bad, f.Subject+": "+f.Reason)
	}
	return v
}

func because(why string) string {
	if why == "" {
		return ""
	}
	return ": " + why
}

// troubles are all of them, the worst first, for people who read no further than the
// first lines.
func (w *view) troubles(vips []*vipView, nodes []*nodeView) (out []trouble) {
	for _, v := range vips {
		out = append(out, v.Troubles...)
	}
	for _, n := range nodes {
		out = append(out, n.Troubles...)
	}
	for _, f := range w.got.Faults {
		out = append(out, trouble{bad, state.Line(f.Subject), state.Line(f.Reason), ""})
	}
	for _, f := range w.got.Notices {
		out = append(out, trouble{notable, state.Line(f.Subject), state.Line(f.Reason), ""})
	}
	if order, paused := w.Pauses[""]; paused {
		out = append(out, trouble{notable, "all VIPs", "paused, nothing is switched automatically: " + state.Line(operation.DescribeOrder(order)), ""})
	}
	slices.SortStableFunc(out, func(a, b trouble) int { return cmp.Compare(severity[b.Level], severity[a.Level]) })
	return slices.Compact(out)
}

var severity = map[level]int{good: 0, notable: 1, underWay: 2, bad: 3}

// vips are all, the worst first.
func (w *view) vips() (all []*vipView) {
	for _, name := range slices.Sorted(maps.Keys(w.VIPs)) {
		all = append(all, w.vip(name))
	}
	slices.SortStableFunc(all, func(a, b *vipView) int { return cmp.Compare(severity[b.Level], severity[a.Level]) })
	return all
}

func (w *view) nodes() (all []*nodeView) {
	for _, name := range operation.NodeNames(w.Snapshot, w.Said) {
		all = append(all, w.node(name))
	}
	return all
}

// moveView is a planned switchover.
type moveView struct {
	*medwayv1.Switchover
	Running bool
	Level   level
	Steps   []stepView
	Done    int // steps
	Took    string
}

// stepView is a step, done, under way or to come.
type stepView struct {
	Name, Note, Took string
	Done, Now        bool
}

// steps are those of a switchover that goes its way, in order.
var steps = []string{"preflight", "put target", "force", "raise", "normalise", "verify"}

// stepWords say what a step does.
var stepWords = map[string]string{
	"preflight":  "look whether it can be done",
	"put target": "make the new site the target",
	"force":      "the new site announces a better route",
	"raise":      "the old site goes back behind it",
	"normalise":  "the new site goes to its usual MED",
	"verify":     "packets come to the new site",
	"drain":      "the old site's backends get no new connections until they are empty",
	"return":     "back to where it came from",
}

func (w *view) move(r *medwayv1.Switchover) *moveView {
	m := &moveView{Switchover: r, Running: r.Result == "", Took: took(r.Started, r.Ended, w.now)}
	seen := map[string]bool{}
	for _, s := range r.Steps {
		seen[s.Name] = true
		done := s.Ended != "" || !m.Running
		if done {
			m.Done++
		}
		m.Steps = append(m.Steps, stepView{Name: s.Name, Note: state.Line(s.Note), Took: took(s.Began, s.Ended, w.now), Done: done, Now: !done})
	}
	toCome := steps
	if r.Drain != nil {
		toCome = append(toCome[:len(toCome):len(toCome)], "drain")
	}
	for _, name := range toCome {
		if m.Running && !seen[name] && !seen["return"] {
			m.Steps = append(m.Steps, stepView{Name: name})
		}
	}
	switch r.Result {
	case "":
		m.Level = underWay
	case "done":
		m.Level = good
	default:
		m.Level = bad
	}
	return m
}

// took is how long something has lasted; of what has not ended, until now.
func took(began, ended string, now time.Time) string {
	from, err := time.Parse(time.RFC3339Nano, began)
	if err != nil {
		return ""
	}
	until, err := time.Parse(time.RFC3339Nano, ended)
	if err != nil {
		until = now
	}
	d := max(0, until.Sub(from))
	if d < 10*time.Second {
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

// clock is a time of day of a stored time, with the date where it is not today's.
func clock(text string, now time.Time) string {
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return strings.TrimSpace(state.Line(text))
	}
	if t = t.UTC(); t.Format(time.DateOnly) != now.UTC().Format(time.DateOnly) {
		return t.Format("2006-01-02 15:04:05")
	}
	return t.Format("15:04:05")
}
