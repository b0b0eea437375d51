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
// traffic doesn't pass through iptables), and what it sends.
func (l *Lab) dropRules(ctx context.Context, a, b, verb string) error {
	link, err := l.topo.Link(a, b)
	if err != nil {
		return err
	}
	end := link.B // never a bridge port
	rules := [][]string{
		{"iptables", "-w", "-t", "raw", verb, "PREROUTING", "-i", end.Dev, "-j", "DROP"},
		{"iptables", "-w", "-t", "mangle", verb, "POSTROUTING", "-o", end.Dev, "-j", "DROP"},
	}
	for _, rule := range rules {
		if _, err := l.Output(ctx, end.Node, rule...); err != nil {
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
