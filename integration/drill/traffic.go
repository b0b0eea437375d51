package drill

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/medway-lb/medway/integration/lab"
	"github.com/medway-lb/medway/integration/sbc/sipp"
)

// Traffic is a kind of calls.
type Traffic struct {
	// From is the node of the phones; default lab.Clients.
	From string
	// UDP is instead of TCP, IPv6 instead of IPv4.
	UDP, IPv6 bool
}

// ParseTraffic reads kinds of calls such as "tcp,udp6,tcp@clients2".
func ParseTraffic(list []string) ([]Traffic, error) {
	var all []Traffic
	for _, text := range list {
		proto, from, _ := strings.Cut(text, "@")
		t := Traffic{From: from}
		proto, t.IPv6 = strings.CutSuffix(proto, "6")
		t.UDP = proto == "udp"
		if !t.UDP && proto != "tcp" {
			return nil, fmt.Errorf("traffic %q: expected tcp, tcp6, udp or udp6, and perhaps @ and the clients' node", text)
		}
		all = append(all, t.withDefault())
	}
	return all, nil
}

func (t Traffic) withDefault() Traffic {
	if t.From == "" {
		t.From = lab.Clients
	}
	return t
}

// Astray is how many calls each backend of the other site may get: none, and one
// over UDP, since wrr begins with a round over all backends whatever their
// weights (mark->cw in net/netfilter/ipvs/ip_vs_wrr.c).
func (t Traffic) Astray() int {
	if t.UDP {
		return 1
	}
	return 0
}

// String is what ParseTraffic reads.
func (t Traffic) String() string {
	text := strings.ToLower(t.proto())
	if t.IPv6 {
		text += "6"
	}
	if t.From != "" && t.From != lab.Clients {
		text += "@" + t.From
	}
	return text
}

func (t Traffic) proto() string {
	if t.UDP {
		return "UDP"
	}
	return "TCP"
}

// VIP is the address that is called.
func (t Traffic) VIP() netip.Addr {
	if t.IPv6 {
		return lab.VIP6
	}
	return lab.VIP
}

// addr is the address of the phones' host n.
func (t Traffic) addr(n lab.Node) netip.Addr {
	if t.IPv6 {
		return n.Addr6
	}
	return n.Addr
}

// run fills in where a run's calls come from and go to.
func (t Traffic) run(l *lab.Lab, r sipp.Run) (sipp.Run, error) {
	n, ok := l.Topology().Node(t.From)
	if !ok {
		return r, fmt.Errorf("traffic %s: no node %s", t, t.From)
	}
	r.UDP, r.Target, r.Answer = t.UDP, net.JoinHostPort(t.VIP().String(), "5060"), answer
	if t.UDP {
		r.Local = t.addr(n).String()
	}
	return r, nil
}

// dropResets keeps TCP resets from SIPp. A reset must count as the loss of one call,
// but SIPp ends all its calls at the first one: so resets are dropped before they
// reach it (the capture still sees them). Their calls fail for want of an answer.
func (t Traffic) dropResets(ctx context.Context, l *lab.Lab) error {
	if t.UDP {
		return nil
	}
	iptables := "iptables"
	if t.IPv6 {
		iptables = "ip6tables"
	}
	rule := strings.Fields("INPUT -p tcp --tcp-flags RST RST -j DROP")
	_, _ = l.Output(ctx, t.From, append([]string{iptables, "-D"}, rule...)...) // of an earlier drill
	_, err := l.Output(ctx, t.From, append([]string{iptables, "-A"}, rule...)...)
	return err
}

// entries counts the calls in the output of `ipvsadm -lnc`: distinct ports of the
// phones' host.
func (t Traffic) entries(out string, from lab.Node) int {
	state := "ESTABLISHED"
	if t.UDP {
		state = "UDP"
	}
	seen := map[netip.AddrPort]bool{}
	for line := range strings.Lines(out) {
		// TCP 14:57 ESTABLISHED 198.51.100.10:40001 203.0.113.10:5060 10.1.0.21:5060
		f := strings.Fields(line)
		if len(f) != 6 || f[0] != t.proto() || f[2] != state {
			continue
		}
		client, err := netip.ParseAddrPort(f[3])
		if err == nil && client.Addr() == t.addr(from) {
			seen[client] = true
		}
	}
	return len(seen)
}
