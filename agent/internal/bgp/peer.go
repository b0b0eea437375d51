package bgp

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/osrg/gobgp/v4/pkg/server"
)

const (
	// GoBGP's floor for the connect retry time is 2 s; it dials after 75 to
	// 100 % of it.
	connectRetrySeconds = 2
	// After a reset (by BFD) GoBGP's default is to idle for 30 s.
	idleAfterResetSeconds = 1
	// RFC 4724, 4.1 has a restarting speaker wait for its peers' End-of-RIB
	// before it selects routes. Ours are all local and known before, so the
	// wait is as short as it can be set; GoBGP's default is 360 s, during
	// which nothing is sent to any router if one of them is down.
	deferralSeconds = 1
	// bfdTimeout bounds the wait for BFD to take notice of a peer.
	bfdTimeout   = 2 * time.Second
	pollInterval = 10 * time.Millisecond
)

// String names the neighbour as an operator does.
func (n Neighbor) String() string { return fmt.Sprintf("%s (AS %d)", n.Address, n.AS) }

func (c Config) localAddress(n Neighbor) netip.Addr {
	if n.Address.Is6() {
		return c.LocalAddress6
	}
	return c.LocalAddress
}

func (c Config) families() []bgp.Family {
	var families []bgp.Family
	if c.LocalAddress.IsValid() {
		families = append(families, bgp.RF_IPv4_UC)
	}
	if c.LocalAddress6.IsValid() {
		families = append(families, bgp.RF_IPv6_UC)
	}
	return families
}

// internal tells whether a neighbour is of our own AS.
func (c Config) internal(n Neighbor) bool { return n.AS == c.AS }

// peer converts a neighbour to GoBGP's form.
//
// With restarting, the OPEN's graceful restart capability says that our
// forwarding state was kept, which is always true: IPVS forwards in the
// kernel. A router that kept our routes drops them at once if it isn't said
// (RFC 4724, 4.2).
func (c Config) peer(n Neighbor, restarting bool) *api.Peer {
	restart := n.GracefulRestart > 0
	p := &api.Peer{
		Conf: &api.PeerConf{
			NeighborAddress: n.Address.String(),
			PeerAsn:         n.AS,
			AuthPassword:    n.Password,
		},
		Timers: &api.Timers{Config: &api.TimersConfig{
			ConnectRetry:           connectRetrySeconds,
			HoldTime:               uint64(n.HoldTime / time.Second),
			KeepaliveInterval:      uint64(n.Keepalive / time.Second),
			IdleHoldTimeAfterReset: idleAfterResetSeconds,
		}},
		Transport:    &api.Transport{LocalAddress: c.localAddress(n).String()},
		TtlSecurity:  &api.TtlSecurity{Enabled: n.TTLSecurity}, // and nothing below 255 is accepted
		EbgpMultihop: &api.EbgpMultihop{Enabled: n.Multihop > 0, MultihopTtl: uint32(n.Multihop)},
		// NotificationEnabled (RFC 8538) stays off: it would keep the routes
		// of a dead host.
		GracefulRestart: &api.GracefulRestart{
			Enabled:         restart,
			RestartTime:     uint32(n.GracefulRestart / time.Second),
			DeferralTime:    deferralSeconds,
			LocalRestarting: restart && restarting,
		},
	}
	for _, f := range c.families() {
		p.AfiSafis = append(p.AfiSafis, &api.AfiSafi{
			Config:            &api.AfiSafiConfig{Family: &api.Family{Afi: api.Family_Afi(f.Afi()), Safi: api.Family_Safi(f.Safi())}, Enabled: true},
			MpGracefulRestart: &api.MpGracefulRestart{Config: &api.MpGracefulRestartConfig{Enabled: restart}},
			PrefixLimits:      &api.PrefixLimit{MaxPrefixes: n.MaxPrefixes},
		})
	}
	if n.BFD != nil {
		interval := uint32(n.BFD.Interval / time.Microsecond)
		p.Bfd = &api.BfdPeerConfig{
			Enabled:                  true,
			DesiredMinimumTxInterval: interval,
			RequiredMinimumReceive:   interval,
			DetectionMultiplier:      uint32(n.BFD.Multiplier),
		}
	}
	return p
}

// missed is how long routers may take to miss the process before this one by BFD,
// with room for an interval of theirs that is twice as long. BIRD then makes its
// BFD session anew, with another discriminator; GoBGP, once it has heard the old
// one, takes no packet of the new one (rxPacket in pkg/server/bfd_peer.go) and, when
// it has waited in vain, resets BGP, seconds after that was established.
func (c Config) missed() (longest time.Duration) {
	for _, n := range c.Neighbors {
		if n.BFD != nil {
			longest = max(longest, 2*time.Duration(n.BFD.Multiplier)*n.BFD.Interval)
		}
	}
	return longest
}

// replace deletes a peer whose session ended and adds it anew. GoBGP's own way
// back is to idle for 5 s first; a new peer dials within 2 s.
func (s *Speaker) replace(ctx context.Context, srv *server.BgpServer, n Neighbor) {
	err := srv.DeletePeer(ctx, &api.DeletePeerRequest{Address: n.Address.String()})
	if err != nil && !s.stopping.Load() {
		s.log.Sugar().Errorf("BGP session with %s: %v", n, err)
	}
	awaitBFD(ctx, srv, n, false)
	for ctx.Err() == nil {
		err := srv.AddPeer(ctx, &api.AddPeerRequest{Peer: s.cfg.peer(n, true)})
		if err == nil || s.stopping.Load() {
			break
		}
		s.log.Sugar().Errorf("BGP session with %s: %v", n, err)
		pause(ctx, time.Second)
	}
	awaitBFD(ctx, srv, n, true)
}

// awaitBFD waits until GoBGP's BFD has taken notice of a peer that came or
// went. It learns of it over a channel of one element, written by the
// management goroutine. That channel isn't read while BFD waits for a BFD
// session to end, which may itself be waiting for the management goroutine to
// reset its peer: a second write before that would block the server for good.
func awaitBFD(ctx context.Context, srv *server.BgpServer, n Neighbor, want bool) {
	if n.BFD == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, bfdTimeout)
	defer cancel()
	for ctx.Err() == nil {
		found := false
		srv.ListBfdPeer(ctx, func(addr string, _ *api.BfdPeerState) { found = found || addr == n.Address.String() })
		if found == want {
			return
		}
		pause(ctx, pollInterval)
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
