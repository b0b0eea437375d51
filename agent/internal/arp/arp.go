// Package arp holds VIPs on one segment, for nodes that no router speaks BGP with:
// it lends their addresses to a device of the host, tells the neighbours by
// gratuitous ARP and unsolicited neighbour advertisements, and listens for other
// hosts that do.
package arp

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"

	"github.com/medway-lb/medway/agent/internal/link"
	"github.com/medway-lb/medway/pkg/plan"
)

const (
	// Interval is how often [Segment.Set] is to be called: it renews the addresses,
	// whose shortest lifetime is a second, each time.
	Interval = 300 * time.Millisecond
	// announceEvery is how often an address is announced: about once a second: a
	// caller comes back every Interval, and three of them are enough.
	announceEvery = 850 * time.Millisecond
)

// Kernel is what the package needs of the host's: [link.Kernel].
type Kernel interface {
	Port(plan.LinkName) (link.Port, error)
	On(plan.LinkName) (map[netip.Addr][]netip.Prefix, error)
	Lend(name plan.LinkName, a netip.Addr, life time.Duration) error
	TakeBack(plan.LinkName, netip.Prefix) error
}

// Hold is what to do with one VIP's address. The zero value is not to have it.
type Hold struct{ Hold, Announce bool }

// Heard is the last announcement of an address by another hardware address.
type Heard struct {
	At  time.Time
	MAC plan.MAC
}

// View is what a node sees of its segment.
type View struct {
	// Up is true while the device is up, has a carrier and is listened on; Since is
	// when that changed last, and Down says why it is not.
	Up    bool
	Since time.Time
	Down  string
	// Has are the addresses on the device.
	Has map[netip.Addr]bool
	// Heard are the addresses of the last Set that others have announced.
	Heard map[netip.Addr]Heard
}

// Segment is the segment behind one device. Look and Set are for one goroutine.
type Segment struct {
	kernel  Kernel
	name    plan.LinkName
	changed chan struct{}

	on    map[netip.Addr][]netip.Prefix // by the last Look
	view  View                          // without Heard
	socks *sockets                      // nil while the device is down
	sent  map[netip.Addr]time.Time

	mu     sync.Mutex
	port   link.Port
	wanted map[netip.Addr]Hold
	heard  map[netip.Addr]Heard
}

// sockets are packet sockets of one device, by ethertype. broken is set when one of
// them listens no more: the device went down, or is gone.
type sockets struct {
	of     map[int]*packet.Conn
	broken atomic.Bool
}

// New returns the segment behind a device, which need not be there yet. Nothing is
// held before the first Set.
func New(kernel Kernel, device string) *Segment {
	return &Segment{
		kernel: kernel, name: plan.LinkName(device), changed: make(chan struct{}, 1), view: View{Since: time.Now()},
		sent: map[netip.Addr]time.Time{}, heard: map[netip.Addr]Heard{},
	}
}

// Changed gets a value when another host announces an address that is held here.
func (s *Segment) Changed() <-chan struct{} { return s.changed }

// Look returns what there is now. It opens the sockets anew where the device has
// come back.
func (s *Segment) Look() (View, error) {
	port, err := s.kernel.Port(s.name)
	on, errOn := s.kernel.On(s.name)
	if err := errors.Join(err, errOn); err != nil {
		return View{}, err
	}
	s.mu.Lock()
	before := s.port
	s.port = port
	s.mu.Unlock()
	if s.socks != nil && (s.socks.broken.Load() || !port.Up || port.Index != before.Index) {
		s.Close()
	}
	down := ""
	switch {
	case port.Index == 0:
		down = "there is no such device"
	case !port.Up:
		down = "no carrier"
	case s.socks == nil:
		if err := s.open(port); err != nil {
			down = err.Error()
		}
	}
	if up := down == ""; up != s.view.Up {
		s.view.Up, s.view.Since = up, time.Now()
	}
	s.on, s.view.Down = on, down
	s.view.Has = make(map[netip.Addr]bool, len(on))
	for a := range on {
		s.view.Has[a] = true
	}
	view := s.view
	s.mu.Lock()
	view.Heard = maps.Clone(s.heard)
	s.mu.Unlock()
	return view, nil
}

// onlyNA lets neighbour advertisements through, of the IPv6 packets of a socket:
// that of clients should not wake the agent.
var onlyNA = []bpf.Instruction{
	bpf.LoadAbsolute{Off: etherHeader + 6, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: protocolICMPv6, SkipTrue: 3},
	bpf.LoadAbsolute{Off: naStart, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: typeNA, SkipTrue: 1},
	bpf.RetConstant{Val: 0xffff},
	bpf.RetConstant{Val: 0},
}

func (s *Segment) open(p link.Port) error {
	filter, err := bpf.Assemble(onlyNA)
	if err != nil {
		return err
	}
	s.socks = &sockets{of: map[int]*packet.Conn{}}
	for kind, config := range map[int]*packet.Config{etherARP: {}, etherIPv6: {Filter: filter}} {
		conn, err := packet.Listen(&net.Interface{Index: p.Index}, packet.Raw, kind, config)
		if err != nil {
			s.Close()
			return fmt.Errorf("open a packet socket: %w", err)
		}
		s.socks.of[kind] = conn
		go s.listen(s.socks, conn)
	}
	return nil
}

// Close ends the listening. Addresses stay until their time is over.
func (s *Segment) Close() {
	if s.socks == nil {
		return
	}
	for _, conn := range s.socks.of {
		_ = conn.Close()
	}
	s.socks = nil
}

// listen notes what others announce, until the socket is closed or broken.
func (s *Segment) listen(socks *sockets, conn *packet.Conn) {
	frame := make([]byte, 2048)
	for {
		n, _, err := conn.ReadFrom(frame)
		if err != nil {
			socks.broken.Store(true)
			return
		}
		if a, ok := decode(frame[:n]); ok {
			s.hear(a, time.Now())
		}
	}
}

func (s *Segment) hear(a announcement, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	hold, ours := s.wanted[a.addr]
	if !ours || a.mac == s.port.MAC {
		return
	}
	before := s.heard[a.addr]
	s.heard[a.addr] = Heard{now, a.mac}
	// A flood of them must not keep the agent from its work.
	if hold.Hold && now.Sub(before.At) > 100*time.Millisecond {
		select {
		case s.changed <- struct{}{}:
		default:
		}
	}
}

// Set makes the device have the addresses that are to be held, for a lifetime from
// now on, and no other of those named, and announces those that are to be. What is
// to be held already is renewed. It goes by the last Look.
func (s *Segment) Set(want map[netip.Addr]Hold, life time.Duration) error {
	s.mu.Lock()
	s.wanted = want
	port := s.port
	maps.DeleteFunc(s.heard, func(a netip.Addr, _ Heard) bool { _, stays := want[a]; return !stays })
	s.mu.Unlock()
	var errs []error
	for a, hold := range want {
		host := netip.PrefixFrom(a, a.BitLen())
		if hold.Hold {
			errs = append(errs, s.kernel.Lend(s.name, a, life))
		}
		for _, p := range s.on[a] { // under another prefix it would outlive the agent
			if !hold.Hold || p != host && a.Is4() {
				errs = append(errs, s.kernel.TakeBack(s.name, p))
			}
		}
	}
	now := time.Now()
	maps.DeleteFunc(s.sent, func(a netip.Addr, _ time.Time) bool { return !want[a].Announce })
	if !s.view.Up {
		return errors.Join(errs...)
	}
	for _, a := range slices.SortedFunc(maps.Keys(want), netip.Addr.Compare) {
		if want[a].Announce && now.Sub(s.sent[a]) >= announceEvery {
			s.sent[a] = now
			errs = append(errs, s.announce(a, port.MAC))
		}
	}
	return errors.Join(errs...)
}

func (s *Segment) announce(a netip.Addr, mac plan.MAC) error {
	kind := etherARP
	if a.Is6() {
		kind = etherIPv6
	}
	for _, f := range frames(a, mac) {
		if _, err := s.socks.of[kind].WriteTo(f, &packet.Addr{HardwareAddr: f[:6]}); err != nil {
			return fmt.Errorf("announce %s: %w", a, err)
		}
	}
	return nil
}
