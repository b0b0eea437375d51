package auth

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var alice = Identity{Name: "alice", Grant: Grant{Role: Operator, Since: now.Add(-time.Hour)}}

var now = time.Date(2026, 11, 25, 3, 0, 0, 0, time.UTC)

// TestMay is the whole table of who may do what.
func TestMay(t *testing.T) {
	for role, may := range map[Role]map[Role]bool{
		Viewer:   {Viewer: true},
		Operator: {Viewer: true, Operator: true},
		Admin:    {Viewer: true, Operator: true, Admin: true},
		Backend:  {Backend: true},
		"":       {},
		"root":   {},
	} {
		for _, need := range []Role{Viewer, Operator, Admin, Backend, "", "root"} {
			err := Identity{Name: "alice", Grant: Grant{Role: role}}.May(need, "sip-1")
			if (err == nil) != may[need] {
				t.Errorf("%q may do what takes %q: %v", role, need, err)
			}
			var denied *DeniedError
			if err != nil && (!errors.As(err, &denied) || denied.Need != need) {
				t.Errorf("%q, %q: error %v", role, need, err)
			}
		}
	}
}

func TestMayForSomeVIPs(t *testing.T) {
	i := Identity{Name: "alice", Grant: Grant{Role: Operator, VIPs: []string{"sip-1", "sip-2"}}}
	for vip, may := range map[string]bool{"sip-1": true, "sip-2": true, "sip-3": false, "": false} {
		if err := i.May(Operator, vip); (err == nil) != may {
			t.Errorf("VIP %q: %v", vip, err)
		}
		if err := i.May(Viewer, vip); err != nil {
			t.Errorf("reads VIP %q: %v", vip, err)
		}
	}
}

func TestToken(t *testing.T) {
	for _, name := range []string{"alice", "ci_of_the_shop", "a-b.c"} {
		token, sha := NewToken(name)
		g := Grant{Role: Viewer, TokenSHA256: sha}
		if got, ok := TokenName(token); !ok || got != name {
			t.Errorf("%s is of %q", token, got)
		}
		if err := g.Check(); err != nil || !g.Verify(token) || strings.Contains(token, sha) || strings.Contains(sha, token) {
			t.Errorf("%s: %v", token, err)
		}
		if another, _ := NewToken(name); g.Verify(another) || another == token {
			t.Errorf("%s passes for %s", another, token)
		}
		for _, bad := range []string{"", token[:len(token)-1], token + "a", strings.TrimPrefix(token, tokenPrefix), tokenPrefix + name, tokenPrefix + name + "_", tokenPrefix + "_x", sha} {
			if g.Verify(bad) {
				t.Errorf("%q passes", bad)
			}
		}
		if (Grant{Role: Viewer}).Verify(token) {
			t.Error("a grant without a token takes one")
		}
	}
}

func TestAsExpires(t *testing.T) {
	g := Grant{Role: Viewer, Expires: &now}
	if _, err := As("alice", g, now.Add(-time.Second)); err != nil {
		t.Error(err)
	}
	if _, err := As("alice", g, now); err == nil || !strings.Contains(err.Error(), "ended at 2026-11-25T03:00:00Z") {
		t.Errorf("error %v", err)
	}
}

func TestDecodeGrant(t *testing.T) {
	_, sha := NewToken("alice")
	good := Grant{Role: Operator, VIPs: []string{"sip-1"}, TokenSHA256: sha, Expires: &now, By: "root", Since: now}
	value, err := json.Marshal(good)
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeGrant(value)
	if err != nil || !cmp.Equal(got, good) {
		t.Errorf("%v, %v", got, err)
	}
	for bad, want := range map[string]string{
		"": "EOF", "null": `role ""`, "{}": `role ""`, `{"role":"boss"}`: `role "boss": expected viewer, operator, admin or backend`,
		`{"role":"viewer","rolle":"admin"}`: `unknown field "rolle"`, `{"role":"viewer"}{"role":"admin"}`: "expected one JSON object",
		`{"role":"viewer","token_sha256":"abcd"}`: "token_sha256: expected 64 hexadecimal digits", `{"role":"viewer","vips":[""]}`: `vips: ""`,
		`{"role":"viewer","expires":"soon"}`: "soon",
	} {
		if _, err := DecodeGrant([]byte(bad)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, expected %s", bad, err, want)
		}
	}
}

func TestLimiter(t *testing.T) {
	l := NewLimiter()
	a, other := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	for range l.Failures {
		if wait := l.Wait(a, now); wait != 0 {
			t.Fatalf("waits %v", wait)
		}
		l.Failed(a, now)
	}
	if wait := l.Wait(a, now); wait != l.Every {
		t.Errorf("after %d failures: waits %v, expected %v", l.Failures, wait, l.Every)
	}
	if l.Wait(other, now) != 0 || l.Wait(netip.MustParseAddr("::ffff:192.0.2.1"), now) == 0 {
		t.Error("one source is taken for another")
	}
	later := now.Add(l.Every)
	if l.Wait(a, later) != 0 {
		t.Error("nothing is forgiven")
	}
	l.Failed(a, later)
	if l.Wait(a, later) != l.Every {
		t.Error("more than one is forgiven")
	}
	if l.Wait(a, now.Add(time.Hour)) != 0 {
		t.Error("it is not over after an hour")
	}
}

// TestLimiterOfAnIPv6Site: who has one address of a network has all of them.
func TestLimiterOfAnIPv6Site(t *testing.T) {
	l := &Limiter{Failures: 1, Every: time.Second, Sources: 10}
	l.Failed(netip.MustParseAddr("2001:db8:1::1%eth0"), now)
	if l.Wait(netip.MustParseAddr("2001:db8:1::ffff"), now) == 0 {
		t.Error("another address of the network may")
	}
	if l.Wait(netip.MustParseAddr("2001:db8:1:1::1"), now) != 0 {
		t.Error("another network may not")
	}
}

// TestLimiterIsBounded, and remembers who fails most.
func TestLimiterIsBounded(t *testing.T) {
	l := &Limiter{Failures: 3, Every: time.Minute, Sources: 50}
	guesser := netip.MustParseAddr("198.51.100.1")
	for range 5 {
		l.Failed(guesser, now)
	}
	a := netip.MustParseAddr("10.0.0.1")
	for range 1000 {
		l.Failed(a, now)
		a = a.Next()
	}
	if len(l.sources) > 50 || l.Wait(guesser, now) == 0 {
		t.Errorf("%d sources, the guesser waits %v", len(l.sources), l.Wait(guesser, now))
	}
	l.Failed(a, now.Add(time.Hour))
	if len(l.sources) != 1 {
		t.Errorf("%d sources are left after an hour", len(l.sources))
	}
}

// TestSession asks a real server over TLS, with the cookies that a client keeps.
func TestSession(t *testing.T) {
	stored := map[string][]byte{}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, _ *http.Request) {
		c, stores, s := NewSession(alice, now, false)
		value, err := json.Marshal(s)
		if err != nil {
			t.Error(err)
		}
		stored[stores] = value
		if _, there := stored[c.Value]; there {
			t.Error("the store has what is in the cookie")
		}
		http.SetCookie(w, c)
	})
	mux.HandleFunc("POST /act", func(w http.ResponseWriter, r *http.Request) {
		key, _ := SessionKey(r, false)
		if s, err := DecodeSession(stored[key], now); err != nil || s.Name != "alice" {
			http.Error(w, "who are you?", http.StatusUnauthorized)
		}
	})
	server := httptest.NewTLSServer(OwnPages(mux))
	defer server.Close()
	post := func(path string, cookies []*http.Cookie, headers ...string) *http.Response {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range cookies {
			r.AddCookie(c)
		}
		for i := 0; i < len(headers); i += 2 {
			r.Header.Set(headers[i], headers[i+1])
		}
		answer, err := server.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		return answer
	}
	login := post("/login", nil)
	cookies := login.Cookies()
	if len(cookies) != 1 {
		t.Fatalf("cookies %v", cookies)
	}
	if text := login.Header.Get("Set-Cookie"); !strings.HasPrefix(text, "__Host-medway=") || !strings.Contains(text, "; Path=/; ") ||
		!strings.Contains(text, "; HttpOnly; Secure; SameSite=Strict") || strings.Contains(text, "Domain") {
		t.Errorf("cookie %s", text)
	}
	if a := post("/act", cookies, "Sec-Fetch-Site", "same-origin"); a.StatusCode != http.StatusOK {
		t.Errorf("own page: %s", a.Status)
	}
	if a := post("/act", cookies); a.StatusCode != http.StatusOK {
		t.Errorf("no browser: %s", a.Status)
	}
	if a := post("/act", nil); a.StatusCode != http.StatusUnauthorized {
		t.Errorf("without a cookie: %s", a.Status)
	}
	for _, foreign := range [][]string{{"Sec-Fetch-Site", "cross-site"}, {"Sec-Fetch-Site", "same-site"}, {"Origin", "https://evil.example"}} {
		if a := post("/act", cookies, foreign...); a.StatusCode != http.StatusForbidden {
			t.Errorf("%v: %s", foreign, a.Status)
		}
	}
	forged := *cookies[0]
	forged.Value += "A"
	if a := post("/act", []*http.Cookie{&forged}); a.StatusCode != http.StatusUnauthorized {
		t.Errorf("a forged cookie: %s", a.Status)
	}
	if end := EndSession(false); end.MaxAge >= 0 || end.Name != cookies[0].Name || end.Path != "/" {
		t.Errorf("end of a session: %v", end)
	}
}

func TestDecodeSessionThatHasEnded(t *testing.T) {
	_, _, s := NewSession(alice, now, false)
	value, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := DecodeSession(value, now.Add(SessionTime-time.Second)); err != nil {
		t.Error(err)
	}
	for _, bad := range [][]byte{nil, []byte("{}"), []byte(`{"name":"alice","role":"admin","expires":"2030-01-01T00:00:00Z"}`), append(value, '{')} {
		if _, err := DecodeSession(bad, now); err == nil {
			t.Errorf("%s is a session", bad)
		}
	}
	if _, err := DecodeSession(value, now.Add(SessionTime)); err == nil {
		t.Error("it does not end")
	}
}

// TestSessionOfAGrantThatEnds: it ends with the grant, and knows it from a later one.
func TestSessionOfAGrantThatEnds(t *testing.T) {
	soon := now.Add(time.Minute)
	who := alice
	who.Expires = &soon
	if c, _, s := NewSession(who, now, false); !s.Expires.Equal(soon) || !c.Expires.Equal(soon) || !s.Grant.Equal(alice.Since) {
		t.Errorf("%+v, cookie %v", s, c)
	}
}

// TestSessionWithoutTLS: a browser keeps its cookie, and the one is not taken for the
// other.
func TestSessionWithoutTLS(t *testing.T) {
	c, stores, _ := NewSession(alice, now, true)
	if c.Secure || strings.HasPrefix(c.Name, "__") || !c.HttpOnly || c.SameSite != http.SameSiteStrictMode {
		t.Errorf("cookie %v", c)
	}
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.AddCookie(c)
	if key, ok := SessionKey(r, true); !ok || key != stores {
		t.Errorf("key %q, %v", key, ok)
	}
	if _, ok := SessionKey(r, false); ok {
		t.Error("with TLS a cookie counts that anybody on the way may have read")
	}
}
