// Package console is the API in web pages. It decides nothing: who may do what, and what
// is done, is the API's. All of it works without a script; one that is the console's own
// shows changes as they come.
package console

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/zap"

	"github.com/medway-lb/medway/coordinator/internal/api"
	"github.com/medway-lb/medway/coordinator/internal/auth"
)

// maxForm is the largest form in bytes.
const maxForm = 64 << 10

//go:embed templates static
var files embed.FS

// Point is what a site carried of a VIP at a time.
type Point struct {
	At time.Time
	// Connections are all in the table of the node that knows most of them.
	Connections uint64
	// PacketsPerSecond are those of established connections.
	PacketsPerSecond uint64
}

// Config is what a console works with.
type Config struct {
	API *api.Server
	// Trend is the last hour of a VIP by site, the oldest point first.
	Trend func(vip string) map[string][]Point
	// Plain says that it is served without TLS.
	Plain bool
	Log   *zap.Logger
}

// Console serves pages.
type Console struct {
	Config
	pages  map[string]*template.Template
	static map[string]asset
	now    func() time.Time

	mu sync.Mutex
	// streams are how many each session has.
	streams map[string]int
}

// asset is a file that is served as it is.
type asset struct {
	content   []byte
	kind, tag string
}

// New makes a console.
func New(c Config) *Console {
	out := &Console{Config: c, pages: map[string]*template.Template{}, static: map[string]asset{}, now: time.Now, streams: map[string]int{}}
	layout := template.Must(template.New("layout.html").Funcs(functions).ParseFS(files, "templates/layout.html", "templates/parts.html"))
	pages, _ := fs.Glob(files, "templates/*.html")
	for _, path := range pages {
		name := strings.TrimSuffix(strings.TrimPrefix(path, "templates/"), ".html")
		if name != "layout" && name != "parts" {
			out.pages[name] = template.Must(template.Must(layout.Clone()).ParseFS(files, path))
		}
	}
	for name, kind := range map[string]string{
		"console.css": "text/css; charset=utf-8", "console.js": "text/javascript; charset=utf-8", "icon.svg": "image/svg+xml",
	} {
		content, err := files.ReadFile("static/" + name)
		if err != nil {
			panic(err) // it is part of the program
		}
		sum := sha256.Sum256(content)
		out.static[name] = asset{content, kind, `"` + hex.EncodeToString(sum[:8]) + `"`}
	}
	return out
}

// Handler serves the pages.
func (c *Console) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /static/{name}", c.asset)
	mux.HandleFunc("GET /login", c.loginPage)
	mux.HandleFunc("POST /login", c.login)
	mux.HandleFunc("POST /logout", c.logout)
	mux.HandleFunc("GET /events", c.events)
	for pattern, h := range map[string]handler{
		"GET /{$}": c.overview, "GET /vips/{vip}": c.vip, "GET /nodes": c.nodes, "GET /nodes/{node}": c.node,
		"GET /sites/{site}": c.site, "GET /pools": c.pools, "GET /history": c.history,
		"/vips/{vip}/switch": c.switchover, "/sites/{site}/evacuate": c.evacuate,
		"/vips/{vip}/{act}": c.act, "/nodes/{node}/{act}": c.act, "/sites/{site}/{act}": c.act, "/all/{act}": c.act,
	} {
		mux.Handle(pattern, c.known(h))
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		c.fail(w, r, nil, connect.NewError(connect.CodeNotFound, errors.New("there is no such page")))
	})
	return c.secured(mux)
}

// secured has browsers take nothing from elsewhere, show the pages nowhere else, and
// keep nothing.
func (c *Console) secured(h http.Handler) http.Handler {
	// A form of a page without a referrer comes from the origin "null". Without TLS that
	// is all that tells whose page it was.
	referrer := "no-referrer"
	if c.Plain {
		referrer = "same-origin"
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		head := w.Header()
		head.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "+
			"form-action 'self'; frame-ancestors 'none'; base-uri 'none'")
		head.Set("X-Content-Type-Options", "nosniff")
		head.Set("Referrer-Policy", referrer)
		head.Set("Cross-Origin-Opener-Policy", "same-origin")
		head.Set("Cache-Control", "no-store")
		if !c.Plain {
			head.Set("Strict-Transport-Security", "max-age=31536000")
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxForm)
		h.ServeHTTP(w, r)
	})
}

func (c *Console) asset(w http.ResponseWriter, r *http.Request) {
	a, ok := c.static[r.PathValue("name")]
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Cache-Control", "no-cache")
	w.Header().Set("ETag", a.tag)
	w.Header().Set("Content-Type", a.kind)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(a.content))
}

// visit is one request of somebody who is logged in.
type visit struct {
	ctx context.Context
	who api.Session
}

// handler answers a visit: with a page, or by itself where that is nil.
type handler func(w http.ResponseWriter, r *http.Request, v visit) (*page, error)

// page is what the layout shows.
type page struct {
	template string
	Title    string
	// Who is "" where nobody is logged in.
	Who, Role string
	// Section is the entry of the navigation.
	Section string
	// Live pages show changes as they come: by the script, or else by a reload every so
	// many seconds.
	Live    bool
	Seconds int
	Plain   bool
	Now     time.Time
	Body    any
	status  int
}

// known lets only those in who are logged in.
func (c *Console) known(h handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead && r.Method != http.MethodPost {
			http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
			return
		}
		ctx, who, err := c.API.Session(r)
		if connect.CodeOf(err) == connect.CodeUnauthenticated && err != nil {
			http.Redirect(w, r, "/login?"+url.Values{"next": {r.URL.RequestURI()}}.Encode(), http.StatusSeeOther)
			return
		}
		if err != nil {
			c.fail(w, r, nil, err)
			return
		}
		leave, err := c.API.Enter(who.Name, false)
		if err != nil {
			c.fail(w, r, &who, err)
			return
		}
		defer leave()
		if err := r.ParseForm(); err != nil {
			c.fail(w, r, &who, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("the form can't be read: %w", err)))
			return
		}
		p, err := h(w, r, visit{ctx, who})
		if err != nil {
			c.fail(w, r, &who, err)
		} else if p != nil {
			c.show(w, &who, p)
		}
	})
}

// show writes a page.
func (c *Console) show(w http.ResponseWriter, who *api.Session, p *page) {
	p.Plain, p.Now = c.Plain, c.now()
	if who != nil {
		p.Who, p.Role = who.Name, string(who.Role)
	}
	if p.Live && p.Seconds == 0 {
		p.Seconds = 10
	}
	var text bytes.Buffer
	if err := c.pages[p.template].ExecuteTemplate(&text, "layout.html", p); err != nil {
		c.Log.Error("a page can't be made", zap.String("page", p.template), zap.Error(err))
		http.Error(w, "this page can't be made: see the coordinator's log", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	if p.status != 0 {
		w.WriteHeader(p.status)
	}
	_, _ = w.Write(text.Bytes())
}

// fail shows an error in the API's words.
func (c *Console) fail(w http.ResponseWriter, r *http.Request, who *api.Session, err error) {
	var known *connect.Error
	if errors.As(err, &known) {
		if after := known.Meta().Get("Retry-After"); after != "" {
			w.Header().Set("Retry-After", after)
		}
	}
	back := "/"
	if r.Method == http.MethodPost && who != nil {
		back = r.URL.RequestURI()
	}
	c.show(w, who, &page{template: "error", Title: titleOf(err), status: statusOf(err), Body: struct{ Words, Back string }{words(err), back}})
}

// words are those of the API, without its code.
func words(err error) string {
	var known *connect.Error
	if errors.As(err, &known) {
		return known.Message()
	}
	return err.Error()
}

var problems = map[connect.Code]struct {
	status int
	title  string
}{
	connect.CodeInvalidArgument:    {http.StatusBadRequest, "That does not fit"},
	connect.CodeUnauthenticated:    {http.StatusUnauthorized, "Who are you?"},
	connect.CodePermissionDenied:   {http.StatusForbidden, "You may not do that"},
	connect.CodeNotFound:           {http.StatusNotFound, "There is no such thing"},
	connect.CodeFailedPrecondition: {http.StatusConflict, "Not now"},
	connect.CodeAborted:            {http.StatusConflict, "Somebody else was faster"},
	connect.CodeResourceExhausted:  {http.StatusTooManyRequests, "Too often"},
	connect.CodeUnavailable:        {http.StatusServiceUnavailable, "Not available"},
	connect.CodeUnknown:            {http.StatusInternalServerError, "Not known whether it was done"},
}

func statusOf(err error) int {
	if p, ok := problems[connect.CodeOf(err)]; ok {
		return p.status
	}
	return http.StatusInternalServerError
}

func titleOf(err error) string {
	if p, ok := problems[connect.CodeOf(err)]; ok {
		return p.title
	}
	return "Something is wrong here"
}

// mayOperate says whether somebody may operate a VIP, "" for all: so that no button is shown that would
// be refused. The API refuses by itself.
func (v visit) mayOperate(vip string) bool { return v.who.May(auth.Operator, vip) == nil }
