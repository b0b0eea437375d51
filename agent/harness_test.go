package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/medway-lb/medway/agent/internal/bgp"
	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/reconcile"
	"github.com/medway-lb/medway/pkg/store"
)

const patience = 30 * time.Second // for anything that must happen

var etcdBinary = sync.OnceValues(func() (string, error) {
	// Builds on the first use; the go command keeps the binary in its cache.
	out, err := exec.Command("go", "tool", "-n", "go.etcd.io/etcd/server/v3").Output()
	return strings.TrimSpace(string(out)), err
})

// server is a real etcd of one member.
type server struct {
	dir, client, peer string
	cmd               *exec.Cmd
}

func newServer(t testing.TB) *server {
	t.Helper()
	s := &server{dir: filepath.Join(t.TempDir(), "etcd"), client: freeAddress(t), peer: freeAddress(t)}
	s.start(t)
	t.Cleanup(s.kill)
	return s
}

func (s *server) start(t testing.TB) {
	t.Helper()
	binary, err := etcdBinary()
	if err != nil {
		t.Fatal("build etcd: ", err)
	}
	log, err := os.OpenFile(s.dir+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	s.cmd = exec.Command(binary, "--name", "m", "--data-dir", s.dir,
		"--listen-client-urls", "http://"+s.client, "--advertise-client-urls", "http://"+s.client,
		"--listen-peer-urls", "http://"+s.peer, "--initial-advertise-peer-urls", "http://"+s.peer,
		"--initial-cluster", "m=http://"+s.peer, "--heartbeat-interval", "50", "--election-timeout", "500",
		"--unsafe-no-fsync", "--log-level", "warn")
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

// kill ends the server at once (SIGKILL).
func (s *server) kill() {
	if s.cmd != nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		s.cmd = nil
	}
}

func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// open returns a client of the server for the test's own use.
func (s *server) open(t testing.TB) *store.Client {
	t.Helper()
	c, err := store.Open(store.Config{Endpoints: []string{"http://" + s.client}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// fakeKernel takes every plan at once, but for what broken says.
type fakeKernel struct {
	mu     sync.Mutex
	host   plan.Host
	runs   int
	broken error
	// gate, where there is one, lets one apply through for each value.
	gate  chan struct{}
	conns map[netip.Addr]connections
}

func (k *fakeKernel) apply(ctx context.Context, h plan.Host) reconcile.Report {
	if k.gate != nil {
		select {
		case <-k.gate:
		case <-ctx.Done():
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.runs++
	if k.broken != nil {
		return reconcile.Report{Failed: []error{k.broken}}
	}
	k.host = h
	return reconcile.Report{}
}

func (k *fakeKernel) serves(context.Context, plan.Host) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.broken == nil
}

func (k *fakeKernel) connections(context.Context) (map[netip.Addr]connections, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.conns, nil
}

func (k *fakeKernel) close() {}

// fakeSpeaker has one session with a router that takes everything at once.
type fakeSpeaker struct {
	mu      sync.Mutex
	changed chan struct{}
	set     []plan.Announcement
	started bool
	down    bool
	broken  error
	since   time.Time
}

func (s *fakeSpeaker) Start(context.Context, bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.started {
		return errors.New("started twice")
	}
	s.started, s.since = true, time.Now()
	poke(s.changed)
	return nil
}

func (s *fakeSpeaker) Set(_ context.Context, set []plan.Announcement) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return s.broken
	}
	s.set = slices.Clone(set)
	return nil
}

func (s *fakeSpeaker) Sessions() []bgp.Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return []bgp.Session{{
		Neighbor: netip.MustParseAddr("192.0.2.1"), AS: 65001, Established: s.started && !s.down,
		Since: s.since, Pending: s.broken != nil,
	}}
}

func (s *fakeSpeaker) Changed() <-chan struct{} { return s.changed }

func (s *fakeSpeaker) Stop(context.Context, bool) error { return nil }

// fakes is a host whose kernel and routers are fakes.
type fakes struct {
	kernel  *fakeKernel
	speaker *fakeSpeaker
}

func newFakes() *fakes {
	return &fakes{kernel: &fakeKernel{}, speaker: &fakeSpeaker{changed: make(chan struct{}, 1)}}
}

func (f *fakes) host() host {
	return host{
		kernel:  func() (kernel, error) { return f.kernel, nil },
		speaker: func(bgp.Config, *zap.Logger) (speaker, error) { return f.speaker, nil },
	}
}

// testConfig is a node's file for a test: short times, no TLS.
func testConfig(t testing.TB, node, site, endpoint string) Config {
	t.Helper()
	return Config{
		Node: node, Site: site, Group: site + "-edge1", Uplink: "eth0",
		Addresses: Addresses{IPv4: netip.MustParseAddr("192.0.2.11")},
		Etcd:      Etcd{Endpoints: []string{"http://" + endpoint}, Insecure: true},
		BGP: BGP{AS: 65001, RouterID: netip.MustParseAddr("192.0.2.11"), Neighbors: []Neighbor{
			{Address: netip.MustParseAddr("192.0.2.1"), AS: 65001, HoldTime: 3 * time.Second},
		}},
		LeaseTTL: 2 * time.Second, StateDir: t.TempDir(),
	}
}

// run starts an agent and returns what ends it in order.
func run(t testing.TB, config Config, h host) (a *Agent, stop func()) {
	t.Helper()
	a, err := newAgent(config, testLog(t), h)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("the agent ended: %v", err)
			}
		case <-time.After(patience):
			t.Error("the agent does not stop")
		}
		a.Close()
	})
	t.Cleanup(stop)
	return a, stop
}

func testLog(t testing.TB) *zap.Logger {
	if os.Getenv("MEDWAY_TEST_LOG") == "" {
		return zap.NewNop()
	}
	log, err := zap.NewDevelopment(zap.AddStacktrace(zap.PanicLevel))
	if err != nil {
		t.Fatal(err)
	}
	return log
}

// eventually polls until cond holds.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	begin := time.Now()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		if time.Since(begin) > patience {
			t.Fatalf("not within %v: %s", patience, what)
		}
		<-tick.C
	}
}

// put writes keys below the prefix that agents watch, in one revision.
func put(t testing.TB, c *store.Client, pairs ...string) int64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var puts []store.Put
	for i := 0; i < len(pairs); i += 2 {
		puts = append(puts, store.Put{Key: "/medway/v1/" + pairs[i], Value: []byte(pairs[i+1])})
	}
	ok, revision, err := c.Commit(ctx, nil, puts, nil)
	if err != nil || !ok {
		t.Fatalf("put %v: %v %v", pairs, ok, err)
	}
	return revision
}

// routes prints what is announced, one "prefix MED" a route.
func (s *fakeSpeaker) routes() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var lines []string
	for _, a := range s.set {
		lines = append(lines, fmt.Sprintf("%s %d", a.Prefix, a.MED))
	}
	slices.Sort(lines)
	return strings.Join(lines, ", ")
}
