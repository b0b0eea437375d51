package coordinator

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/medway-lb/medway/proto/medway/v1/medwayv1connect"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

const service = "/medway.v1.Coordinator/"

// heap is what is in use after a collection, in bytes.
func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func getState(ctx context.Context, c medwayv1connect.CoordinatorClient) error {
	_, err := c.GetState(ctx, connect.NewRequest(&medwayv1.GetStateRequest{}))
	return err
}

// TestOneNameIsBounded: one name gets its share of streams and of requests, and others
// theirs beside it; what it makes the coordinator hold is bounded.
func TestOneNameIsBounded(t *testing.T) {
	w := newWorld(t)
	greedy := w.with(w.allow(Permission{Name: "greedy", Role: "viewer"}), connect.WithGRPC())
	other := w.with(w.allow(Permission{Name: "other", Role: "viewer"}))
	before := heap()
	ctx, cancel := context.WithCancel(w.context())
	defer cancel()
	const tries = 1000
	begun := make(chan error, tries)
	var all sync.WaitGroup
	for range tries {
		all.Go(func() {
			stream, err := greedy.Watch(ctx, connect.NewRequest(&medwayv1.WatchRequest{}))
			if err == nil && !stream.Receive() {
				err = stream.Err()
			}
			begun <- err
			if err == nil {
				for stream.Receive() {
				}
				_ = stream.Close()
			}
		})
	}
	let := 0
	for range tries {
		switch err := <-begun; {
		case err == nil:
			let++
		case connect.CodeOf(err) != connect.CodeResourceExhausted || !strings.Contains(err.Error(), "of greedy: at most"):
			t.Error(err)
		}
	}
	if let != 100 {
		t.Errorf("%d of %d streams were let in, expected 100", let, tries)
	}
	if err := getState(w.context(), other); err != nil {
		t.Errorf("another name beside them: %v", err)
	}
	w.write("/medway/v1/target_state/sip-1", "dc1")
	if after := heap(); after > before+256<<20 {
		t.Errorf("%d MiB in use, before %d", after>>20, before>>20)
	}
	cancel()
	all.Wait()

	// A place is free again once a stream has ended.
	w.until("a stream is let in again", func() error {
		ctx, cancel := context.WithCancel(w.context())
		defer cancel()
		stream, err := greedy.Watch(ctx, connect.NewRequest(&medwayv1.WatchRequest{}))
		if err == nil && !stream.Receive() {
			err = stream.Err()
		}
		return err
	})

	// Requests: those that are too many are refused, and the rest is answered.
	answered, refused := 0, 0
	results := make(chan error, tries)
	for range tries {
		go func() { results <- getState(w.context(), greedy) }()
	}
	for range tries {
		switch err := <-results; {
		case err == nil:
			answered++
		case connect.CodeOf(err) == connect.CodeResourceExhausted:
			refused++
			var e *connect.Error
			if errors.As(err, &e) && e.Meta().Get("Retry-After") == "" {
				t.Errorf("%v does not say when to try again", err)
			}
		default:
			t.Error(err)
		}
	}
	if answered == 0 || refused == 0 {
		t.Errorf("%d answered, %d refused", answered, refused)
	}
	if err := getState(w.context(), other); err != nil {
		t.Errorf("another name after them: %v", err)
	}
}

// TestLargeRequests: what is too large is refused, also where it is small on its way.
func TestLargeRequests(t *testing.T) {
	w := newWorld(t)
	token := w.allow(Permission{Name: "alice", Role: "admin"})
	client := w.http()
	post := func(body io.Reader, headers map[string]string) (int, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(w.context(), http.MethodPost, w.url+service+"Apply", body)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Authorization", "Bearer "+token)
		for name, value := range headers {
			r.Header.Set(name, value)
		}
		answer, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = answer.Body.Close() }()
		text, err := io.ReadAll(answer.Body)
		if err != nil {
			t.Fatal(err)
		}
		return answer.StatusCode, string(text)
	}
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	if _, err := fmt.Fprintf(z, `{"documents":"%s"}`, strings.Repeat("#", 128<<20)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	before := heap()
	if code, text := post(&bomb, map[string]string{"Content-Encoding": "gzip"}); code != http.StatusTooManyRequests || !strings.Contains(text, "resource_exhausted") {
		t.Errorf("128 MiB in a small request: %d %s", code, text)
	}
	if after := heap(); after > before+64<<20 {
		t.Errorf("%d MiB in use, before %d", after>>20, before>>20)
	}
	client.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: w.roots, MinVersion: tls.VersionTLS12}} // HTTP/1.1
	defer client.CloseIdleConnections()
	if code, _ := post(strings.NewReader("{}"), map[string]string{"X-Large": strings.Repeat("x", 100<<10)}); code != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("a header of 100 KiB: %d", code)
	}
}

// TestPaths: no spelling of a path leads past the token, and none makes an error of the
// server's.
func TestPaths(t *testing.T) {
	w := newWorld(t)
	token := w.allow(Permission{Name: "alice", Role: "viewer"})
	client := w.http()
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	for _, path := range []string{
		"/", "/medway.v1.Coordinator", "/medway.v1.Coordinator/", service + "GetState", "/" + service + "GetState", service + "/GetState",
		service + "./GetState", service + "x/../GetState", service + "GetState/", service + "GetState/..", service + "GetState%00", service + "%47etState",
		"/%2fmedway.v1.Coordinator/GetState", service + "%2e%2e/GetState", service + "..%2fGetState", "/..;/medway.v1.Coordinator/GetState",
		service + "getstate", service + "GetState?x=/../", "/metrics", "/debug/pprof/", "/v1/live", "/.git/config",
	} {
		for _, given := range []string{"", "Bearer " + token} {
			r, err := http.NewRequestWithContext(w.context(), http.MethodPost, w.url+path, strings.NewReader("{}"))
			if err != nil {
				t.Fatal(path, err)
			}
			r.Header.Set("Content-Type", "application/json")
			if given != "" {
				r.Header.Set("Authorization", given)
			}
			answer, err := client.Do(r)
			if err != nil {
				t.Fatal(path, err)
			}
			_ = answer.Body.Close()
			// What is not the API's is the console's, which knows its own pages and sends to those of a cleaned path.
			elsewhere := answer.StatusCode == http.StatusNotFound || answer.StatusCode == http.StatusTemporaryRedirect
			if given == "" && answer.StatusCode != http.StatusUnauthorized && !elsewhere || answer.StatusCode >= 500 {
				t.Errorf("%s with %q: %s", path, given, answer.Status)
			}
			if given != "" && answer.StatusCode == http.StatusOK && !strings.Contains(r.URL.Path, service+"GetState") {
				t.Errorf("%s is answered", path)
			}
		}
	}
}

// TestSlowClients: who sends slowly is let go, and nobody waits for them.
func TestSlowClients(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	token := w.allow(Permission{Name: "alice", Role: "admin"})
	address := strings.TrimPrefix(w.url, "https://")
	secure := func() net.Conn {
		c, err := tls.Dial("tcp", address, &tls.Config{RootCAs: w.roots, ServerName: "localhost", MinVersion: tls.VersionTLS12})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	begin := func(text string) func() net.Conn {
		return func() net.Conn {
			c := secure()
			if _, err := io.WriteString(c, text); err != nil {
				t.Fatal(err)
			}
			return c
		}
	}
	request := "POST " + service + "Apply HTTP/1.1\r\nHost: localhost\r\n"
	var all sync.WaitGroup
	for what, open := range map[string]func() net.Conn{
		"no handshake": func() net.Conn {
			c, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			return c
		},
		"a header": begin(request),
		"a body":   begin(request + "Authorization: Bearer " + token + "\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n{"),
	} {
		for range 50 {
			c := open()
			t.Cleanup(func() { _ = c.Close() })
			ended := make(chan struct{})
			all.Go(func() { // a byte now and then
				ticker := time.NewTicker(100 * time.Millisecond)
				defer ticker.Stop()
				for what != "no handshake" {
					select {
					case <-ended:
						return
					case <-ticker.C:
						_, _ = io.WriteString(c, "x")
					}
				}
			})
			all.Go(func() {
				defer close(ended)
				_ = c.SetReadDeadline(time.Now().Add(patience))
				_, err := io.Copy(io.Discard, bufio.NewReader(c))
				if errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("%s, sent slowly, holds its connection", what)
				}
			})
		}
	}
	// HTTP/2: a body that never ends.
	all.Go(func() {
		body, writer := io.Pipe()
		defer func() { _ = writer.Close() }()
		r, err := http.NewRequestWithContext(w.context(), http.MethodPost, w.url+service+"Apply", body)
		if err != nil {
			t.Error(err)
			return
		}
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Authorization", "Bearer "+token)
		answer, err := w.http().Do(r)
		if err == nil {
			_ = answer.Body.Close()
		}
		if errors.Is(err, context.DeadlineExceeded) || err == nil && answer.StatusCode == http.StatusOK {
			t.Errorf("a body that never ends: %v, %v", answer, err)
		}
	})
	other := w.with(w.allow(Permission{Name: "other", Role: "viewer"}))
	for range 20 {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		if err := getState(ctx, other); err != nil {
			t.Errorf("another client beside them: %v", err)
		}
		cancel()
	}
	all.Wait()
}

// TestCertificatesEnd: who was let in with a certificate that has ended since is not
// served any more on the connection that stands; the coordinator's own is called to mind
// before its end, and a renewed one is taken at the next handshake.
func TestCertificatesEnd(t *testing.T) {
	w := newWorld(t)
	w.grant(Permission{Name: "dave", Role: "viewer"})
	if err := w.authority.Client("dave", 4*time.Second); err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(w.authority.Files("dave"))
	if err != nil {
		t.Fatal(err)
	}
	client := w.http(pair)
	dave := medwayv1connect.NewCoordinatorClient(client, w.url)
	w.until("dave is served", func() error { return getState(w.context(), dave) })
	w.until("dave's certificate has ended", func() error {
		err := getState(w.context(), dave)
		if connect.CodeOf(err) != connect.CodeUnauthenticated || !strings.Contains(err.Error(), `the certificate of "dave" ended at `) {
			return fmt.Errorf("he is told: %w", err)
		}
		return nil
	})

	alice := w.with(w.allow(Permission{Name: "alice", Role: "viewer"}))
	notices := func() (out []string) {
		t.Helper()
		all, err := alice.GetState(w.context(), connect.NewRequest(&medwayv1.GetStateRequest{}))
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range all.Msg.Notices {
			out = append(out, n.Subject+": "+n.Reason)
		}
		return out
	}
	serial := func() string {
		c, err := tls.Dial("tcp", strings.TrimPrefix(w.url, "https://"), &tls.Config{RootCAs: w.roots, ServerName: "localhost", MinVersion: tls.VersionTLS12})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		return c.ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	old := serial()
	if got := notices(); len(got) != 1 || !strings.HasPrefix(got[0], fmt.Sprintf("coordinator: field tls.cert: value %q: it ends at 20", w.config.TLS.Cert)) {
		t.Errorf("an hour before its end: %q", got)
	}
	if w.logs.FilterMessage("a certificate ends soon").Len() != 1 {
		t.Errorf("the log says %v", w.logs.All())
	}
	for _, file := range []string{w.config.TLS.Cert, w.config.TLS.Key} {
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
	if serial() != old { // the last good one stays while there is none
		t.Error("it serves another certificate than it had")
	}
	if err := w.authority.Coordinator("coordinator", nil, 365*24*time.Hour); err != nil {
		t.Fatal(err)
	}
	if serial() == old {
		t.Error("the renewed certificate is not served")
	}
	if got := notices(); len(got) != 0 {
		t.Errorf("renewed: %q", got)
	}

	year := time.Now().Add(365 * 24 * time.Hour)
	w.config.Etcd = Etcd{Cert: w.config.TLS.Cert, CA: "/nowhere/ca.pem"}
	for now, want := range map[time.Time]string{
		year.Add(-31 * 24 * time.Hour): `[{coordinator field etcd.ca: value "/nowhere/ca.pem": open /nowhere/ca.pem: no such file or directory false}]`,
		year.Add(-29 * 24 * time.Hour): "renew it true}", year.Add(time.Hour): "it has ended at ", year.Add(10 * 365 * 24 * time.Hour): "field tls.client_ca",
	} {
		if got := fmt.Sprint(w.config.expiring(now)); !strings.Contains(got, want) {
			t.Errorf("at %s: %s, expected %s", now, got, want)
		}
	}
}

// TestNoSecretIsKept: whatever somebody does with a token, it is in no log, and in etcd
// only as its hash.
func TestNoSecretIsKept(t *testing.T) {
	w := newWorld(t)
	token := w.allow(Permission{Name: "alice", Role: "admin"})
	secret := token[strings.LastIndexByte(token, '_')+1:]
	ctx := w.context()
	if _, err := w.with(token).Apply(ctx, apply(intentText)); err != nil {
		t.Fatal(err)
	}
	for _, wrong := range []string{
		token + "_", token + "_x", token + token, token + "x", token + " " + token, "medway_" + secret + "_" + secret, secret, "Bearer " + token,
		"medway_bob_" + secret, strings.ToUpper(token), "medway_" + secret + "_x", "medway__" + secret,
	} {
		if err := getState(ctx, w.with(wrong)); err == nil {
			t.Errorf("%s is taken", strings.ReplaceAll(wrong, secret, "SECRET"))
		}
	}
	for _, path := range []string{service + "GetState?token=" + token, "/" + token, service + token} {
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url+path, strings.NewReader(`{"`+token+`":1}`))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Cookie", "__Host-medway="+token)
		r.SetBasicAuth("alice", token)
		answer, err := w.http().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = answer.Body.Close()
	}
	if err := Revoke(ctx, w.config, "alice"); err != nil {
		t.Fatal(err)
	}
	w.until("alice's grant is gone", func() error {
		if err := getState(ctx, w.with(token)); connect.CodeOf(err) != connect.CodeUnauthenticated && connect.CodeOf(err) != connect.CodeResourceExhausted {
			return fmt.Errorf("alice reads: %w", err)
		}
		return nil
	})
	if w.logs.Len() == 0 || w.logs.FilterMessage("a login failed").Len() == 0 {
		t.Error("nothing is logged")
	}
	for _, e := range w.logs.All() {
		if text := strings.ToLower(fmt.Sprint(e.Message, e.ContextMap())); strings.Contains(text, secret) {
			t.Errorf("the log has it: %s", strings.ReplaceAll(text, secret, "SECRET"))
		}
	}
	entries, _, err := w.etcd.List(ctx, "/medway/")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.Contains(strings.ToLower(e.Key+string(e.Value)), secret) {
			t.Errorf("etcd has it in %s", strings.ReplaceAll(e.Key, secret, "SECRET"))
		}
	}
}
