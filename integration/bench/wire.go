package bench

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
)

// Route is a route as it came over the wire.
type Route struct {
	// At is when the read that brought the UPDATE returned.
	At        time.Time
	Prefix    netip.Prefix
	MED       uint32
	Withdrawn bool
}

// Router is a BGP router that keeps what it is told and says nothing but
// keepalives. A speaker is known by its address.
type Router struct {
	as       uint32
	id       netip.Addr
	listener net.Listener

	mu       sync.Mutex
	speakers map[netip.Addr]*speaker
}

type speaker struct {
	established bool
	routes      map[netip.Prefix]uint32
	news        chan Route
}

const holdTime = 90 * time.Second

// NewRouter listens at address, port 179, for speakers of its own AS.
func NewRouter(address netip.Addr, as uint32) (*Router, error) {
	listener, err := net.Listen("tcp", netip.AddrPortFrom(address, bgpPort).String())
	if err != nil {
		return nil, err
	}
	r := &Router{as: as, id: address, listener: listener, speakers: map[netip.Addr]*speaker{}}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return // closed
			}
			go r.serve(conn)
		}
	}()
	return r, nil
}

const bgpPort = 179

// Close ends the listening; sessions end with the process.
func (r *Router) Close() { r.listener.Close() }

func (r *Router) of(from netip.Addr) *speaker {
	s := r.speakers[from]
	if s == nil {
		// Far more than any measurement leaves unread.
		s = &speaker{routes: map[netip.Prefix]uint32{}, news: make(chan Route, 1<<16)}
		r.speakers[from] = s
	}
	return s
}

// News are the routes of one speaker in the order in which they came.
func (r *Router) News(from netip.Addr) <-chan Route {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.of(from).news
}

// Established tells whether a speaker's session is up.
func (r *Router) Established(from netip.Addr) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.of(from).established
}

// Each calls f with every route that a speaker has announced and not withdrawn.
func (r *Router) Each(from netip.Addr, f func(prefix netip.Prefix, med uint32)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for prefix, med := range r.of(from).routes {
		f(prefix, med)
	}
}

// serve speaks BGP on one connection until it ends.
func (r *Router) serve(conn net.Conn) {
	defer conn.Close()
	remote, err := netip.ParseAddrPort(conn.RemoteAddr().String())
	if err != nil {
		return
	}
	from := remote.Addr().Unmap()
	if err := r.open(conn); err != nil {
		return
	}
	stop := make(chan struct{})
	defer close(stop)
	go keepalives(conn, stop)
	clock := &clocked{Conn: conn}
	in := bufio.NewReaderSize(clock, 1<<20) // one read takes all that is there
	for {
		message, err := readMessage(in)
		if err != nil {
			break
		}
		switch body := message.Body.(type) {
		case *bgp.BGPKeepAlive:
			r.mu.Lock()
			r.of(from).established = true
			r.mu.Unlock()
		case *bgp.BGPUpdate:
			r.take(from, clock.at, body)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.of(from)
	s.established = false
	clear(s.routes)
}

func (r *Router) open(conn net.Conn) error {
	open, err := bgp.NewBGPOpenMessage(uint16(r.as), uint16(holdTime/time.Second), r.id, []bgp.OptionParameterInterface{
		bgp.NewOptionParameterCapability([]bgp.ParameterCapabilityInterface{
			bgp.NewCapMultiProtocol(bgp.RF_IPv4_UC), bgp.NewCapFourOctetASNumber(r.as),
		}),
	})
	if err != nil {
		return err
	}
	return errors.Join(send(conn, open), send(conn, bgp.NewBGPKeepAliveMessage()))
}

func send(conn net.Conn, m *bgp.BGPMessage) error {
	data, err := m.Serialize()
	if err == nil {
		_, err = conn.Write(data)
	}
	return err
}

func keepalives(conn net.Conn, stop <-chan struct{}) {
	ticker := time.NewTicker(holdTime / 3)
	defer ticker.Stop()
	for {
		select {
		case <-stop:
			return
		case <-ticker.C:
			if send(conn, bgp.NewBGPKeepAliveMessage()) != nil {
				return
			}
		}
	}
}

// clocked notes when its last read returned.
type clocked struct {
	net.Conn
	at time.Time
}

func (c *clocked) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.at = time.Now()
	return n, err
}

func readMessage(in *bufio.Reader) (*bgp.BGPMessage, error) {
	header, err := in.Peek(bgp.BGP_HEADER_LENGTH)
	if err != nil {
		return nil, err
	}
	data := make([]byte, binary.BigEndian.Uint16(header[16:18]))
	if _, err := io.ReadFull(in, data); err != nil {
		return nil, err
	}
	message, err := bgp.ParseBGPMessage(data)
	if err != nil {
		return nil, fmt.Errorf("BGP message: %w", err)
	}
	return message, nil
}

func (r *Router) take(from netip.Addr, at time.Time, u *bgp.BGPUpdate) {
	med := uint32(0)
	for _, attribute := range u.PathAttributes {
		if a, ok := attribute.(*bgp.PathAttributeMultiExitDisc); ok {
			med = a.Value
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.of(from)
	for _, nlri := range u.WithdrawnRoutes {
		if p, ok := nlri.NLRI.(*bgp.IPAddrPrefix); ok {
			delete(s.routes, p.Prefix)
			s.tell(Route{At: at, Prefix: p.Prefix, Withdrawn: true})
		}
	}
	for _, nlri := range u.NLRI {
		if p, ok := nlri.NLRI.(*bgp.IPAddrPrefix); ok {
			s.routes[p.Prefix] = med
			s.tell(Route{At: at, Prefix: p.Prefix, MED: med})
		}
	}
}

// tell never waits: what nobody reads is not missed.
func (s *speaker) tell(r Route) {
	select {
	case s.news <- r:
	default:
	}
}
