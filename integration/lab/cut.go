package lab

import (
	"context"
	"fmt"
)

// Cut unplugs the cable between two nodes: both ends lose their carrier.
func (l *Lab) Cut(a, b string) error {
	return l.eachEnd(a, b, func(h *handles, end End) error {
		link, err := h.nl[end.Node].LinkByName(end.Dev)
		if err != nil {
			return err
		}
		return h.nl[end.Node].LinkSetDown(link)
	})
}

// Mend plugs a cut cable in again. The kernel forgot the routes over it, and the IPv6
// addresses: they are made anew.
func (l *Lab) Mend(a, b string) error {
	if err := l.eachEnd(a, b, func(h *handles, end End) error {
		return configureEnd(h.nl[end.Node], end)
	}); err != nil {
		return err
	}
	return l.eachEnd(a, b, func(h *handles, end End) error {
		n, _ := l.topo.Node(end.Node)
		return l.setRoutes(h.nl[end.Node], n)
	})
}

// Blackhole drops all packets between two nodes while their carrier stays: the fault
// that nobody is told of.
func (l *Lab) Blackhole(ctx context.Context, a, b string) error {
	return l.dropRules(ctx, a, b, "-I")
}

// Unblackhole undoes Blackhole.
func (l *Lab) Unblackhole(ctx context.Context, a, b string) error {
	return l.dropRules(ctx, a, b, "-D")
}

// dropRules drops what arrives at the end that is not a bridge port (a bridge's own
// traffic doesn't pass through iptables), and what it sends, of both families. Neighbours
// are still found: PowerOff is for a host that answers nothing at all.
func (l *Lab) dropRules(ctx context.Context, a, b, verb string) error {
	link, err := l.topo.Link(a, b)
	if err != nil {
		return err
	}
	end := link.B // never a bridge port
	for _, iptables := range []string{"iptables", "ip6tables"} {
		if err := l.eachRule(ctx, end.Node, [][]string{
			{iptables, "-w", "-t", "raw", verb, "PREROUTING", "-i", end.Dev, "-j", "DROP"},
			{iptables, "-w", "-t", "mangle", verb, "POSTROUTING", "-o", end.Dev, "-j", "DROP"},
		}); err != nil {
			return err
		}
	}
	return nil
}

// CutEtcd drops what a node's clients of etcd send and would hear, and nothing else:
// the node goes on as a router's neighbour and as a balancer.
func (l *Lab) CutEtcd(ctx context.Context, node string) error { return l.etcdRules(ctx, node, "-I") }

// MendEtcd undoes CutEtcd.
func (l *Lab) MendEtcd(ctx context.Context, node string) error { return l.etcdRules(ctx, node, "-D") }

func (l *Lab) etcdRules(ctx context.Context, node, verb string) error {
	return l.eachRule(ctx, node, [][]string{
		{"iptables", "-w", "-t", "raw", verb, "PREROUTING", "-p", "tcp", "--sport", "2379", "-j", "DROP"},
		{"iptables", "-w", "-t", "mangle", verb, "POSTROUTING", "-p", "tcp", "--dport", "2379", "-j", "DROP"},
	})
}

func (l *Lab) eachRule(ctx context.Context, node string, rules [][]string) error {
	for _, rule := range rules {
		if _, err := l.Output(ctx, node, rule...); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) eachEnd(a, b string, do func(*handles, End) error) error {
	link, err := l.topo.Link(a, b)
	if err != nil {
		return err
	}
	h, err := l.openHandles(link.A.Node, link.B.Node)
	if err != nil {
		return err
	}
	defer h.close()
	for _, end := range []End{link.A, link.B} {
		if err := do(h, end); err != nil {
			return fmt.Errorf("%s: %s: %w", end.Node, end.Dev, err)
		}
	}
	return nil
}
