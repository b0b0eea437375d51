package console

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"connectrpc.com/connect"

	"github.com/medway-lb/medway/coordinator/internal/auth"
	"github.com/medway-lb/medway/pkg/plan"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// form is what every page of an act has.
type form struct {
	Title, Lead string
	Button      string
	// Danger asks for Confirm to be typed.
	Danger  bool
	Confirm string
	// Must says that a reason is needed.
	Must   bool
	Reason string
	// Error is why it was not done.
	Error string
	Back  string
	// Preview is what it would change, a line for each key; Notes are what to know
	// before.
	Preview, Notes []string
}

// read takes what a person has filled in, and says what is missing yet.
func (f *form) read(r *http.Request) (complete bool) {
	f.Reason = strings.TrimSpace(r.PostFormValue("reason"))
	switch {
	case f.Danger && strings.TrimSpace(r.PostFormValue("confirm")) != f.Confirm:
		f.Error = fmt.Sprintf("To confirm, type %s: nothing was done yet", f.Confirm)
	case f.Must && f.Reason == "":
		f.Error = "Say why in a few words: nothing was done yet"
	}
	return f.Error == ""
}

// deed is an act that is one change of etcd, or one order.
type deed struct {
	form
	vip string // "": all
	// do does it, or with dry looks what it would do.
	do func(ctx context.Context, reason string, dry bool) (*medwayv1.ChangeResponse, error)
}

// change is a method of the API that changes one thing.
type change[R any] func(context.Context, *connect.Request[R]) (*connect.Response[medwayv1.ChangeResponse], error)

func doing[R any](call change[R], request func(reason string, dry bool) *R) func(context.Context, string, bool) (*medwayv1.ChangeResponse, error) {
	return func(ctx context.Context, reason string, dry bool) (*medwayv1.ChangeResponse, error) {
		out, err := call(ctx, connect.NewRequest(request(reason, dry)))
		if err != nil {
			return nil, err
		}
		return out.Msg, nil
	}
}

// deed is what a path asks for; false: there is no such act.
func (c *Console) deed(r *http.Request) (d deed, known bool) {
	vip, node, site, what := r.PathValue("vip"), r.PathValue("node"), r.PathValue("site"), r.PathValue("act")
	kind, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	d.vip = vip
	ofVIP := func(reason string, dry bool) *medwayv1.VIPRequest {
		return &medwayv1.VIPRequest{Vip: vip, All: kind == "all", Reason: reason, DryRun: dry}
	}
	ofNode := func(reason string, dry bool) *medwayv1.NodeRequest {
		return &medwayv1.NodeRequest{Node: node, Reason: reason, DryRun: dry}
	}
	subject := vip
	switch kind {
	case "vips":
		d.Back = link("vips", vip)
	case "nodes":
		d.Back = link("nodes", node)
	case "sites":
		d.Back = link("sites", site)
	default:
		d.Back, subject = "/", "all VIPs"
	}
	switch kind + " " + what {
	case "vips pause", "all pause":
		d.form = form{Title: "Pause " + subject, Lead: "Nothing switches " + subject + " automatically until you resume. Failover inside a site goes on, and so does what you switch yourself.",
			Button: "Pause " + subject, Must: true, Back: d.Back}
		d.do = doing(c.API.Pause, ofVIP)
	case "vips resume", "all resume":
		d.form = form{Title: "Resume " + subject, Lead: "It may switch automatically again.", Button: "Resume " + subject, Back: d.Back}
		d.do = doing(c.API.Resume, ofVIP)
	case "vips unlock":
		d.form = form{Title: "Unlock " + vip, Lead: "An automatic switchover has locked it. Find out why it was switched before you let it switch again.", Button: "Unlock " + vip, Back: d.Back}
		d.do = doing(c.API.Unlock, ofVIP)
	case "nodes drain":
		d.form = form{Title: "Drain " + node, Lead: "It gives its VIPs to other nodes and then announces nothing, until you undrain it.", Button: "Drain " + node, Back: d.Back}
		d.do = doing(c.API.Drain, ofNode)
	case "nodes undrain":
		d.form = form{Title: "Undrain " + node, Lead: "It comes back into service.", Button: "Undrain " + node, Back: d.Back}
		d.do = doing(c.API.Undrain, ofNode)
	case "vips cancel":
		d.form = form{Title: "Cancel the switchover of " + vip, Lead: "The target is put back to the site that it came from, and the traffic goes back there.", Button: "Cancel the switchover", Back: d.Back}
		d.do = func(ctx context.Context, reason string, dry bool) (*medwayv1.ChangeResponse, error) {
			if dry {
				return &medwayv1.ChangeResponse{}, nil
			}
			_, err := c.API.Cancel(ctx, connect.NewRequest(&medwayv1.CancelRequest{Vip: vip, Reason: reason}))
			return nil, err
		}
	case "sites cancel":
		d.form = form{Title: "Cancel the evacuation of " + site, Lead: "No more switchovers of it begin, and those that are under way go back. Those that are over stay.", Button: "Cancel the evacuation", Back: d.Back}
		d.do = func(ctx context.Context, reason string, dry bool) (*medwayv1.ChangeResponse, error) {
			if dry {
				return &medwayv1.ChangeResponse{}, nil
			}
			_, err := c.API.CancelEvacuation(ctx, connect.NewRequest(&medwayv1.CancelEvacuationRequest{Site: site, Reason: reason}))
			return nil, err
		}
	default:
		return d, false
	}
	return d, true
}

// act shows what an act would do, and does it when its form is sent.
func (c *Console) act(w http.ResponseWriter, r *http.Request, v visit) (*page, error) {
	d, known := c.deed(r)
	if !known {
		return nil, connect.NewError(connect.CodeNotFound, errors.New("there is no such page"))
	}
	if err := v.who.May(auth.Operator, d.vip); err != nil {
		return nil, connect.NewError(connect.CodePermissionDenied, err)
	}
	p := &page{template: "act", Title: d.Title}
	if r.Method == http.MethodPost && d.read(r) {
		_, err := d.do(v.ctx, d.Reason, false)
		switch {
		case err == nil:
			http.Redirect(w, r, d.Back, http.StatusSeeOther)
			return nil, nil
		case connect.CodeOf(err) != connect.CodeInvalidArgument:
			return nil, err
		}
		d.Error = words(err)
	}
	if d.Error != "" {
		p.status = http.StatusBadRequest
	}
	// A look needs no reason, but pauses ask for one.
	would, err := d.do(v.ctx, "look", true)
	if err != nil {
		return nil, err
	}
	d.Preview, d.Notes = would.Diff, would.Notes
	if would.Done != "" {
		d.Notes = append(d.Notes, would.Done)
	}
	p.Body = d.form
	return p, nil
}

// checkView is a check of a preflight.
type checkView struct {
	*medwayv1.Check
	Title string
	Level level
	Word  string
	// Forceable says that a person may override it, and Force that one wants to.
	Forceable, Force bool
}

// checkTitles are what checks look at.
var checkTitles = map[string]string{
	"current":  "Where the traffic is now",
	"nodes":    "A live node in the new site",
	"warm":     "Its connection table",
	"bgp":      "Its BGP sessions",
	"kernel":   "Its kernel, beside the plan",
	"owner":    "The VIP's owner in the new site",
	"health":   "Backends in the new site",
	"capacity": "Room for all connections",
	"parity":   "Parity: the old site's connections are known",
	"drain":    "The old site's backends, which may be drained",
	"lock":     "Lock",
	"pause":    "Pause",
	"restore":  "Restore of etcd",
	"busy":     "Another switchover",
}

// checksOf are the checks, those that refuse first.
func checksOf(checks []*medwayv1.Check, force []string) (out []checkView, refused int) {
	for _, check := range checks {
		c := checkView{Check: check, Title: checkTitles[check.Name], Level: good, Word: "passed", Force: slices.Contains(force, check.Name)}
		if c.Title == "" {
			c.Title = check.Name
		}
		switch {
		case !check.Ok:
			c.Level, c.Word = bad, "refused"
			c.Forceable = slices.Contains(plan.Forceable, plan.CheckName(check.Name))
			refused++
		case check.Assumed:
			c.Level, c.Word = notable, "assumed"
		}
		out = append(out, c)
	}
	slices.SortStableFunc(out, func(a, b checkView) int { return severity[b.Level] - severity[a.Level] })
	return out, refused
}

// switchBody is the page before a switchover.
type switchBody struct {
	form
	VIP, From, To string
	Checks        []checkView
	Refused       int
	May           bool
}

// switchover shows the preflight, and begins it when the form is sent.
func (c *Console) switchover(w http.ResponseWriter, r *http.Request, v visit) (*page, error) {
	vip, to, from := r.PathValue("vip"), r.FormValue("to"), r.FormValue("from")
	if from == "" {
		all, err := c.look(v)
		if err != nil {
			return nil, err
		}
		from = all.Targets[vip].Site
	}
	request := &medwayv1.SwitchRequest{Vip: vip, From: from, To: to, Force: r.PostForm["force"]}
	body := &switchBody{VIP: vip, From: from, To: to, May: v.mayOperate(vip), form: form{
		Title: fmt.Sprintf("Switch %s to %s", vip, to), Button: fmt.Sprintf("Switch %s to %s", vip, to), Danger: true, Confirm: vip,
		Must: len(request.Force) > 0, Back: link("vips", vip),
	}}
	p := &page{template: "switch", Title: body.Title, Section: "overview"}
	if r.Method == http.MethodPost {
		// Who may not is told so before what is missing in the form.
		if err := v.who.May(auth.Operator, vip); err != nil {
			return nil, connect.NewError(connect.CodePermissionDenied, err)
		}
		if body.read(r) {
			request.Reason = body.Reason
			_, err := c.API.Switch(v.ctx, connect.NewRequest(request))
			if err == nil {
				http.Redirect(w, r, body.Back, http.StatusSeeOther)
				return nil, nil
			}
			if code := connect.CodeOf(err); code != connect.CodeFailedPrecondition && code != connect.CodeInvalidArgument {
				return nil, err
			}
			body.Error = words(err)
		}
		p.status = http.StatusBadRequest
	}
	asked := &medwayv1.SwitchRequest{Vip: vip, From: from, To: to}
	out, err := c.API.Preflight(v.ctx, connect.NewRequest(asked))
	if err != nil {
		return nil, err
	}
	body.Checks, body.Refused = checksOf(out.Msg.Checks, request.Force)
	p.Body = body
	return p, nil
}

// evacuateBody is the page before an evacuation.
type evacuateBody struct {
	form
	Site, To string
	VIPs     []string
	Sites    []string
	// Refused are the checks of the VIPs that were refused, by VIP.
	Refused []refusedVIP
	Force   []checkView
}

type refusedVIP struct {
	VIP    string
	Checks []checkView
}

// evacuate moves all VIPs of a site away.
func (c *Console) evacuate(w http.ResponseWriter, r *http.Request, v visit) (*page, error) {
	site := r.PathValue("site")
	if err := v.who.May(auth.Operator, ""); err != nil {
		return nil, connect.NewError(connect.CodePermissionDenied, err)
	}
	all, err := c.look(v)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(all.sites(), site) {
		return nil, notFound("site", site)
	}
	force := r.PostForm["force"]
	body := &evacuateBody{Site: site, To: r.FormValue("to"), VIPs: all.targeted(site), form: form{
		Title: "Evacuate " + site, Button: "Evacuate " + site, Danger: true, Confirm: site, Must: true, Back: link("sites", site),
	}}
	body.Sites = slices.DeleteFunc(all.sites(), func(s string) bool { return s == site })
	p := &page{template: "evacuate", Title: body.Title, Section: "overview", Body: body}
	if r.Method != http.MethodPost {
		return p, nil
	}
	p.status = http.StatusBadRequest
	if !body.read(r) {
		return p, nil
	}
	_, err = c.API.Evacuate(v.ctx, connect.NewRequest(&medwayv1.EvacuateRequest{Site: site, To: body.To, Reason: body.Reason, Force: force}))
	if err == nil {
		http.Redirect(w, r, body.Back, http.StatusSeeOther)
		return nil, nil
	}
	if code := connect.CodeOf(err); code != connect.CodeFailedPrecondition && code != connect.CodeInvalidArgument {
		return nil, err
	}
	body.Error = words(err)
	body.refusal(err, force)
	return p, nil
}

// refusal takes the checks of an error.
func (b *evacuateBody) refusal(err error, force []string) {
	var known *connect.Error
	if !errors.As(err, &known) {
		return
	}
	seen := map[string]bool{}
	for _, d := range known.Details() {
		value, err := d.Value()
		if err != nil {
			continue
		}
		refusal, isRefusal := value.(*medwayv1.Refusal)
		if !isRefusal {
			continue
		}
		for _, vip := range b.VIPs {
			checks, _ := checksOf(refusal.Checks[vip].GetChecks(), force)
			checks = slices.DeleteFunc(checks, func(c checkView) bool { return c.Level != bad })
			if len(checks) > 0 {
				b.Refused = append(b.Refused, refusedVIP{vip, checks})
			}
			for _, check := range checks {
				if check.Forceable && !seen[check.Name] {
					seen[check.Name] = true
					b.Force = append(b.Force, check)
				}
			}
		}
	}
	for _, name := range force { // those that were ticked stay ticked
		if !seen[name] && slices.Contains(plan.Forceable, plan.CheckName(name)) {
			b.Force = append(b.Force, checkView{Check: &medwayv1.Check{Name: name}, Title: checkTitles[name], Forceable: true, Force: true})
		}
	}
}
