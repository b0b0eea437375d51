package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
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

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/medway-lb/medway/agent/internal/bgp"
	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/reconcile"
	"github.com/medway-lb/medway/pkg/store"
	"github.com/medway-lb/medway/pkg/store/etcdtest"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// patience is for anything that must happen. What rests on rates takes some 20 s by itself.
const patience = time.Minute

// server is a real etcd of one member.
type server struct {
	dir, client, peer string
	cmd               *exec.Cmd
}

func newServer(t testing.TB) *server {
	t.Helper()
	s := &server{dir: filepath.Join(t.TempDir(), "etcd"), client: etcdtest.FreeAddress(t), peer: etcdtest.FreeAddress(t)}
	s.start(t)
	t.Cleanup(s.kill)
	return s
}

func (s *server) start(t testing.TB) {
	t.Helper()
	binary, err := etcdtest.Binary()
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

// journal writes down, in order, what changes in the fakes of one host.
type journal struct {
	mu    sync.Mutex
	last  map[string]string
	lines []string
}

func (j *journal) add(what, is string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if was, known := j.last[what]; !known || was != is {
		j.last[what] = is
		j.lines = append(j.lines, what+": "+is)
	}
}

// since returns what was added after the first n lines.
func (j *journal) since(n int) []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.lines[n:])
}

func (j *journal) len() int { return len(j.since(0)) }

// fakeKernel takes every plan at once, but for what broken says.
type fakeKernel struct {
	journal *journal
	mu      sync.Mutex
	host    plan.Host
	runs    int
	// broken fails every run; lacking are addresses that can't be made whole;
	// unreadable fails held.
	broken     error
	lacking    map[netip.Addr]held
	unreadable error
	conns      map[netip.Addr]connections
	// pps is what arrives for every VIP address, in packets a second; scanned how
	// many of these are a scan's, each with a connection of its own.
	pps, scanned uint64
	lost         bool             // the connection table, at the start
	done         []reconcile.Edit // of the next run
	looked       int              // how often packets were counted
	closed       bool
}

func (k *fakeKernel) apply(_ context.Context, h plan.Host) reconcile.Report {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.runs++
	if k.broken != nil {
		return reconcile.Report{Failed: []error{k.broken}}
	}
	k.host = h
	report := reconcile.Report{Done: k.done}
	k.done = nil
	var has []string
	for _, a := range vipAddresses(h) {
		if _, lacks := k.lacking[a.Prefix.Addr()]; lacks {
			report.Failed = append(report.Failed, fmt.Errorf("create %s: no luck", a))
		} else {
			has = append(has, a.Prefix.Addr().String())
		}
	}
	slices.Sort(has)
	k.journal.add("kernel", strings.Join(has, ", "))
	return report
}

func (k *fakeKernel) held(_ context.Context, h plan.Host) (map[netip.Addr]held, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.unreadable != nil {
		return nil, k.unreadable
	}
	out := compare(h, k.host)
	for a, has := range k.lacking {
		out[a] = has
	}
	return out, nil
}

func (k *fakeKernel) set(change func(*fakeKernel)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	change(k)
}

func (k *fakeKernel) ran() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.runs
}

func (k *fakeKernel) connections(context.Context) (map[netip.Addr]connections, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return maps.Clone(k.conns), nil
}

func (k *fakeKernel) arrived(context.Context) (map[netip.Addr]arrivals, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := map[netip.Addr]arrivals{}
	for _, a := range vipAddresses(k.host) {
		ms := uint64(time.Since(epoch).Milliseconds())
		out[a.Prefix.Addr()] = arrivals{packets: (k.pps + k.scanned) * ms / 1000, opened: k.scanned * ms / 1000}
	}
	return out, nil
}

// epoch is when the fakes' counters began.
var epoch = time.Now()

func (k *fakeKernel) syncing(context.Context) (bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return !k.lost, nil
}

func (k *fakeKernel) packets(context.Context) (uint64, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.looked++
	return k.pps * uint64(time.Since(epoch).Milliseconds()) / 1000, nil
}

func (k *fakeKernel) close() { k.set(func(k *fakeKernel) { k.closed = true }) }

// addresses prints the VIP addresses that the kernel holds.
func (k *fakeKernel) addresses() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []string
	for _, a := range vipAddresses(k.host) {
		out = append(out, a.Prefix.Addr().String())
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// fakeSpeaker has one session with a router that takes everything at once.
type fakeSpeaker struct {
	journal *journal
	mu      sync.Mutex
	changed chan struct{}
	set     []plan.Announcement
	started bool
	down    bool
	pending bool
	broken  error
	since   time.Time
	// families are those of the session.
	families []plan.Family
}

func (s *fakeSpeaker) Start(context.Context, bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.started {
		return errors.New("started twice")
	}
	s.started, s.since = true, time.Now()
	s.journal.add("start", print(s.set))
	poke(s.changed)
	return nil
}

func (s *fakeSpeaker) Set(_ context.Context, set []plan.Announcement) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return s.broken
	}
	// As the real one, whose hosts have IPv4 alone here.
	if i := slices.IndexFunc(set, func(a plan.Announcement) bool { return a.Prefix.Addr().Is6() }); i >= 0 {
		return fmt.Errorf("%s: this host has no address of its family", set[i].Prefix)
	}
	s.set = slices.Clone(set)
	if s.started {
		s.journal.add("announce", print(s.set))
	}
	return nil
}

func (s *fakeSpeaker) Sessions() []bgp.Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return []bgp.Session{{
		Neighbor: router, AS: 65001, Established: s.started && !s.down, Families: s.families, Since: s.since, Pending: s.pending || s.broken != nil,
	}}
}

func (s *fakeSpeaker) Changed() <-chan struct{} { return s.changed }

func (s *fakeSpeaker) Stop(context.Context, bool) error { return nil }

func (s *fakeSpeaker) change(change func(*fakeSpeaker)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
	s.since = time.Now()
	poke(s.changed)
}

func (s *fakeSpeaker) isStarted() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.started
}

// routes prints what is announced.
func (s *fakeSpeaker) routes() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return print(s.set)
}

// print is one "prefix MED" a route, with "shutdown" where it bears the community
// of RFC 8326.
func print(set []plan.Announcement) string {
	var lines []string
	for _, a := range set {
		line := fmt.Sprintf("%s %d", a.Prefix, a.MED)
		if slices.Contains(a.Communities, 65535<<16) {
			line += " shutdown"
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return strings.Join(lines, ", ")
}

// fakes is a host whose kernel and routers are fakes.
type fakes struct {
	journal *journal
	kernel  *fakeKernel
	speaker *fakeSpeaker
}

var router = netip.MustParseAddr("192.0.2.1")

func newFakes() *fakes {
	j := &journal{last: map[string]string{}}
	return &fakes{
		journal: j,
		kernel:  &fakeKernel{journal: j, lacking: map[netip.Addr]held{}, conns: map[netip.Addr]connections{}},
		speaker: &fakeSpeaker{journal: j, changed: make(chan struct{}, 1), since: time.Now(), families: families},
	}
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
	hold := 3 * time.Second
	return Config{
		Node: node, Site: site, Group: site + "-edge1", Uplink: "eth0",
		Addresses: Addresses{IPv4: netip.MustParseAddr("192.0.2.11")},
		Etcd:      Etcd{Endpoints: []string{"http://" + endpoint}, Insecure: true},
		BGP: BGP{AS: 65001, RouterID: netip.MustParseAddr("192.0.2.11"), Neighbors: []Neighbor{
			{Address: router, AS: 65001, HoldTime: &hold},
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
func put(t testing.TB, c *store.Client, pairs ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var puts []store.Put
	for i := 0; i < len(pairs); i += 2 {
		puts = append(puts, store.Put{Key: "/medway/v1/" + pairs[i], Value: []byte(pairs[i+1])})
	}
	if _, _, err := c.Commit(ctx, nil, puts, nil); err != nil {
		t.Fatalf("put %v: %v", pairs, err)
	}
}

// Values of keys, as an operator would put them.
const (
	poolValue    = `{"scheduler":"sed"}`
	backendValue = `{"site":"dc1","address":"10.1.1.21"}`
	// Short times, all of them.
	settingsValue = `{"settle":"300ms","normalise_after":"1s","resync_interval":"1s"}`
)

func vipValue(addresses ...string) string {
	return fmt.Sprintf(`{"addresses":["%s"],"services":[{"protocol":"tcp","port":5060,"pool":"sbc"}],`+
		`"groups":{"dc1":"dc1-edge1","dc2":"dc2-edge1"}}`, strings.Join(addresses, `","`))
}

// node is one agent on fakes, with an etcd of its own.
type node struct {
	*fakes
	t      *testing.T
	etcd   *server
	client *store.Client
	config Config
	agent  *Agent
	stop   func()
}

// newNode is a node of dc1 that does not run yet. VIP v has 203.0.113.10, and dc1
// is its target.
func newNode(t *testing.T) *node {
	t.Helper()
	t.Parallel()
	etcd := newServer(t)
	n := &node{t: t, fakes: newFakes(), etcd: etcd, client: etcd.open(t), config: testConfig(t, "dc1-lvs-a", "dc1", etcd.client)}
	n.put("settings", settingsValue, "pools/sbc", poolValue, "backends/sbc/b1", backendValue,
		"vips/v", vipValue("203.0.113.10"), "target_state/v", "dc1")
	return n
}

// newActive is one that runs, and has become active.
func newActive(t *testing.T) *node {
	t.Helper()
	n := newNode(t)
	n.run()
	n.announces("203.0.113.10/32 100")
	return n
}

func (n *node) run() {
	n.t.Helper()
	n.agent, n.stop = run(n.t, n.config, n.host())
}

// restart ends the agent in order and starts another on the same disk and kernel.
func (n *node) restart() {
	n.t.Helper()
	n.stop()
	kernel := n.kernel
	n.fakes = newFakes()
	kernel.journal = n.journal
	n.kernel = kernel
	n.run()
}

func (n *node) put(pairs ...string) { n.t.Helper(); put(n.t, n.client, pairs...) }

func (n *node) delete(keys ...string) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), patience)
	defer cancel()
	for i := range keys {
		keys[i] = "/medway/v1/" + keys[i]
	}
	if _, _, err := n.client.Commit(ctx, nil, nil, keys); err != nil {
		n.t.Fatal(err)
	}
}

// revoke ends a lease, as if it had run out.
func (n *node) revoke(lease int64) {
	n.t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{n.etcd.client}})
	if err != nil {
		n.t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	ctx, cancel := context.WithTimeout(n.t.Context(), patience)
	defer cancel()
	if _, err := c.Revoke(ctx, clientv3.LeaseID(lease)); err != nil {
		n.t.Fatal(err)
	}
}

// get returns what a key holds; the zero entry where it is absent.
func (n *node) get(key string) store.Entry {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), patience)
	defer cancel()
	if !strings.HasPrefix(key, "/") {
		key = "/medway/v1/" + key
	}
	e, _, err := n.client.Get(ctx, key)
	if err != nil {
		n.t.Fatal(err)
	}
	return e
}

func (n *node) announces(routes string) {
	n.t.Helper()
	eventually(n.t, "announces "+routes, func() bool { return n.speaker.routes() == routes })
}

func (n *node) claims(value string) {
	n.t.Helper()
	eventually(n.t, "claims "+value, func() bool { return string(n.get("claims/dc1-lvs-a/v").Value) == value })
}

const claim100, claimNone = `{"med":"100"}`, `{"med":"none"}`

// stays checks that cond holds, all the time, while n decides again and again.
func (n *node) stays(what string, cond func() bool) {
	n.t.Helper()
	runs := n.kernel.ran()
	eventually(n.t, "a few more runs", func() bool {
		if !cond() {
			n.t.Fatalf("no longer: %s", what)
		}
		return n.kernel.ran() >= runs+2
	})
}

func (n *node) status() *medwayv1.Status {
	n.t.Helper()
	s := n.agent.statusNow()
	if s == nil {
		return &medwayv1.Status{}
	}
	return s
}

// vip is what the status says of VIP v.
func (n *node) vip() *medwayv1.VIPStatus {
	for _, v := range n.status().Vips {
		if v.Vip == "v" {
			return v
		}
	}
	return &medwayv1.VIPStatus{}
}

func (n *node) fault(subject, reason string) bool {
	return slices.ContainsFunc(n.status().Faults, func(f *medwayv1.Fault) bool {
		return strings.Contains(f.Subject, subject) && strings.Contains(f.Reason, reason)
	})
}
