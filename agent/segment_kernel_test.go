package agent

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"

	"github.com/medway-lb/medway/agent/internal/link/nstest"
	"github.com/medway-lb/medway/agent/internal/local"
	"github.com/medway-lb/medway/pkg/state"
)

// segmentTTL is the default of lease_ttl, for which docs/arp.md states its bounds.
const segmentTTL = 5 * time.Second

// segmentSite is one segment and one network to etcd, each a bridge; two LVS hosts, whose
// agents are real but for IPVS and the firewall; and a client, which sends an echo
// request every 20 ms and asks for the VIP's hardware address every 100 ms.
type segmentSite struct {
	t      *testing.T
	number int32
	real   bool
	etcd   *server
	agents map[string]*exec.Cmd
	dump   string // tcpdump's output on the client

	mu     sync.Mutex
	probes []probe
}

type probe struct{ sent, answered time.Time }

const (
	segmentVIP4 = "203.0.113.10"
	segmentVIP6 = "2001:db8:10::10"
)

// segmentMACs tell who announces and who answers.
var segmentMACs = map[string]string{"a": "02:00:00:00:00:0a", "b": "02:00:00:00:00:0b", "c": "02:00:00:00:00:0c", "s": "02:00:00:00:00:0d"}

func (w *segmentSite) namespace(host string) string {
	return fmt.Sprintf("mw-seg-%d-%d-%s", os.Getpid(), w.number, host)
}

// sites counts them: tests run side by side.
var sites atomic.Int32

// newSegmentSite builds one; needs are those of agents that are real in all.
func newSegmentSite(t *testing.T, needs ...nstest.Need) *segmentSite {
	t.Helper()
	t.Parallel()
	nstest.Enter(t, needs...)
	w := &segmentSite{t: t, number: sites.Add(1), real: len(needs) > 0, agents: map[string]*exec.Cmd{}, dump: filepath.Join(t.TempDir(), "dump")}
	nstest.Run(t, "sh", "-ec", `ip link add seg type bridge; ip link set seg up
		ip link add mgmt type bridge; ip link set mgmt up; ip addr add 10.9.0.1/24 dev mgmt`)
	for i, host := range []string{"a", "b", "c", "s"} {
		ns := w.namespace(host)
		nstest.Run(t, "ip", "netns", "add", ns)
		t.Cleanup(func() { nstest.Run(t, "ip", "netns", "del", ns) })
		nstest.Run(t, "sh", "-ec", fmt.Sprintf(`
			ip link add s-%[1]s type veth peer name eth0 netns %[2]s; ip link set s-%[1]s master seg up
			ip link add m-%[1]s type veth peer name mgmt0 netns %[2]s; ip link set m-%[1]s master mgmt up
			ip -n %[2]s link set lo up; ip -n %[2]s link set eth0 address %[3]s up; ip -n %[2]s link set mgmt0 up
			ip -n %[2]s addr add 10.9.0.%[4]d/24 dev mgmt0; ip -n %[2]s addr add 203.0.113.%[4]d/24 dev eth0
			ip -n %[2]s addr add 2001:db8:10::%[4]d/64 dev eth0 nodad`, host, ns, segmentMACs[host], 11+i))
	}
	w.etcd = &server{dir: filepath.Join(t.TempDir(), "etcd"), client: "10.9.0.1:2379", peer: "10.9.0.1:2380"}
	w.etcd.start(t)
	t.Cleanup(w.etcd.kill)
	w.eventually("etcd answers", func() bool { return w.etcdctl("endpoint", "health") == nil })
	for key, value := range map[string]string{
		"settings": settingsValue, "pools/sbc": poolValue, "backends/sbc/b1": `{"site":"dc1","address":"203.0.113.14"}`,
		"vips/v": fmt.Sprintf(`{"addresses":["%s","%s"],"services":[{"protocol":"tcp","port":5060,"pool":"sbc"}],"groups":{"dc1":"dc1-edge1"}}`, segmentVIP4, segmentVIP6),
	} {
		if err := w.etcdctl("put", "/medway/v1/"+key, value); err != nil {
			t.Fatal(err)
		}
	}
	w.watch()
	if !w.real {
		w.ask()
	}
	return w
}

var etcdctlBinary = sync.OnceValues(func() (string, error) {
	if dir := os.Getenv("MEDWAY_BIN"); dir != "" {
		return filepath.Join(dir, "etcdctl"), nil
	}
	out, err := exec.Command("go", "tool", "-n", "go.etcd.io/etcd/etcdctl/v3").Output()
	return strings.TrimSpace(string(out)), err
})

func (w *segmentSite) etcdctl(args ...string) error {
	binary, err := etcdctlBinary()
	if err != nil {
		return err
	}
	out, err := exec.Command(binary, append([]string{"--endpoints", w.etcd.client, "--command-timeout", "10s"}, args...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("etcdctl %q: %w: %s", args, err, out)
	}
	return nil
}

func (w *segmentSite) eventually(what string, cond func() bool) {
	w.t.Helper()
	eventually(w.t, what, cond)
}

// watch writes down the ARP that the client sees.
func (w *segmentSite) watch() {
	w.t.Helper()
	out, err := os.Create(w.dump)
	if err != nil {
		w.t.Fatal(err)
	}
	cmd := exec.Command("ip", "netns", "exec", w.namespace("c"), "tcpdump", "-l", "-n", "-e", "-tt", "-i", "eth0", "arp")
	var complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = out, &complaints
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = out.Close()
		if w.t.Failed() {
			text, _ := os.ReadFile(w.dump)
			w.t.Logf("tcpdump: %s%s", complaints.String(), text[:min(len(text), 2000)])
		}
	})
}

// inside runs f in a host's namespace; the sockets that it opens stay there.
func (w *segmentSite) inside(host string, f func() error) {
	w.t.Helper()
	if err := nstest.Inside(w.namespace(host), f); err != nil {
		w.t.Fatal(err)
	}
}

// ask starts the client.
func (w *segmentSite) ask() {
	w.t.Helper()
	var kernel *netlink.Handle
	var conn net.PacketConn
	w.inside("c", func() (err error) {
		if kernel, err = netlink.NewHandle(); err != nil {
			return err
		}
		conn, err = net.ListenPacket("ip4:icmp", "203.0.113.13")
		return err
	})
	eth0, err := kernel.LinkByName("eth0")
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var g sync.WaitGroup
	w.t.Cleanup(func() { cancel(); _ = conn.Close(); g.Wait(); kernel.Close() })
	vip := net.ParseIP(segmentVIP4)
	g.Go(func() {
		in := make([]byte, 1500)
		for {
			n, _, err := conn.ReadFrom(in)
			if err != nil {
				return
			}
			m, err := icmp.ParseMessage(1, in[:n])
			if err != nil || m.Type != ipv4.ICMPTypeEchoReply {
				continue
			}
			w.mu.Lock()
			if echo, ok := m.Body.(*icmp.Echo); ok && echo.Seq < len(w.probes) && w.probes[echo.Seq].answered.IsZero() {
				w.probes[echo.Seq].answered = time.Now()
			}
			w.mu.Unlock()
		}
	})
	g.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for seq := 0; ; seq++ {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if seq%5 == 0 { // the next packet asks all: who else has it answers too
				_ = kernel.NeighDel(&netlink.Neigh{LinkIndex: eth0.Attrs().Index, IP: vip})
			}
			out, _ := (&icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: 7, Seq: seq}}).Marshal(nil)
			w.mu.Lock()
			w.probes = append(w.probes, probe{sent: time.Now()})
			w.mu.Unlock()
			_, _ = conn.WriteTo(out, &net.IPAddr{IP: vip})
		}
	})
}

// silence is the longest time from begin on in which no echo request was answered,
// and how many were not.
func (w *segmentSite) silence(begin time.Time) (longest time.Duration, lost int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	last, end := begin, time.Now().Add(-time.Second) // answers to the latest may be on their way
	for _, p := range w.probes {
		if p.sent.Before(begin) || p.sent.After(end) {
			continue
		}
		if p.answered.IsZero() {
			lost++
			continue
		}
		longest = max(longest, p.answered.Sub(last))
		last = p.answered
	}
	return max(longest, end.Sub(last)), lost
}

// said is one thing that the client heard of a host about the VIP's IPv4 address.
type said struct {
	at        time.Time
	host      string
	announced bool // to all, unasked
}

var saidLine = regexp.MustCompile(`(?m)^(\d+)\.(\d{6}) (\S+) > (\S+), ethertype ARP .*(?:Reply|Announcement) ` + regexp.QuoteMeta(segmentVIP4) + `\b`)

// heard is what the client heard from begin on, in order.
func (w *segmentSite) heard(begin time.Time) (out []said) {
	w.t.Helper()
	text, err := os.ReadFile(w.dump)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, m := range saidLine.FindAllStringSubmatch(string(text), -1) {
		seconds, _ := strconv.ParseInt(m[1], 10, 64)
		micros, _ := strconv.ParseInt(m[2], 10, 64)
		s := said{at: time.Unix(seconds, micros*1000), announced: strings.Contains(m[0], "Announcement") || strings.HasPrefix(m[4], "Broadcast") || m[4] == "ff:ff:ff:ff:ff:ff"}
		for host, mac := range segmentMACs {
			if m[3] == mac {
				s.host = host
			}
		}
		if !s.at.Before(begin) {
			out = append(out, s)
		}
	}
	return out
}

func of(host string, announced bool) func(said) bool {
	return func(s said) bool { return s.host == host && (!announced || s.announced) }
}

// announces waits until a host has announced the VIP for a while after begin.
func (w *segmentSite) announces(host string, begin time.Time) {
	w.t.Helper()
	w.eventually(host+" announces the VIP", func() bool {
		all := w.heard(begin)
		return len(slices.DeleteFunc(all, func(s said) bool { return !of(host, true)(s) })) >= 6 // two a second
	})
}

func (w *segmentSite) config(host string) Config {
	last := map[string]string{"a": "11", "b": "12"}[host]
	return Config{
		Node: "dc1-lvs-" + host, Site: "dc1", Group: "dc1-edge1", Uplink: "eth0", ARP: &ARP{},
		Addresses: Addresses{IPv4: netip.MustParseAddr("203.0.113." + last), IPv6: netip.MustParseAddr("2001:db8:10::" + last)},
		Etcd:      Etcd{Endpoints: []string{"http://" + w.etcd.client}, Insecure: true}, LeaseTTL: segmentTTL,
		StateDir: filepath.Join(filepath.Dir(w.dump), host),
	}
}

// start starts a host's agent, and waits until it works.
func (w *segmentSite) start(host string) {
	w.t.Helper()
	c := w.config(host)
	file := c.StateDir + ".yaml"
	text := fmt.Sprintf("node: %s\nsite: dc1\ngroup: dc1-edge1\naddresses: {ipv4: %s, ipv6: \"%s\"}\nuplink: eth0\narp: {interface: eth0}\n"+
		"etcd: {endpoints: [%q], insecure: true}\nlease_ttl: %s\nstate_dir: %s\n",
		c.Node, c.Addresses.IPv4, c.Addresses.IPv6, c.Etcd.Endpoints[0], c.LeaseTTL, c.StateDir)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
	log, err := os.OpenFile(c.StateDir+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	program := []string{os.Args[0]}
	if w.real {
		program = []string{filepath.Join(programs(), "medway-agent"), "run", "--config", file}
	}
	cmd := exec.Command("ip", append([]string{"netns", "exec", w.namespace(host)}, program...)...)
	cmd.Env = append(os.Environ(), processEnv+"="+file)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.agents[host] = cmd
	w.t.Cleanup(func() {
		if w.t.Failed() {
			text, _ := os.ReadFile(c.StateDir + ".log")
			w.t.Logf("agent on %s:\n%s", host, text)
		}
		w.end(host, syscall.SIGKILL)
	})
	w.eventually("the agent on "+host+" works", func() bool { return w.role(host) != "" })
}

// end ends a host's agent.
func (w *segmentSite) end(host string, signal syscall.Signal) {
	if cmd := w.agents[host]; cmd != nil {
		_ = cmd.Process.Signal(signal)
		_ = cmd.Wait()
		delete(w.agents, host)
	}
}

// role is what the agent of a host says that it is, "" where it says nothing.
func (w *segmentSite) role(host string) string {
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Second)
	defer cancel()
	s, err := local.NewClient(w.config(host).socket()).Status(ctx)
	if err != nil {
		return ""
	}
	node, err := state.DecodeStatus(s.Node)
	if err != nil || len(node.Vips) != 1 {
		return ""
	}
	return node.Vips[0].Role
}

func (w *segmentSite) has(host string) bool {
	text := nstest.Run(w.t, "ip", "-n", w.namespace(host), "addr", "show", "dev", "eth0")
	return strings.Contains(text, segmentVIP4+"/32") || strings.Contains(text, segmentVIP6+"/128")
}

// port lets a host's cable to one of the bridges carry packets or lose them; no
// carrier goes.
func (w *segmentSite) port(name string, open bool) {
	nstest.Run(w.t, "bridge", "link", "set", "dev", name, "state", map[bool]string{true: "3", false: "0"}[open])
}

// The figures are printed; what is asserted are docs/arp.md's bounds.
func TestKernelSegmentTakeover(t *testing.T) {
	w := newSegmentSite(t)
	w.start("a")
	began := time.Now()
	w.announces("a", began)
	w.start("b")
	w.eventually("b stands by", func() bool { return w.role("b") == "active standby" })
	owner, other := "a", "b"

	// takeover makes a fault and waits until the other host has taken over. at most is
	// how long both may have answered.
	takeover := func(name string, fault func(), atMost time.Duration) {
		t.Helper()
		begin := time.Now()
		fault()
		w.announces(other, begin)
		heard := w.heard(begin)
		first := heard[slices.IndexFunc(heard, of(other, true))].at
		last := begin
		announcing := time.Duration(0)
		for _, s := range heard {
			if s.host == owner {
				last = s.at
				if s.announced {
					announcing = s.at.Sub(begin)
				}
			}
		}
		silent, _ := w.silence(begin)
		overlap := max(0, last.Sub(first))
		t.Logf("%s: %s took over after %.2f s; the old one announced until %.2f s and answered until %.2f s: both for %.3f s; the client heard nothing for %.2f s",
			name, other, first.Sub(begin).Seconds(), announcing.Seconds(), last.Sub(begin).Seconds(), overlap.Seconds(), silent.Seconds())
		if overlap > atMost {
			t.Errorf("%s: both answered for %s, expected at most %s", name, overlap, atMost)
		}
		if announcing > first.Sub(begin) {
			t.Errorf("%s: the old one announced after the new one", name)
		}
		w.eventually("the client's IPv6 neighbour is "+other, func() bool { return w.neighbour6() == segmentMACs[other] })
		owner, other = other, owner
	}
	standsBy := func() {
		t.Helper()
		w.eventually(other+" stands by", func() bool { return w.role(other) == "active standby" && !w.has(other) })
	}
	w.setNeighbour6()

	socket := local.NewClient(w.config(owner).socket())
	takeover("withdrawn by hand", func() {
		if _, err := socket.Withdraw(t.Context(), local.Order{VIP: "v"}); err != nil {
			t.Fatal(err)
		}
	}, time.Second)
	if _, err := socket.Resume(t.Context(), "v"); err != nil {
		t.Fatal(err)
	}
	standsBy()

	takeover("kill -9 of the agent", func() { w.end(owner, syscall.SIGKILL) }, 0)
	w.start(other)
	standsBy()

	takeover("frozen agent (SIGSTOP)", func() { _ = w.agents[owner].Process.Signal(syscall.SIGSTOP) }, 0)
	w.announces(owner, time.Now().Add(2*segmentTTL-time.Second))
	thawed := time.Now()
	_ = w.agents[other].Process.Signal(syscall.SIGCONT)
	w.announces(owner, thawed)
	standsBy()
	if i := slices.IndexFunc(w.heard(thawed), of(other, false)); i >= 0 {
		t.Errorf("the frozen agent's host answered after it went on: %+v", w.heard(thawed)[i])
	}

	gone := owner
	takeover("host gone in silence", func() { w.port("s-"+gone, false); w.port("m-"+gone, false) }, 0)
	back := time.Now()
	w.port("s-"+gone, true)
	w.port("m-"+gone, true)
	w.announces(owner, back)
	standsBy()
	heard := w.heard(back)
	last := time.Duration(0)
	for _, s := range heard {
		if s.host == gone {
			last = s.at.Sub(back)
			if s.announced {
				t.Error("the host that came back announced the VIP")
			}
		}
	}
	silent, _ := w.silence(back)
	t.Logf("host back on the segment: it answered for %.2f s more; the client heard nothing for %.2f s", last.Seconds(), silent.Seconds())

	cut := owner
	takeover("cut off from etcd alone", func() { w.port("m-"+cut, false) }, time.Second)
	w.port("m-"+cut, true)
	standsBy()
}

func TestKernelSegmentRestart(t *testing.T) {
	w := newSegmentSite(t)
	w.start("a")
	w.announces("a", time.Now())
	w.start("b")
	w.eventually("b stands by", func() bool { return w.role("b") == "active standby" })

	begin := time.Now()
	unharmed := func(what string) {
		t.Helper()
		silent, lost := w.silence(begin)
		t.Logf("%s: %d of %d packets lost, the longest silence %s", what, lost, len(w.probes), silent)
		if lost > 0 {
			t.Errorf("%s: lost %d packets", what, lost)
		}
		if i := slices.IndexFunc(w.heard(begin), of("b", false)); i >= 0 {
			t.Errorf("%s: b took over or answered: %+v", what, w.heard(begin)[i])
		}
	}
	for range 3 {
		w.end("a", syscall.SIGTERM)
		w.start("a")
		w.announces("a", time.Now())
	}
	unharmed("three restarts")

	t.Log("etcd is gone for three times the lease's life, and agents are restarted meanwhile")
	begin = time.Now()
	w.etcd.kill()
	w.eventually("a knows that its lease is over", func() bool { return w.role("a") == "unconfirmed active" })
	w.end("b", syscall.SIGTERM)
	w.start("b")
	w.end("a", syscall.SIGTERM)
	w.start("a")
	w.eventually("3 TTL", func() bool { return time.Since(begin) > 3*segmentTTL })
	if !w.has("a") || w.has("b") {
		t.Errorf("a has the address: %t, b: %t", w.has("a"), w.has("b"))
	}
	w.etcd.start(t)
	w.announces("a", time.Now())
	unharmed("an outage of etcd")
}

// setNeighbour6 makes the client know the VIP's IPv6 address, as after a packet to it,
// for as long as the test lasts: where the machine has more than gc_thresh1 neighbours in
// all its namespaces, one that is not used is forgotten after a minute (neigh_periodic_work
// in net/core/neighbour.c), and an advertisement makes none.
func (w *segmentSite) setNeighbour6() {
	nstest.Run(w.t, "ip", "netns", "exec", w.namespace("c"), "sysctl", "-qw", "net.ipv6.neigh.eth0.gc_stale_time=3600")
	nstest.Run(w.t, "ip", "-n", w.namespace("c"), "neigh", "replace", segmentVIP6, "lladdr", segmentMACs["a"], "dev", "eth0", "nud", "stale")
}

func (w *segmentSite) neighbour6() string {
	fields := strings.Fields(nstest.Run(w.t, "ip", "-n", w.namespace("c"), "neigh", "show", segmentVIP6, "dev", "eth0"))
	if i := slices.Index(fields, "lladdr"); i >= 0 {
		return fields[i+1]
	}
	return ""
}

// Real agents on a real kernel: a connection goes on through the other host when the
// owner's agent is killed, and when its host is gone.
func TestKernelServesOnASegmentWithCalls(t *testing.T) {
	w := newSegmentSite(t, nstest.IPIP, nstest.IP6Tnl, nstest.TEE, nstest.IPVS)
	nstest.Run(t, "ip", "netns", "exec", w.namespace("s"), "sh", "-ec", `
		ip link set tunl0 up; ip addr add 203.0.113.10/32 dev lo
		sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.tunl0.rp_filter=0 net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2`)
	w.serve()
	w.start("a")
	w.announces("a", time.Now())
	w.start("b")
	w.eventually("b stands by", func() bool { return w.role("b") == "active standby" })

	call := w.call()
	goesOn := func(what, through string) {
		t.Helper()
		w.announces(through, time.Now())
		from := call.echoes.Load()
		w.eventually("the call goes on: "+what, func() bool { return call.echoes.Load() > from+10 || call.failed.Load() != nil })
		if err := call.failed.Load(); err != nil {
			t.Fatalf("%s: the call ended: %v", what, *err)
		}
		packets := nstest.Run(t, "ip", "netns", "exec", w.namespace(through), "ipvsadm", "-Lnc")
		t.Logf("%s: the call goes on through %s\n%s", what, through, packets)
		if !strings.Contains(packets, segmentVIP4+":5060") {
			t.Errorf("%s: %s does not know the connection", what, through)
		}
	}
	goesOn("at first", "a")
	w.end("a", syscall.SIGKILL)
	goesOn("the agent of a was killed", "b")
	w.start("a")
	w.eventually("a stands by", func() bool { return w.role("a") == "active standby" })
	w.port("s-b", false)
	w.port("m-b", false)
	goesOn("host b is gone", "a")
}

// serve answers on the backend, whatever is said to it with the same.
func (w *segmentSite) serve() {
	var l net.Listener
	w.inside("s", func() (err error) {
		l, err = net.Listen("tcp4", segmentVIP4+":5060")
		return err
	})
	w.t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(conn, conn)
				_ = conn.Close()
			}()
		}
	}()
}

// call is a connection of the client's to the VIP, on which something is said ten
// times a second.
type call struct {
	echoes atomic.Int64
	failed atomic.Pointer[error]
}

func (w *segmentSite) call() *call {
	w.t.Helper()
	var conn net.Conn
	w.inside("c", func() (err error) {
		conn, err = net.DialTimeout("tcp4", segmentVIP4+":5060", patience)
		return err
	})
	c := &call{}
	done := make(chan struct{})
	w.t.Cleanup(func() { _ = conn.Close(); <-done })
	go func() {
		defer close(done)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		b := []byte{0}
		for ; ; <-tick.C {
			_, err := conn.Write(b)
			if err == nil {
				_ = conn.SetReadDeadline(time.Now().Add(patience))
				_, err = io.ReadFull(conn, b)
			}
			if err != nil {
				c.failed.Store(&err)
				return
			}
			c.echoes.Add(1)
		}
	}()
	return c
}
