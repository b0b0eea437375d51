package coordinator

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// auditor is axe-core, as scripts/setup.sh fetches it.
const (
	auditor    = "axe-core-4.14.1.min.js"
	auditorSum = "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c"
)

// cached is where set-up puts what tests need, and tests what people look at.
func cached(parts ...string) string {
	dir := os.Getenv("MEDWAY_CACHE")
	if dir == "" {
		dir = "../.cache"
	}
	return filepath.Join(append([]string{dir}, parts...)...)
}

// screen is a real browser that looks at the console.
type screen struct {
	w          *world
	ctx        context.Context
	axe        string
	wide, dark bool

	mu       sync.Mutex
	problems []string
}

// newScreen starts Chromium, which make setup installs.
func newScreen(w *world) *screen {
	t := w.t
	t.Helper()
	program, err := exec.LookPath("chromium")
	if err != nil {
		if program, err = exec.LookPath("google-chrome"); err != nil {
			t.Fatalf("no chromium and no google-chrome (%v): run scripts/setup.sh", err)
		}
	}
	script, err := os.ReadFile(cached(auditor))
	if err != nil {
		t.Fatalf("%v: run scripts/setup.sh", err)
	}
	if sum := sha256.Sum256(script); hex.EncodeToString(sum[:]) != auditorSum {
		t.Fatalf("%s has another content than it should", auditor)
	}
	if err := os.MkdirAll(cached("out", "console"), 0o755); err != nil {
		t.Fatal(err)
	}
	options := append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]),
		chromedp.ExecPath(program), chromedp.NoSandbox, chromedp.DisableGPU, chromedp.IgnoreCertErrors, chromedp.UserDataDir(t.TempDir()),
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true), chromedp.WSURLReadTimeout(patience))
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx, chromedp.WithErrorf(func(string, ...any) {})) // of messages newer than it knows
	t.Cleanup(cancel)
	s := &screen{w: w, ctx: ctx, axe: string(script)}
	chromedp.ListenTarget(ctx, func(event any) {
		text := ""
		switch e := event.(type) {
		case *runtime.EventConsoleAPICalled:
			text = fmt.Sprintf("console: %s %v", e.Type, e.Args)
		case *runtime.EventExceptionThrown:
			text = "exception: " + e.ExceptionDetails.Error()
		case *log.EventEntryAdded:
			text = fmt.Sprintf("log: %s: %s %s", e.Entry.Level, e.Entry.Text, e.Entry.URL)
		default:
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.problems = append(s.problems, text)
	})
	// The browser lives as long as the context of the first run.
	if err := chromedp.Run(ctx, log.Enable(), runtime.Enable()); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *screen) run(what string, actions ...chromedp.Action) {
	s.w.t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, patience)
	defer cancel()
	if err := chromedp.Run(ctx, actions...); err != nil {
		s.w.t.Fatalf("%s: %v; the page is\n%s", what, err, s.text())
	}
}

// text is what the page shows.
func (s *screen) text() (out string) {
	ctx, cancel := context.WithTimeout(s.ctx, patience)
	defer cancel()
	if err := chromedp.Run(ctx, chromedp.Evaluate(`document.title + " at " + location.pathname + "\n" + document.body.innerText`, &out)); err != nil {
		return err.Error()
	}
	return out
}

// is evaluates an expression of the page.
func (s *screen) is(expression string) (yes bool) {
	s.w.t.Helper()
	s.run(expression, chromedp.Evaluate(expression, &yes))
	return yes
}

// waits until the page shows words.
func (s *screen) waits(words string) {
	s.w.t.Helper()
	s.w.until("the page shows "+words, func() error {
		if text := s.text(); !strings.Contains(text, words) {
			return errors.New(text)
		}
		return nil
	})
}

// look sets the size and the colours.
func (s *screen) look(wide, dark bool) {
	s.w.t.Helper()
	s.wide, s.dark = wide, dark
	width, height, colours := int64(360), int64(740), "light"
	if wide {
		width, height = 1280, 900
	}
	if dark {
		colours = "dark"
	}
	s.run("look", chromedp.EmulateViewport(width, height),
		emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: colours}, {Name: "prefers-reduced-motion", Value: "reduce"}}))
}

// audit keeps a picture of the page, and expects that it fits, and that the auditor has
// nothing to say.
func (s *screen) audit(name string) {
	t := s.w.t
	t.Helper()
	name += map[bool]string{true: "-wide", false: "-phone"}[s.wide] + map[bool]string{true: "-dark", false: "-light"}[s.dark]
	var picture []byte
	s.run("screenshot", chromedp.FullScreenshot(&picture, 100))
	if err := os.WriteFile(cached("out", "console", name+".png"), picture, 0o644); err != nil {
		t.Fatal(err)
	}
	var over string
	s.run("width", chromedp.Evaluate(`(() => {
		const d = document.scrollingElement;
		if (d.scrollWidth <= innerWidth) return "";
		return d.scrollWidth + " of " + innerWidth + ": " + [...document.querySelectorAll("main *")].filter((e) => e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 80)).slice(0, 3).join(" | ");
	})()`, &over))
	if over != "" {
		t.Errorf("%s is too wide: %s", name, over)
	}
	var found string
	await := func(p *runtime.EvaluateParams) *runtime.EvaluateParams { return p.WithAwaitPromise(true) }
	s.run("audit", chromedp.Evaluate(s.axe+"\n;0", nil), chromedp.Evaluate(`axe.run(document, {resultTypes: ["violations"]}).then((r) => JSON.stringify(
		{passes: r.passes.length, violations: r.violations.map((v) => v.id + ": " + v.help + ": " + v.nodes.map((n) => n.html + " " + n.failureSummary).slice(0, 3).join(" | "))}))`, &found, await))
	var result struct {
		Passes     int
		Violations []string
	}
	if err := json.Unmarshal([]byte(found), &result); err != nil || result.Passes < 10 {
		t.Errorf("%s: the audit is %.300s, %v", name, found, err)
	}
	for _, v := range result.Violations {
		t.Errorf("%s: %s", name, v)
	}
}

// quiet expects that the browser has had nothing to complain of.
func (s *screen) quiet() {
	s.w.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.problems {
		s.w.t.Errorf("the browser says: %s", p)
	}
	s.problems = nil
}

// TestBrowser presses the button.
func TestBrowser(t *testing.T) {
	w := newWorld(t)
	agents := w.agents("sip-1", "sip-2")
	w.hour("sip-1", "sip-2")
	token := w.allow(Permission{Name: "alice", Role: "operator"})
	s := newScreen(w)
	s.look(true, false)

	// Log in with the keyboard alone.
	s.run("login", chromedp.Navigate(w.url+"/"), chromedp.WaitVisible("#token"))
	s.audit("login")
	if !s.is(`document.activeElement.id === "token"`) {
		t.Error("the token's field has not the focus")
	}
	s.run("type", chromedp.KeyEvent(token+kb.Enter))
	s.waits("All is well")
	s.run("tab", chromedp.KeyEvent(kb.Tab))
	if !s.is(`document.activeElement.className === "skip" && document.activeElement.getBoundingClientRect().left >= 0`) {
		t.Error("the first stop of the keyboard is not the link that skips the navigation")
	}
	s.waits("● live")
	s.everywhere("overview", "/")

	// A change is on the page without a reload; focus, and the page itself, stay.
	s.look(true, false)
	s.run("overview", chromedp.Navigate(w.url+"/"), chromedp.WaitVisible(`//p[text()="● live"]`), chromedp.Focus(`article a[href="/vips/sip-1/switch?to=dc2"]`),
		chromedp.Evaluate(`window.same = document.activeElement; scrollTo(0, 200); 0`, nil))
	begin := time.Now()
	w.write("/medway/v1/locks/sip-1", `{"since":"2026-11-25T02:10:00Z","reason":"dc1 was silent","by":"dc2-lvs-a","from":"dc1","to":"dc2"}`)
	s.waits("dc1 was silent")
	t.Logf("a change was on the page after %v", time.Since(begin)) // a second is the aim
	if !s.is(`window.same === document.activeElement && document.activeElement.getAttribute("href") === "/vips/sip-1/switch?to=dc2"`) {
		t.Errorf("the focus is lost, or the page is another: %v", s.text())
	}
	agents.fault("dc2", "kernel", "service tcp 203.0.113.10:5060 -> 10.2.1.21:5060 is missing: the kernel has refused it")
	s.waits("One thing is wrong")
	s.everywhere("overview-wrong", "/")
	s.everywhere("switch-refused", "/vips/sip-1/switch?to=dc2")
	agents.mend("dc2")

	// The other pages.
	for name, path := range map[string]string{
		"nodes": "/nodes", "node": "/nodes/dc1-lvs-a", "pools": "/pools", "site": "/sites/dc1", "evacuate": "/sites/dc1/evacuate",
		"unlock": "/vips/sip-1/unlock", "pause": "/vips/sip-1/pause", "drain": "/nodes/dc1-lvs-a/drain",
	} {
		s.both(name, path)
	}

	// The button: a preflight, a confirmation that does not fit, and one that does.
	s.look(true, false)
	s.run("unlock", chromedp.Navigate(w.url+"/vips/sip-1"), chromedp.Click(`a[href="/vips/sip-1/unlock"]`), chromedp.WaitVisible("#reason"),
		chromedp.SendKeys("#reason", "the line is mended"), chromedp.Click("main form button"), chromedp.WaitVisible(`a[href="/vips/sip-1/switch?to=dc2"]`))
	s.waits("Served by dc1")
	agents.hold("normalise")
	s.run("button", chromedp.Click(`a[href="/vips/sip-1/switch?to=dc2"]`), chromedp.WaitVisible("#confirm"))
	s.waits("All 13 checks are passed")
	s.everywhere("switch", "/vips/sip-1/switch?to=dc2")
	s.quiet() // the next answer is an error, which the browser tells of
	s.run("another name", chromedp.SendKeys("#confirm", "sip-2"), chromedp.SendKeys("#reason", "power work in dc1"), chromedp.Click("main form button"),
		chromedp.WaitVisible(`[role=alert]`))
	s.waits("To confirm, type sip-1")
	s.audit("switch-unconfirmed")
	w.until("the browser has told of the error", func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.problems) != 1 || !strings.Contains(s.problems[0], "a status of 400") {
			return fmt.Errorf("%q", s.problems)
		}
		s.problems = nil
		return nil
	})
	if !s.is(`document.getElementById("reason").value === "power work in dc1"`) {
		t.Error("the reason has to be typed again")
	}
	s.run("its name", chromedp.SendKeys("#confirm", "sip-1"), chromedp.Click("main form button"), chromedp.WaitVisible(".steps"))
	s.waits("Step normalise: waits for")
	s.waits("● live")
	s.run("mark", chromedp.Evaluate(`window.same = true; 0`, nil))
	s.everywhere("moving", "/vips/sip-1")
	s.both("overview-moving", "/")
	s.both("cancel", "/vips/sip-1/cancel")
	s.run("watch", chromedp.Navigate(w.url+"/vips/sip-1"), chromedp.WaitVisible(`//p[text()="● live"]`), chromedp.Evaluate(`window.same = true; 0`, nil))
	agents.release()
	s.waits("Served by dc2")
	s.waits("dc1 to dc2: done")
	if !s.is(`window.same && document.getElementById("said").textContent.includes("The switchover is done.")`) {
		t.Error("the page was loaded anew, or the end was not said")
	}
	s.everywhere("done", "/vips/sip-1")
	s.both("history", "/history")
	if got := w.stored()["/medway/v1/target_state/sip-1"]; got != "dc2" {
		t.Errorf("the target is %s", got)
	}
	r := &medwayv1.Switchover{}
	if err := unmarshal(w.stored()["/medway/switchovers/sip-1"], r); err != nil || r.By != "alice" || r.Reason != "power work in dc1" || r.Result != "done" {
		t.Errorf("the record is %v, %v", r, err)
	}

	// The page leaves by itself when its session ends.
	s.look(true, false)
	s.run("overview", chromedp.Navigate(w.url+"/"), chromedp.WaitVisible(`//p[text()="● live"]`))
	s.quiet()
	if err := Revoke(w.context(), w.config, "alice"); err != nil {
		t.Fatal(err)
	}
	s.run("login again", chromedp.WaitVisible("#token"))
}

// everywhere looks at a page in both sizes and colours, both in one of each.
func (s *screen) everywhere(name, path string) {
	s.w.t.Helper()
	s.at(name, path, true, false)
	s.at(name, path, true, true)
	s.at(name, path, false, true)
	s.at(name, path, false, false)
	s.look(true, false)
}

func (s *screen) both(name, path string) {
	s.w.t.Helper()
	s.at(name, path, true, false)
	s.at(name, path, false, true)
}

func (s *screen) at(name, path string, wide, dark bool) {
	s.w.t.Helper()
	s.look(wide, dark)
	s.run(path, chromedp.Navigate(s.w.url+path), chromedp.WaitVisible("main"))
	s.audit(name)
	s.quiet()
}

// hour makes the last hour of VIPs.
func (w *world) hour(vips ...string) {
	now := time.Now()
	for i := range int(trendTime / sampleInterval) {
		at := now.Add(time.Duration(i)*sampleInterval - trendTime)
		live := map[string]*medwayv1.Live{}
		for j, dc := range dcs {
			l := &medwayv1.Live{At: at.Format(time.RFC3339Nano), Status: &medwayv1.Status{Node: dc + "-lvs-a", Site: dc}}
			for _, vip := range vips {
				calls := uint64(380 + i%17 + i/8)
				rate := 3 * calls
				if j == 1 && i > 20 && i < 60 || j == 0 && (i <= 20 || i >= 60) {
					rate = 3*calls + uint64(i%5)*7
				} else {
					rate = 0
				}
				l.Status.Vips = append(l.Status.Vips, &medwayv1.VIPStatus{Vip: vip, ActiveConnections: calls - uint64(j*6), PacketsPerSecond: &rate})
			}
			live[l.Status.Node] = l
		}
		w.serves.live.trends.take(live, at)
	}
}
