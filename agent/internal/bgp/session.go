package bgp

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/osrg/gobgp/v4/pkg/server"
	"go.uber.org/zap"

	"github.com/medway-lb/medway/pkg/plan"
)

// Session is the state of the session with one neighbour.
type Session struct {
	Neighbor netip.Addr
	// AS is the neighbour's.
	AS uint32
	// Established tells whether routes can be exchanged.
	Established bool
	// Families are those that the router takes routes of, while Established.
	Families []plan.Family
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
	// opened is when our OPEN was written to a connection on which nothing
	// has come back yet; confirming tells that theirs has come.
	opened     time.Time
	confirming bool
	// heard is how many routes the router has sent in this session.
	heard int
	conn  connection
	// families are those that both sides speak in this session.
	families []bgp.Family
	// restart tells that graceful restart was negotiated. Then the router may
	// hold routes of ours from before, until our End-of-RIB.
	restart bool
	// wire is what has been written to the present session and not withdrawn.
	wire     routes
	endOfRIB map[bgp.Family]bool
	// taken tells that all of Speaker.want was found written and acknowledged.
	// It stays so until something else is wanted or written: the kernel's table
	// of connections takes milliseconds to read.
	taken bool
}

func (n *session) forget() {
	n.wire, n.endOfRIB, n.heard, n.taken = routes{}, map[bgp.Family]bool{}, 0, false
}

// written tells whether all of want, and nothing else, is on the wire.
func (n *session) written(c Config, want routes) bool {
	expected := 0
	for p, a := range want {
		if !slices.Contains(n.families, family(p)) {
			continue
		}
		expected++
		if w, ok := n.wire[p]; !ok || !equal(w, c.to(n.Neighbor, a)) {
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
		if n.established {
			for _, f := range n.families {
				view.Families = append(view.Families, planFamily(f))
			}
		}
		view.Pending = n.established && !n.taken && !n.written(s.cfg, s.want)
		if n.established && !n.taken && !view.Pending {
			six := n.Address.Is6()
			if queues[six] == nil {
				q, err := unacknowledged(six)
				if err != nil {
					view.LastError = err.Error()
				}
				queues[six] = q
			}
			bytes, ok := queues[six][n.conn]
			n.taken = ok && bytes == 0
			view.Pending = !n.taken
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
	n.taken = false
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

// closedEarly and refused are reasons that GoBGP has no words for.
const (
	closedEarly = "the router closes the connection before its OPEN: is this host's address one of its neighbours?"
	refused     = "the router refuses our OPEN: see its log (AS numbers, address families)"
	silent      = "the router accepts the connection, but sends no OPEN"
)

// silentAfter is how long a router may take for its OPEN before that is told.
// GoBGP waits for 4 minutes (RFC 4271, 8.2.2) and says nothing.
const silentAfter = 10 * time.Second

func (s *Speaker) onOpen(peer netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.sessions[peer]
	if n == nil {
		return
	}
	at := time.Now()
	n.opened = at
	time.AfterFunc(silentAfter, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		reason := silent
		if n.TTLSecurity {
			reason += " (one without TTL security at its end looks the same)"
		}
		if n.opened.Equal(at) {
			s.blame(n, reason)
		}
	})
}

// onHeard counts routes that a router sends. They are refused, but cost memory.
func (s *Speaker) onHeard(peer netip.Addr, routes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.sessions[peer]
	if n == nil {
		return
	}
	before := n.heard
	n.heard += routes
	for step := 1; step <= n.heard; step *= 100 {
		if before < step {
			s.log.Sugar().Warnf("BGP neighbour %s sends routes, %d so far: all are refused, but kept in memory; it should export nothing to this host", n, n.heard)
			return
		}
	}
}

// onDeaf tells once that BFD has no port.
func (s *Speaker) onDeaf(reason string) {
	if !s.deaf.Swap(true) {
		s.log.Error("BFD can't listen on UDP port 3784, so sessions have none: " + reason)
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
	if n == nil {
		return
	}
	if n.Password != "" && strings.Contains(reason, "i/o timeout") {
		reason += " (a wrong MD5 password looks the same)"
	}
	s.blame(n, reason)
}

// blame records why a session ends, or can't be established. Caller holds s.mu.
func (s *Speaker) blame(n *session, reason string) {
	n.opened = time.Time{}
	if s.stopping.Load() {
		return
	}
	n.noted = reason
	switch {
	case n.established:
		return // the session's end follows, and is logged
	case reason == n.lastError && n.since.After(time.Now().Add(-time.Second)):
		return // it was told already, as the reason of the session's end
	case reason == closedEarly && n.lastError == refused:
		return // a router that has refused an OPEN may take no connections for a while
	}
	n.lastError = reason
	if !n.warned[reason] {
		n.warned[reason] = true
		s.log.Warn("BGP session with " + n.String() + " can't be established: " + reason)
	}
}

// onPeer takes a change of state from GoBGP and tells what to do about it.
func (s *Speaker) onPeer(ev *apiutil.WatchEventMessage_PeerEvent, at time.Time) task {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.sessions[ev.Peer.State.NeighborAddress]
	if n == nil || ev.Type != apiutil.PEER_EVENT_STATE {
		return nil
	}
	state := ev.Peer.State
	if state.SessionState == bgp.BGP_FSM_ESTABLISHED {
		n.established, n.since, n.noted, n.opened, n.confirming = true, at, "", time.Time{}, false
		n.warned = map[string]bool{}
		n.families, n.restart = s.cfg.negotiated(n.Neighbor, state.RemoteCap)
		n.conn = newConnection(
			netip.AddrPortFrom(s.cfg.localAddress(n.Neighbor), uint16(ev.Peer.Transport.LocalPort)),
			netip.AddrPortFrom(n.Address, uint16(ev.Peer.Transport.RemotePort)))
		s.log.Info("BGP session with "+n.String()+" established", zap.Stringers("families", n.families), zap.Bool("graceful_restart", n.restart))
		s.notify()
		return s.check(n.Neighbor)
	}
	if state.SessionState == bgp.BGP_FSM_OPENCONFIRM {
		n.opened, n.noted = time.Time{}, ""
	}
	if n.confirming && state.SessionState == bgp.BGP_FSM_IDLE && n.noted == "" && !n.established {
		s.blame(n, refused)
	}
	n.confirming = state.SessionState == bgp.BGP_FSM_OPENCONFIRM
	if n.established {
		n.established, n.since = false, at
		n.lastError = n.lossReason(state)
		n.forget()
		s.log.Warn("BGP session with " + n.String() + " lost: " + n.lastError)
		s.notify()
	}
	// Deleting a peer makes an event without a reason.
	if state.SessionState == bgp.BGP_FSM_IDLE && state.DisconnectMessage != "" {
		replace := func(ctx context.Context, srv *server.BgpServer) { s.replace(ctx, srv, n.Neighbor) }
		if state.AdminState != api.PeerState_ADMIN_STATE_PFX_CT {
			return replace
		}
		return func(ctx context.Context, _ *server.BgpServer) {
			time.AfterFunc(maxPrefixesIdle, func() { s.order(ctx, replace) })
		}
	}
	return nil
}

// bfdAfter is how long BFD may take to come up after the BGP session did: both
// ends begin with a packet a second (RFC 5880, 6.8.3).
const bfdAfter = 10 * time.Second

// check warns of a router with which a death would be noticed late: one that
// wants no keepalives (RFC 4271, 4.2), and one without BFD.
func (s *Speaker) check(n Neighbor) task {
	return func(ctx context.Context, srv *server.BgpServer) {
		if n.BFD != nil {
			time.AfterFunc(bfdAfter, func() { s.order(ctx, s.checkBFD(n)) })
		}
		_ = srv.ListPeer(ctx, &api.ListPeerRequest{Address: n.Address.String()}, func(p *api.Peer) {
			if p.GetState().GetSessionState() == api.PeerState_SESSION_STATE_ESTABLISHED && p.GetTimers().GetState().GetNegotiatedHoldTime() == 0 {
				s.log.Warn("BGP session with " + n.String() + " has hold time 0, as the router asks: only BFD would tell if it died")
			}
		})
	}
}

func (s *Speaker) checkBFD(n Neighbor) task {
	return func(ctx context.Context, srv *server.BgpServer) {
		down := false
		srv.ListBfdPeer(ctx, func(addr string, state *api.BfdPeerState) {
			down = down || addr == n.Address.String() && state.GetSessionState() != api.BfdSessionState_BFD_SESSION_STATE_UP
		})
		s.mu.Lock()
		defer s.mu.Unlock()
		if now := s.sessions[n.Address]; down && now.established && time.Since(now.since) >= bfdAfter {
			s.log.Warn("BGP session with " + n.String() + " has no BFD beside it: is it on at the router, and UDP port 3784 open? " +
				"Without, each end misses the other only when the hold time is over (bfd: {enabled: false} for a router that has none)")
		}
	}
}

// lossReason says in words why a session ended. What we noted says more than
// GoBGP's reason: with graceful restart that is the same for a hold timer that
// ran out and for a closed connection.
func (n *session) lossReason(state apiutil.PeerState) string {
	if state.AdminState == api.PeerState_ADMIN_STATE_PFX_CT {
		return fmt.Sprintf("the router sent more routes than max_prefixes, %d: closed for %s", n.MaxPrefixes, maxPrefixesIdle)
	}
	if n.noted != "" {
		return n.noted
	}
	switch state.DisconnectReason {
	case api.PeerState_DISCONNECT_REASON_READ_FAILED, api.PeerState_DISCONNECT_REASON_GRACEFUL_RESTART:
		return "the router closed the connection without a NOTIFICATION"
	default:
		return strings.Replace(state.DisconnectMessage, "notification-sent", "we sent NOTIFICATION", 1)
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
