package bgp

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
)

// Three LVS hosts on one segment with a router of either make: a and b with
// BFD at both ends, c with BFD at its own end only, as with a router that has
// none. Hold time and graceful restart are so long that only BFD can be what
// moves a route.
var bfdHosts = []string{"a", "b", "c"}

const (
	bfdInterval = 500 * time.Millisecond // slower than the default, for a busy machine
	bfdHold     = 90 * time.Second
	bfdGraceful = 120 * time.Second
)

const bfdBird = `log stderr { info, warning, error, fatal, bug, remote, trace };
router id 10.77.0.1;
protocol device {}
protocol bfd { interface "*" { interval 500 ms; multiplier 5; }; }
template bgp lvs {
	local 10.77.0.1 as 65001;
	direct;
	passive on;
	hold time 90;
	error wait time 1, 4;
	graceful restart on;
	ipv4 { import all; export none; };
}
protocol bgp a from lvs { neighbor 10.77.0.2 as 65000; bfd on; }
protocol bgp b from lvs { neighbor 10.77.0.3 as 65000; bfd on; }
protocol bgp c from lvs { neighbor 10.77.0.4 as 65000; }
`

const bfdFRR = `bfd
 profile lvs
  receive-interval 500
  transmit-interval 500
  detect-multiplier 5
 exit
exit
router bgp 65001
 bgp router-id 10.77.0.1
 no bgp ebgp-requires-policy
 bgp graceful-restart
 neighbor LVS peer-group
 neighbor LVS remote-as 65000
 neighbor LVS timers 30 90
 neighbor 10.77.0.2 peer-group LVS
 neighbor 10.77.0.2 bfd profile lvs
 neighbor 10.77.0.3 peer-group LVS
 neighbor 10.77.0.3 bfd profile lvs
 neighbor 10.77.0.4 peer-group LVS
exit
`

var frrUp = regexp.MustCompile(` 10\.77\.0\.1 .* up`)

type bfdNet struct {
	*docNet
	router edge
	// all is what the router knows of all its routes to the VIP.
	all func() string
	// up is how many BFD sessions the router has up.
	up      func() int
	hosts   map[string]*speaker
	configs map[string]Config
}

func newBFDNet(t *testing.T, brand string) *bfdNet {
	t.Helper()
	require(t, "bridge", "vtysh", "/usr/lib/frr/bfdd")
	sweep(t)
	labCount++
	d := &docNet{t: t, base: fmt.Sprintf("%s%d-%d", labPrefix, os.Getpid(), labCount)}
	n := &bfdNet{docNet: d, hosts: map[string]*speaker{}, configs: map[string]Config{}}
	sw := d.node("sw")
	run(t, "ip -n "+sw+" link add lan type bridge forward_delay 0")
	run(t, "ip -n "+sw+" link set lan up")
	edge := d.node("edge", []string{"lan", "10.77.0.1/24"})
	if brand == "FRR" {
		f := startFRR(t, edge, bfdFRR)
		n.router = f
		n.all = func() string { return f.vtysh("show bgp ipv4 unicast " + vip1) }
		// Once a BGP session has told FRR its own address it makes the BFD session
		// anew, which costs the first BGP session after its start: those without the
		// address don't count.
		n.up = func() int { return len(frrUp.FindAllString(f.vtysh("show bfd peers brief"), -1)) }
	} else {
		b := startBird(t, edge, bfdBird)
		n.router = b
		n.all = func() string { return b.all("", vip1) }
		n.up = func() int { return strings.Count(b.birdc("show bfd sessions"), " Up ") }
	}
	for i, name := range bfdHosts {
		address := netip.AddrFrom4([4]byte{10, 77, 0, byte(2 + i)})
		d.node(name, []string{"lan", address.String() + "/24"})
		n.configs[name] = Config{AS: 65000, LocalAddress: address, Neighbors: []Neighbor{{
			Address: netip.MustParseAddr("10.77.0.1"), AS: 65001, HoldTime: bfdHold, GracefulRestart: bfdGraceful,
			BFD: &BFD{Interval: bfdInterval, Multiplier: 5},
		}}}
		n.start(name)
	}
	return n
}

// start runs a host's speaker. Each host has a MED of its own: a the lowest.
func (n *bfdNet) start(name string) {
	n.t.Helper()
	s := newSpeaker(n.t, n.base+"-"+name, n.configs[name])
	s.set(ann(vip1, n.medOf(name)))
	s.start(false)
	n.hosts[name] = s
}

func (n *bfdNet) medOf(name string) uint32 { return 100 + 10*uint32(strings.Index("abc", name)) }

// knows tells whether the router holds a host's route.
func (n *bfdNet) knows(name string) bool {
	return strings.Contains(n.all(), n.router.med(int(n.medOf(name))))
}

// best tells whether the router's best route is a host's.
func (n *bfdNet) best(name string) func() bool {
	return func() bool { return strings.Contains(n.router.route(vip1), n.router.med(int(n.medOf(name)))) }
}

// settle waits until all hosts' sessions are up, with BFD where both ends have it.
func (n *bfdNet) settle() {
	n.t.Helper()
	for name, s := range n.hosts {
		eventually(n.t, 30*time.Second, "flushed by "+name, s.flushed)
	}
	eventually(n.t, 30*time.Second, "BFD with a and b, and the best route from a", func() bool { return n.up() == 2 && n.best("a")() })
}

// cut drops all that goes to and from a host, at the other end of its cable:
// neither it nor the router sees a change of carrier.
func (n *bfdNet) cut(name string)  { n.port(name, 0) }
func (n *bfdNet) mend(name string) { n.port(name, 3) }

// port sets the state of the bridge's port, 0 is disabled and 3 forwarding.
func (n *bfdNet) port(name string, state int) {
	n.t.Helper()
	run(n.t, fmt.Sprintf("ip netns exec %s-sw bridge link set dev %s0 state %d", n.base, name, state))
}

func (n *bfdNet) since(name string) time.Time { n.t.Helper(); return n.hosts[name].sessions()[0].Since }

func TestBFD(t *testing.T) {
	for _, brand := range []string{"BIRD", "FRR"} {
		t.Run(brand, func(t *testing.T) {
			n := newBFDNet(t, brand)
			n.settle()
			// FRR makes its BFD sessions anew after its start, one host's later than
			// another's: what is lost by that is lost within 3 s.
			eventually(t, 60*time.Second, "sessions that last", func() bool {
				for name := range n.hosts {
					if s := n.hosts[name].sessions()[0]; !s.Established || time.Since(s.Since) < 5*time.Second {
						return false
					}
				}
				return n.up() == 2 && n.best("a")()
			})
			since := map[string]time.Time{"b": n.since("b"), "c": n.since("c")}

			// A host dies without a word.
			n.cut("a")
			took := eventually(t, 15*time.Second, "the dead host's route goes", func() bool { return !n.knows("a") })
			t.Logf("FIGURE %s: BFD 500 ms x 5: dead host's route gone after %v", brand, took)
			eventually(t, 15*time.Second, "b's route is the best", n.best("b"))
			lost := eventually(t, 15*time.Second, "the host's own end notices", func() bool { return !n.hosts["a"].sessions()[0].Established })
			t.Logf("FIGURE %s: the host's own end notices %v later: %s", brand, lost, n.hosts["a"].sessions()[0].LastError)
			n.mend("a")
			n.settle()

			// A crash: its kernel closes the connection and forwards on. BIRD drops the
			// routes when BFD misses the speaker. To FRR the session has ended
			// already: it keeps them for the restart time.
			n.hosts["a"].kill()
			if brand == "FRR" {
				eventually(t, 15*time.Second, "BFD misses the killed speaker", func() bool { return n.up() == 1 })
				holds(t, 3*time.Second, "the killed speaker's route", func() bool { return n.best("a")() })
			} else {
				took = eventually(t, 15*time.Second, "the killed speaker's route goes", func() bool { return !n.knows("a") })
				t.Logf("FIGURE %s: BFD 500 ms x 5: killed speaker's route gone after %v", brand, took)
			}
			n.start("a")
			n.settle()

			// A session without BFD at the router's end: nothing of this touched it,
			// and its death is a matter for the hold time.
			for name, at := range since {
				if now := n.since(name); !now.Equal(at) {
					t.Errorf("the session of %s was lost at %v: %s", name, now, n.hosts[name].sessions()[0].LastError)
				}
			}
			n.cut("c")
			holds(t, 5*time.Second, "the route of a dead host without BFD", func() bool { return n.knows("c") })
			if s := n.hosts["c"].sessions()[0]; !s.Established {
				t.Errorf("the session without BFD ended: %s", s.LastError)
			}
		})
	}
}

// Another program has BFD's port: sessions go on without, which is told once,
// where GoBGP says it every second.
func TestBFDPortTaken(t *testing.T) {
	var taken *net.UDPConn
	eventually(t, 20*time.Second, "the port is free", func() bool {
		c, err := net.ListenUDP("udp", &net.UDPAddr{Port: 3784})
		taken = c
		return err == nil
	})
	defer taken.Close()
	r := newRawRouter(t, func(w wire) {
		if w.greet() {
			w.live()
		}
	})
	r.BFD = &BFD{Interval: 300 * time.Millisecond, Multiplier: 3}
	var log spy
	s := startRawWith(t, loopbackConfig(), r, log.logger(t))
	eventually(t, 10*time.Second, "the error is told", func() bool { return log.saw("BFD can't listen on UDP port 3784") })
	eventually(t, 10*time.Second, "the session is up", func() bool { return s.Sessions()[0].Established })
	holds(t, 3*time.Second, "told once", func() bool { return log.count("can't listen") == 1 })
}
