package store

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/medway-lb/medway/pkg/pki"
	"github.com/medway-lb/medway/pkg/store/etcdtest"
)

// change makes changes of access.
func change(t *testing.T, c *Client, changes ...AccessChange) {
	t.Helper()
	for _, ch := range changes {
		if err := c.ChangeAccess(deadline(t), ch); err != nil {
			t.Fatal(err)
		}
	}
}

var readAll, writeAll = Rights{Read: true}, Rights{Write: true}

// agentAccess lets the user agent read /my/ and write /my/own/.
func agentAccess() []AccessChange {
	return []AccessChange{
		{Verb: AddUser, User: RootUser},
		{Verb: GiveRole, User: RootUser, Role: RootUser},
		{Verb: AddRole, Role: "agent"},
		{Verb: GrantRights, Role: "agent", Range: PrefixRange("/my/"), Rights: readAll},
		{Verb: GrantRights, Role: "agent", Range: PrefixRange("/my/own/"), Rights: writeAll},
		{Verb: AddUser, User: "agent"},
		{Verb: GiveRole, User: "agent", Role: "agent"},
	}
}

// Authentication is enabled under a client at work, rights are taken and given
// again: it goes on by itself, what it may not do is said, and no event is lost.
func TestAuthenticationComesAndGoes(t *testing.T) {
	t.Parallel()
	cl := newSecureCluster(t)
	root := open(t, cl.as(t, RootUser))
	core, logs := observer.New(zap.WarnLevel)
	config := cl.as(t, "agent")
	config.Log = zap.New(core)
	agent := open(t, config)
	m := follow(t, agent, "/my/")
	m.untilRevision(put(t, root, "/my/a", "1"))
	lease, err := agent.Grant(deadline(t), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	commit(t, agent, []Put{{Key: "/my/own/alive", Lease: lease.ID()}})

	change(t, root, agentAccess()...)
	change(t, root, AccessChange{Verb: EnableAuth})
	m.untilRevision(put(t, root, "/my/b", "1"))
	untilFresh(t, agent, time.Now())
	if err := lease.Renew(deadline(t)); err != nil {
		t.Errorf("renew after authentication was enabled: %v", err)
	}
	commit(t, agent, []Put{{Key: "/my/own/alive", Lease: lease.ID()}})

	_, _, err = agent.Commit(deadline(t), nil, []Put{{Key: "/my/target"}}, nil)
	if !errors.Is(err, ErrDenied) || !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), `write /my/target: etcd's permissions do not allow it to user "agent"`) {
		t.Errorf("a write without the right: %v", err)
	}
	if got := agent.Troubles(); len(got) != 2 || !strings.Contains(got[0], "does not let user \"agent\" write /my/target") || !strings.Contains(got[1], "valid until") {
		t.Errorf("troubles: %q", got) // the certificate is for an hour
	}
	if n := logs.FilterMessageSnippet("permissions").Len(); n != 1 {
		t.Errorf("the refused write was logged %d times", n)
	}
	nobody := open(t, cl.as(t, "nobody"))
	if _, _, err := nobody.List(deadline(t), "/my/"); !errors.Is(err, ErrDenied) {
		t.Errorf("a read by a user that does not exist: %v", err)
	}

	// Without the right to read nothing is fresh, whatever the watch still says.
	change(t, root, AccessChange{Verb: RevokeRange, Role: "agent", Range: PrefixRange("/my/")})
	revoked := time.Now()
	put(t, root, "/my/c", "1")
	commit(t, root, nil, "/my/a")
	select { // a span in which nothing may happen
	case <-agent.Refreshed():
		if agent.Fresh().After(revoked) {
			t.Error("fresh without the right to read")
		}
	case <-time.After(8 * quick):
	}
	change(t, root, AccessChange{Verb: GrantRights, Role: "agent", Range: PrefixRange("/my/"), Rights: readAll})
	untilFresh(t, agent, time.Now())
	m.same(root)
	if _, _, restored := m.count(); restored != 0 {
		t.Error("rights that came back were taken for a restore")
	}

	// The same over a reconnect: the watch is refused until the right is back.
	change(t, root, AccessChange{Verb: RevokeRange, Role: "agent", Range: PrefixRange("/my/")})
	cl.kill(0)
	cl.start(t, 0)
	if _, _, err := root.Get(deadline(t), "/my/c"); err != nil { // waits for the server
		t.Fatal(err)
	}
	rev := put(t, root, "/my/d", "1")
	untilLogged(t, logs, "permission denied")
	change(t, root, AccessChange{Verb: GrantRights, Role: "agent", Range: PrefixRange("/my/"), Rights: readAll})
	m.untilRevision(rev)
	untilFresh(t, agent, time.Now())
	m.same(root)

	change(t, root, AccessChange{Verb: GrantRights, Role: "agent", Range: KeyRange("/my/target"), Rights: writeAll})
	put(t, agent, "/my/target", "x")
	if got := agent.Troubles(); len(got) != 1 {
		t.Errorf("troubles after the right was given: %q", got)
	}
}

// untilLogged waits for an error in the log.
func untilLogged(t *testing.T, logs *observer.ObservedLogs, text string) {
	t.Helper()
	ctx := deadline(t)
	for {
		for _, e := range logs.All() {
			if err, ok := e.ContextMap()["error"].(string); ok && strings.Contains(err, text) {
				return
			}
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%q was not logged: %v", text, logs.All())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Users, roles and rights change while a client writes: it never sees more than
// a delay.
func TestWritesWhileAccessChanges(t *testing.T) {
	t.Parallel()
	cl := newSecureCluster(t)
	root := open(t, cl.as(t, RootUser))
	change(t, root, agentAccess()...)
	change(t, root, AccessChange{Verb: EnableAuth})
	agent := open(t, cl.as(t, "agent"))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 50 {
			change(t, root, AccessChange{Verb: AddRole, Role: "x"}, AccessChange{Verb: DeleteRole, Role: "x"})
		}
	}()
	for n := 0; ; n++ {
		put(t, agent, "/my/own/n", "x")
		select {
		case <-done:
			t.Logf("%d writes", n)
			return
		default:
		}
	}
}

// What is wrong with a connection is said in words, with the server's name.
func TestReach(t *testing.T) {
	t.Parallel()
	cl := newSecureCluster(t)
	server := cl.endpoints()[0]
	plain := "http://" + sharedServer(t).endpoints()[0]
	good := cl.as(t, "agent")
	if err := Reach(deadline(t), good); err != nil {
		t.Errorf("a good connection: %v", err)
	}
	if err := Reach(deadline(t), Config{Endpoints: []string{plain}}); err != nil {
		t.Errorf("a good connection without TLS: %v", err)
	}

	other, _, err := pki.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	issue := func(a *pki.Authority, name string, valid time.Duration) (cert, key string) {
		if err := a.Client(name, valid); err != nil {
			t.Fatal(err)
		}
		return a.Files(name)
	}
	with := func(ca string, files ...string) *tls.Config {
		var cert, key string
		if len(files) > 0 {
			cert, key = files[0], files[1]
		}
		config, err := TLS(ca, cert, key)
		if err != nil {
			t.Fatal(err)
		}
		return config
	}
	pair := func(cert, key string) []string { return []string{cert, key} }
	later := good.TLS.Clone()
	later.Time = func() time.Time { return time.Now().Add(2 * time.Hour) }
	closed := etcdtest.FreeAddress(t)
	for _, test := range []struct {
		name     string
		endpoint string
		tls      *tls.Config
		want     []string
	}{
		{"nobody there", "https://" + closed, good.TLS, []string{"https://" + closed, "connection refused"}},
		{"another CA than the server's", server, with(other.CA(), pair(issue(other, "a", time.Hour))...), []string{server, "not signed by the CA that this client trusts"}},
		{"a name that is not the server's", strings.Replace(server, "127.0.0.1", "127.0.0.2", 1), good.TLS, nil},
		{"a server's certificate that has ended", server, later, []string{"its certificate is valid from", "this host's clock says"}},
		{"no certificate", server, with(cl.pki.CA()), []string{"asks for a client's certificate"}},
		{"a client's certificate of another CA", server, with(cl.pki.CA(), pair(issue(other, "b", time.Hour))...), []string{`refuses this client's certificate, of user "b"`, "--trusted-ca-file"}},
		{"a client's certificate that has ended", server, with(cl.pki.CA(), pair(issue(cl.pki, "old", -time.Minute))...), []string{`refuses this client's certificate, of user "old": it is valid from`}},
		{"TLS to a server without", strings.Replace(plain, "http", "https", 1), good.TLS, []string{"is it a server without?", "http://"}},
		{"plain to a server with TLS", strings.Replace(server, "https", "http", 1), nil, []string{"does it speak TLS only?", "https://"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			config := Config{Endpoints: []string{test.endpoint}, TLS: test.tls}
			if test.want == nil {
				// The server listens on 127.0.0.1 only.
				config.Dial = func(ctx context.Context, _ string) (net.Conn, error) {
					return (&net.Dialer{}).DialContext(ctx, "tcp", cl.members[0].client)
				}
				test.want = []string{test.endpoint, "its certificate is not for this address", "127.0.0.2"}
			}
			err := Reach(deadline(t), config)
			for _, want := range test.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("error %v, expected it to contain %q", err, want)
				}
			}
			// A client says the same of itself, in the log and to who asks.
			core, logs := observer.New(zap.WarnLevel)
			config.Log = zap.New(core)
			config.DialTimeout = time.Second
			c := open(t, config)
			follow(t, c, "/my/")
			untilLogged(t, logs, test.want[0])
			until := deadline(t)
			for len(c.Troubles()) == 0 && until.Err() == nil {
				<-time.After(time.Millisecond)
			}
			if got := strings.Join(c.Troubles(), ""); !strings.Contains(got, test.want[0]) {
				t.Errorf("troubles: %q", got)
			}
		})
	}
}

// A node's certificate does not make a server: nobody can pose as etcd with it.
func TestClientCertificateIsNoServer(t *testing.T) {
	t.Parallel()
	a, _, err := pki.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Client("127.0.0.1", time.Hour); err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(a.Files("127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		conn, err := l.Accept()
		if err == nil {
			_ = conn.(*tls.Conn).HandshakeContext(context.Background())
			_ = conn.Close()
		}
	}()
	config, err := TLS(a.CA(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	if err := Reach(deadline(t), Config{Endpoints: []string{"https://" + l.Addr().String()}, TLS: config}); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a client's certificate was taken for a server's: %v", err)
	}
}

// A renewed certificate is shown at the next handshake; one that does not fit
// its key is not.
func TestCertificateIsReadAgain(t *testing.T) {
	t.Parallel()
	cl := newSecureCluster(t)
	config := cl.as(t, "agent")
	first := config.leaf()
	cert, key := cl.pki.Files("agent")
	cl.as(t, "other")
	_, otherKey := cl.pki.Files("other")
	if err := os.Rename(otherKey, key); err != nil { // half of a renewal
		t.Fatal(err)
	}
	if got := config.leaf(); !got.Equal(first) {
		t.Error("a certificate that does not fit its key is shown")
	}
	if err := os.Remove(cert); err != nil {
		t.Fatal(err)
	}
	if got := config.leaf(); !got.Equal(first) {
		t.Error("without its file the last good certificate is gone")
	}
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	if err := cl.pki.Client("agent", 300*24*time.Hour); err != nil {
		t.Fatal(err)
	}
	if got := config.leaf(); got.Equal(first) || config.User() != "agent" {
		t.Error("the renewed certificate is not shown")
	}
	if got := open(t, config).Troubles(); len(got) != 0 {
		t.Errorf("troubles: %q", got)
	}
	if err := Reach(deadline(t), config); err != nil {
		t.Error(err)
	}
}
