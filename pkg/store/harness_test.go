package store

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/medway-lb/medway/pkg/pki"
	"github.com/medway-lb/medway/pkg/store/etcdtest"
)

const patience = 20 * time.Second // for anything that must happen

// shared is one server for all tests that don't break theirs.
var shared struct {
	once    sync.Once
	cluster *cluster
	dir     string
}

func TestMain(m *testing.M) {
	// Each check reconnects a few times, which takes a quarter of a second.
	if err := flag.Set("rapid.checks", "30"); err != nil {
		panic(err)
	}
	code := m.Run()
	if shared.cluster != nil {
		shared.cluster.killAll()
		_ = os.RemoveAll(shared.dir)
	}
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Println(err)
			code = 1
		}
	}
	os.Exit(code)
}

func sharedServer(t *testing.T) *cluster {
	t.Helper()
	shared.once.Do(func() {
		var err error
		if shared.dir, err = os.MkdirTemp("", "medway-store"); err != nil {
			t.Fatal(err)
		}
		shared.cluster = startCluster(t, shared.dir, 1)
	})
	if shared.cluster == nil {
		t.Fatal("no shared server")
	}
	return shared.cluster
}

type member struct {
	client, peer, dir string
	cmd               *exec.Cmd
}

type cluster struct {
	members []*member
	initial string
	pki     *pki.Authority // nil: without TLS
}

// newCluster starts n members of its own for t.
func newCluster(t *testing.T, n int) *cluster {
	t.Helper()
	c := startCluster(t, t.TempDir(), n)
	t.Cleanup(c.killAll)
	return c
}

// newSecureCluster is one member with TLS that asks clients for certificates.
func newSecureCluster(t *testing.T) *cluster {
	t.Helper()
	authority, _, err := pki.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := authority.Server("server", nil, time.Hour); err != nil {
		t.Fatal(err)
	}
	c := &cluster{pki: authority}
	c.startAll(t, t.TempDir(), 1)
	t.Cleanup(c.killAll)
	return c
}

// as is the configuration of a client with a certificate of its own.
func (c *cluster) as(t *testing.T, user string) Config {
	t.Helper()
	if err := c.pki.Client(user, time.Hour); err != nil && !errors.Is(err, fs.ErrExist) {
		t.Fatal(err)
	}
	cert, key := c.pki.Files(user)
	config, err := TLS(c.pki.CA(), cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return Config{Endpoints: c.endpoints(), TLS: config, ProbeInterval: quick}
}

func startCluster(t *testing.T, dir string, n int) *cluster {
	t.Helper()
	c := &cluster{}
	c.startAll(t, dir, n)
	return c
}

func (c *cluster) startAll(t *testing.T, dir string, n int) {
	t.Helper()
	var initial []string
	for i := range n {
		m := &member{client: etcdtest.FreeAddress(t), peer: etcdtest.FreeAddress(t), dir: filepath.Join(dir, fmt.Sprintf("m%d", i))}
		c.members = append(c.members, m)
		initial = append(initial, fmt.Sprintf("m%d=http://%s", i, m.peer))
	}
	c.initial = strings.Join(initial, ",")
	for i := range n {
		c.start(t, i)
	}
	c.waitReady(t)
}

// url is a client's or with TLS a secure one.
func (c *cluster) url(address string) string {
	if c.pki == nil {
		return "http://" + address
	}
	return "https://" + address
}

func (c *cluster) start(t *testing.T, i int) {
	t.Helper()
	binary, err := etcdtest.Binary()
	if err != nil {
		t.Fatal("build etcd: ", err)
	}
	m := c.members[i]
	log, err := os.OpenFile(m.dir+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	m.cmd = exec.Command(binary, "--name", fmt.Sprintf("m%d", i), "--data-dir", m.dir,
		"--listen-client-urls", c.url(m.client), "--advertise-client-urls", c.url(m.client),
		"--listen-peer-urls", "http://"+m.peer, "--initial-advertise-peer-urls", "http://"+m.peer,
		"--initial-cluster", c.initial, "--heartbeat-interval", "50", "--election-timeout", "500",
		"--unsafe-no-fsync", "--bcrypt-cost", "4", "--log-level", "warn")
	if c.pki != nil {
		cert, key := c.pki.Files("server")
		m.cmd.Args = append(m.cmd.Args, "--cert-file", cert, "--key-file", key, "--trusted-ca-file", c.pki.CA(), "--client-cert-auth")
	}
	m.cmd.Stdout, m.cmd.Stderr = log, log
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

// kill ends a member at once (SIGKILL).
func (c *cluster) kill(i int) {
	m := c.members[i]
	if m.cmd == nil {
		return
	}
	_ = m.cmd.Process.Kill()
	_ = m.cmd.Wait()
	m.cmd = nil
}

func (c *cluster) killAll() {
	for i := range c.members {
		c.kill(i)
	}
}

func (c *cluster) signal(t *testing.T, sig syscall.Signal) {
	t.Helper()
	for _, m := range c.members {
		if err := m.cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range c.members {
		// The signal is sent, but on a busy machine it takes its time.
		if sig == syscall.SIGSTOP {
			if err := unix.Waitid(unix.P_PID, m.cmd.Process.Pid, nil, unix.WSTOPPED|unix.WNOWAIT, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func (c *cluster) endpoints() (all []string) {
	for _, m := range c.members {
		if c.pki == nil {
			all = append(all, m.client)
		} else {
			all = append(all, c.url(m.client))
		}
	}
	return all
}

func (c *cluster) waitReady(t *testing.T) {
	t.Helper()
	config := Config{Endpoints: c.endpoints()}
	if c.pki != nil {
		config = c.as(t, RootUser)
	}
	cl := open(t, config)
	defer cl.Close()
	if _, _, err := cl.Get(deadline(t), "/ready"); err != nil {
		t.Fatal("etcd is not ready: ", err)
	}
}

// leader returns the index of the member that leads.
func (c *cluster) leader(t *testing.T, etcd *clientv3.Client) int {
	t.Helper()
	for i, m := range c.members {
		st, err := etcd.Status(deadline(t), m.client)
		if err != nil {
			t.Fatal(err)
		}
		if st.Leader == st.Header.MemberId {
			return i
		}
	}
	t.Fatal("no leader")
	return -1
}

func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func open(t *testing.T, cfg Config) *Client {
	t.Helper()
	if len(cfg.Endpoints) == 0 {
		cfg.Endpoints = sharedServer(t).endpoints()
	}
	c, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// commit writes without guards and returns the revision.
func commit(t *testing.T, c *Client, puts []Put, deletes ...string) int64 {
	t.Helper()
	ok, rev, err := c.Commit(deadline(t), nil, puts, deletes)
	if err != nil || !ok {
		t.Fatalf("commit: %v %v", ok, err)
	}
	return rev
}

func put(t *testing.T, c *Client, key, value string) int64 {
	t.Helper()
	return commit(t, c, []Put{{Key: key, Value: []byte(value)}})
}

// proxy is a TCP relay that can be cut.
type proxy struct {
	listener net.Listener
	target   string
	mu       sync.Mutex
	isCut    bool
	conns    map[net.Conn]struct{}
	wg       sync.WaitGroup
}

func newProxy(t *testing.T, target string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: l, target: target, conns: map[net.Conn]struct{}{}}
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		_ = l.Close()
		p.cut()
		p.wg.Wait()
	})
	return p
}

func (p *proxy) address() string { return p.listener.Addr().String() }

func (p *proxy) accept() {
	for {
		in, err := p.listener.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", p.target)
		if err != nil {
			_ = in.Close()
			continue
		}
		p.mu.Lock()
		if p.isCut {
			p.mu.Unlock()
			_, _ = in.Close(), out.Close()
			continue
		}
		p.conns[in], p.conns[out] = struct{}{}, struct{}{}
		p.mu.Unlock()
		p.wg.Go(func() { p.relay(in, out) })
		p.wg.Go(func() { p.relay(out, in) })
	}
}

func (p *proxy) relay(from, to net.Conn) {
	_, _ = io.Copy(to, from)
	_, _ = from.Close(), to.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, from)
	delete(p.conns, to)
}

func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.isCut = true
	for c := range p.conns {
		_ = c.Close()
	}
}

func (p *proxy) mend() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.isCut = false
}
