package lab

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
)

// testLab is a lab that isn't up, in a directory of the test's own.
func testLab(t *testing.T, opts Options) *Lab {
	t.Helper()
	if opts.Dir == "" {
		opts.Dir = t.TempDir()
	}
	l, err := newLab(opts)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func threeSites() Topology {
	t := Default()
	t.Sites = append(t.Sites, Site{Name: "dc3", Number: 4, LVS: lvsHosts(2), SBC: sbcHosts(1)})
	return t
}

func oneProvider() Topology {
	t := Default()
	t.Providers = t.Providers[:1]
	return t
}

func TestTopology(t *testing.T) {
	for name, topo := range map[string]Topology{"default": Default(), "one LVS": Default().WithLVS(1), "three sites": threeSites(), "one provider": oneProvider()} {
		t.Run(name, func(t *testing.T) {
			if err := topo.Validate(); err != nil {
				t.Fatal(err)
			}
			checkLinks(t, topo)
		})
	}
	n, ok := Default().Node("dc1-lvs-b")
	if !ok || n.Addr != netip.MustParseAddr("10.1.0.12") || n.Addr6 != netip.MustParseAddr("2001:db8:1::12") || n.Role != RoleLVS {
		t.Errorf("dc1-lvs-b: %+v, %v", n, ok)
	}
}

// checkLinks: every interface once, every address once, both ends of a cable in one
// network, every node on a cable.
func checkLinks(t *testing.T, topo Topology) {
	t.Helper()
	devs, addrs, cabled := map[string]bool{}, map[netip.Addr]bool{}, map[string]bool{}
	for _, l := range topo.Links() {
		for _, e := range []End{l.A, l.B} {
			if e.Addr6.IsValid() && addrs[e.Addr6.Addr()] {
				t.Errorf("address %s twice", e.Addr6)
			}
			addrs[e.Addr6.Addr()] = true
			if key := e.Node + " " + e.Dev; devs[key] || len(e.Dev) > 15 {
				t.Errorf("interface %s twice, or its name is too long", key)
			} else {
				devs[key] = true
			}
			if e.Addr.IsValid() && addrs[e.Addr.Addr()] {
				t.Errorf("address %s twice", e.Addr)
			}
			addrs[e.Addr.Addr()] = true
			cabled[e.Node] = true
			if _, ok := topo.Node(e.Node); !ok {
				t.Errorf("cable to unknown node %s", e.Node)
			}
		}
		if l.A.Addr.IsValid() && l.A.Addr.Masked() != l.B.Addr.Masked() {
			t.Errorf("link %s-%s: %s and %s", l.A.Node, l.B.Node, l.A.Addr, l.B.Addr)
		}
		if l.A.Addr6.IsValid() && l.A.Addr6.Masked() != l.B.Addr6.Masked() {
			t.Errorf("link %s-%s: %s and %s", l.A.Node, l.B.Node, l.A.Addr6, l.B.Addr6)
		}
	}
	for _, n := range topo.Nodes() {
		if !cabled[n.Name] {
			t.Errorf("node %s has no cable", n.Name)
		}
	}
}

func TestTopologyRefused(t *testing.T) {
	broken := map[string]func(*Topology){
		"name twice":     func(t *Topology) { t.Sites[1].Name = "dc1" },
		"number twice":   func(t *Topology) { t.Sites[1].Number = 1 },
		"address twice":  func(t *Topology) { t.Sites[0].SBC = append(t.Sites[0].SBC, Host{"sbc9", 11}) },
		"long name":      func(t *Topology) { t.Sites[0].Name = "a-very-long-site" },
		"witness's":      func(t *Topology) { t.WitnessNumber = 2 },
		"number too big": func(t *Topology) { t.Sites[0].Number = 300 },
		"provider twice": func(t *Topology) { t.Providers = append(t.Providers, transit1) },
		"no provider":    func(t *Topology) { t.Providers = nil },
	}
	for name, breakIt := range broken {
		topo := Default()
		breakIt(&topo)
		if topo.Validate() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// Whose lab is in the way: one that stays, or one whose program runs.
func TestVacant(t *testing.T) {
	self, _, err := processStat(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	living := &Daemon{PID: os.Getpid(), StartTime: self, BootID: bootID()}
	ended := &Daemon{PID: os.Getpid(), StartTime: self - 1, BootID: bootID()} // its number went to another
	for name, test := range map[string]struct {
		state *state
		want  string // "" is vacant
	}{
		"nothing there":     {nil, ""},
		"stays":             {&state{}, "a lab is up in"},
		"its owner lives":   {&state{Owner: living}, fmt.Sprintf("in use by process %d", os.Getpid())},
		"its owner is gone": {&state{Owner: ended}, ""},
	} {
		opts := Options{Dir: t.TempDir(), Prefix: "nobody-has-this-"}
		if test.state != nil {
			test.state.Options = opts
			if err := writeJSON(opts.Dir+"/state.json", test.state); err != nil {
				t.Fatal(err)
			}
		}
		if err := Vacant(opts); (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}

func TestAgentConfig(t *testing.T) {
	l := testLab(t, Options{Dir: "/run/x"})
	config, err := l.agentConfig("dc1-lvs-a")
	if err != nil {
		t.Fatal(err)
	}
	want := `# dc1-lvs-a: written by medway-lab.
node: dc1-lvs-a
site: dc1
group: dc1-edge1
addresses: {ipv4: 10.1.0.11, ipv6: "2001:db8:1::11"}
uplink: eth0
etcd:
  endpoints: ["https://10.3.0.5:2379", "https://10.1.0.5:2379", "https://10.2.0.5:2379"]
  ca: /run/x/pki/ca.pem
  cert: /run/x/pki/dc1-lvs-a.pem
  key: /run/x/pki/dc1-lvs-a.key
bgp:
  as: 65001
  router_id: 10.1.0.11
  neighbors:
    - {address: 10.1.0.1, as: 65001, hold_time: 90s}
lease_ttl: 15s
telemetry: {listen: ":9400"}
state_dir: /run/x/dc1-lvs-a/state
`
	if diff := cmp.Diff(want, string(config)); diff != "" {
		t.Error(diff)
	}
	if _, err := l.agentConfig("dc1-sbc1"); err == nil {
		t.Error("an agent's configuration for a backend")
	}
}

func TestIntent(t *testing.T) {
	topo := threeSites()
	l := testLab(t, Options{Topology: &topo})
	if err := l.writeIntent(); err != nil {
		t.Fatal(err)
	}
	names, kinds := map[string]bool{}, map[string]int{}
	entries, err := os.ReadDir(l.IntentDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		data, err := os.ReadFile(l.path("intent", e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		for doc := range strings.SplitSeq(string(data), "---\n") {
			var o struct {
				Kind, Name, Address string
				Groups              map[string]string
			}
			if err := yaml.Unmarshal([]byte(doc), &o); err != nil {
				t.Fatalf("%s: %v\n%s", e.Name(), err, doc)
			}
			kinds[o.Kind]++
			names[o.Name+" "+o.Address] = true
			if o.Kind == "VIP" && (len(o.Groups) != 3 || o.Groups["dc3"] != "dc3-edge1") {
				t.Errorf("groups %v", o.Groups)
			}
		}
	}
	if diff := cmp.Diff(map[string]int{"Settings": 1, "Pool": 1, "VIP": 1, "Backend": 5}, kinds); diff != "" {
		t.Error(diff)
	}
	if !names["dc2-sbc2 10.2.0.22"] {
		t.Errorf("no backend dc2-sbc2: %v", names)
	}
}

// BIRD itself judges the configurations of every shape of topology.
func TestBirdConfig(t *testing.T) {
	bird, err := exec.LookPath("bird")
	if err != nil {
		if os.Getenv("MEDWAY_REQUIRE_KERNEL") == "1" {
			t.Fatal("MEDWAY_REQUIRE_KERNEL=1, and there is no bird")
		}
		t.Skip("SKIPPED: needs bird (package bird2)")
	}
	one := Default()
	one.Sites = one.Sites[:1]
	for name, topo := range map[string]Topology{"default": Default(), "one LVS": Default().WithLVS(1), "three sites": threeSites(), "one provider": oneProvider(), "one site": one} {
		l := testLab(t, Options{Topology: &topo})
		for _, router := range topo.Routers() {
			config, err := l.birdConfig(router)
			if err != nil {
				t.Fatal(err)
			}
			file := l.path(router + ".conf")
			if err := os.MkdirAll(l.path(router), 0o755); err != nil { // BIRD opens its log
				t.Fatal(err)
			}
			if err := os.WriteFile(file, config, 0o644); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command(bird, "-p", "-c", file).CombinedOutput(); err != nil {
				t.Errorf("%s: %s: %v: %s", name, router, err, out)
			}
		}
	}
}

func TestParseSessions(t *testing.T) {
	data, err := os.ReadFile("testdata/show-protocols.txt")
	if err != nil {
		t.Fatal(err)
	}
	got := parseSessions(string(data))
	want := map[string]string{"dc1-lvs-a": "Established", "dc2-edge": "Established", "transit": "Established"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	// The end of a session, as printed a moment later.
	line := "dc1-lvs-a  BGP        ---        start  2026-11-22 17:21:27.242  Passive       Socket: Connection closed\n"
	if got := parseSessions(line)["dc1-lvs-a"]; got != "Passive" {
		t.Errorf("closed session: %q", got)
	}
}

func TestParseRoutes(t *testing.T) {
	data, err := os.ReadFile("testdata/show-route.txt")
	if err != nil {
		t.Fatal(err)
	}
	got, err := parseRoutes(string(data))
	if err != nil {
		t.Fatal(err)
	}
	prefix := netip.PrefixFrom(VIP, 32)
	want := []Route{
		{prefix, "dc1-lvs-a", netip.MustParseAddr("10.1.0.11"), netip.MustParseAddr("10.1.0.11"), 100, 0, true},
		{prefix, "dc2-edge", netip.MustParseAddr("10.255.12.2"), netip.MustParseAddr("10.255.12.2"), 500, 0, false},
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
}

func TestEdgeBFD(t *testing.T) {
	for interval, want := range map[time.Duration]int{0: 0, 150 * time.Millisecond: 1} {
		l := testLab(t, Options{BFD: interval})
		config, err := l.birdConfig("dc1-edge")
		if err != nil {
			t.Fatal(err)
		}
		hosts := len(l.topo.Sites[0].LVS)
		for word, n := range map[string]int{"protocol bfd { interface \"*\" { interval 150 ms;": want, "\tbfd on;": want * hosts} {
			if got := strings.Count(string(config), word); got != n {
				t.Errorf("BFD every %s: %q is there %d times, expected %d:\n%s", interval, word, got, n, config)
			}
		}
	}
}
