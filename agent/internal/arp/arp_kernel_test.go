package arp

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/packet"
	"github.com/vishvananda/netns"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"github.com/medway-lb/medway/agent/internal/link"
	"github.com/medway-lb/medway/agent/internal/link/nstest"
	"github.com/medway-lb/medway/pkg/plan"
)

const patience = 10 * time.Second

// bench is a bridge with three hosts on it, each with a namespace of its own.
type bench struct{ t *testing.T }

var macs = map[string]plan.MAC{"a": {2, 0, 0, 0, 0, 0xa}, "b": {2, 0, 0, 0, 0, 0xb}, "c": {2, 0, 0, 0, 0, 0xc}}

func newBench(t *testing.T) bench {
	t.Helper()
	nstest.Enter(t)
	w := bench{t}
	nstest.Run(t, "sh", "-ec", "ip link add br0 type bridge && ip link set br0 up")
	for i, host := range []string{"a", "b", "c"} {
		ns := w.namespace(host)
		nstest.Run(t, "ip", "netns", "add", ns)
		t.Cleanup(func() { nstest.Run(t, "ip", "netns", "del", ns) })
		nstest.Run(t, "sh", "-ec", fmt.Sprintf(`
			ip link add %[1]s type veth peer name eth0 netns %[2]s
			ip link set %[1]s master br0 up
			ip -n %[2]s link set eth0 address %[3]s up
			ip -n %[2]s addr add 203.0.113.%[4]d/24 dev eth0
			ip -n %[2]s addr add 2001:db8:10::%[4]d/64 dev eth0 nodad`, "v"+host, ns, macs[host], 101+i))
	}
	return w
}

func (w bench) namespace(host string) string { return fmt.Sprintf("mw-arp-%d-%s", os.Getpid(), host) }

// on runs f inside a host's namespace; the sockets that it opens stay there.
func (w bench) on(host string, f func()) {
	w.t.Helper()
	back, err := netns.Get()
	if err != nil {
		w.t.Fatal(err)
	}
	ns, err := netns.GetFromName(w.namespace(host))
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _, _ = ns.Close(), back.Close() }()
	if err := netns.Set(ns); err != nil {
		w.t.Fatal(err)
	}
	defer func() {
		if err := netns.Set(back); err != nil {
			w.t.Fatal(err)
		}
	}()
	f()
}

func (w bench) run(host, command string) string {
	w.t.Helper()
	return nstest.Run(w.t, "ip", "netns", "exec", w.namespace(host), "sh", "-ec", command)
}

func (w bench) segment(host string) *Segment {
	w.t.Helper()
	var s *Segment
	w.on(host, func() {
		k, err := link.New()
		if err != nil {
			w.t.Fatal(err)
		}
		s = New(k, "eth0")
		w.t.Cleanup(func() { s.Close(); k.Close() })
	})
	w.eventually(host+" is up", func() bool { return w.look(host, s).Up })
	return s
}

func (w bench) look(host string, s *Segment) (v View) {
	w.t.Helper()
	w.on(host, func() {
		var err error
		if v, err = s.Look(); err != nil {
			w.t.Fatal(err)
		}
	})
	return v
}

func (w bench) set(s *Segment, want map[netip.Addr]Hold) {
	w.t.Helper()
	if err := s.Set(want, 2*time.Second); err != nil {
		w.t.Fatal(err)
	}
}

func (w bench) eventually(what string, cond func() bool) {
	w.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for begin := time.Now(); !cond(); <-tick.C {
		if time.Since(begin) > patience {
			w.t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

func both(h Hold) map[netip.Addr]Hold { return map[netip.Addr]Hold{vip4: h, vip6: h} }

// neighbour is where the client's kernel believes an address to be.
func (w bench) neighbour(a netip.Addr) string {
	fields := strings.Fields(w.run("c", "ip neigh show "+a.String()+" dev eth0"))
	for i, f := range fields {
		if f == "lladdr" {
			return fields[i+1]
		}
	}
	return ""
}

// answers says whether an address answers an echo request of the client's.
func (w bench) answers(a netip.Addr) (ok bool) {
	w.t.Helper()
	network, request, reply := "ip4:icmp", icmp.Type(ipv4.ICMPTypeEcho), icmp.Type(ipv4.ICMPTypeEchoReply)
	if a.Is6() {
		network, request, reply = "ip6:ipv6-icmp", ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply
	}
	w.on("c", func() {
		conn, err := net.Dial(network, a.String())
		if err != nil {
			w.t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		m := icmp.Message{Type: request, Body: &icmp.Echo{ID: 7, Seq: 1}}
		out, err := m.Marshal(nil)
		if err != nil {
			w.t.Fatal(err)
		}
		if _, err := conn.Write(out); err != nil {
			w.t.Fatal(err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(time.Second))
		in := make([]byte, 1500)
		for !ok {
			n, _, err := conn.(*net.IPConn).ReadFrom(in) // without the IPv4 header
			if err != nil {
				return
			}
			got, err := icmp.ParseMessage(request.Protocol(), in[:n])
			ok = err == nil && got.Type == reply
		}
	})
	return ok
}

func TestKernelNeighboursFollowTheAnnouncements(t *testing.T) {
	w := newBench(t)
	a, b := w.segment("a"), w.segment("b")
	for _, v := range []netip.Addr{vip4, vip6} { // as after talking to a host that is gone
		w.run("c", fmt.Sprintf("ip neigh replace %s lladdr 02:00:00:00:00:99 dev eth0 nud stale", v))
	}
	for _, turn := range []struct {
		host string
		s    *Segment
	}{{"a", a}, {"b", b}, {"a", a}} {
		w.look(turn.host, turn.s)
		w.set(turn.s, both(Hold{true, true}))
		for _, v := range []netip.Addr{vip4, vip6} {
			w.eventually(fmt.Sprintf("%s is at %s", v, turn.host), func() bool { return w.neighbour(v) == macs[turn.host].String() })
		}
		if !w.answers(vip4) || !w.answers(vip6) {
			t.Errorf("%s does not answer", turn.host)
		}
		w.look(turn.host, turn.s)
		w.set(turn.s, both(Hold{}))
		if v := w.look(turn.host, turn.s); v.Has[vip4] || v.Has[vip6] {
			t.Errorf("%s still has %v", turn.host, v.Has)
		}
	}
}

// An agent that lives announces once a second, and renews; the kernel forgets what
// is not renewed.
func TestKernelAddressesAreLent(t *testing.T) {
	w := newBench(t)
	a := w.segment("a")
	w.run("a", "ip addr add 203.0.113.10/24 dev eth0") // as somebody did by hand: it would outlive the agent
	until := time.Now().Add(2500 * time.Millisecond)
	for time.Now().Before(until) {
		v := w.look("a", a)
		if !v.Has[vip4] && len(a.sent) > 0 {
			t.Fatal("the address went though it was renewed")
		}
		w.set(a, both(Hold{true, true}))
	}
	text := w.run("a", "ip addr show dev eth0")
	for _, want := range []string{"203.0.113.10/32", "2001:db8:10::10/128", "203.0.113.101/24", "deprecated"} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is missing:\n%s", want, text)
		}
	}
	if strings.Contains(text, "203.0.113.10/24") {
		t.Errorf("the address that was set by hand is left:\n%s", text)
	}
	w.eventually("the kernel forgets", func() bool { v := w.look("a", a); return !v.Has[vip4] && !v.Has[vip6] })
	if text := w.run("a", "ip addr show dev eth0"); !strings.Contains(text, "203.0.113.101/24") || !strings.Contains(text, "2001:db8:10::101/64") {
		t.Errorf("the host's own addresses are gone:\n%s", text)
	}
}

func TestKernelOthersAreHeard(t *testing.T) {
	w := newBench(t)
	a, b := w.segment("a"), w.segment("b")
	w.set(a, both(Hold{true, false}))
	inject := w.injector("c")

	t.Log("hostile frames and echoes of the own address first: what comes after them is heard")
	for _, v := range []netip.Addr{vip4, vip6} {
		for _, f := range frames(v, macs["a"]) {
			inject(f)
			inject(f[:len(f)-1])
		}
		for _, f := range frames(v, macs["b"]) {
			inject(f[:len(f)-9])
		}
	}
	inject(edited(vip6, func(f []byte) []byte { f[naStart+4] |= flagSolicited; return f }))
	wrong := frames(vip6, macs["b"])[0]
	wrong[naStart+2]++
	inject(wrong)
	stranger := netip.MustParseAddr("203.0.113.77")
	inject(frames(stranger, macs["b"])[0])
	w.set(b, map[netip.Addr]Hold{netip.MustParseAddr("203.0.113.10"): {false, true}})
	w.eventually("b is heard", func() bool { return w.look("a", a).Heard[vip4].MAC == macs["b"] })
	if v := w.look("a", a); len(v.Heard) != 1 {
		t.Errorf("heard %v", v.Heard)
	}
	select {
	case <-a.Changed():
	default:
		t.Error("whoever holds the address is not woken")
	}
	w.look("b", b)
	w.set(b, map[netip.Addr]Hold{vip6: {false, true}})
	w.eventually("b is heard by IPv6", func() bool { return w.look("a", a).Heard[vip6].MAC == macs["b"] })

	t.Log("what is asked for no more is forgotten")
	w.set(a, map[netip.Addr]Hold{vip6: {true, false}})
	if v := w.look("a", a); len(v.Heard) != 1 || v.Has[vip4] != true {
		t.Errorf("heard %v, has %v", v.Heard, v.Has)
	}
}

// injector sends frames from a host as they are.
func (w bench) injector(host string) func([]byte) {
	var conn *packet.Conn
	w.on(host, func() {
		k, err := link.New()
		if err != nil {
			w.t.Fatal(err)
		}
		defer k.Close()
		s := New(k, "eth0")
		p, err := k.Port("eth0")
		if err != nil {
			w.t.Fatal(err)
		}
		if err := s.open(p); err != nil {
			w.t.Fatal(err)
		}
		w.t.Cleanup(s.Close)
		conn = s.socks.of[etherARP]
	})
	return func(f []byte) {
		w.t.Helper()
		if _, err := conn.WriteTo(f, &packet.Addr{HardwareAddr: f[:6]}); err != nil {
			w.t.Fatal(err)
		}
	}
}

func TestKernelTheDeviceComesAndGoes(t *testing.T) {
	w := newBench(t)
	a, b := w.segment("a"), w.segment("b")
	w.set(a, both(Hold{true, true}))
	for _, event := range []struct{ down, why, up string }{
		{"ip netns exec " + w.namespace("a") + " ip link set eth0 down", "no carrier", "ip netns exec " + w.namespace("a") + " ip link set eth0 up"},
		{"ip link set va down", "no carrier", "ip link set va up"}, // the switch's side
		{"ip link del va", "there is no such device", fmt.Sprintf(
			"ip link add va type veth peer name eth0 netns %[1]s; ip link set va master br0 up; ip -n %[1]s link set eth0 address 02:00:00:00:00:0d up; ip -n %[1]s addr add 203.0.113.101/24 dev eth0", w.namespace("a"))},
	} {
		nstest.Run(t, "sh", "-ec", event.down)
		w.eventually("is down after "+event.down, func() bool { v := w.look("a", a); return !v.Up && v.Down == event.why })
		nstest.Run(t, "sh", "-ec", event.up)
		w.eventually("is up after "+event.up, func() bool { return w.look("a", a).Up })
		w.set(a, both(Hold{true, true}))
		began := time.Now()
		w.eventually("b is heard after "+event.up, func() bool {
			w.look("b", b)
			w.set(b, map[netip.Addr]Hold{vip4: {false, true}})
			h := w.look("a", a).Heard[vip4]
			return h.MAC == macs["b"] && h.At.After(began)
		})
	}
	w.eventually("c knows the new device", func() bool {
		w.look("a", a)
		w.set(a, both(Hold{true, true}))
		return w.answers(vip4) && w.neighbour(vip4) == "02:00:00:00:00:0d"
	})
}
