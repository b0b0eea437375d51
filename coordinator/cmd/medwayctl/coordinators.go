package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	rpc "connectrpc.com/connect"
	"github.com/spf13/pflag"

	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"
	"github.com/medway-lb/medway/pkg/yamlfile"
	"github.com/medway-lb/medway/proto/medway/v1/medwayv1connect"
)

const (
	// dialTime is how long one coordinator may take to be reached.
	dialTime = 4 * time.Second
	// itsOwnTime is what a coordinator has beyond --command-timeout: it asks etcd
	// itself, and says in words when that does not answer.
	itsOwnTime = 10 * time.Second
)

// settings are how to reach coordinators, and who asks: by flags, else by the
// environment, else by a person's file, which has these fields.
type settings struct {
	Servers   []string `yaml:"servers"`
	CA        string   `yaml:"ca"`
	Cert      string   `yaml:"cert"`
	Key       string   `yaml:"key"`
	TokenFile string   `yaml:"token_file"`
}

// coordinators are those that are asked, one after the other.
type coordinators struct {
	flags    *pflag.FlagSet
	given    settings // by flags
	file     string
	opened   []server
	next     int // the one that answered last
	insecure *bool
}

// server is one of them.
type server struct {
	url    string
	client medwayv1connect.CoordinatorClient
}

func (c *coordinators) register(f *pflag.FlagSet) {
	c.flags = f
	f.StringSliceVar(&c.given.Servers, "server", nil, "coordinators' `URLs`, https://HOST:9443, separated by commas; where one can't be reached the next one is asked (MEDWAYCTL_SERVER)")
	f.StringVar(&c.given.CA, "ca", "", "`file` with the CA that signed the coordinators' certificates; without it the system's (MEDWAYCTL_CA)")
	f.StringVar(&c.given.TokenFile, "token-file", "", "`file` with the token that says who you are (MEDWAYCTL_TOKEN_FILE; MEDWAYCTL_TOKEN is the token itself)")
	f.StringVar(&c.file, "config", "", "`file` with the fields servers, ca, cert, key and token_file (MEDWAYCTL_CONFIG; by default ~/.config/medway/medwayctl.yaml, if it is there)")
}

// settings are what counts of flags, environment and file.
func (c *coordinators) settings() (settings, error) {
	s, err := c.fromFile()
	if err != nil {
		return s, err
	}
	if os.Getenv("MEDWAYCTL_TOKEN") != "" {
		s.TokenFile = "" // the environment counts before the file
	}
	for _, word := range []struct {
		flag, env string
		into      *string
	}{
		{"ca", "MEDWAYCTL_CA", &s.CA}, {"cert", "MEDWAYCTL_CERT", &s.Cert}, {"key", "MEDWAYCTL_KEY", &s.Key},
		{"token-file", "MEDWAYCTL_TOKEN_FILE", &s.TokenFile},
	} {
		if f := c.flags.Lookup(word.flag); f.Changed {
			*word.into = f.Value.String()
		} else if value := os.Getenv(word.env); value != "" {
			*word.into = value
		}
	}
	if value := os.Getenv("MEDWAYCTL_SERVER"); c.flags.Changed("server") {
		s.Servers = c.given.Servers
	} else if value != "" {
		s.Servers = strings.Split(value, ",")
	}
	return s, nil
}

func (c *coordinators) fromFile() (s settings, err error) {
	path := c.file
	if path == "" {
		path = os.Getenv("MEDWAYCTL_CONFIG")
	}
	wanted := path != ""
	if !wanted {
		dir, err := os.UserConfigDir()
		if err != nil {
			return s, nil //nolint:nilerr // nobody's home: there is no file
		}
		path = filepath.Join(dir, "medway", "medwayctl.yaml")
	}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && !wanted {
		return s, nil
	}
	if err != nil {
		return s, err
	}
	documents, err := yamlfile.Parse(path, text)
	switch {
	case err != nil || len(documents) == 0:
		return s, err
	case len(documents) > 1:
		return s, fmt.Errorf("%s: a second document: expected one", documents[1].Place(""))
	}
	if err := documents[0].Decode(&s); err != nil {
		return s, err
	}
	for _, file := range []*string{&s.CA, &s.Cert, &s.Key, &s.TokenFile} {
		if *file != "" && !filepath.IsAbs(*file) {
			*file = filepath.Join(filepath.Dir(path), *file) // wherever the tool is run
		}
	}
	return s, nil
}

// token is who asks; "" where a certificate says it.
func (s settings) token() (string, error) {
	token, from := os.Getenv("MEDWAYCTL_TOKEN"), "MEDWAYCTL_TOKEN"
	if s.TokenFile != "" {
		if err := store.CheckSecret(s.TokenFile); err != nil {
			return "", fmt.Errorf("flag --token-file: %w", err)
		}
		text, err := os.ReadFile(s.TokenFile)
		if err != nil {
			return "", fmt.Errorf("flag --token-file: %w", err)
		}
		token, from = string(text), "flag --token-file: value "+state.Quote(s.TokenFile)
	}
	token = strings.TrimSpace(token)
	if token == "" && s.TokenFile == "" {
		return "", nil
	}
	if token == "" || state.Line(token) != token || strings.Contains(token, " ") {
		return "", fmt.Errorf("%s: expected a token, as medway-coordinator grant --token prints it", from) // never what is there
	}
	return token, nil
}

// open makes clients, and asks nothing yet.
func (c *coordinators) open(timeout time.Duration) ([]server, error) {
	if c.opened != nil {
		return c.opened, nil
	}
	s, err := c.settings()
	if err != nil {
		return nil, err
	}
	if timeout <= 0 {
		return nil, fmt.Errorf("flag --command-timeout: value %s: expected more than 0s", timeout)
	}
	if len(s.Servers) == 0 {
		return nil, errors.New("no coordinator is named: expected --server https://HOST:9443 (or MEDWAYCTL_SERVER), or --etcd, which works straight on etcd")
	}
	if (s.Cert == "") != (s.Key == "") {
		return nil, errors.New("flags --cert and --key: one is given: expected both, or none")
	}
	secured, err := store.TLS(s.CA, s.Cert, s.Key)
	if err != nil {
		return nil, fmt.Errorf("flags --ca, --cert and --key: %w", err)
	}
	token, err := s.token()
	if err != nil {
		return nil, err
	}
	if token == "" && s.Cert == "" {
		return nil, errors.New("nothing says who you are: expected --token-file (or MEDWAYCTL_TOKEN_FILE), or --cert and --key")
	}
	clients := newHTTPClient(secured, min(timeout, dialTime))
	var opened []server
	for _, name := range s.Servers {
		name = strings.TrimSuffix(strings.TrimSpace(name), "/")
		u, err := url.Parse(name)
		switch {
		case err != nil || u.Host == "" || u.User != nil || u.Path+u.RawQuery+u.Fragment != "" || u.Scheme != "https" && u.Scheme != "http":
			return nil, fmt.Errorf("flag --server: value %s: expected https://HOST:PORT", state.Quote(name))
		case u.Scheme == "http" && !*c.insecure:
			return nil, fmt.Errorf("flag --server: value %s: expected https://, or --insecure beside it", state.Quote(name))
		}
		opened = append(opened, server{name, medwayv1connect.NewCoordinatorClient(clients, name, rpc.WithInterceptors(bearer(token)))})
	}
	c.opened = opened
	return opened, nil
}

// newHTTPClient follows no redirection: a token is for whom it is meant.
func newHTTPClient(secured *tls.Config, dial time.Duration) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, DialContext: (&net.Dialer{Timeout: dial}).DialContext,
			TLSClientConfig: secured, TLSHandshakeTimeout: dial, ForceAttemptHTTP2: true, IdleConnTimeout: time.Minute,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// bearer shows a token with each request; "" is none.
type bearer string

func (b bearer) WrapUnary(next rpc.UnaryFunc) rpc.UnaryFunc {
	return func(ctx context.Context, r rpc.AnyRequest) (rpc.AnyResponse, error) {
		b.show(r.Header())
		return next(ctx, r)
	}
}

func (b bearer) WrapStreamingClient(next rpc.StreamingClientFunc) rpc.StreamingClientFunc {
	return func(ctx context.Context, s rpc.Spec) rpc.StreamingClientConn {
		conn := next(ctx, s)
		b.show(conn.RequestHeader())
		return conn
	}
}

func (b bearer) WrapStreamingHandler(next rpc.StreamingHandlerFunc) rpc.StreamingHandlerFunc {
	return next
}

func (b bearer) show(h http.Header) {
	if b != "" {
		h.Set("Authorization", "Bearer "+string(b))
	}
}

// unreachableError says that no coordinator could do anything; nothing was done.
type unreachableError struct {
	each []error
	// answered is set where one lives, and can't reach etcd.
	answered bool
}

func (e *unreachableError) Error() string {
	var parts []string
	for _, err := range e.each {
		parts = append(parts, err.Error())
	}
	if e.answered {
		return "etcd can't be reached by the coordinators, nothing was done, and nothing moves without it: " + strings.Join(parts, "; ")
	}
	return "no coordinator can be reached, nothing was done: " + strings.Join(parts, "; ") + ": if none lives, --etcd works straight on etcd"
}

func (e *unreachableError) Unwrap() []error { return e.each }

// asking is one try with one coordinator.
type asking struct {
	safe bool        // to repeat
	sent atomic.Bool // there was a connection for it
}

// verdict is what an error of a try means.
type verdict int

const (
	final   verdict = iota // it is the answer
	another                // nothing was done: the next one may be asked
	unknown                // whether it was done
)

func (a *asking) verdict(err error) verdict {
	var alert *net.OpError
	told := rpc.IsWireError(err)
	code := rpc.CodeOf(err)
	switch {
	case !a.sent.Load(), errors.As(err, &alert) && alert.Op == "remote error": // it refused the handshake
		return another
	case told && code == rpc.CodeUnavailable:
		return another // by the API's word nothing was written
	case code == rpc.CodeDeadlineExceeded || code == rpc.CodeCanceled || !told && (code == rpc.CodeUnavailable || code == rpc.CodeUnknown || code == rpc.CodeInternal):
		if a.safe {
			return another
		}
		return unknown
	}
	return final
}

// try asks one coordinator after the other until one gives an answer.
func (t *tool) try(ctx context.Context, safe bool, one func(ctx context.Context, c medwayv1connect.CoordinatorClient) error) error {
	servers, err := t.api.open(t.timeout)
	if err != nil {
		return err
	}
	var each []error
	answered := false
	for i := range servers {
		n := (t.api.next + i) % len(servers)
		a := asking{safe: safe}
		err := one(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { a.sent.Store(true) }}), servers[n].client)
		if err == nil {
			t.api.next = n
			return nil
		}
		if ctx.Err() != nil && safe {
			return context.Cause(ctx)
		}
		switch a.verdict(err) {
		case final:
			t.api.next = n
			return refusal(err)
		case unknown:
			return fmt.Errorf("%s: %s: it is not known whether this was done, look with medwayctl status and history", servers[n].url, cause(err))
		case another:
			answered = answered || rpc.IsWireError(err)
			each = append(each, fmt.Errorf("%s: %s", servers[n].url, cause(err)))
		}
	}
	t.api.next++ // another one first, the next time
	return &unreachableError{each, answered}
}

// method is one of the API's.
type method[Q, A any] = func(medwayv1connect.CoordinatorClient, context.Context, *rpc.Request[Q]) (*rpc.Response[A], error)

// ask has a coordinator do something. One that is safe may be repeated.
func ask[Q, A any](ctx context.Context, t *tool, safe bool, m method[Q, A], q *Q) (answer *A, err error) {
	err = t.try(ctx, safe, func(ctx context.Context, c medwayv1connect.CoordinatorClient) error {
		ctx, cancel := context.WithTimeout(ctx, t.timeout+itsOwnTime)
		defer cancel()
		response, err := m(c, ctx, rpc.NewRequest(q))
		if err == nil {
			answer = response.Msg
		}
		return err
	})
	return answer, err
}

// stream is [method] of many answers.
type stream[Q, A any] = func(medwayv1connect.CoordinatorClient, context.Context, *rpc.Request[Q]) (*rpc.ServerStreamForClient[A], error)

// errBroken ends a stream that had begun.
var errBroken = errors.New("the stream broke off")

// listen takes the answers of a stream. Once one has come no other coordinator is asked.
func listen[Q, A any](ctx context.Context, t *tool, safe bool, m stream[Q, A], q *Q, each func(*A) error) error {
	began := false
	var ended error
	err := t.try(ctx, safe, func(ctx context.Context, c medwayv1connect.CoordinatorClient) error {
		s, err := m(c, ctx, rpc.NewRequest(q))
		if err != nil {
			return err
		}
		defer func() { _ = s.Close() }()
		for s.Receive() {
			began = true
			if ended = each(s.Msg()); ended != nil {
				return nil
			}
		}
		if began {
			ended = s.Err()
			return nil
		}
		return s.Err()
	})
	if err != nil || ended == nil {
		return err
	}
	var c *rpc.Error
	switch {
	case !errors.As(ended, &c):
		return ended
	case !rpc.IsWireError(ended) || c.Code() == rpc.CodeUnavailable || c.Code() == rpc.CodeResourceExhausted:
		return fmt.Errorf("%w: %s", errBroken, cause(ended))
	}
	return refusal(ended)
}

// cause is an error without what is the same of all.
func cause(err error) string {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	var c *rpc.Error
	if errors.As(err, &c) {
		return state.Line(c.Message())
	}
	return state.Line(err.Error())
}
