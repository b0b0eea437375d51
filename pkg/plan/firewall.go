package plan

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/medway-lb/medway/pkg/state"
)

// chains are the rules of one family, chain by chain.
type chains struct {
	family Family
	// segment is true of ARP mode.
	segment bool
	// input is of the table filter, raw of raw, the other two of mangle.
	input, raw, syncIn, syncOut []string
}

func add(rules *[]string, format string, args ...any) {
	*rules = append(*rules, fmt.Sprintf(format, args...))
}

// addFirewall plans medway's chains. RETURN, not ACCEPT, lets the operator's
// own rules go on deciding about what medway does not close.
func (h *Host) addFirewall(s *state.Snapshot, self Self, vips []string, peers []peer) {
	v4, v6 := chains{family: IPv4}, chains{family: IPv6, segment: self.Segment != ""}
	of := func(a netip.Addr) *chains {
		if a.Is4() {
			return &v4
		}
		return &v6
	}
	group := host(s.Settings.Sync.Group)
	for _, p := range peers {
		add(&v4.syncOut, "-d %s -o %s -j TEE --gateway %s", group, string(SyncLink), p.sync)
		add(&v4.syncIn, "-d %s -i %s -j TEE --gateway %s", group, string(TunnelName(p.name)), ReinjectGateway)
		// A tunnel is for sync messages alone: who forges a peer's address in the
		// outer header must not get past the network's filters with what is inside.
		add(&v4.raw, "! -d %s -i %s -j DROP", group, string(TunnelName(p.name)))
		// Sync messages bear no authentication: tunnels are open to known peers only.
		add(&of(p.remote).input, "-s %s -p ipencap -j RETURN", host(p.remote))
	}
	// What arrives on sync01 is our own duplicate. Its source is routed into a
	// tunnel, so a check of the reverse path by the operator's rules ("-m
	// rpfilter", which is what IPv6 has in place of rp_filter) would drop it, as
	// would a policy of DROP. Nothing else of medway's needs an exception: what
	// comes out of a tunnel is routed back into it, and clients' packets are for
	// the operator to decide about.
	for _, rules := range []*[]string{&v4.raw, &v4.syncIn, &v4.input} {
		add(rules, "-d %s -i %s -j ACCEPT", group, string(SyncLink))
	}
	add(&v4.input, "-d %s -j DROP", group)
	closed := func(rules *[]string, protocols ...string) {
		for _, p := range protocols {
			add(rules, "-p %s -j DROP", p)
		}
	}
	closed(&v4.input, "ipencap")
	// Both kinds of tunnel that the module ip6_tunnel brings with it.
	wanted6 := len(v6.input) > 0
	closed(&v6.input, "ipencap", "ipv6")
	// A VIP as the source of what comes from outside is forged, and a backend would
	// answer it to itself. IPv4 drops the host's own addresses as a source, whatever
	// rp_filter says (__fib_validate_source in net/ipv4/fib_frontend.c); IPv6 does not.
	for _, name := range vips {
		for _, a := range s.VIPs[name].Addresses {
			if a.Is6() {
				add(&v6.input, "-s %s ! -i lo -j DROP", host(a))
			}
		}
	}
	for _, name := range vips {
		for _, a := range s.VIPs[name].Addresses {
			of(a).addVIP(a, s.VIPs[name].Services)
			wanted6 = wanted6 || a.Is6()
		}
	}
	h.addChains(v4)
	if wanted6 {
		h.addChains(v6)
	}
}

// addVIP opens a VIP to its services and to what IP can't do without, and
// closes it to all else: the VIP is a local address, and any daemon on 0.0.0.0 or
// [::] would answer on it. Neighbour discovery is in it in ARP mode only: no
// neighbour asks for an address that is routed to this host, and what is sent to
// the host's own addresses is not met by these rules.
func (c *chains) addVIP(a netip.Addr, services []state.Service) {
	vip := host(a)
	for _, service := range services {
		add(&c.input, "-d %s -p %s -m %s --dport %d -j RETURN", vip, service.Protocol, service.Protocol, service.Port)
	}
	icmp := []string{"icmp -m icmp --icmp-type 8", "icmp -m icmp --icmp-type 3/4"}
	if c.family == IPv6 {
		// Echo request and packet too big. IPVS hands the latter on to the backend.
		icmp = []string{"ipv6-icmp -m icmp6 --icmpv6-type 128", "ipv6-icmp -m icmp6 --icmpv6-type 2"}
	}
	if c.segment {
		// Solicitation, by which neighbours see whether the address is still there
		// (RFC 4861, 7.3), and the answer to one that bears it as its source.
		icmp = append(icmp, "ipv6-icmp -m icmp6 --icmpv6-type 135", "ipv6-icmp -m icmp6 --icmpv6-type 136")
	}
	for _, match := range icmp {
		add(&c.input, "-d %s -p %s -j RETURN", vip, match)
	}
	add(&c.input, "-d %s -j DROP", vip)
	add(&c.raw, "-d %s -j CT --notrack", vip)
}

// inputChain closes VIPs.
const inputChain = ChainPrefix + "INPUT"

// VIPs are the addresses of the VIPs of the plan, in no order.
func (h Host) VIPs() []netip.Addr {
	out := slices.Collect(maps.Keys(h.Segment))
	for a := range h.Addresses {
		if a.Link == VIPLink {
			out = append(out, a.Prefix.Addr())
		}
	}
	return out
}

// Unplanned returns the addresses, of those that stand on medway0, that are no
// VIPs of the plan, sorted.
func (h Host) Unplanned(vips []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, a := range vips {
		if _, planned := h.Addresses[VIPAddress(a)]; !planned && !h.Segment[a] {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// Closing returns the plan with rules that close some more VIPs to everything.
func (h Host) Closing(vips []netip.Addr) Host {
	chains, jumps := map[Chain]Rules{}, map[Jump]struct{}{}
	maps.Copy(chains, h.Chains)
	maps.Copy(jumps, h.Jumps)
	h.Chains, h.Jumps = chains, jumps
	for _, a := range vips {
		c := Chain{FamilyOf(a), "filter", inputChain}
		rule := fmt.Sprintf("-d %s -j DROP", host(a))
		h.Chains[c] = Rules(strings.TrimPrefix(string(h.Chains[c])+"\n"+rule, "\n"))
		h.Jumps[Jump{c.Family, c.Table, "INPUT", c.Name}] = struct{}{}
	}
	return h
}

// addChains takes the chains up and has the built-in ones jump to them. An empty
// one stays away.
func (h *Host) addChains(c chains) {
	for _, chain := range []struct {
		table, from, name string
		rules             []string
	}{
		{"mangle", "POSTROUTING", ChainPrefix + "SYNC-OUT", c.syncOut},
		{"mangle", "PREROUTING", ChainPrefix + "SYNC-IN", c.syncIn},
		{"filter", "INPUT", inputChain, c.input},
		{"raw", "PREROUTING", ChainPrefix + "RAW", c.raw},
	} {
		if len(chain.rules) == 0 {
			continue
		}
		h.Chains[Chain{c.family, chain.table, chain.name}] = Rules(strings.Join(chain.rules, "\n"))
		h.Jumps[Jump{c.family, chain.table, chain.from, chain.name}] = struct{}{}
	}
}
