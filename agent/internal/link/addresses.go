package link

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"syscall"

	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/reconcile"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

type addresses struct{ *Kernel }

// Read leaves out a device that does not exist: it has no addresses.
func (t addresses) Read(context.Context) (map[plan.Address]struct{}, error) {
	have := make(map[plan.Address]struct{})
	for _, name := range []plan.LinkName{plan.VIPLink, plan.SyncLink} {
		d, err := t.find(name)
		if err != nil {
			return nil, err
		}
		if d == nil {
			continue
		}
		on, err := t.on(d)
		if err != nil {
			return nil, err
		}
		for _, p := range on {
			have[plan.Address{Link: name, Prefix: p}] = struct{}{}
		}
	}
	return have, nil
}

// Has says which of some addresses the host has, on whatever device.
func (k *Kernel) Has(some map[netip.Addr]bool) (map[netip.Addr]bool, error) {
	list, err := whole(func() ([]netlink.Addr, error) { return k.h.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list the host's addresses: %w", err)
	}
	have := map[netip.Addr]bool{}
	for _, a := range list {
		if p := prefix(a.IPNet); some[p.Addr()] {
			have[p.Addr()] = true
		}
	}
	return have, nil
}

func (t addresses) on(d netlink.Link) ([]netip.Prefix, error) {
	list, err := whole(func() ([]netlink.Addr, error) { return t.h.AddrList(d, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("link %s: list addresses: %w", d.Attrs().Name, err)
	}
	var on []netip.Prefix
	for _, a := range list {
		p := prefix(a.IPNet)
		if p.Addr().Is6() && p.Addr().IsLinkLocalUnicast() {
			continue
		}
		on = append(on, p)
	}
	return on, nil
}

// Apply adds or deletes one address.
func (t addresses) Apply(_ context.Context, c reconcile.Change[plan.Address, struct{}]) error {
	if c.Key.Link != plan.VIPLink && c.Key.Link != plan.SyncLink {
		return fmt.Errorf("%s: not a device on which medway sets addresses", c.Key)
	}
	d, err := t.find(c.Key.Link)
	switch {
	case err != nil:
		return err
	case d == nil && c.Op == reconcile.Delete:
		return nil
	case d == nil:
		return fmt.Errorf("%s: there is no such device", c.Key)
	case c.Op == reconcile.Delete:
		return t.remove(d, c.Key)
	}
	return t.add(d, c.Key.Prefix)
}

func (t addresses) add(d netlink.Link, p netip.Prefix) error {
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		// Nobody else can have the address, so there is nothing to detect; and
		// "preferred_lft 0" keeps the host from choosing a VIP as the source of
		// its own connections (RFC 6724, 5, rule 3).
		a.Flags, a.ValidLft, a.PreferedLft = unix.IFA_F_NODAD, forever, 0
	}
	err := t.made(t.h.AddrAdd(d, a))
	if errors.Is(err, syscall.EEXIST) {
		return nil
	}
	return wrap(err, "link %s: add address %s", d.Attrs().Name, p)
}

// forever is the lifetime of an address that has no end (INFINITY_LIFE_TIME in
// linux/if_addr.h).
const forever = math.MaxUint32

// remove deletes an address and puts back at once what goes with it. With the
// first IPv4 address of a subnet the kernel deletes the others of that subnet,
// the one that replaces it among them, unless promote_secondaries is 1
// (ip-sysctl); and with the last IPv4 address of a device all IPv4 routes
// through it (fib_inetaddr_event in net/ipv4/fib_frontend.c).
func (t addresses) remove(d netlink.Link, a plan.Address) error {
	there := func() ([]netip.Prefix, error) {
		on, err := t.on(d)
		return slices.DeleteFunc(on, func(p netip.Prefix) bool { return p == a.Prefix }), err
	}
	rt := routes(t)
	through := func() ([]netip.Prefix, error) { return rt.through(d) }
	return keep(through, func(p netip.Prefix) error { return rt.add(d, p) }, func() error {
		return keep(there, func(p netip.Prefix) error { return t.add(d, p) }, func() error {
			err := t.made(t.h.AddrDel(d, &netlink.Addr{IPNet: ipNet(a.Prefix)}))
			if errors.Is(err, syscall.EADDRNOTAVAIL) {
				return nil
			}
			return wrap(err, "link %s: delete address %s", d.Attrs().Name, a.Prefix)
		})
	})
}

// keep puts back what was there before a change and is not after it.
func keep(there func() ([]netip.Prefix, error), add func(netip.Prefix) error, change func() error) error {
	before, err := there()
	if err != nil {
		return err
	}
	if err := change(); err != nil {
		return err
	}
	after, err := there()
	if err != nil {
		return err
	}
	for _, p := range before {
		if !slices.Contains(after, p) {
			if err := add(p); err != nil {
				return err
			}
		}
	}
	return nil
}
