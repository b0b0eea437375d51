package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"

	"github.com/vishvananda/netlink"
)

// PowerOff takes the power from a host of a site. It says no goodbye, and nobody sees a
// carrier go: its port at the switch takes and gives no packet any more, and then its
// processes are killed.
func (l *Lab) PowerOff(ctx context.Context, node string) error {
	link, err := l.hostLink(node)
	if err != nil {
		return err
	}
	// A port that is disabled keeps its carrier, and drops frames of every kind, ARP too.
	if _, err := l.Output(ctx, link.A.Node, "bridge", "link", "set", "dev", link.A.Dev, "state", "disabled"); err != nil {
		return err
	}
	daemons, err := l.Daemons()
	if err != nil {
		return err
	}
	for _, d := range daemons {
		if d.Node == node {
			err = errors.Join(err, l.Stop(ctx, node, d.Name, syscall.SIGKILL))
		}
	}
	killInside([]string{l.Namespace(node)})
	return err
}

// PowerOn boots a host that PowerOff took the power from: a kernel that knows nothing,
// the same disk and hardware address, and the daemon that the host is there for. The
// kernel's boot id is the machine's, for all hosts of the lab, and stays.
func (l *Lab) PowerOn(node string) error {
	link, err := l.hostLink(node)
	if err != nil {
		return err
	}
	n, _ := l.topo.Node(node)
	mac, err := l.hardwareAddr(link.B)
	if err != nil {
		return err
	}
	if err := deleteNamespace(l.Namespace(node)); err != nil { // its cable goes with it
		return fmt.Errorf("delete namespace %s: %w", l.Namespace(node), err)
	}
	if err := l.createNamespace(node); err != nil {
		return err
	}
	if err := l.boot(n, link, mac); err != nil {
		return fmt.Errorf("%s: %w", node, err)
	}
	if n.Role == RoleSBC {
		if err := l.prepareBackend(n); err != nil {
			return err
		}
	}
	return l.Restart(node)
}

// boot gives a fresh namespace what buildNetwork gave the first one.
func (l *Lab) boot(n Node, link Link, mac net.HardwareAddr) error {
	h, err := l.openHandles(link.A.Node, n.Name)
	if err != nil {
		return err
	}
	defer h.close()
	nl := h.nl[n.Name]
	if err := errors.Join(l.writeSysctls(n.Name, baseSysctls(n)), setUp(nl, "lo")); err != nil {
		return err
	}
	if err := h.addCable(link, 0); err != nil {
		return err
	}
	dev, err := nl.LinkByName(link.B.Dev)
	if err != nil {
		return err
	}
	// Neighbours remember it: with another one the host would be unreachable until they ask again.
	if err := nl.LinkSetHardwareAddr(dev, mac); err != nil {
		return err
	}
	return l.setRoutes(nl, n)
}

func (l *Lab) hardwareAddr(end End) (net.HardwareAddr, error) {
	h, err := l.openHandles(end.Node)
	if err != nil {
		return nil, err
	}
	defer h.close()
	var dev netlink.Link
	if dev, err = h.nl[end.Node].LinkByName(end.Dev); err != nil {
		return nil, fmt.Errorf("%s: %s: %w", end.Node, end.Dev, err)
	}
	return dev.Attrs().HardwareAddr, nil
}

// hostLink is the cable between a site's switch, which is on its edge router, and a host.
func (l *Lab) hostLink(node string) (Link, error) {
	n, _ := l.topo.Node(node)
	if site, ok := l.topo.Site(n.Site); ok && n.Role != RoleEdge {
		return l.topo.Link(site.Edge(), node)
	}
	return Link{}, fmt.Errorf("%s: only a host behind a site's switch can lose its power", node)
}
