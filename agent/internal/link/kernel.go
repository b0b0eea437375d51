// Package link makes the network devices, addresses, routes and neighbour
// entries of a host what medway wants them to be, through rtnetlink(7).
//
// What medway owns is known by its name or number (pkg/plan/names.go); all
// else is neither reported nor touched.
package link

import (
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"

	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/reconcile"
	"github.com/vishvananda/netlink"
)

// Kernel is one network namespace's devices and what rests on them. Its tables
// are not for concurrent use.
type Kernel struct {
	h       *netlink.Handle
	changes atomic.Uint64
}

// New returns the namespace of the calling thread, for good: the sockets
// belong to it from here on.
func New() (*Kernel, error) {
	h, err := netlink.NewHandle(syscall.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink: %w", err)
	}
	return &Kernel{h: h}, nil
}

// Close gives the sockets back.
func (k *Kernel) Close() { k.h.Close() }

// Changes counts the requests so far that changed something, or tried to.
func (k *Kernel) Changes() uint64 { return k.changes.Load() }

// Links returns the table of medway's devices, all of them up. It is given
// what will be wanted because an MTU or MAC left to the kernel is not compared,
// and because tunnels that trade endpoints have to make room for each other.
func (k *Kernel) Links(want map[plan.LinkName]plan.Link) reconcile.Table[plan.LinkName, plan.Link] {
	return links{k, want}
}

// Addresses returns the table of the addresses on the VIP and the sync device,
// without the IPv6 link-local ones, which are the kernel's.
func (k *Kernel) Addresses() reconcile.Table[plan.Address, struct{}] { return addresses{k} }

// Routes returns the table of the routes that bear medway's protocol number in
// the main routing table.
func (k *Kernel) Routes() reconcile.Table[plan.Route, struct{}] { return routes{k} }

// Neighbors returns the table of the permanent neighbour entries on the sync
// device's peer.
func (k *Kernel) Neighbors() reconcile.Table[plan.Neighbor, plan.MAC] { return neighbors{k} }

// made counts a request that changes the kernel.
func (k *Kernel) made(err error) error {
	k.changes.Add(1)
	return err
}

// find returns a device, nil where there is none.
func (k *Kernel) find(name plan.LinkName) (netlink.Link, error) {
	d, err := k.h.LinkByName(string(name))
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return d, nil
}

// need is find for what must be there.
func (k *Kernel) need(name plan.LinkName) (netlink.Link, error) {
	d, err := k.find(name)
	if err == nil && d == nil {
		err = fmt.Errorf("%s does not exist", name)
	}
	return d, err
}

// devices returns all devices by index.
func (k *Kernel) devices() (map[int]netlink.Link, error) {
	list, err := whole(k.h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	byIndex := make(map[int]netlink.Link, len(list))
	for _, d := range list {
		byIndex[d.Attrs().Index] = d
	}
	return byIndex, nil
}

// whole repeats a dump that changes made meanwhile have interrupted
// (NLM_F_DUMP_INTR, netlink(7)): it may lack objects, and what seems to be
// missing would be made again.
func whole[T any](dump func() ([]T, error)) ([]T, error) {
	const tries = 10
	var list []T
	var err error
	for range tries {
		list, err = dump()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return list, err
		}
	}
	return nil, err
}
