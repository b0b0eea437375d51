package bgp

import (
	"net/netip"
	"slices"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"go.uber.org/zap"
)

// Session is the state of the session with one neighbour.
type Session struct {
	Neighbor netip.Addr
	// AS is the neighbour's.
	AS uint32
	// Established tells whether routes can be exchanged.
	Established bool
	// Since is when Established last changed. For a session that was never
	// established it is when New was called.
	Since time.Time
	// Pending tells, of an established session, that the router may not have
	// all of the last Set yet: some of it isn't written to the connection, or
	// the router's TCP hasn't acknowledged it. Once false, the bytes are in
	// the router's kernel; when its BGP process has acted on them can't be
	// seen from here (a frozen process shows when the hold time ends). It
	// means nothing while Established is false.
	Pending bool
	// LastError is why the session was lost last, or can't be established;
	// "" if that never happened.
	LastError string
}

// session is what is known of one neighbour. Speaker.mu guards it.
type session struct {
	Neighbor
	established bool
	since       time.Time
	lastError   string
	// noted is the last fault within the present session; warned are the
	// reasons logged since the session was last up, so that a router that is
	// away is one line in the log and not one every 2 s.
	noted  string
	warned map[string]bool
	conn   connection
	// families are those that both sides speak in this session.
	families []bgp.Family
	// restart tells that graceful restart was negotiated. Then the router may
	// hold routes of ours from before, until our End-of-RIB.
	restart bool
	// wire is what has been written to the present session and not withdrawn.
	wire     routes
	endOfRIB map[bgp.Family]bool
}

func (n *session) forget() {
	n.wire, n.endOfRIB = routes{}, map[bgp.Family]bool{}
}

// written tells whether all of want, and nothing else, is on the wire.
func (n *session) written(want routes) bool {
	expected := 0
	for p, a := range want {
		if !slices.Contains(n.families, family(p)) {
			continue
		}
		expected++
		if w, ok := n.wire[p]; !ok || !equal(w, a) {
			return false
		}
	}
	for _, f := range n.families {
		if n.restart && !n.endOfRIB[f] {
			return false
		}
	}
	return expected == len(n.wire)
}

// Sessions returns the state of all sessions, ordered by neighbour.
func (s *Speaker) Sessions() []Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	// First what is written, then what is acknowledged: the other way round
	// an UPDATE written in between would go unnoticed.
	queues := map[bool]map[connection]uint64{}
	out := make([]Session, 0, len(s.sessions))
	for _, n := range s.sessions {
		view := Session{Neighbor: n.Address, AS: n.AS, Established: n.established, Since: n.since, LastError: n.lastError}
		view.Pending = n.established && !n.written(s.want)
		if n.established && !view.Pending {
			six := n.Address.Is6()
			if queues[six] == nil {
				q, err := unacknowledged(six)
				if err != nil {
					view.LastError = err.Error()
				}
				queues[six] = q
			}
			bytes, ok := queues[six][n.conn]
			view.Pending = !ok || bytes > 0
		}
		out = append(out, view)
	}
	slices.SortFunc(out, func(a, b Session) int { return a.Neighbor.Compare(b.Neighbor) })
	return out
}

// Changed returns a channel that gets a value after sessions were established
// or lost. Several changes may make one value. There is one channel: it is for
// one reader.
func (s *Speaker) Changed() <-chan struct{} { return s.changed }

// onSent, onUp and onFault are called by GoBGP's logging, on the goroutine of
// the session.
func (s *Speaker) onSent(peer netip.Addr, u update) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.sessions[peer]
	if n == nil {
		return
	}
	for _, p := range u.withdrawn {
		delete(n.wire, p)
	}
	for _, a := range u.announced {
		n.wire[a.Prefix] = a
	}
	if u.endOfRIB {
		n.endOfRIB[u.family] = true
	}
}

func (s *Speaker) onUp(peer netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.sessions[peer]; n != nil {
		n.forget()
	}
}

func (s *Speaker) onFault(peer netip.Addr, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.sessions[peer]
	if n == nil || s.stopping.Load() {
		return
	}
	n.noted = reason
	if n.established {
		return // the session's end follows, and is logged
	}
	n.lastError = reason
	if !n.warned[reason] {
		n.warned[reason] = true
		s.log.Sugar().Warnf("BGP session with %s (AS %d) can't be established: %s", n.Address, n.AS, reason)
	}
}

// onPeer takes a change of state from GoBGP and tells whether the peer has to
// be replaced.
func (s *Speaker) onPeer(ev *apiutil.WatchEventMessage_PeerEvent, at time.Time) (replace *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.sessions[ev.Peer.State.NeighborAddress]
	if n == nil || ev.Type != apiutil.PEER_EVENT_STATE {
		return nil
	}
	state := ev.Peer.State
	if state.SessionState == bgp.BGP_FSM_ESTABLISHED {
		n.established, n.since, n.noted = true, at, ""
		n.warned = map[string]bool{}
		n.families, n.restart = s.cfg.negotiated(n.Neighbor, state.RemoteCap)
		n.conn = newConnection(
			netip.AddrPortFrom(s.cfg.localAddress(n.Neighbor), uint16(ev.Peer.Transport.LocalPort)),
			netip.AddrPortFrom(n.Address, uint16(ev.Peer.Transport.RemotePort)))
		s.log.Info("BGP session with "+n.String()+" established", zap.Bool("graceful_restart", n.restart))
		s.notify()
		return nil
	}
	if n.established {
		n.established, n.since = false, at
		n.lastError = lossReason(state, n.noted)
		n.forget()
		s.log.Warn("BGP session with " + n.String() + " lost: " + n.lastError)
		s.notify()
	}
	// Deleting a peer makes an event without a reason.
	if state.SessionState == bgp.BGP_FSM_IDLE && state.DisconnectMessage != "" {
		return n
	}
	return nil
}

// lossReason says in words why a session ended. What we noted says more than
// GoBGP's reason: with graceful restart that is the same for a hold timer that
// ran out and for a closed connection.
func lossReason(state apiutil.PeerState, noted string) string {
	if noted != "" {
		return noted
	}
	switch state.DisconnectReason {
	case api.PeerState_DISCONNECT_REASON_READ_FAILED, api.PeerState_DISCONNECT_REASON_GRACEFUL_RESTART:
		return "the router closed the connection without a NOTIFICATION"
	default:
		return state.DisconnectMessage
	}
}

func (s *Speaker) notify() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// negotiated returns the address families that both sides speak, and whether
// graceful restart was agreed, from the capabilities in the router's OPEN.
func (c Config) negotiated(n Neighbor, remote []bgp.ParameterCapabilityInterface) (families []bgp.Family, restart bool) {
	// RFC 4760, 8: without any multiprotocol capability, IPv4 unicast only.
	theirs := []bgp.Family{}
	for _, r := range remote {
		switch r := r.(type) {
		case *bgp.CapMultiProtocol:
			theirs = append(theirs, r.CapValue)
		case *bgp.CapGracefulRestart:
			restart = n.GracefulRestart > 0
		}
	}
	if len(theirs) == 0 {
		theirs = append(theirs, bgp.RF_IPv4_UC)
	}
	for _, f := range c.families() {
		if slices.Contains(theirs, f) {
			families = append(families, f)
		}
	}
	return families, restart
}
