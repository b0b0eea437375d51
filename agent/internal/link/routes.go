package link

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/reconcile"
	"github.com/vishvananda/netlink"
)

// mainTable is RT_TABLE_MAIN (rtnetlink(7)).
const mainTable = 254

type routes struct{ *Kernel }

// Read returns the routes with medway's protocol number, each with its device.
func (t routes) Read(context.Context) (map[plan.Route]struct{}, error) {
	devices, err := t.devices()
	if err != nil {
		return nil, err
	}
	have := make(map[plan.Route]struct{})
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := t.list(family, netlink.Route{Protocol: plan.RouteProtocol}, netlink.RT_FILTER_PROTOCOL)
		if err != nil {
			return nil, err
		}
		for _, r := range list {
			d, ok := devices[r.LinkIndex]
			if !ok {
				continue // gone since, and its routes with it
			}
			have[plan.Route{Prefix: destination(r, family), Link: plan.LinkName(d.Attrs().Name)}] = struct{}{}
		}
	}
	return have, nil
}

func (t routes) list(family int, like netlink.Route, mask uint64) ([]netlink.Route, error) {
	like.Table = mainTable
	list, err := whole(func() ([]netlink.Route, error) {
		return t.h.RouteListFiltered(family, &like, mask|netlink.RT_FILTER_TABLE)
	})
	return list, wrap(err, "list routes")
}

func destination(r netlink.Route, family int) netip.Prefix {
	switch {
	case r.Dst != nil:
		return prefix(r.Dst)
	case family == netlink.FAMILY_V4:
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

// Apply adds or deletes one route. It replaces a route of medway's own to the
// same prefix (through another device), never anyone else's.
func (t routes) Apply(_ context.Context, c reconcile.Change[plan.Route, struct{}]) error {
	d, err := t.find(c.Key.Link)
	switch {
	case err != nil:
		return err
	case d == nil && c.Op == reconcile.Delete:
		return nil
	case d == nil:
		return fmt.Errorf("%s: there is no such device", c.Key)
	}
	if c.Op == reconcile.Delete {
		r := route(d, c.Key.Prefix)
		err := t.made(t.h.RouteDel(&r))
		if errors.Is(err, syscall.ESRCH) {
			return nil
		}
		return wrap(err, "delete %s", c.Key)
	}
	return t.add(d, c.Key.Prefix)
}

func route(d netlink.Link, to netip.Prefix) netlink.Route {
	return netlink.Route{
		Dst:       ipNet(to.Masked()),
		LinkIndex: d.Attrs().Index,
		Protocol:  plan.RouteProtocol,
		Scope:     netlink.SCOPE_LINK,
		Table:     mainTable,
	}
}

// through returns where medway's IPv4 routes through a device lead.
func (t routes) through(d netlink.Link) ([]netip.Prefix, error) {
	list, err := t.list(netlink.FAMILY_V4, netlink.Route{Protocol: plan.RouteProtocol, LinkIndex: d.Attrs().Index},
		netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_OIF)
	var to []netip.Prefix
	for _, r := range list {
		to = append(to, destination(r, netlink.FAMILY_V4))
	}
	return to, err
}

func (t routes) add(d netlink.Link, to netip.Prefix) error {
	r := route(d, to)
	err := t.made(t.h.RouteAdd(&r))
	if !errors.Is(err, syscall.EEXIST) {
		return wrap(err, "add route %s dev %s", to, d.Attrs().Name)
	}
	family := netlink.FAMILY_V4
	if to.Addr().Is6() {
		family = netlink.FAMILY_V6
	}
	rivals, err := t.list(family, netlink.Route{Dst: r.Dst}, netlink.RT_FILTER_DST)
	if err != nil {
		return err
	}
	for _, rival := range rivals {
		if rival.Protocol != plan.RouteProtocol {
			return fmt.Errorf("route %s dev %s: there is a route to it already that is not medway's: %s", to, d.Attrs().Name, rival)
		}
	}
	return wrap(t.made(t.h.RouteReplace(&r)), "replace route %s dev %s", to, d.Attrs().Name)
}
