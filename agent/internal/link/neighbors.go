package link

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/reconcile"
	"github.com/vishvananda/netlink"
)

type neighbors struct{ *Kernel }

// Read leaves out entries that the kernel has learnt, which it also forgets.
func (t neighbors) Read(context.Context) (map[plan.Neighbor]plan.MAC, error) {
	have := make(map[plan.Neighbor]plan.MAC)
	d, err := t.find(plan.SyncPeerLink)
	if err != nil || d == nil {
		return have, err
	}
	list, err := whole(func() ([]netlink.Neigh, error) {
		return t.h.NeighListExecute(netlink.Ndmsg{Index: uint32(d.Attrs().Index), State: netlink.NUD_PERMANENT})
	})
	if err != nil {
		return nil, fmt.Errorf("%s: list neighbours: %w", plan.SyncPeerLink, err)
	}
	for _, n := range list {
		var mac plan.MAC
		if ip := addr(n.IP); ip.IsValid() && len(n.HardwareAddr) == len(mac) {
			copy(mac[:], n.HardwareAddr)
			have[plan.Neighbor{Link: plan.SyncPeerLink, Addr: ip}] = mac
		}
	}
	return have, nil
}

// Apply sets or deletes one entry.
func (t neighbors) Apply(_ context.Context, c reconcile.Change[plan.Neighbor, plan.MAC]) error {
	if c.Key.Link != plan.SyncPeerLink {
		return fmt.Errorf("%s: not the device on which medway sets neighbours", c.Key)
	}
	d, err := t.find(c.Key.Link)
	switch {
	case err != nil:
		return err
	case d == nil && c.Op == reconcile.Delete:
		return nil
	case d == nil:
		return fmt.Errorf("%s: there is no such device", c.Key)
	}
	n := netlink.Neigh{
		LinkIndex:    d.Attrs().Index,
		IP:           c.Key.Addr.AsSlice(),
		HardwareAddr: c.New[:],
		State:        netlink.NUD_PERMANENT,
	}
	if c.Op == reconcile.Delete {
		n.HardwareAddr = nil
		err := t.made(t.h.NeighDel(&n))
		if errors.Is(err, syscall.ENOENT) {
			return nil
		}
		return wrap(err, "delete %s", c.Key)
	}
	return wrap(t.made(t.h.NeighSet(&n)), "set %s lladdr %s", c.Key, c.New)
}
