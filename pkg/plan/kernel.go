package plan

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/medway-lb/medway/pkg/state"
)

// tunnelTTL is the outer time to live of tunnels between nodes: 64 as for any
// packet of a host, and not inherited from sync messages, whose TTL is 1.
const tunnelTTL = 64

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
		Kept: map[ServiceKey]bool{},
	}
	vips, peers := vipsOf(s, self.Site, self.Group), peersOf(s, self)
	h.addSync(s, self, peers)
	h.addFirewall(s, vips, peers)
	for _, name := range vips {
		h.addVIP(s, self, s.VIPs[name])
	}
	return h
}

// addSync plans the sync daemons and the way of their messages to and from the
// peers: out of sync01, duplicated into one tunnel per peer; in from a tunnel,
// sent out of sync01p and so back in on sync01, where the backup daemon
// listens.
func (h *Host) addSync(s *state.Snapshot, self Self, peers []string) {
	sync := s.Settings.Sync
	h.Links[SyncLink] = Link{Kind: Veth, Peer: SyncPeerLink, MAC: SyncMAC}
	h.Addresses[Address{SyncLink, host(SyncAddress(self.Name))}] = struct{}{}
	h.Routes[Route{host(ReinjectGateway), SyncPeerLink}] = struct{}{}
	h.Neighbors[Neighbor{SyncPeerLink, ReinjectGateway}] = SyncMAC
	for _, peer := range peers {
		n, tunnel := s.Nodes[peer], TunnelName(peer)
		h.Links[tunnel] = Link{
			Kind: IPIP, Local: self.IPv4, Remote: n.IPv4, TTL: tunnelTTL, MTU: sync.TunnelMTU,
		}
		h.Routes[Route{host(n.SyncAddress), tunnel}] = struct{}{}
	}
	maxLength := sync.MaxLength
	if maxLength == 0 {
		// TEE sets "don't fragment", so a message must fit a tunnel: 28 bytes are for IP and UDP.
		maxLength = uint16(sync.TunnelMTU - 28)
	}
	for _, role := range []SyncRole{Master, Backup} {
		h.Daemons[role] = SyncDaemon{
			Interface: SyncLink, ID: sync.ID, MaxLen: maxLength, Group: sync.Group, Port: sync.Port, TTL: 1,
		}
	}
}

// addFirewall plans medway's chains. RETURN, not ACCEPT, lets the operator's
// own rules go on deciding about what medway does not close.
func (h *Host) addFirewall(s *state.Snapshot, vips, peers []string) {
	group := host(s.Settings.Sync.Group)
	var out, in, input, raw []string
	add := func(rules *[]string, format string, args ...any) {
		*rules = append(*rules, fmt.Sprintf(format, args...))
	}

	for _, peer := range peers {
		n := s.Nodes[peer]
		add(&out, "-d %s -o %s -j TEE --gateway %s", group, string(SyncLink), n.SyncAddress)
		add(&in, "-d %s -i %s -j TEE --gateway %s", group, string(TunnelName(peer)), ReinjectGateway)
		// Sync messages bear no authentication: tunnels are open to known peers only.
		add(&input, "-s %s -p ipencap -j RETURN", host(n.IPv4))
	}
	add(&input, "-p ipencap -j DROP")
	add(&input, "-d %s ! -i %s -j DROP", group, string(SyncLink))
	for _, name := range vips {
		v := s.VIPs[name]
		for _, a := range v.Addresses {
			for _, service := range v.Services {
				add(&input, "-d %s -p %s -m %s --dport %d -j RETURN", host(a), service.Protocol, service.Protocol, service.Port)
			}
			add(&input, "-d %s -p icmp -m icmp --icmp-type 8 -j RETURN", host(a))
			add(&input, "-d %s -p icmp -m icmp --icmp-type 3/4 -j RETURN", host(a))
			// The VIP is a local address: any daemon on 0.0.0.0 would answer on it.
			add(&input, "-d %s -j DROP", host(a))
			add(&raw, "-d %s -j CT --notrack", host(a))
		}
	}
	for _, c := range []struct {
		table, from, name string
		rules             []string
	}{
		{"mangle", "POSTROUTING", ChainPrefix + "SYNC-OUT", out},
		{"mangle", "PREROUTING", ChainPrefix + "SYNC-IN", in},
		{"filter", "INPUT", ChainPrefix + "INPUT", input},
		{"raw", "PREROUTING", ChainPrefix + "RAW", raw},
	} {
		h.Chains[Chain{c.table, c.name}] = Rules(strings.Join(c.rules, "\n"))
		h.Jumps[Jump{c.table, c.from, c.name}] = struct{}{}
	}
}

// addVIP plans a VIP's addresses, services and destinations. Every backend of
// every site is a destination: the near ones with the local weight, the others
// with the remote one, so that two sites see mirror images.
func (h *Host) addVIP(s *state.Snapshot, self Self, v state.VIP) {
	h.Links[VIPLink] = Link{Kind: Dummy}
	for _, a := range v.Addresses {
		h.Addresses[Address{VIPLink, host(a)}] = struct{}{}
		for _, service := range v.Services {
			key := ServiceKey{Protocol(service.Protocol), a, service.Port}
			pool, ok := s.Pools[service.Pool]
			if !ok {
				// Removing destinations cuts calls, so a pool that is not there removes none.
				h.Kept[key] = true
				continue
			}
			h.Services[key] = Service{Scheduler: pool.Scheduler, Persistence: service.Persistence}
			for _, b := range s.BackendsOf(service.Pool) {
				weight := pool.Remote
				if b.Site == self.Site {
					weight = pool.Local
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
