package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/medway-lb/medway/agent/internal/link/nstest"
	"github.com/medway-lb/medway/pkg/store"
	"github.com/medway-lb/medway/pkg/store/etcdtest"
)

// site is a site of two LVS hosts, a and b, in namespaces: agents on fakes with real
// BGP, BFD and etcd, and real BIRDs, e1 and e2. A client is behind e1, with which a
// has its session; b has one with e2 alone. e1 and e2 tell each other their best
// routes, so e1 does not know b's while a's is the best: whatever withdraws that
// before another has come leaves e1 without one.
type site struct {
	t           *testing.T
	prefix, dir string
	client      *store.Client
	agents      map[string]*exec.Cmd
}

func newSite(t *testing.T) *site {
	t.Helper()
	missing := ""
	for _, program := range []string{"ip", "bird", "birdc", "sysctl"} {
		if _, err := exec.LookPath(program); err != nil {
			missing = program
		}
	}
	if os.Getuid() != 0 {
		missing = "root"
	}
	if missing == "" && exec.Command("ip", "netns", "list").Run() != nil {
		missing = "network namespaces"
	}
	if missing != "" && os.Getenv("MEDWAY_REQUIRE_KERNEL") == "1" {
		t.Fatal("needs " + missing)
	} else if missing != "" {
		t.Skip("SKIPPED: needs " + missing)
	}
	s := &site{t: t, prefix: fmt.Sprintf("mwre%d-", os.Getpid()), dir: t.TempDir(), agents: map[string]*exec.Cmd{}}
	for _, name := range []string{"lan", "e1", "e2", "a", "b", "client"} {
		s.tool("ip netns add " + s.prefix + name)
		t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", s.prefix+name).Run() })
		s.ip(name, "link set lo up")
	}
	s.ip("lan", "link add br0 type bridge forward_delay 0")
	s.ip("lan", "addr add 10.78.0.5/24 dev br0")
	s.ip("lan", "link set br0 up")
	for name, last := range map[string]int{"e1": 1, "e2": 2, "a": 11, "b": 12} {
		s.cable("lan", "to-"+name, name, "eth0")
		s.ip("lan", "link set to-"+name+" master br0")
		s.ip(name, fmt.Sprintf("addr add 10.78.0.%d/24 dev eth0", last))
	}
	s.cable("e1", "eth1", "client", "eth0")
	s.ip("e1", "addr add 198.51.100.1/24 dev eth1")
	s.ip("client", "addr add 198.51.100.10/24 dev eth0")
	s.ip("client", "route add default via 198.51.100.1")
	for _, router := range []string{"e1", "e2"} {
		s.tool("ip netns exec " + s.prefix + router + " sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0")
	}
	for _, host := range []string{"a", "b"} {
		s.ip(host, "addr add 203.0.113.10/32 dev lo")
	}
	s.bird("e1", 1, 2, 11)
	s.bird("e2", 2, 1, 12)
	s.etcd()
	return s
}

func (s *site) tool(line string) {
	s.t.Helper()
	f := strings.Fields(line)
	if out, err := exec.Command(f[0], f[1:]...).CombinedOutput(); err != nil {
		s.t.Fatalf("%s: %v: %s", line, err, out)
	}
}

func (s *site) ip(name, args string) { s.t.Helper(); s.tool("ip -n " + s.prefix + name + " " + args) }

func (s *site) cable(a, devA, b, devB string) {
	s.t.Helper()
	s.tool(fmt.Sprintf("ip link add %s netns %s%s type veth peer name %s netns %s%s", devA, s.prefix, a, devB, s.prefix, b))
	s.ip(a, "link set "+devA+" up")
	s.ip(b, "link set "+devB+" up")
}

// background starts a program in a namespace; it ends with the test.
func (s *site) background(name string, env []string, args ...string) *exec.Cmd {
	s.t.Helper()
	cmd := exec.Command("ip", append([]string{"netns", "exec", s.prefix + name}, args...)...)
	log, err := os.OpenFile(filepath.Join(s.dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr, cmd.Env = log, log, append(os.Environ(), env...)
	// Not with Pdeathsig: it is for the death of the thread, and inside has some die.
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

// bird starts a router with sessions to the other one and to an LVS host.
func (s *site) bird(name string, last, other, host int) {
	s.t.Helper()
	file := filepath.Join(s.dir, name+".conf")
	text := fmt.Sprintf(`log stderr all;
debug protocols { states, routes, events };
router id 10.78.0.%[1]d;
protocol device {}
protocol direct { ipv4; }
protocol bfd {}
protocol kernel { ipv4 { import none; export where source = RTS_BGP; }; }
protocol bgp edge {
	local 10.78.0.%[1]d as 65001; neighbor 10.78.0.%[2]d as 65001;
	direct; connect delay time 1; connect retry time 1;
	ipv4 { import all; export where source = RTS_BGP; };
}
protocol bgp lvs {
	local 10.78.0.%[1]d as 65001; neighbor 10.78.0.%[3]d as 65001;
	direct; passive; rr client; graceful restart on;
	bfd { interval 300 ms; multiplier 5; };
	ipv4 { import all; export none; };
}
`, last, other, host)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.background(name, nil, "bird", "-f", "-c", file, "-s", filepath.Join(s.dir, name+".ctl"))
}

// knows says whether a router has a route to the VIP with a MED.
func (s *site) knows(router string, med int) bool {
	out, err := exec.Command("birdc", "-s", filepath.Join(s.dir, router+".ctl"), "show route all for 203.0.113.10").CombinedOutput()
	return err == nil && strings.Contains(string(out), fmt.Sprintf("BGP.med: %d\n", med)) && !strings.Contains(string(out), "s) [")
}

func (s *site) etcd() {
	s.t.Helper()
	binary, err := etcdtest.Binary()
	if err != nil {
		s.t.Fatal("build etcd: ", err)
	}
	const client, peer = "http://10.78.0.5:2379", "http://10.78.0.5:2380"
	s.background("lan", nil, binary, "--name", "m", "--data-dir", filepath.Join(s.dir, "etcd"),
		"--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer,
		"--initial-advertise-peer-urls", peer, "--initial-cluster", "m="+peer, "--unsafe-no-fsync", "--log-level", "warn")
	s.client = s.open()
	put(s.t, s.client, "settings", `{"settle":"500ms"}`, "pools/sbc", poolValue, "backends/sbc/b1", backendValue,
		"vips/v", vipValue("203.0.113.10"), "target_state/v", "dc1")
}

// open is a client of etcd, from a thread in its namespace.
func (s *site) open() *store.Client {
	s.t.Helper()
	c, err := store.Open(store.Config{
		Endpoints: []string{"http://10.78.0.5:2379"},
		Dial: func(ctx context.Context, address string) (conn net.Conn, err error) {
			err = s.inside("lan", func() error {
				var d net.Dialer
				conn, err = d.DialContext(ctx, "tcp", address)
				return err
			})
			return conn, err
		},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(c.Close)
	return c
}

// start starts the agent of a host, for the first time or again.
func (s *site) start(name string, last, router int) {
	s.t.Helper()
	file := filepath.Join(s.dir, name+".yaml")
	text := fmt.Sprintf(`node: dc1-lvs-%[1]s
site: dc1
group: dc1-edge1
addresses: {ipv4: 10.78.0.%[2]d}
uplink: eth0
etcd: {endpoints: ["http://10.78.0.5:2379"], insecure: true}
bgp:
  as: 65001
  neighbors: [{address: 10.78.0.%[3]d, as: 65001, bfd: {interval: 300ms, multiplier: 5}}]
lease_ttl: 15s
state_dir: %[4]s
`, name, last, router, filepath.Join(s.dir, name))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		s.t.Fatal(err)
	}
	s.agents[name] = s.background(name, []string{processEnv + "=" + file}, self)
}

// inside calls fn in a namespace.
func (s *site) inside(name string, fn func() error) error { return nstest.Inside(s.prefix+name, fn) }

// stream sends 1,000 numbered datagrams a second from the client to the VIP, which
// both hosts take. What it returns ends it, and gives how many were sent and the
// lengths of the gaps.
func (s *site) stream() func() (sent int, gaps []int) {
	s.t.Helper()
	var mu sync.Mutex
	var arrived []bool
	var receiving, sending sync.WaitGroup
	var receivers []net.PacketConn
	address := "203.0.113.10:9"
	for _, host := range []string{"a", "b"} {
		err := s.inside(host, func() error {
			conn, err := net.ListenPacket("udp4", address)
			if err == nil {
				receivers = append(receivers, conn)
				err = conn.(*net.UDPConn).SetReadBuffer(1 << 20)
			}
			return err
		})
		if err != nil {
			s.t.Fatal(err)
		}
	}
	for _, conn := range receivers {
		receiving.Go(func() {
			buf := make([]byte, 8)
			for {
				n, _, err := conn.ReadFrom(buf)
				if errors.Is(err, net.ErrClosed) {
					return
				}
				mu.Lock()
				if i := binary.BigEndian.Uint64(buf); n == len(buf) && i < uint64(len(arrived)) {
					arrived[i] = true
				}
				mu.Unlock()
			}
		})
	}
	var sender net.Conn
	if err := s.inside("client", func() (err error) { sender, err = net.Dial("udp4", address); return err }); err != nil {
		s.t.Fatal(err)
	}
	stop := make(chan struct{})
	sending.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		began := time.Now()
		for n := 0; ; {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			for ; n < int(time.Since(began).Milliseconds()); n++ {
				mu.Lock()
				arrived = append(arrived, false)
				mu.Unlock()
				_, _ = sender.Write(binary.BigEndian.AppendUint64(nil, uint64(n))) // what can't be sent does not arrive
			}
		}
	})
	end := sync.OnceFunc(func() { close(stop) })
	s.t.Cleanup(end)
	return func() (int, []int) {
		end()
		sending.Wait()
		deadline := time.Now().Add(2 * time.Second)
		for lost := true; lost && time.Now().Before(deadline); runtime.Gosched() {
			mu.Lock()
			lost = slices.Contains(arrived, false)
			mu.Unlock()
		}
		for _, conn := range receivers {
			_ = conn.Close()
		}
		receiving.Wait()
		_ = sender.Close()
		var gaps []int
		run := 0
		for _, there := range append(arrived, true) {
			switch {
			case !there:
				run++
			case run > 0:
				gaps = append(gaps, run)
				run = 0
			}
		}
		return len(arrived), gaps
	}
}

// TestRestartsUnderTraffic: the agent of the VIP's owner is restarted 20 times in a
// row under 1,000 packets a second. None is lost, though BFD makes the router drop
// what it has of the agent at once, and the ownership does not move.
func TestRestartsUnderTraffic(t *testing.T) {
	s := newSite(t)
	defer func() {
		if t.Failed() {
			for _, name := range []string{"e1", "e2", "a", "b"} {
				log, _ := os.ReadFile(filepath.Join(s.dir, name+".log"))
				t.Logf("%s: %s", name, log[max(0, len(log)-2000):])
			}
		}
	}()
	n := &node{t: t, client: s.client}
	owner := func() store.Entry { return n.get("owners/dc1/v") }
	s.start("a", 11, 1)
	eventually(t, "a owns the VIP", func() bool { return len(owner().Value) > 0 })
	s.start("b", 12, 2)
	able := func(name string) bool {
		return strings.Contains(string(n.get("alive/dc1-lvs-"+name).Value), "bgp_sessions")
	}
	settled := func() bool { return s.knows("e1", 100) && able("a") && able("b") }
	eventually(t, "e1 knows the active node, and e2 the standby", func() bool { return settled() && s.knows("e2", 111) })
	before := owner()
	end := s.stream()
	const times = 20
	for i := range times {
		cmd := s.agents["a"]
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Fatalf("the agent ended: %v", err)
		}
		s.start("a", 11, 1)
		eventually(t, fmt.Sprintf("restart %d: active again", i+1), settled)
	}
	sent, gaps := end()
	lost := 0
	for _, gap := range gaps {
		lost += gap
	}
	t.Logf("%d restarts, %d packets sent, %d lost", times, sent, lost)
	if lost > 0 {
		t.Errorf("%d of %d packets were lost, in gaps of %v", lost, sent, gaps)
	}
	// BFD of a process that is gone, taken for the new one's, ends in a reset of BGP.
	log, err := os.ReadFile(filepath.Join(s.dir, "e1.log"))
	if err != nil || strings.Contains(string(log), "BFD is down") {
		t.Errorf("BFD reset a session: %v", err)
	}
	if sent < times*1000 {
		t.Errorf("%d packets were sent in %d restarts", sent, times)
	}
	if after := owner(); after.ModRevision != before.ModRevision || after.Lease != before.Lease {
		t.Errorf("the owner's key was %+v, and is %+v", before, after)
	}
}
