package coordinator

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store/etcdtest"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// browser is one without a script: links and forms.
type browser struct {
	w    *world
	http *http.Client
}

// answer is a page.
type answer struct {
	code int
	text string
	head http.Header
	path string // where redirects led
}

// browser that nobody has logged in with yet.
func (w *world) browser(certificates ...tls.Certificate) *browser {
	w.t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		w.t.Fatal(err)
	}
	b := &browser{w, w.http(certificates...)}
	b.http.Jar = jar
	return b
}

// as is a browser that somebody has logged in with.
func (w *world) as(p Permission) *browser {
	w.t.Helper()
	b := w.browser()
	if a := b.post("/login", "token", w.allow(p)); a.code != http.StatusOK || a.path != "/" {
		w.t.Fatalf("login of %s: %d, %s: %s", p.Name, a.code, a.path, a.text)
	}
	return b
}

func (b *browser) do(r *http.Request) answer {
	b.w.t.Helper()
	got, err := b.http.Do(r)
	if err != nil {
		b.w.t.Fatal(err)
	}
	defer func() { _ = got.Body.Close() }()
	text, err := io.ReadAll(got.Body)
	if err != nil {
		b.w.t.Fatal(err)
	}
	return answer{got.StatusCode, string(text), got.Header, got.Request.URL.Path}
}

func (b *browser) request(method, path, body string) *http.Request {
	b.w.t.Helper()
	r, err := http.NewRequestWithContext(b.w.context(), method, b.w.url+path, strings.NewReader(body))
	if err != nil {
		b.w.t.Fatal(err)
	}
	if method == http.MethodPost {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	return r
}

func (b *browser) get(path string) answer {
	b.w.t.Helper()
	return b.do(b.request(http.MethodGet, path, ""))
}

// post sends a form: fields and values by turns.
func (b *browser) post(path string, fields ...string) answer {
	b.w.t.Helper()
	values := url.Values{}
	for i := 0; i < len(fields); i += 2 {
		values.Add(fields[i], fields[i+1])
	}
	return b.do(b.request(http.MethodPost, path, values.Encode()))
}

// shows expects a code and words of an answer.
func (b *browser) shows(what string, a answer, code int, words ...string) {
	b.w.t.Helper()
	for _, word := range words {
		if !strings.Contains(a.text, word) {
			b.w.t.Errorf("%s: the page lacks %q:\n%s", what, word, a.text)
		}
	}
	if a.code != code {
		b.w.t.Errorf("%s: %d, expected %d", what, a.code, code)
	}
}

// unwritten expects that nothing but sessions was written.
func (w *world) unwritten(what string, do func()) {
	w.t.Helper()
	before := w.intent()
	do()
	if after := w.intent(); before != after {
		w.t.Errorf("%s: written:\n%s\nbefore:\n%s", what, after, before)
	}
}

// intent is what people write, without the agents' part.
func (w *world) intent() string {
	var out []string
	for key, value := range w.stored() {
		if strings.HasPrefix(key, state.SessionPrefix) || strings.HasPrefix(key, state.StatusPrefix) || strings.Contains(key, "/claims/") {
			continue
		}
		if strings.HasPrefix(key, state.HistoryPrefix) && strings.Contains(value, `"result":"refused, nothing was written`) {
			continue // that it was tried
		}
		out = append(out, key+" "+value)
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

func (w *world) sessions() (keys []string) {
	for key := range w.stored() {
		if strings.HasPrefix(key, state.SessionPrefix) {
			keys = append(keys, key)
		}
	}
	return keys
}

func TestConsoleLogin(t *testing.T) {
	w := newWorld(t)
	token := w.allow(Permission{Name: "alice", Role: "operator"})
	b := w.browser()
	if a := b.get("/history?vip=sip-1"); a.path != "/login" || !strings.Contains(a.text, `name="next" value="/history?vip=sip-1"`) {
		t.Errorf("nobody is sent to %s:\n%s", a.path, a.text)
	}
	b.shows("a wrong token", b.post("/login", "token", "medway_alice_wrong"), http.StatusUnauthorized, "the token is not valid", `role="alert"`)
	b.shows("no token", b.post("/login"), http.StatusUnauthorized, "the token is not valid")
	b.shows("an unknown name", b.post("/login", "token", "medway_mallory_wrong"), http.StatusUnauthorized, "the token is not valid")
	b.shows("no certificate", b.post("/login", "by", "certificate"), http.StatusUnauthorized, "expected a client certificate")
	b.shows("a backend", b.post("/login", "token", w.allow(Permission{Name: "sbc1", Role: "backend"})), http.StatusForbidden, "it takes the role viewer")
	if n := len(w.sessions()); n != 0 {
		t.Fatalf("%d sessions of nobody", n)
	}

	b.http.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	for next, want := range map[string]string{
		"/history?vip=sip-1": "/history?vip=sip-1", "//evil.example/": "/", "https://evil.example/": "/", `/\evil.example`: "/", "": "/",
	} {
		if a := b.post("/login", "token", " "+token+"\n", "next", next); a.code != http.StatusSeeOther || a.head.Get("Location") != want {
			t.Errorf("after login to %q: %d to %q", next, a.code, a.head.Get("Location"))
		}
	}
	a := b.post("/login", "token", token)
	cookie := a.head.Get("Set-Cookie")
	if !strings.HasPrefix(cookie, "__Host-medway=") || !strings.Contains(cookie, "; HttpOnly; Secure; SameSite=Strict") || !strings.Contains(cookie, "; Path=/;") {
		t.Errorf("cookie %s", cookie)
	}
	secret := strings.TrimPrefix(strings.Split(cookie, ";")[0], "__Host-medway=")
	for key, value := range w.stored() {
		if strings.Contains(key+value, secret) {
			t.Errorf("etcd has the cookie: %s", key)
		}
	}
	for _, e := range w.logs.All() {
		if text := fmt.Sprint(e.Message, e.ContextMap()); strings.Contains(text, secret) || strings.Contains(text, token[len(token)-20:]) {
			t.Errorf("a secret is in the log: %s", text)
		}
	}
	entries, _, err := w.etcd.List(w.context(), state.SessionPrefix)
	if err != nil || len(entries) != 6 || entries[0].Lease == 0 {
		t.Errorf("sessions %v, %v", entries, err)
	}
	b.http.CheckRedirect = nil
	b.shows("logged in", b.get("/"), http.StatusOK, "alice, operator", "There are no VIPs yet")
	if a := b.get("/login"); a.path != "/" {
		t.Errorf("who is logged in logs in again at %s", a.path)
	}

	// Its cookie is worth nothing after the logout, nor for the API.
	stolen := b.request(http.MethodGet, "/", "")
	stolen.Header.Set("Cookie", "__Host-medway="+secret)
	other := w.browser()
	if a := other.do(stolen.Clone(t.Context())); a.path != "/" {
		t.Errorf("before the logout it leads to %s", a.path)
	}
	api := b.request(http.MethodPost, "/medway.v1.Coordinator/GetState", "{}")
	api.Header.Set("Content-Type", "application/json")
	if a := b.do(api); a.code != http.StatusUnauthorized {
		t.Errorf("the API takes the cookie: %d", a.code)
	}
	if a := b.post("/logout"); a.path != "/login" {
		t.Errorf("logged out at %s", a.path)
	}
	if a := b.get("/"); a.path != "/login" {
		t.Errorf("after the logout it leads to %s", a.path)
	}
	if a := other.do(stolen.Clone(t.Context())); a.path != "/login" {
		t.Errorf("a stolen cookie leads to %s", a.path)
	}

	// Sessions are bounded.
	for range 30 {
		w.browser().post("/login", "token", token)
	}
	if n := len(w.sessions()); n != 20 {
		t.Errorf("%d sessions of one grant", n)
	}
	c, err := clientv3.New(clientv3.Config{Endpoints: w.config.Etcd.Endpoints})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if leases, err := c.Leases(w.context()); err != nil || len(leases.Leases) != 20 {
		t.Errorf("%v, %v: expected a lease for each session, and none of those that ended", leases, err)
	}
}

func TestConsoleLoginByCertificate(t *testing.T) {
	w := newWorld(t)
	if err := w.authority.Client("dave", time.Hour); err != nil {
		t.Fatal(err)
	}
	cert, key := w.authority.Files("dave")
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	b := w.browser(pair)
	w.allow(Permission{Name: "somebody", Role: "viewer"}) // the grants were read
	b.shows("the page", b.get("/login"), http.StatusOK, "Log in as dave")
	b.shows("without a grant", b.post("/login", "by", "certificate"), http.StatusForbidden, "there is no grant for the certificate")
	if _, err := Allow(w.context(), w.config, Permission{Name: "dave", Role: "operator"}); err != nil {
		t.Fatal(err)
	}
	w.until("dave's grant is in force", func() error {
		if a := b.post("/login", "by", "certificate"); a.path != "/" {
			return errors.New(a.text)
		}
		return nil
	})
	b.shows("logged in", b.get("/"), http.StatusOK, "dave, operator")
}

// TestConsoleWithoutTLS: browsers keep the cookie, and people are told.
func TestConsoleWithoutTLS(t *testing.T) {
	etcd, _ := etcdtest.Start(t, "http")
	w := newWorldOf(t, etcd, func(c *Config) { c.TLS = TLS{Insecure: true} })
	token, err := Allow(w.context(), w.config, Permission{Name: "alice", Role: "viewer", Token: true})
	if err != nil {
		t.Fatal(err)
	}
	b := w.browser()
	w.until("the grant is in force", func() error {
		if a := b.post("/login", "token", token); a.path != "/" {
			return errors.New(a.text)
		}
		return nil
	})
	a := b.get("/")
	b.shows("logged in", a, http.StatusOK, "alice, viewer", "serves without TLS")
	if a.head.Get("Strict-Transport-Security") != "" || a.head.Get("Referrer-Policy") != "same-origin" {
		t.Errorf("headers %v", a.head)
	}
	b.shows("the login page", w.browser().get("/login"), http.StatusOK, "Not encrypted.")
	// Without TLS browsers tell only the origin.
	r := b.request(http.MethodPost, "/logout", "")
	r.Header.Set("Origin", "http://evil.example")
	b.shows("another site's page", b.do(r), http.StatusForbidden)
	r = b.request(http.MethodPost, "/logout", "")
	r.Header.Set("Origin", w.url)
	if a := b.do(r); a.path != "/login" {
		t.Errorf("own page: %d %s", a.code, a.path)
	}
}

// TestConsoleGuessing: pages and API count failures together, and the right token passes.
func TestConsoleGuessing(t *testing.T) {
	w := newWorld(t)
	token := w.allow(Permission{Name: "alice", Role: "viewer"})
	b := w.browser()
	var a answer
	for range 50 {
		if a = b.post("/login", "token", "medway_alice_guess"); a.code != http.StatusUnauthorized {
			break
		}
	}
	b.shows("after 50 guesses", a, http.StatusTooManyRequests, "too many failed logins")
	if a.head.Get("Retry-After") == "" {
		t.Error("it does not say when")
	}
	if _, err := w.with("medway_alice_guess").GetState(w.context(), connect.NewRequest(&medwayv1.GetStateRequest{})); connect.CodeOf(err) != connect.CodeResourceExhausted {
		t.Errorf("the API: %v", err)
	}
	if a := b.post("/login", "token", token); a.path != "/" {
		t.Errorf("the right token after them: %d", a.code)
	}
}

// TestConsoleHeaders: a browser takes nothing from elsewhere.
func TestConsoleHeaders(t *testing.T) {
	w := newWorld(t)
	b := w.as(Permission{Name: "alice", Role: "admin"})
	for _, path := range []string{"/", "/login", "/nodes", "/pools", "/history", "/nothing", "/vips/nothing", "/static/console.css"} {
		a := b.get(path)
		for name, want := range map[string]string{
			"Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
			"X-Content-Type-Options":  "nosniff", "Referrer-Policy": "no-referrer", "Strict-Transport-Security": "max-age=31536000",
		} {
			if got := a.head.Get(name); got != want {
				t.Errorf("%s: %s is %q", path, name, got)
			}
		}
		if strings.Contains(path, "static") {
			continue
		}
		if got := a.head.Get("Cache-Control"); got != "no-store" {
			t.Errorf("%s: Cache-Control %q", path, got)
		}
		for _, inline := range []string{" style=", "<style", " onclick", "javascript:", "http://", "https://"} {
			if strings.Contains(strings.ReplaceAll(a.text, "http://www.w3.org/2000/svg", ""), inline) {
				t.Errorf("%s: the page has %q", path, inline)
			}
		}
	}
	for path, code := range map[string]int{"/nothing": 404, "/vips/nothing": 404, "/nodes/nothing": 404, "/sites/nothing": 404, "/vips/x/nothing": 404, "/history?last=0": 400, "/static/nothing": 404} {
		if a := b.get(path); a.code != code {
			t.Errorf("%s: %d, expected %d", path, a.code, code)
		}
	}
	a := b.get("/static/console.js")
	r := b.request(http.MethodGet, "/static/console.js", "")
	r.Header.Set("If-None-Match", a.head.Get("ETag"))
	if again := b.do(r); again.code != http.StatusNotModified {
		t.Errorf("the same file again: %d", again.code)
	}
	b.shows("a form that is too large", b.post("/all/pause", "reason", strings.Repeat("x", 100<<10)), http.StatusBadRequest, "request body too large")
}

// TestConsoleForeignForms: another site's page can't have anything done.
func TestConsoleForeignForms(t *testing.T) {
	w := newWorld(t)
	w.agents("sip-1")
	b := w.as(Permission{Name: "alice", Role: "admin"})
	w.unwritten("foreign forms", func() {
		for _, path := range []string{"/login", "/logout", "/vips/sip-1/pause", "/vips/sip-1/switch", "/nodes/dc1-lvs-a/drain", "/sites/dc1/evacuate"} {
			for _, from := range []string{"cross-site", "same-site"} {
				r := b.request(http.MethodPost, path, "reason=x&confirm=sip-1&to=dc2&from=dc1")
				r.Header.Set("Sec-Fetch-Site", from)
				b.shows(from+" "+path, b.do(r), http.StatusForbidden)
			}
			r := b.request(http.MethodPost, path, "reason=x")
			r.Header.Set("Origin", "https://evil.example")
			b.shows(path, b.do(r), http.StatusForbidden)
		}
		// What changes something is no link.
		b.get("/logout")
		b.get("/vips/sip-1/pause?reason=x")
		b.get("/vips/sip-1/switch?to=dc2&from=dc1&confirm=sip-1&reason=x")
	})
	if a := b.get("/"); a.path != "/" {
		t.Error("a foreign form has logged alice out")
	}
}

// TestConsoleLimits: a name has its share of the coordinator, whichever way it asks, and
// who is nobody writes nothing.
func TestConsoleLimits(t *testing.T) {
	w := newWorld(t)
	token := w.allow(Permission{Name: "alice", Role: "viewer"})
	b := w.browser()
	b.shows("logged in", b.post("/login", "token", token), http.StatusOK, "alice, viewer")
	var leave []func()
	for {
		done, err := w.serves.api.Enter("alice", false)
		if err != nil {
			break
		}
		leave = append(leave, done)
	}
	if a := b.get("/history"); a.code != http.StatusTooManyRequests || a.head.Get("Retry-After") == "" {
		t.Errorf("a page beyond alice's share: %d %s", a.code, a.text)
	}
	if a := w.browser().post("/login", "token", token); a.code != http.StatusTooManyRequests {
		t.Errorf("a login beyond alice's share: %d %s", a.code, a.text)
	}
	for _, done := range leave {
		done()
	}
	b.shows("within it", b.get("/history"), http.StatusOK, "History")

	stranger := w.browser()
	revision := func() int64 {
		_, at, err := w.etcd.List(w.context(), "/medway/v1/")
		if err != nil {
			t.Fatal(err)
		}
		return at
	}
	before := revision()
	r := stranger.request(http.MethodPost, "/logout", "")
	r.Header.Set("Cookie", "__Host-medway=made-up")
	if a := stranger.do(r); a.path != "/login" {
		t.Errorf("a stranger is logged out at %s: %d", a.path, a.code)
	}
	if after := revision(); after != before {
		t.Errorf("etcd's revision went from %d to %d", before, after)
	}
}

// TestConsoleRoles: who may not does not, and sees no button.
func TestConsoleRoles(t *testing.T) {
	w := newWorld(t)
	w.agents("sip-1", "sip-2")
	w.write("/medway/v1/locks/sip-1", `{"since":"2026-11-25T02:10:00Z"}`)
	buttons := []string{`/switch?to=`, `/unlock"`, `/pause"`, `/drain"`, `/evacuate"`}
	viewer := w.as(Permission{Name: "bob", Role: "viewer"})
	for _, path := range []string{"/", "/vips/sip-1", "/nodes/dc1-lvs-a", "/sites/dc1"} {
		a := viewer.get(path)
		viewer.shows(path, a, http.StatusOK, "bob, viewer")
		for _, button := range buttons {
			if strings.Contains(a.text, button) {
				t.Errorf("a viewer sees %s on %s", button, path)
			}
		}
	}
	a := viewer.get("/vips/sip-1/switch?to=dc2")
	viewer.shows("a viewer's preflight", a, http.StatusOK, "You may look, and not switch it", "locked")
	if strings.Contains(a.text, `name="confirm"`) {
		t.Error("a viewer has a form")
	}
	other := w.as(Permission{Name: "carol", Role: "operator", VIPs: []string{"sip-2"}})
	w.unwritten("who may not", func() {
		for name, b := range map[string]*browser{"a viewer": viewer, "an operator of sip-2": other} {
			for _, path := range []string{
				"/vips/sip-1/switch", "/vips/sip-1/pause", "/vips/sip-1/resume", "/vips/sip-1/unlock", "/vips/sip-1/cancel", "/nodes/dc1-lvs-a/drain",
				"/nodes/dc1-lvs-a/undrain", "/sites/dc1/evacuate", "/sites/dc1/cancel", "/all/pause", "/all/resume",
			} {
				a := b.post(path, "reason", "x", "confirm", "sip-1", "to", "dc2", "from", "dc1", "force", "lock")
				b.shows(name+" "+path, a, http.StatusForbidden, "You may not do that")
			}
		}
	})
	if a := other.get("/vips/sip-2"); !strings.Contains(a.text, "/switch?to=dc2") {
		t.Error("carol can't switch sip-2")
	}
	if a := other.get("/vips/sip-1"); strings.Contains(a.text, "/switch?to=dc2") {
		t.Error("carol sees a button for sip-1")
	}
}

// TestConsoleEscaping: what anybody has written is text.
func TestConsoleEscaping(t *testing.T) {
	w := newWorld(t)
	agents := w.agents("sip-1")
	const evil = `<script>alert(1)</script>"'><img src=x onerror=alert(2)>`
	quoted := strings.ReplaceAll(strings.ReplaceAll(evil, `"`, `\"`), "/", `\/`)
	w.write("/medway/v1/locks/sip-1", `{"since":"2026-11-25T02:10:00Z","reason":"`+quoted+`","by":"`+quoted+`"}`)
	w.write("/medway/v1/vips/<script>alert(1)</script>", `{}`)
	w.write("/medway/status/dc9-x", `{"node":"dc9-x","site":"`+quoted+`","version":"`+quoted+`","vips":[{"vip":"`+quoted+`","role":"`+quoted+`","reason":"`+quoted+`"}],`+
		`"sessions":[{"neighbor":"`+quoted+`","error":"`+quoted+`","since":"`+quoted+`"}]}`)
	w.write("/medway/history/sip-1/2026-11-25T02:10:00.000000000Z", `{"what":"`+quoted+`","by":"`+quoted+`","reason":"`+quoted+`","from":"`+quoted+`","to":"`+quoted+`"}`)
	w.write("/medway/switchovers/sip-1", `{"id":"x","from":"dc1","to":"dc2","by":"`+quoted+`","reason":"`+quoted+`","result":"failed","why":"`+quoted+`","steps":[{"name":"`+quoted+`","note":"`+quoted+`"}]}`)
	agents.fault("dc1", evil, evil+"\u202e")
	b := w.as(Permission{Name: "alice", Role: "admin"})
	for _, path := range []string{
		"/", "/vips/sip-1", "/vips/sip-1/switch?to=dc2", "/vips/sip-1/unlock", "/nodes", "/nodes/dc1-lvs-a", "/nodes/dc9-x", "/pools", "/history", "/history?vip=sip-1",
		"/sites/dc1", "/vips/%3Cscript%3Ealert(1)%3C%2Fscript%3E", "/vips/sip-1/switch?to=" + url.QueryEscape(evil), "/history?vip=" + url.QueryEscape(evil),
		"/login?next=" + url.QueryEscape("/"+evil),
	} {
		a := b.get(path)
		if strings.Contains(a.text, "<script>") || strings.Contains(a.text, "<img") || strings.Contains(a.text, "\u202e") {
			t.Errorf("%s:\n%s", path, a.text)
		}
		if !strings.Contains(a.text, "</html>") {
			t.Errorf("%s is cut short: %d\n%s", path, a.code, a.text)
		}
	}
	b.shows("the overview", b.get("/"), http.StatusOK, "&lt;script&gt;alert(1)")
	w.unwritten("an evil confirmation", func() {
		a := b.post("/vips/sip-1/switch", "to", "dc2", "from", "dc1", "confirm", evil, "reason", evil)
		if strings.Contains(a.text, "<script>alert") || a.code != http.StatusBadRequest {
			t.Errorf("%d %s", a.code, a.text)
		}
	})
}

// stream opens the events of a session. Each one that comes is sent; the channel is
// closed at the stream's end.
func (b *browser) stream() (events <-chan string, code int) {
	b.w.t.Helper()
	ctx, cancel := context.WithCancel(b.w.t.Context())
	b.w.t.Cleanup(cancel)
	client := *b.http
	client.Timeout = 0
	got, err := client.Do(b.request(http.MethodGet, "/events", "").WithContext(ctx))
	if err != nil {
		b.w.t.Fatal(err)
	}
	out := make(chan string, 1000)
	go func() {
		defer close(out)
		defer func() { _ = got.Body.Close() }()
		lines := bufio.NewScanner(got.Body)
		for lines.Scan() {
			if name, ok := strings.CutPrefix(lines.Text(), "event: "); ok {
				out <- name
			}
		}
	}()
	return out, got.StatusCode
}

// TestConsoleEvents: what changes is on the page within a second.
func TestConsoleEvents(t *testing.T) {
	w := newWorld(t)
	w.agents("sip-1")
	b := w.as(Permission{Name: "alice", Role: "viewer"})
	events, code := b.stream()
	if code != http.StatusOK {
		t.Fatal(code)
	}
	<-events // that it is there
	for i, change := range []struct{ key, value, words string }{
		{"/medway/v1/locks/sip-1", `{"since":"2026-11-25T02:10:00Z","reason":"the line is cut"}`, "the line is cut"},
		{"/medway/v1/pauses/sip-1", `{"since":"2026-11-25T02:10:00Z","reason":"night work"}`, "night work"},
		{"/medway/v1/target_state/sip-1", "dc2", "but its target is dc2"},
	} {
		begin := time.Now()
		w.write(change.key, change.value)
		for shown := false; !shown; {
			select {
			case <-events:
				shown = strings.Contains(b.get("/").text, change.words)
			case <-time.After(patience):
				t.Fatal("no event")
			}
		}
		t.Logf("change %d was on the page after %v", i, time.Since(begin))
	}
}

// TestConsoleStreamsEnd: with the grant, the session, and the coordinator; and there are
// not too many.
func TestConsoleStreamsEnd(t *testing.T) {
	w := newWorld(t)
	ends := func(what string, events <-chan string, told bool) {
		t.Helper()
		deadline := time.After(patience)
		before := ""
		for {
			select {
			case name, more := <-events:
				if !more {
					if (before == "end") != told {
						t.Errorf("%s: the last event is %q", what, before)
					}
					return
				}
				before = name
			case <-deadline:
				t.Fatalf("%s: the stream goes on", what)
			}
		}
	}
	open := func(b *browser) <-chan string {
		t.Helper()
		events, code := b.stream()
		if code != http.StatusOK {
			t.Fatalf("code %d", code)
		}
		if name := <-events; name != "change" {
			t.Fatalf("event %q", name)
		}
		return events
	}
	bob := w.as(Permission{Name: "bob", Role: "viewer"})
	events := open(bob)
	if err := Revoke(w.context(), w.config, "bob"); err != nil {
		t.Fatal(err)
	}
	w.until("bob's session has ended", func() error {
		if a := bob.get("/"); a.path != "/login" {
			return errors.New(a.path)
		}
		return nil
	})
	ends("a revoked grant", events, true)
	if _, code := bob.stream(); code != http.StatusUnauthorized {
		t.Errorf("bob reads events: %d", code)
	}
	// The same name with a new grant is not the old session's.
	w.allow(Permission{Name: "bob", Role: "admin"})
	if a := bob.get("/"); a.path != "/login" {
		t.Error("the session of a revoked grant is back")
	}

	carol := w.as(Permission{Name: "carol", Role: "viewer"})
	events = open(carol)
	carol.post("/logout")
	ends("a logout", events, true)

	// A grant that expires takes the session along.
	dora := w.as(Permission{Name: "dora", Role: "viewer", Valid: 8 * time.Second})
	events = open(dora)
	ends("a grant that expires", events, true)
	if a := dora.get("/"); a.path != "/login" {
		t.Error("the session outlives its grant")
	}

	alice := w.as(Permission{Name: "alice", Role: "viewer"})
	var all []<-chan string
	for range 8 {
		all = append(all, open(alice))
	}
	if _, code := alice.stream(); code != http.StatusTooManyRequests {
		t.Errorf("a ninth stream: %d", code)
	}
	begin := time.Now()
	w.stop()
	if took := time.Since(begin); took > stopTime-time.Second {
		t.Errorf("it took %v to stop", took)
	}
	for _, events := range all {
		ends("a coordinator that stops", events, false)
	}
}

// TestConsoleForms does all that there is to do with forms alone.
func TestConsoleForms(t *testing.T) {
	w := newWorld(t)
	agents := w.agents("sip-1", "sip-2")
	b := w.as(Permission{Name: "alice", Role: "operator"})
	b.shows("the overview", b.get("/"), http.StatusOK, "All is well: 2 of 2 nodes live, and each of 2 VIPs is served by its target site", "Served by dc1",
		"203.0.113.10", "2001:db8:5060::10", "dc1-lvs-a", `<noscript><meta http-equiv="refresh"`, "parity <b>100 %</b>", "412")
	b.shows("a VIP", b.get("/vips/sip-1"), http.StatusOK, "tcp 5060 to pool sbc", `href="/vips/sip-1/switch?to=dc2"`, "the target is dc1")
	b.shows("pools", b.get("/pools"), http.StatusOK, "dc1-sbc1", "10.2.1.21")
	w.write("/medway/v1/drains/sbc/dc1-sbc1", `{"since":"2026-11-25T02:10:00Z","reason":"new release","by":"bob"}`)
	b.shows("a drained backend", b.get("/pools"), http.StatusOK, "drained</span> since 2026-11-25T02:10:00Z, by bob: new release")
	if _, _, err := w.etcd.Commit(w.context(), nil, nil, []string{"/medway/v1/drains/sbc/dc1-sbc1"}); err != nil {
		t.Fatal(err)
	}
	b.shows("nodes", b.get("/nodes"), http.StatusOK, "dc2-lvs-a", "2 of 2", "v1.4.0")
	b.shows("a node", b.get("/nodes/dc1-lvs-a"), http.StatusOK, "192.0.2.2", "established", "/nodes/dc1-lvs-a/drain")

	// Pause, resume, unlock; of one and of all.
	w.unwritten("a pause without a reason", func() {
		b.shows("no reason", b.post("/vips/sip-1/pause", "reason", " "), http.StatusBadRequest, "Say why in a few words")
		b.shows("a long reason", b.post("/vips/sip-1/pause", "reason", strings.Repeat("x", 2000)), http.StatusBadRequest, "reason")
	})
	b.shows("the form", b.get("/vips/sip-1/pause"), http.StatusOK, "Pause sip-1", "&#43; /medway/v1/pauses/sip-1")
	b.shows("paused", b.post("/vips/sip-1/pause", "reason", "night work"), http.StatusOK, "night work", "by alice", `href="/vips/sip-1/resume"`, "off: paused")
	b.shows("resumed", b.post("/vips/sip-1/resume"), http.StatusOK, `href="/vips/sip-1/pause"`)
	if all := w.intent(); !strings.Contains(all, `"what":"pause","by":"alice","reason":"night work","from_address":"127.0.0.1"`) {
		t.Errorf("the history does not tell from where: %s", all)
	}
	b.shows("not paused", b.post("/vips/sip-1/resume"), http.StatusConflict, "is not paused")
	b.shows("all paused", b.post("/all/pause", "reason", "the line"), http.StatusOK, "the line", `href="/all/resume"`, "all VIPs")
	b.shows("all resumed", b.post("/all/resume"), http.StatusOK, `href="/all/pause"`)
	w.write("/medway/v1/locks/sip-1", `{"since":"2026-11-25T02:10:00Z","reason":"dc1 was silent"}`)
	b.shows("locked", b.get("/"), http.StatusOK, "dc1 was silent", `href="/vips/sip-1/unlock"`)
	b.shows("unlocked", b.post("/vips/sip-1/unlock", "reason", "mended"), http.StatusOK, "unlock", "mended")
	if w.stored()["/medway/v1/locks/sip-1"] != "" {
		t.Error("it is locked yet")
	}

	// A node out of service and back.
	b.shows("drained", b.post("/nodes/dc2-lvs-a/drain", "reason", "new kernel"), http.StatusOK, "Drained", "new kernel", "/nodes/dc2-lvs-a/undrain")
	a := b.get("/vips/sip-1/switch?to=dc2")
	b.shows("its preflight", a, http.StatusOK, "1 of 13 checks refuses it", "which owns it in dc2, is drained (new kernel)", "medwayctl node undrain dc2-lvs-a", "/medway/v1/node_drains/dc2-lvs-a", `value="owner"`)
	w.unwritten("a switch that is refused", func() {
		for what, fields := range map[string][]string{
			"To confirm, type sip-1":                            {"confirm", "sip-2", "reason", "power"},
			"refused, nothing was written: sip-1: owner":        {"confirm", "sip-1", "reason", "power"},
			"Say why in a few words":                            {"confirm", "sip-1", "force", "owner"},
			"field force[0]: value &#34;nothing&#34;: expected": {"confirm", "sip-1", "force", "nothing", "reason", "x"},
		} {
			b.shows(what, b.post("/vips/sip-1/switch", append(fields, "from", "dc1", "to", "dc2")...), http.StatusBadRequest, what)
		}
		b.shows("to where it is", b.get("/vips/sip-1/switch?to=dc1"), http.StatusBadRequest, "field to")
		b.shows("to nowhere", b.get("/vips/sip-1/switch?to=dc3"), http.StatusNotFound, "a site of sip-1: dc1, dc2")
		b.shows("of nothing", b.get("/vips/nothing/switch?to=dc2"), http.StatusNotFound, "a VIP that exists")
	})

	// Forced, seen on its way, and cancelled.
	agents.hold("normalise")
	b.shows("forced", b.post("/vips/sip-1/switch", "confirm", "sip-1", "force", "owner", "reason", "dc1 burns", "from", "dc1", "to", "dc2"),
		http.StatusOK, "Moving from dc1 to dc2", "checks overridden: owner", "dc1 burns", "/vips/sip-1/cancel")
	w.until("it waits at normalise", func() error {
		if a := b.get("/vips/sip-1"); !strings.Contains(a.text, "Step normalise: waits for") {
			return errors.New(a.text)
		}
		return nil
	})
	if a := b.get("/vips/sip-1"); strings.Contains(a.text, "/switch?to=") {
		t.Error("there is a button for a second switchover")
	}
	b.shows("a second one", b.post("/vips/sip-1/switch", "confirm", "sip-1", "reason", "x", "from", "dc2", "to", "dc1"), http.StatusBadRequest, "it is being switched from dc1 to dc2 by alice")
	b.post("/vips/sip-1/cancel", "reason", "no fire")
	agents.release()
	w.until("it is back", func() error {
		if a := b.get("/vips/sip-1"); !strings.Contains(a.text, "dc1 to dc2: cancelled") || !strings.Contains(a.text, "Served by dc1") {
			return errors.New(a.text)
		}
		return nil
	})
	b.shows("nothing to cancel", b.post("/vips/sip-1/cancel"), http.StatusConflict, "nothing is under way")

	// A site's evacuation: refused, then done.
	b.shows("the form", b.get("/sites/dc1/evacuate"), http.StatusOK, "2 VIPs", "sip-1, sip-2")
	w.unwritten("an evacuation that is refused", func() {
		b.shows("not confirmed", b.post("/sites/dc1/evacuate", "reason", "power"), http.StatusBadRequest, "To confirm, type dc1")
		b.shows("refused", b.post("/sites/dc1/evacuate", "reason", "power", "confirm", "dc1"), http.StatusBadRequest, "is drained (new kernel)", `name="force" value="owner"`)
	})
	b.shows("back in service", b.post("/nodes/dc2-lvs-a/undrain"), http.StatusOK, "Lives")
	b.post("/sites/dc1/evacuate", "reason", "power", "confirm", "dc1")
	w.until("it is evacuated", func() error {
		if a := b.get("/sites/dc1"); !strings.Contains(a.text, "Last evacuation: done") || !strings.Contains(a.text, "the target of 0 VIPs") {
			return errors.New(a.text)
		}
		return nil
	})
	b.shows("the overview", b.get("/"), http.StatusOK, "All is well", "Served by dc2")
	b.shows("no evacuation", b.post("/sites/dc1/cancel"), http.StatusConflict, "nothing is under way")

	// History has it all, by its author.
	b.shows("history", b.get("/history?vip=sip-1&last=100"), http.StatusOK, "drain dc2-lvs-a", "dc1 burns", "no fire", "unlock", "mended")
	if a := b.get("/history?vip=sip-2"); strings.Contains(a.text, "dc1 burns") {
		t.Error("the history of sip-2 has what was done to sip-1")
	}
}

// TestConsoleTellsWhatIsWrong: what is wrong comes first, in words.
func TestConsoleTellsWhatIsWrong(t *testing.T) {
	w := newWorld(t)
	agents := w.agents("sip-1")
	b := w.as(Permission{Name: "alice", Role: "viewer"})
	agents.fault("dc1", "kernel", "service tcp 203.0.113.10:5060 is missing")
	w.write("/medway/v1/pools/spoilt", `{"weights":`)
	if _, _, err := w.etcd.Commit(w.context(), nil, nil, []string{"/medway/v1/alive/dc2-lvs-a"}); err != nil {
		t.Fatal(err)
	}
	w.until("all of it is told", func() error {
		a := b.get("/")
		for _, words := range []string{"4 things are wrong", "dc2 could not take over", "silent: its agent does not run", "kernel: service tcp 203.0.113.10:5060 is missing", "/medway/v1/pools/spoilt"} {
			if !strings.Contains(a.text, words) {
				return fmt.Errorf("the page lacks %q:\n%s", words, a.text)
			}
		}
		return nil
	})
	if _, _, err := w.etcd.Commit(w.context(), nil, nil, []string{"/medway/v1/alive/dc1-lvs-a"}); err != nil {
		t.Fatal(err)
	}
	b.shows("without a node", b.get("/"), http.StatusOK, "Down: no living node announces it")
}

// TestTrends are bounded in time and number.
func TestTrends(t *testing.T) {
	trends := newTrends()
	now := time.Now()
	rate := uint64(10)
	at := func(now time.Time, vips int) map[string]*medwayv1.Live {
		out := map[string]*medwayv1.Live{}
		for _, node := range []string{"a", "b"} {
			l := &medwayv1.Live{At: now.Format(time.RFC3339Nano), Status: &medwayv1.Status{Node: node, Site: "dc1"}}
			for i := range vips {
				l.Status.Vips = append(l.Status.Vips, &medwayv1.VIPStatus{Vip: fmt.Sprintf("sip-%d", i), ActiveConnections: 5, InactiveConnections: 2, PacketsPerSecond: &rate})
			}
			out[node] = l
		}
		return out
	}
	for i := range 1000 {
		now = now.Add(sampleInterval)
		trends.take(at(now, 1), now)
		if i == 0 {
			if got := trends.of("sip-0")["dc1"]; len(got) != 1 || got[0].Connections != 7 || got[0].PacketsPerSecond != 20 {
				t.Errorf("a point %+v", got)
			}
		}
	}
	if n := len(trends.of("sip-0")["dc1"]); n != int(trendTime/sampleInterval)+1 {
		t.Errorf("%d points", n)
	}
	trends.take(at(now, 3*maxTrends), now)
	if n := len(trends.points); n != maxTrends {
		t.Errorf("%d trends", n)
	}
	trends.take(at(now, 1), now.Add(freshTime+time.Second)) // old numbers are no news
	if n := len(trends.of("sip-0")["dc1"]); n > int(trendTime/sampleInterval)+2 {
		t.Errorf("%d points", n)
	}
	trends.take(nil, now.Add(2*trendTime))
	if n := len(trends.points); n != 0 {
		t.Errorf("%d trends are left", n)
	}
}
