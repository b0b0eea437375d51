package bgp

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/medway-lb/medway/pkg/plan"
)

// The configurations of docs/routers, as they are: dc1's edge router is a BIRD
// and dc2's an FRR, each with one LVS host, and both speak to two providers
// (BIRDs): the first compares MED, the second ignores it.

const docs = "../../../docs/"

// edge is what an edge router of either make tells about its routes.
type edge interface {
	// route is what the router knows of its best route to a prefix, "" if there
	// is none.
	route(prefix string) string
	// med and drained are the router's words for a MED and for local preference 0.
	med(med int) string
	drained() string
	// bfdUp tells whether BFD is up with all LVS hosts.
	bfdUp() bool
}

func configOf(t *testing.T, name string, edit ...string) string {
	t.Helper()
	text, err := os.ReadFile(docs + "routers/" + name)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(edit); i += 2 {
		if !strings.Contains(string(text), edit[i]) {
			t.Fatalf("%q is not in %s", edit[i], name)
		}
	}
	return strings.NewReplacer(edit...).Replace(string(text))
}

// bird is a BIRD with a configuration of its own.
type bird struct{ router }

func startBird(t *testing.T, ns, config string) *bird {
	t.Helper()
	b := &bird{router{t: t, ns: ns, dir: t.TempDir(), text: config}}
	b.start()
	return b
}

func (b *bird) route(prefix string) string {
	if out := b.all("primary", prefix); strings.Contains(out, "\n"+prefix) {
		return out
	}
	return ""
}

// all is what BIRD knows of its routes to a prefix: of all of them, or of the
// primary one. That there is none is an error to birdc.
func (b *bird) all(which, prefix string) string {
	b.t.Helper()
	out, err := exec.Command("birdc", append([]string{"-s", b.socket()}, strings.Fields("show route "+which+" all for "+prefix)...)...).CombinedOutput()
	if err != nil && !strings.Contains(string(out), "Network not found") {
		b.t.Fatalf("birdc: %v: %s", err, out)
	}
	return string(out)
}

func (b *bird) med(med int) string { return fmt.Sprintf("BGP.med: %d\n", med) }
func (b *bird) drained() string    { return "BGP.local_pref: 0\n" }

func (b *bird) bfdUp() bool { return strings.Count(b.birdc("show bfd sessions"), " Up ") == 1 }

// frr is an FRR: zebra, bgpd and bfdd, without the service of its package.
type frr struct {
	t       *testing.T
	ns, dir string
}

func startFRR(t *testing.T, ns, config string) *frr {
	t.Helper()
	f := &frr{t: t, ns: ns, dir: t.TempDir()}
	// The daemons drop root.
	u, err := user.Lookup("frr")
	if err != nil {
		t.Fatal(err)
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	for _, name := range []string{"empty.conf", "frr.conf"} {
		text := ""
		if name == "frr.conf" {
			text = config
		}
		if err := os.WriteFile(filepath.Join(f.dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for dir := f.dir; dir != os.TempDir(); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(f.dir, uid, gid); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"zebra", "bgpd", "bfdd"} {
		args := []string{"netns", "exec", ns, "/usr/lib/frr/" + d, "-f", f.dir + "/empty.conf", "-i", f.dir + "/" + d + ".pid",
			"-z", f.dir + "/zserv.api", "--vty_socket", f.dir, "-P", "0", "--log", "stdout"}
		if d == "bfdd" {
			args = append(args, "--bfdctl", f.dir+"/bfdd.sock")
		}
		cmd := exec.Command("ip", args...)
		cmd.Stdout, cmd.Stderr = lineLogger{t, d}, lineLogger{t, d}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
		eventually(t, 10*time.Second, d+" answers", func() bool {
			return exec.Command("vtysh", "--vty_socket", f.dir, "-d", d, "-c", "show version").Run() == nil
		})
	}
	out, err := exec.Command("vtysh", "--vty_socket", f.dir, "-f", f.dir+"/frr.conf").CombinedOutput()
	if err != nil || strings.Contains(string(out), "line ") || strings.Contains(string(out), "%") {
		t.Fatalf("FRR refuses the configuration: %v\n%s", err, out)
	}
	return f
}

func (f *frr) vtysh(cmd string) string {
	f.t.Helper()
	out, err := exec.Command("vtysh", "--vty_socket", f.dir, "-c", cmd).CombinedOutput()
	if err != nil {
		f.t.Fatalf("vtysh %s: %v: %s", cmd, err, out)
	}
	return string(out)
}

func (f *frr) route(prefix string) string {
	f.t.Helper()
	family := "ipv4"
	if strings.Contains(prefix, ":") {
		family = "ipv6"
	}
	out := f.vtysh("show bgp " + family + " unicast " + prefix + " bestpath")
	if !strings.Contains(out, "BGP routing table entry for "+prefix) {
		return ""
	}
	return out
}

func (f *frr) med(med int) string { return fmt.Sprintf("metric %d,", med) }
func (f *frr) drained() string    { return "localpref 0," }

func (f *frr) bfdUp() bool { return strings.Count(f.vtysh("show bfd peers brief"), " up") == 1 }

const (
	docVIP4 = "203.0.113.10/32"
	docVIP6 = "2001:db8:10::10/128"
)

var docVIPs = []string{docVIP4, docVIP6}

// docNet is the docs' network.
type docNet struct {
	t         *testing.T
	base      string
	edges     map[string]edge
	med, path *bird // the providers
	lvs       map[string]Config
	speakers  map[string]*speaker
}

// node makes a namespace with a device on each of the named segments.
func (d *docNet) node(name string, segments ...[]string) string {
	ns := d.base + "-" + name
	run(d.t, "ip netns add "+ns)
	d.t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", ns).Run() })
	run(d.t, "ip -n "+ns+" link set lo up")
	for i, s := range segments {
		dev, port := fmt.Sprintf("eth%d", i), fmt.Sprintf("%s%d", name, i)
		run(d.t, fmt.Sprintf("ip link add %s netns %s-sw type veth peer name %s netns %s", port, d.base, dev, ns))
		run(d.t, fmt.Sprintf("ip -n %s-sw link set %s master %s up", d.base, port, s[0]))
		// Without duplicate address detection addresses can be used at once.
		run(d.t, "ip netns exec "+ns+" sysctl -qw net.ipv6.conf."+dev+".accept_dad=0")
		run(d.t, "ip -n "+ns+" link set "+dev+" up")
		for _, a := range s[1:] {
			run(d.t, "ip -n "+ns+" addr add "+a+" dev "+dev)
		}
	}
	return ns
}

func provider(as, net4, net6, filter string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "log stderr all;\nrouter id 198.51.100.%s;\nprotocol device {}\nfilter received { %s accept; }\n", net4, filter)
	one, _ := strconv.Atoi(net4)
	for i, site := range []string{"dc1", "dc2"} {
		fmt.Fprintf(&b, "protocol bgp %s_v4 { local as %s; neighbor 198.51.100.%d as 64500; connect delay time 1; ipv4 { import filter received; export none; }; }\n", site, as, one+1+i)
		fmt.Fprintf(&b, "protocol bgp %s_v6 { local as %s; neighbor 2001:db8:%s::%d as 64500; connect delay time 1; ipv6 { import filter received; export none; }; }\n", site, as, net6, 2+i)
	}
	return b.String()
}

func newDocNet(t *testing.T, internal bool) *docNet {
	t.Helper()
	require(t, "vtysh", "/usr/lib/frr/zebra", "/usr/lib/frr/bgpd", "/usr/lib/frr/bfdd")
	sweep(t)
	labCount++
	d := &docNet{
		t: t, base: fmt.Sprintf("%s%d-%d", labPrefix, os.Getpid(), labCount),
		edges: map[string]edge{}, lvs: map[string]Config{}, speakers: map[string]*speaker{},
	}
	sw := d.node("sw")
	for _, segment := range []string{"lan", "provider1", "provider2"} {
		run(t, "ip -n "+sw+" link add "+segment+" type bridge forward_delay 0")
		run(t, "ip -n "+sw+" link set "+segment+" up")
	}
	d.med = startBird(t, d.node("med", []string{"provider1", "198.51.100.1/25", "2001:db8:a::1/64"}), provider("64496", "1", "a", ""))
	d.path = startBird(t, d.node("path", []string{"provider2", "198.51.100.129/25", "2001:db8:b::1/64"}), provider("64497", "129", "b", "bgp_med = 0;"))

	// What the page says of iBGP.
	ourAS, birdEdit, frrEdit := uint32(65001), []string(nil), []string(nil)
	if internal {
		ourAS = 64500
		birdEdit = []string{"192.0.2.11 as 65001", "192.0.2.11 as 64500", "192.0.2.12 as 65001", "192.0.2.12 as 64500"}
		frrEdit = []string{"neighbor LVS remote-as 65001", "neighbor LVS remote-as 64500"}
	}
	d.edges["dc1"] = startBird(t, d.node("dc1-edge",
		[]string{"lan", "192.0.2.1/25", "2001:db8:1::1/64"},
		[]string{"provider1", "198.51.100.2/25", "2001:db8:a::2/64"},
		[]string{"provider2", "198.51.100.130/25", "2001:db8:b::2/64"}),
		configOf(t, "bird.conf", birdEdit...))
	// The other site's addresses.
	d.edges["dc2"] = startFRR(t, d.node("dc2-edge",
		[]string{"lan", "192.0.2.129/25", "2001:db8:2::1/64"},
		[]string{"provider1", "198.51.100.3/25", "2001:db8:a::3/64"},
		[]string{"provider2", "198.51.100.131/25", "2001:db8:b::3/64"}),
		configOf(t, "frr.conf", append(frrEdit, "192.0.2.11", "192.0.2.139", "192.0.2.12", "192.0.2.140", "192.0.2.1", "192.0.2.129")...))

	// The agent.yaml of the page.
	for site, a := range map[string][3]string{
		"dc1": {"192.0.2.11", "2001:db8:1::11", "192.0.2.1"},
		"dc2": {"192.0.2.139", "2001:db8:2::11", "192.0.2.129"},
	} {
		as := uint32(64500)
		d.lvs[site] = Config{
			AS: ourAS, LocalAddress: netip.MustParseAddr(a[0]), LocalAddress6: netip.MustParseAddr(a[1]),
			Neighbors: []Neighbor{{
				Address: netip.MustParseAddr(a[2]), AS: as, HoldTime: 9 * time.Second, Password: "change-me",
				TTLSecurity: true,
				// Slower than the page's, for a busy machine: what both agree on is the slower.
				BFD: &BFD{Interval: 400 * time.Millisecond, Multiplier: 5}, GracefulRestart: 120 * time.Second,
			}},
		}
		d.node(site+"-lvs", []string{"lan", a[0] + "/25", a[1] + "/64"})
		d.speakers[site] = newSpeaker(t, d.base+"-"+site+"-lvs", d.lvs[site])
	}
	return d
}

// addStandby adds a site's second LVS host.
func (d *docNet) addStandby(site string, set ...plan.Announcement) *speaker {
	d.t.Helper()
	c := d.lvs[site]
	c.LocalAddress, c.LocalAddress6 = c.LocalAddress.Next(), c.LocalAddress6.Next()
	ns := d.node(site+"-lvsb", []string{"lan", c.LocalAddress.String() + "/25", c.LocalAddress6.String() + "/64"})
	s := newSpeaker(d.t, ns, c)
	s.set(set...)
	s.start(false)
	return s
}

const asn = 64500 << 16

// announced is a VIP's routes with the communities of the page's roles.
func announced(med uint32, communities ...uint32) []plan.Announcement {
	return []plan.Announcement{ann(docVIP4, med, communities...), ann(docVIP6, med, communities...)}
}

// must waits for a condition, and shows what an edge knows where it doesn't come.
func (d *docNet) must(site, what string, cond func() bool) {
	d.t.Helper()
	defer func() {
		if d.t.Failed() {
			for _, vip := range docVIPs {
				d.t.Logf("edge of %s: %s", site, d.edges[site].route(vip))
			}
		}
	}()
	eventually(d.t, 10*time.Second, what, cond)
}

func (d *docNet) up(site string) func() bool { return d.speakers[site].flushed }

// has tells whether an edge's best routes to the VIPs have a MED, the words, and
// local preference 0 only if they are drained.
func (d *docNet) has(site string, med int, drained bool, words ...string) func() bool {
	e := d.edges[site]
	return func() bool {
		for _, vip := range docVIPs {
			text := e.route(vip)
			for _, w := range append(words, e.med(med)) {
				if !strings.Contains(text, w) {
					return false
				}
			}
			if strings.Contains(text, e.drained()) != drained {
				return false
			}
		}
		return true
	}
}

// prefers tells whether a provider's best routes lead to a site, by its edge's
// AS alone.
func prefers(p *bird, site string) func() bool {
	return func() bool {
		for _, vip := range docVIPs {
			family := "_v4"
			if vip == docVIP6 {
				family = "_v6"
			}
			text := p.route(vip)
			if !strings.Contains(text, "["+site+family) || !strings.Contains(text, "BGP.as_path: 64500\n") {
				return false
			}
		}
		return true
	}
}

func TestRoutersPage(t *testing.T) {
	for name, internal := range map[string]bool{"eBGP": false, "iBGP": true} {
		t.Run(name, func(t *testing.T) {
			d := newDocNet(t, internal)
			dc1, dc2 := d.speakers["dc1"], d.speakers["dc2"]
			// Announcements that the routers must not accept: another network, and one that is too short.
			wrong := []plan.Announcement{ann("198.18.0.1/32", 1), ann("203.0.113.0/24", 1), ann("2001:db8:10::/64", 1)}
			dc1.set(append(announced(100), wrong...)...)
			dc2.set(append(announced(500, asn|102), wrong...)...)
			for site, s := range d.speakers {
				s.start(false)
				eventually(t, 30*time.Second, "session with the edge of "+site, d.up(site))
				eventually(t, 20*time.Second, "BFD with the edge of "+site, d.edges[site].bfdUp)
			}
			d.must("dc1", "MED at BIRD", d.has("dc1", 100, false))
			d.must("dc2", "MED and community at FRR", d.has("dc2", 500, false, "64500:102"))
			for site, e := range d.edges {
				for _, a := range wrong {
					if text := e.route(a.Prefix.String()); text != "" {
						t.Errorf("the edge of %s accepts %s:\n%s", site, a.Prefix, text)
					}
				}
			}
			eventually(t, 60*time.Second, "the provider that compares MED", prefers(d.med, "dc1"))
			eventually(t, 60*time.Second, "the provider that ignores it", prefers(d.path, "dc1"))
			for _, p := range []*bird{d.med, d.path} {
				text := p.all("", docVIP4) + p.all("", docVIP6)
				if strings.Contains(text, "65001") || strings.Contains(text, "(64500,") {
					t.Errorf("what should stay inside came out:\n%s", text)
				}
			}
			for _, vip := range docVIPs {
				eventually(t, 30*time.Second, "both MEDs at the provider", func() bool {
					text := d.med.all("", vip)
					return strings.Contains(text, "BGP.med: 100\n") && strings.Contains(text, "BGP.med: 500\n")
				})
				eventually(t, 30*time.Second, "dc2 prepended twice at the other", func() bool {
					return strings.Contains(d.path.all("", vip), "BGP.as_path: 64500 64500 64500\n")
				})
			}

			// A switch: dc2 is forced active, then dc1 becomes the backup.
			begin := time.Now()
			dc2.set(announced(50)...)
			eventually(t, 10*time.Second, "the provider that compares MED follows", prefers(d.med, "dc2"))
			t.Logf("FIGURE provider that compares MED follows %v after Set", time.Since(begin))
			begin = time.Now()
			dc1.set(announced(500, asn|102)...)
			eventually(t, 10*time.Second, "the provider that ignores MED follows", prefers(d.path, "dc2"))
			t.Logf("FIGURE provider that ignores MED follows %v after the old site's Set", time.Since(begin))
			eventually(t, 10*time.Second, "prepended", func() bool { return strings.Contains(d.path.all("", docVIP4), "64500 64500 64500\n") })

			// A VIP that is about to be withdrawn.
			for site, s := range d.speakers {
				eventually(t, 10*time.Second, "flushed", d.up(site))
				s.set(announced(900, asn|103, 65535<<16)...)
				d.must(site, "graceful shutdown lowers local preference at "+site, d.has(site, 900, true))
				s.set(announced(100)...)
				d.must(site, "and back", d.has(site, 100, false))
			}

			// A planned restart: there is a route at every moment. BIRD's BFD moves it
			// to the standby until the session is back, FRR keeps it where it is.
			standby := d.addStandby("dc1", announced(110, asn|101)...)
			eventually(t, 20*time.Second, "the standby is flushed", standby.flushed)
			for site, s := range d.speakers {
				eventually(t, 10*time.Second, "flushed", d.up(site))
				there := func() bool { return d.edges[site].route(docVIP4) != "" && d.edges[site].route(docVIP6) != "" }
				s.stop(true)
				holds(t, 2*time.Second, "the edge of "+site+" has routes", there)
				again := newSpeaker(t, d.base+"-"+site+"-lvs", d.lvs[site])
				again.set(announced(100)...)
				again.start(true)
				d.speakers[site] = again
				took := eventually(t, 20*time.Second, "flushed again", func() bool {
					if !there() {
						t.Fatal("no route during the restart of " + site)
					}
					return again.flushed()
				})
				t.Logf("FIGURE %s: planned restart: flushed %v after Start, a route at every moment", site, took)
				d.must(site, "the active one's route", d.has(site, 100, false))
			}
			standby.stop(false)

			// A host that dies: BFD, and nothing is kept.
			for site := range d.speakers {
				eventually(t, 20*time.Second, "BFD is up again", d.edges[site].bfdUp)
				begin := time.Now()
				run(t, fmt.Sprintf("ip -n %s-sw link set %s-lvs0 down", d.base, site))
				eventually(t, 15*time.Second, "the routes of "+site+" go", func() bool { return d.edges[site].route(docVIP4) == "" })
				t.Logf("FIGURE %s: dead host's route gone after %v", site, time.Since(begin))
				run(t, fmt.Sprintf("ip -n %s-sw link set %s-lvs0 up", d.base, site))
				took := eventually(t, 40*time.Second, "the host is back", d.up(site))
				t.Logf("FIGURE %s: flushed %v after it is back", site, took)
			}
		})
	}
}

var block = regexp.MustCompile("(?s)\n<!-- (\\S+) -->\n```[a-z]*\n(.*?)```\n")

// TestRoutersPageShowsTheFiles: what the page shows is what the tests run.
func TestRoutersPageShowsTheFiles(t *testing.T) {
	page, err := os.ReadFile(docs + "routers.md")
	if err != nil {
		t.Fatal(err)
	}
	shown := map[string]bool{}
	for _, m := range block.FindAllStringSubmatch(string(page), -1) {
		shown[m[1]] = true
		file, err := os.ReadFile(docs + m[1])
		if err != nil {
			t.Error(err)
		} else if string(file) != m[2] {
			t.Errorf("docs/routers.md shows another %s than the file", m[1])
		}
	}
	files, err := filepath.Glob(docs + "routers/*")
	if err != nil || len(files) == 0 {
		t.Fatal("no files: ", err)
	}
	for _, f := range files {
		if !shown["routers/"+filepath.Base(f)] {
			t.Errorf("docs/routers.md doesn't show %s", f)
		}
	}
}
