package console

import (
	"fmt"
	"html/template"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"connectrpc.com/connect"

	"github.com/medway-lb/medway/coordinator/internal/operation"
	"github.com/medway-lb/medway/pkg/state"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// maxPlots is how many VIPs have their plots on the overview: each VIP's own page has
// them anyway.
const maxPlots = 20

var functions = template.FuncMap{
	"n":     grouped,
	"line":  state.Line,
	"clock": clock,
	"mark": func(l level) string {
		return map[level]string{good: "✓", underWay: "➜", notable: "▲", bad: "✕"}[l]
	},
	"word": func(l level) string {
		return map[level]string{good: "well", underWay: "under way", notable: "look", bad: "wrong"}[l]
	},
	"dict": func(pairs ...any) map[string]any {
		out := map[string]any{}
		for i := 0; i+1 < len(pairs); i += 2 {
			out[pairs[i].(string)] = pairs[i+1]
		}
		return out
	},
	"step": func(name string) string { return stepWords[name] },
	"plural": func(n int, one, many string) string {
		if n == 1 {
			return "1 " + one
		}
		return fmt.Sprintf("%d %s", n, many)
	},
}

func notFound(what, name string) error {
	return connect.NewError(connect.CodeNotFound, fmt.Errorf("%s %s does not exist", what, state.Quote(name)))
}

// button leads to the page of an act.
type button struct{ Label, Link, Look string }

func link(parts ...string) (path string) {
	for _, part := range parts {
		path += "/" + url.PathEscape(part)
	}
	return path
}

// switches are the buttons that move a VIP.
func (v visit) switches(vip *vipView) (out []button) {
	if !v.mayOperate(vip.Name) || vip.Move != nil && vip.Move.Running {
		return nil
	}
	for _, site := range vip.Others() {
		out = append(out, button{"Switch to " + site, link("vips", vip.Name, "switch") + "?" + url.Values{"to": {site}}.Encode(), "primary"})
	}
	return out
}

// acts are the other buttons of a VIP.
func (v visit) acts(vip *vipView) (out []button) {
	if !v.mayOperate(vip.Name) {
		return nil
	}
	if vip.Move != nil && vip.Move.Running {
		out = append(out, button{"Cancel: back to " + vip.Move.From, link("vips", vip.Name, "cancel"), "danger"})
	}
	if vip.Lock != "" {
		out = append(out, button{"Unlock", link("vips", vip.Name, "unlock"), ""})
	}
	if vip.Pause != "" && !vip.PausedAll {
		return append(out, button{"Resume", link("vips", vip.Name, "resume"), ""})
	}
	return append(out, button{"Pause", link("vips", vip.Name, "pause"), ""})
}

// vipCard is a VIP with what may be done to it.
type vipCard struct {
	*vipView
	Switches, Acts []button
}

func (c *Console) overview(_ http.ResponseWriter, _ *http.Request, v visit) (*page, error) {
	w, err := c.look(v)
	if err != nil {
		return nil, err
	}
	vips, nodes := w.vips(), w.nodes()
	body := struct {
		Level       level
		Says        string
		Wrong, Look []trouble
		VIPs        []vipCard
		More        bool // VIPs without plots
		Evacuations []evacuationView
		Acts        []button
	}{More: len(vips) > maxPlots}
	live := 0
	for _, n := range nodes {
		if w.alive(n.Name) {
			live++
		}
	}
	moving := 0
	for i, vip := range vips {
		if vip.Level == underWay {
			moving++
		}
		if i < maxPlots && c.Trend != nil {
			vip.Plots = plots(c.Trend(vip.Name), w.now)
		}
		body.VIPs = append(body.VIPs, vipCard{vip, v.switches(vip), v.acts(vip)})
	}
	for _, t := range w.troubles(vips, nodes) {
		if t.Level == bad {
			body.Wrong = append(body.Wrong, t)
		} else {
			body.Look = append(body.Look, t)
		}
	}
	for _, e := range w.evacuations() {
		if e.Result == "" {
			body.Evacuations = append(body.Evacuations, e)
		}
	}
	switch n := len(body.Wrong); {
	case n == 1:
		body.Level, body.Says = bad, "One thing is wrong"
	case n > 1:
		body.Level, body.Says = bad, fmt.Sprintf("%d things are wrong", n)
	case moving > 0:
		body.Level, body.Says = underWay, "A switchover is under way, and nothing is wrong"
	case len(vips) == 0:
		body.Level, body.Says = notable, "There are no VIPs yet"
	default:
		body.Level, body.Says = good, "All is well"
	}
	if n := len(vips); body.Level == good {
		body.Says += fmt.Sprintf(": %d of %d nodes live, and each of %d VIPs is served by its target site", live, len(nodes), n)
		if n == 1 {
			body.Says = fmt.Sprintf("All is well: %d of %d nodes live, and the VIP is served by its target site", live, len(nodes))
		}
	}
	if v.mayOperate("") {
		if _, paused := w.Pauses[""]; paused {
			body.Acts = append(body.Acts, button{"Resume all", "/all/resume", ""})
		} else {
			body.Acts = append(body.Acts, button{"Pause all", "/all/pause", ""})
		}
		for _, site := range w.sites() {
			body.Acts = append(body.Acts, button{"Site " + site, link("sites", site), ""})
		}
	}
	return &page{template: "overview", Title: body.Says, Section: "overview", Live: true, Body: body}, nil
}

// sites are those of VIPs and nodes.
func (w *view) sites() []string {
	names := map[string]bool{}
	for _, vip := range w.VIPs {
		for site := range vip.Groups {
			names[site] = true
		}
	}
	for _, n := range w.Nodes {
		names[n.Site] = true
	}
	return slices.Sorted(maps.Keys(names))
}

func (c *Console) vip(_ http.ResponseWriter, r *http.Request, v visit) (*page, error) {
	name := r.PathValue("vip")
	w, err := c.look(v)
	if err != nil {
		return nil, err
	}
	if _, ok := w.VIPs[name]; !ok {
		return nil, notFound("VIP", name)
	}
	vip := w.vip(name)
	if c.Trend != nil {
		vip.Plots = plots(c.Trend(name), w.now)
	}
	past, err := c.past(v, name, 5)
	if err != nil {
		return nil, err
	}
	p := &page{template: "vip", Title: name + ": " + vip.Says, Section: "overview", Live: true, Body: struct {
		vipCard
		Past []*medwayv1.PastEvent
		Now  time.Time
	}{vipCard{vip, v.switches(vip), v.acts(vip)}, past, w.now}}
	if vip.Move != nil && vip.Move.Running {
		p.Seconds = 3
	}
	return p, nil
}

// past is what was done last, the newest first.
func (c *Console) past(v visit, vip string, last uint32) ([]*medwayv1.PastEvent, error) {
	h, err := c.API.GetHistory(v.ctx, connect.NewRequest(&medwayv1.GetHistoryRequest{Vip: vip, Last: last}))
	if err != nil {
		return nil, err
	}
	slices.Reverse(h.Msg.Events)
	return h.Msg.Events, nil
}

func (c *Console) nodes(_ http.ResponseWriter, _ *http.Request, v visit) (*page, error) {
	w, err := c.look(v)
	if err != nil {
		return nil, err
	}
	return &page{template: "nodes", Title: "Nodes", Section: "nodes", Live: true, Body: w.nodes()}, nil
}

func (c *Console) node(_ http.ResponseWriter, r *http.Request, v visit) (*page, error) {
	name := r.PathValue("node")
	w, err := c.look(v)
	if err != nil {
		return nil, err
	}
	node := w.node(name)
	if node.Status == nil && node.Site == "" {
		return nil, notFound("node", name)
	}
	var acts []button
	switch {
	case !v.mayOperate(""):
	case node.Drained != "":
		acts = append(acts, button{"Undrain", link("nodes", name, "undrain"), "primary"})
	default:
		acts = append(acts, button{"Drain", link("nodes", name, "drain"), ""})
	}
	return &page{template: "node", Title: "Node " + name, Section: "nodes", Live: true, Body: struct {
		*nodeView
		Node state.Node
		Acts []button
		Now  time.Time
	}{node, w.Nodes[name], acts, w.now}}, nil
}

// evacuationView is the last evacuation of a site.
type evacuationView struct {
	Site string
	*medwayv1.Evacuation
	Moves []evacuationMove
}

type evacuationMove struct{ VIP, To, State string }

func (w *view) evacuations() (out []evacuationView) {
	for _, site := range slices.Sorted(maps.Keys(w.got.Evacuations)) {
		e := evacuationView{Site: site, Evacuation: w.got.Evacuations[site]}
		for _, m := range e.Evacuation.Moves {
			move := evacuationMove{m.Vip, m.To, "not begun"}
			r := w.got.Switchovers[m.Vip]
			switch {
			case m.Skipped != "":
				move.State = "left out: " + state.Line(m.Skipped)
			case m.Switchover == "":
			case r.GetId() != m.Switchover:
				move.State = "switched again since"
			case r.Result == "":
				move.State = "under way: " + r.Step
			default:
				move.State = r.Result
			}
			e.Moves = append(e.Moves, move)
		}
		out = append(out, e)
	}
	return out
}

func (c *Console) site(_ http.ResponseWriter, r *http.Request, v visit) (*page, error) {
	name := r.PathValue("site")
	w, err := c.look(v)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(w.sites(), name) {
		return nil, notFound("site", name)
	}
	body := struct {
		Name  string
		VIPs  []string
		Nodes []*nodeView
		Last  *evacuationView
		Acts  []button
		Now   time.Time
	}{Name: name, VIPs: w.targeted(name), Now: w.now}
	for _, n := range w.nodes() {
		if n.Site == name {
			body.Nodes = append(body.Nodes, n)
		}
	}
	running := false
	for _, e := range w.evacuations() {
		if e.Site == name {
			body.Last, running = &e, e.Result == ""
		}
	}
	switch {
	case !v.mayOperate(""):
	case running:
		body.Acts = append(body.Acts, button{"Cancel the evacuation", link("sites", name, "cancel"), "danger"})
	case len(body.VIPs) > 0:
		body.Acts = append(body.Acts, button{"Evacuate " + name, link("sites", name, "evacuate"), "danger"})
	}
	return &page{template: "site", Title: "Site " + name, Section: "overview", Live: true, Body: body}, nil
}

// targeted are the VIPs whose target is a site.
func (w *view) targeted(site string) (vips []string) {
	for _, vip := range slices.Sorted(maps.Keys(w.VIPs)) {
		if w.Targets[vip].Site == site {
			vips = append(vips, vip)
		}
	}
	return vips
}

func (c *Console) pools(_ http.ResponseWriter, _ *http.Request, v visit) (*page, error) {
	w, err := c.look(v)
	if err != nil {
		return nil, err
	}
	type backend struct {
		Name, Site, Address string
		// Drained says by whom and why; "": it is not.
		Drained string
	}
	type pool struct {
		Name string
		state.Pool
		Backends []backend
		VIPs     []string
	}
	var all []*pool
	for _, name := range slices.Sorted(maps.Keys(w.Pools)) {
		p := &pool{Name: name, Pool: w.Pools[name]}
		for key, b := range w.Backends {
			if key.Pool == name {
				address := ""
				for _, a := range []fmt.Stringer{b.IPv4, b.IPv6} {
					if text := a.String(); text != "invalid IP" {
						address += " " + text
					}
				}
				drained := ""
				if d, is := w.BackendDrains[key]; is {
					drained = operation.DescribeOrder(d.Order)
				}
				p.Backends = append(p.Backends, backend{key.Name, b.Site, address, drained})
			}
		}
		slices.SortFunc(p.Backends, func(a, b backend) int {
			return slices.Compare([]string{a.Site, a.Name}, []string{b.Site, b.Name})
		})
		for _, vip := range slices.Sorted(maps.Keys(w.VIPs)) {
			if slices.ContainsFunc(w.VIPs[vip].Services, func(s state.Service) bool { return s.Pool == name }) {
				p.VIPs = append(p.VIPs, vip)
			}
		}
		all = append(all, p)
	}
	return &page{template: "pools", Title: "Pools and backends", Section: "pools", Live: true, Body: all}, nil
}

func (c *Console) history(_ http.ResponseWriter, r *http.Request, v visit) (*page, error) {
	vip, last := r.FormValue("vip"), uint32(50)
	if text := r.FormValue("last"); text != "" {
		n, err := strconv.ParseUint(text, 10, 32)
		if err != nil || n < 1 || n > 1000 {
			return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("field last: value %s: expected 1 to 1000", state.Quote(text)))
		}
		last = uint32(n)
	}
	events, err := c.past(v, vip, last)
	if err != nil {
		return nil, err
	}
	w, err := c.look(v)
	if err != nil {
		return nil, err
	}
	return &page{template: "history", Title: "History", Section: "history", Body: struct {
		VIP    string
		Last   uint32
		VIPs   []string
		Events []*medwayv1.PastEvent
		Now    time.Time
	}{vip, last, slices.Sorted(maps.Keys(w.VIPs)), events, w.now}}, nil
}
