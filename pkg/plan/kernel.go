package plan

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/medway-lb/medway/pkg/state"
)

// tunnelTTL is the outer time to live of tunnels between nodes: 64 as for any
// packet of a host, and not inherited from sync messages, whose TTL is 1.
const tunnelTTL = 64

// shortestTimeout is the shortest timeout of a connection that other nodes keep
// as well: they count from the last message about it, which is up to a refresh
// period, and a gap between two packets, older than its last packet.
const shortestTimeout = 3 * syncRefresh

// KernelOf returns what one node's kernel should hold. Only persistent keys
// count: a lease that runs out changes nothing here.
func KernelOf(s *state.Snapshot, self Self) Host {
	h := Host{
		Sysctls:      sysctls(s, self),
		Links:        map[LinkName]Link{},
		Addresses:    map[Address]struct{}{},
		Routes:       map[Route]struct{}{},
		Neighbors:    map[Neighbor]MAC{},
		Chains:       map[Chain]Rules{},
		Jumps:        map[Jump]struct{}{},
		Services:     map[ServiceKey]Service{},
		Destinations: map[DestinationKey]Destination{},
		Daemons:      map[SyncRole]SyncDaemon{},
		Timeouts: map[TimeoutName]time.Duration{
			TimeoutTCP: s.Settings.Timeouts.TCP, TimeoutTCPFin: s.Settings.Timeouts.TCPFin, TimeoutUDP: s.Settings.Timeouts.UDP,
		},
		Segment: map[netip.Addr]bool{},
		Own:     map[netip.Addr]bool{},
		Kept:    map[ServiceKey]bool{},
	}
	for _, a := range []netip.Addr{self.IPv4, self.IPv6} {
		if a.IsValid() {
			h.Own[a] = true
		}
	}
	peers, _ := peersOf(s, self)
	vips := vipsOf(s, self.Site, self.Group)
	h.addSync(s, self, peers)
	h.addFirewall(s, self, vips, peers)
	for _, name := range vips {
		h.addVIP(s, self, s.VIPs[name])
	}
	return h
}

// Faults lists what in the plan of a node can't work though each key is right
// by itself.
func Faults(s *state.Snapshot, self Self) []state.Fault {
	_, faults := peersOf(s, self)
	for _, name := range vipsOf(s, self.Site, self.Group) {
		for i, a := range s.VIPs[name].Addresses {
			if !self.Has(a) {
				faults = append(faults, state.Fault{
					Notice: true,
					Key:    state.Key{Kind: state.KindVIP, A: name}.String(),
					Reason: fmt.Sprintf("field addresses[%d]: value %q: this node has no address of its family (addresses in its file): it does not announce it", i, a),
				})
			}
		}
	}
	for _, t := range []struct {
		field string
		value time.Duration
	}{{"tcp", s.Settings.Timeouts.TCP}, {"udp", s.Settings.Timeouts.UDP}} {
		if t.value < shortestTimeout {
			faults = append(faults, state.Fault{
				Notice: true,
				Key:    state.Key{Kind: state.KindSettings}.String(),
				Reason: fmt.Sprintf("field timeouts.%s: value %q: expected at least %s, or other nodes forget connections in use: "+
					"a packet tells them of one every %s at most", t.field, t.value, shortestTimeout, syncRefresh),
			})
		}
	}
	needs := reversePath(s, self)
	for _, key := range slices.Sorted(maps.Keys(needs)) {
		if value, ok := s.Settings.Sysctls[string(key)]; ok && value != needs[key] {
			faults = append(faults, state.Fault{
				Notice: true,
				Key:    state.Key{Kind: state.KindSettings}.String(),
				Reason: fmt.Sprintf("field sysctls: %s: value %q: expected %q, or sync messages and clients' packets may be dropped",
					string(key), value, needs[key]),
			})
		}
	}
	return faults
}

// addSync plans the sync daemons and the way of their messages to and from the
// peers: out of sync01, duplicated into one tunnel per peer; in from a tunnel,
// sent out of sync01p and so back in on sync01, where the backup daemon
// listens. Messages are IPv4 whatever the family of the connections in them and
// of the tunnel around them (version 1 of the messages has a family for each
// connection: struct ip_vs_sync_v6 in net/netfilter/ipvs/ip_vs_sync.c).
func (h *Host) addSync(s *state.Snapshot, self Self, peers []peer) {
	sync := s.Settings.Sync
	h.Links[SyncLink] = Link{Kind: Veth, Peer: SyncPeerLink, MAC: SyncMAC}
	h.Addresses[Address{SyncLink, host(SyncAddress(self.Name))}] = struct{}{}
	h.Routes[Route{host(ReinjectGateway), SyncPeerLink}] = struct{}{}
	h.Neighbors[Neighbor{SyncPeerLink, ReinjectGateway}] = SyncMAC
	smallest := sync.TunnelMTU
	for _, p := range peers {
		tunnel := Link{Kind: IPIP, Local: p.local, Remote: p.remote, TTL: tunnelTTL, MTU: sync.TunnelMTU}
		if p.remote.Is6() {
			// So that both kinds fit the same path.
			tunnel.Kind, tunnel.MTU = IP6Tnl, sync.TunnelMTU-(ipv6Header-ipv4Header)
		}
		smallest = min(smallest, tunnel.MTU)
		h.Links[TunnelName(p.name)] = tunnel
		h.Routes[Route{host(p.sync), TunnelName(p.name)}] = struct{}{}
	}
	// TEE sets "don't fragment", so a message must fit the smallest of the
	// tunnels. A backup takes messages as long as any node of the domain may
	// send: the kernel cuts off what is longer.
	longest := sync.TunnelMTU - ipv4Header - udpHeader
	if sync.MaxLength != 0 {
		longest = int(sync.MaxLength)
	}
	daemon := SyncDaemon{Interface: SyncLink, ID: sync.ID, MaxLen: uint16(longest), Group: sync.Group, Port: sync.Port, TTL: 1}
	h.Daemons[Backup] = daemon
	daemon.MaxLen = uint16(min(longest, smallest-ipv4Header-udpHeader))
	h.Daemons[Master] = daemon
}

// Lengths of headers in bytes, without options.
const ipv4Header, ipv6Header, udpHeader = 20, 40, 8

// addVIP plans a VIP's addresses, services and destinations. Every backend of
// every site is a destination: the near ones with the local weight, the others
// with the remote one, so that two sites see mirror images.
func (h *Host) addVIP(s *state.Snapshot, self Self, v state.VIP) {
	if self.Segment == "" {
		h.Links[VIPLink] = Link{Kind: Dummy}
	}
	for _, a := range v.Addresses {
		if self.Segment == "" {
			h.Addresses[VIPAddress(a)] = struct{}{}
		} else {
			h.Segment[a] = true
		}
		for _, service := range v.Services {
			key := ServiceKey{Protocol(service.Protocol), a, service.Port}
			pool, ok := s.Pools[service.Pool]
			if !ok {
				// Removing destinations cuts calls, so a pool that is not there removes none.
				h.Kept[key] = true
				continue
			}
			h.Services[key] = Service{
				Scheduler: pool.SchedulerOf(service), Persistence: service.Persistence, Engine: service.Engine, OnePacket: service.OnePacket,
			}
			for _, b := range s.BackendsOf(service.Pool) {
				weight := pool.Remote
				if b.Site == self.Site {
					weight = pool.Local
				}
				if b.Drained {
					weight = 0 // those that it has go on
				}
				address := b.Address(a)
				if !address.IsValid() {
					continue
				}
				h.Destinations[DestinationKey{key, address, service.Port}] = Destination{
					Weight: weight, Upper: pool.Upper, Lower: pool.Lower,
				}
			}
		}
	}
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
