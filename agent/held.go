package agent

import (
	"context"
	"errors"
	"net/netip"

	"github.com/medway-lb/medway/pkg/plan"
)

// held is how much the kernel has of a VIP's address.
type held int

const (
	// absent: the address, or one of its services, is not there.
	absent held = iota
	// bare: it is there with all its services, but not all is as planned.
	bare
	// whole: its services and destinations are as planned.
	whole
)

// held reads back how much the kernel has of each of the plan's VIP addresses,
// whatever else could not be made.
func (d *dataplane) held(ctx context.Context, h plan.Host) (map[netip.Addr]held, error) {
	addresses, errAddresses := d.link.Addresses().Read(ctx)
	services, errServices := d.ipvs.Services().Read(ctx)
	destinations, errDestinations := d.ipvs.Destinations().Read(ctx)
	own, errOwn := d.link.Has(h.Own)
	if err := errors.Join(errAddresses, errServices, errDestinations, errOwn); err != nil {
		return nil, err
	}
	return compare(h, plan.Host{Addresses: addresses, Services: services, Destinations: destinations, Own: own}), nil
}

// compare says how much of the VIP addresses of want is in have.
func compare(want, have plan.Host) map[netip.Addr]held {
	out := map[netip.Addr]held{}
	for _, a := range vipAddresses(want) {
		out[a.Prefix.Addr()] = whole
		_, planned := want.Addresses[a] // those on the segment come and go
		if _, ok := have.Addresses[a]; planned && !ok {
			out[a.Prefix.Addr()] = absent
		}
	}
	at := func(a netip.Addr, most held) { out[a] = min(out[a], most) }
	for own := range want.Own {
		for vip := range out {
			if !have.Own[own] && own.Is4() == vip.Is4() {
				at(vip, bare)
			}
		}
	}
	for k, service := range want.Services {
		switch there, ok := have.Services[k]; {
		case !ok:
			at(k.Addr, absent)
		case there != service:
			at(k.Addr, bare)
		}
	}
	for k, destination := range want.Destinations {
		if there, ok := have.Destinations[k]; !ok || there != destination {
			at(k.Service.Addr, bare)
		}
	}
	return out
}

// vipAddresses are the VIPs of a plan, as they stand in BGP mode.
func vipAddresses(h plan.Host) []plan.Address {
	var out []plan.Address
	for _, a := range h.VIPs() {
		out = append(out, plan.VIPAddress(a))
	}
	return out
}
