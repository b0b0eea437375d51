package bgp

import (
	"cmp"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The lab: one namespace for the speaker and one for each router, each router
// a real BIRD, all on one segment, a bridge in the speaker's namespace. The
// speaker has 10.77.0.2 and fd77::2, router i 10.77.0.(10+i) and fd77::(10+i).

const labPrefix = "mwbgp-"

type lab struct {
	t       testing.TB
	ns      string
	routers []*router
}

// require skips the test where the lab can't be had; with
// MEDWAY_REQUIRE_KERNEL=1 it fails instead.
func require(t testing.TB, programs ...string) {
	t.Helper()
	missing := ""
	if os.Getuid() != 0 {
		missing = "root"
	}
	for _, p := range append([]string{"ip", "bird", "birdc"}, programs...) {
		if _, err := exec.LookPath(p); err != nil {
			missing = p
		}
	}
	if missing == "" && exec.Command("ip", "netns", "list").Run() != nil {
		missing = "network namespaces"
	}
	if missing == "" {
		return
	}
	if os.Getenv("MEDWAY_REQUIRE_KERNEL") == "1" {
		t.Fatalf("needs %s", missing)
	}
	t.Skipf("SKIPPED: needs %s", missing)
}

func run(t testing.TB, line string) string {
	t.Helper()
	f := strings.Fields(line)
	out, err := exec.Command(f[0], f[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", line, err, out)
	}
	return string(out)
}

// sweep deletes the namespaces that dead test processes left behind.
func sweep(t testing.TB) {
	t.Helper()
	for line := range strings.Lines(run(t, "ip netns list")) {
		name, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		rest, ours := strings.CutPrefix(name, labPrefix)
		pid, _, _ := strings.Cut(rest, "-")
		if !ours {
			continue
		}
		if _, err := os.Stat("/proc/" + pid); err != nil {
			run(t, "ip netns del "+name)
		}
	}
}

var labCount int

// newLab makes the namespaces; routers are started by start.
func newLab(t testing.TB, routers ...*router) *lab {
	t.Helper()
	require(t)
	sweep(t)
	labCount++
	base := fmt.Sprintf("%s%d-%d", labPrefix, os.Getpid(), labCount)
	l := &lab{t: t, ns: base + "-h"}
	l.addNamespace(l.ns)
	host := "ip -n " + l.ns + " "
	run(t, host+"link add br0 type bridge forward_delay 0")
	run(t, host+"addr add 10.77.0.2/24 dev br0")
	run(t, host+"-6 addr add fd77::2/64 dev br0 nodad")
	run(t, host+"link set br0 up")
	for i, r := range routers {
		r.t, r.ns, r.i = t, fmt.Sprintf("%s-r%d", base, i+1), i+1
		r.dir = t.TempDir()
		l.addNamespace(r.ns)
		in := "ip -n " + r.ns + " "
		run(t, fmt.Sprintf("ip link add r%d netns %s type veth peer name eth0 netns %s", r.i, l.ns, r.ns))
		run(t, fmt.Sprintf("%slink set r%d master br0 up", host, r.i))
		run(t, fmt.Sprintf("%saddr add 10.77.0.%d/24 dev eth0", in, 10+r.i))
		run(t, fmt.Sprintf("%s-6 addr add fd77::%d/64 dev eth0 nodad", in, 10+r.i))
		run(t, in+"link set eth0 up")
		if !r.ip.IsValid() {
			r.start()
		}
		l.routers = append(l.routers, r)
	}
	return l
}

func (l *lab) addNamespace(ns string) {
	run(l.t, "ip netns add "+ns)
	l.t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", ns).Run() })
	run(l.t, "ip -n "+ns+" link set lo up")
}

// config is the speaker's configuration for the lab: AS 65000, hold time 9 s.
func (l *lab) config() Config {
	c := Config{
		AS:            65000,
		LocalAddress:  netip.MustParseAddr("10.77.0.2"),
		LocalAddress6: netip.MustParseAddr("fd77::2"),
	}
	for _, r := range l.routers {
		n := Neighbor{
			Address:         r.address(),
			AS:              r.as,
			HoldTime:        9 * time.Second,
			GracefulRestart: r.graceful,
			Password:        r.password,
			TTLSecurity:     r.ttl,
			BFD:             r.bfd,
		}
		c.Neighbors = append(c.Neighbors, n)
	}
	return c
}

// router is one BIRD and what differs from router to router.
type router struct {
	as       uint32
	graceful time.Duration
	password string
	ttl      bool
	bfd      *BFD
	six      bool       // the session runs over IPv6
	extra    string     // more lines for the session
	ip       netip.Addr // of the session; the zero value: that on the segment
	flood    int        // routes that it sends us
	host     string     // the speaker's AS; "" is 65000
	text     string     // the whole configuration, in place of the lab's
	log      io.Writer  // takes its log

	t   testing.TB
	i   int
	ns  string
	dir string
	cmd *exec.Cmd
}

func (r *router) address() netip.Addr {
	if r.ip.IsValid() {
		return r.ip
	}
	if r.six {
		return netip.MustParseAddr(fmt.Sprintf("fd77::%d", 10+r.i))
	}
	return netip.AddrFrom4([4]byte{10, 77, 0, byte(10 + r.i)})
}

func (r *router) config() string {
	if r.text != "" {
		return r.text
	}
	var b strings.Builder
	fmt.Fprintf(&b, "log stderr { info, warning, error, fatal, bug, auth, remote, trace };\nrouter id 10.77.0.%d;\nprotocol device {}\nprotocol bfd {}\n", 10+r.i)
	// A route for the speaker to refuse.
	b.WriteString("protocol static { ipv4; route 203.0.113.0/24 blackhole;\n")
	for i := range r.flood {
		fmt.Fprintf(&b, "route 100.%d.%d.%d/32 blackhole;\n", 64+i>>16, i>>8&255, i&255)
	}
	host := "10.77.0.2"
	if r.six {
		host = "fd77::2"
	}
	fmt.Fprintf(&b, "}\nprotocol bgp lvs {\n local %s as %d;\n", r.address(), r.as)
	fmt.Fprintf(&b, " neighbor %s as %s;\n passive on;\n hold time 9;\n", host, cmp.Or(r.host, "65000"))
	b.WriteString(" ipv4 { import filter { print \"medway \", net, \" \", bgp_med; accept; }; export all; };\n ipv6 { import all; export none; };\n" + r.extra)
	if !strings.Contains(r.extra, "multihop") {
		b.WriteString(" direct;\n")
	}
	if r.graceful > 0 {
		b.WriteString(" graceful restart on;\n")
	} else {
		b.WriteString(" graceful restart off;\n")
	}
	if r.password != "" {
		fmt.Fprintf(&b, " password %q;\n", r.password)
	}
	if r.ttl {
		b.WriteString(" ttl security on;\n")
	}
	if r.bfd != nil {
		fmt.Fprintf(&b, " bfd { interval %d ms; multiplier %d; };\n", r.bfd.Interval.Milliseconds(), r.bfd.Multiplier)
	}
	b.WriteString("}\n")
	return b.String()
}

func (r *router) start() {
	r.t.Helper()
	conf := filepath.Join(r.dir, "bird.conf")
	if err := os.WriteFile(conf, []byte(r.config()), 0o600); err != nil {
		r.t.Fatal(err)
	}
	// ip netns exec becomes bird, so that the process id is BIRD's.
	r.cmd = exec.Command("ip", "netns", "exec", r.ns, "bird", "-f", "-c", conf, "-s", r.socket())
	r.cmd.Stderr = lineLogger{r.t, "bird"}
	if r.log != nil {
		r.cmd.Stderr = r.log
	}
	if err := r.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(r.kill)
	eventually(r.t, 10*time.Second, "BIRD answers", func() bool {
		return exec.Command("birdc", "-s", r.socket(), "show", "status").Run() == nil
	})
}

// kill ends BIRD as a crash does. Its kernel closes the connections.
func (r *router) kill() {
	_ = r.cmd.Process.Kill()
	_ = r.cmd.Wait()
}

func (r *router) socket() string { return filepath.Join(r.dir, "ctl") }

func (r *router) birdc(cmd string) string {
	r.t.Helper()
	args := append([]string{"-s", r.socket()}, strings.Fields(cmd)...)
	out, err := exec.Command("birdc", args...).CombinedOutput()
	if err != nil {
		r.t.Fatalf("birdc %s: %v: %s", cmd, err, out)
	}
	return string(out)
}

// route is what `show route all` says of a prefix from the speaker, "" when
// there is none.
func (r *router) route(prefix string) string {
	r.t.Helper()
	out := r.birdc("show route all protocol lvs")
	_, rest, found := strings.Cut(out, "\n"+prefix)
	if !found {
		return ""
	}
	var b strings.Builder
	b.WriteString(prefix)
	for i, line := range strings.SplitAfter(rest, "\n") {
		if i > 0 && !strings.HasPrefix(line, "\t") && !strings.HasPrefix(line, " ") {
			break
		}
		b.WriteString(line)
	}
	return b.String()
}

// has tells whether the route is there and says all of the words.
func (r *router) has(prefix string, words ...string) bool {
	r.t.Helper()
	text := r.route(prefix)
	for _, w := range words {
		if !strings.Contains(text, w) {
			return false
		}
	}
	return text != ""
}

var (
	updatesLine   = regexp.MustCompile(`Import updates:\s+(\d+)`)
	withdrawsLine = regexp.MustCompile(`Import withdraws:\s+(\d+)`)
)

// counters are BIRD's own counts of route updates and withdrawals received.
func (r *router) counters() (updates, withdraws int) {
	r.t.Helper()
	out := r.birdc("show protocols all lvs")
	read := func(re *regexp.Regexp) int {
		m := re.FindStringSubmatch(out)
		if m == nil {
			r.t.Fatalf("no %v in:\n%s", re, out)
		}
		n, err := strconv.Atoi(m[1])
		if err != nil {
			r.t.Fatal(err)
		}
		return n
	}
	return read(updatesLine), read(withdrawsLine)
}

func (r *router) established() bool {
	r.t.Helper()
	return strings.Contains(r.birdc("show protocols all lvs"), "Established")
}
