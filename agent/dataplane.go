package agent

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/medway-lb/medway/agent/internal/firewall"
	"github.com/medway-lb/medway/agent/internal/ipvs"
	"github.com/medway-lb/medway/agent/internal/link"
	"github.com/medway-lb/medway/agent/internal/sysctl"
	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/reconcile"
)

// dataplane is the host's kernel: everything but the routes that BGP carries.
type dataplane struct {
	link     *link.Kernel
	firewall *firewall.Kernel
	ipvs     *ipvs.Kernel
}

func openDataplane() (*dataplane, error) {
	// ipvs first: opening it loads the module, whose sysctls come after.
	ipvs, err := ipvs.New()
	if err != nil {
		return nil, err
	}
	return openAround(ipvs)
}

// readDataplane opens the kernel for looking only; where it has no IPVS, loaded
// is false.
func readDataplane() (d *dataplane, loaded bool, err error) {
	ipvs, loaded, err := ipvs.NewReader()
	if err != nil {
		return nil, false, err
	}
	d, err = openAround(ipvs)
	return d, loaded, err
}

func openAround(ipvs *ipvs.Kernel) (*dataplane, error) {
	link, err := link.New()
	if err != nil {
		ipvs.Close()
		return nil, err
	}
	firewall, err := firewall.New(firewall.IPv4)
	if err != nil {
		ipvs.Close()
		link.Close()
		return nil, err
	}
	return &dataplane{link: link, firewall: firewall, ipvs: ipvs}, nil
}

func (d *dataplane) close() {
	d.link.Close()
	d.ipvs.Close()
}

// apply brings the kernel to the plan.
func (d *dataplane) apply(ctx context.Context, h plan.Host) reconcile.Report {
	steps, err := d.steps(ctx, h)
	if err != nil {
		return reconcile.Report{Failed: []error{err}}
	}
	return reconcile.Run(ctx, steps...)
}

// preview returns what apply would do.
func (d *dataplane) preview(ctx context.Context, h plan.Host) ([]reconcile.Edit, error) {
	steps, err := d.steps(ctx, h)
	if err != nil {
		return nil, err
	}
	return reconcile.Preview(ctx, steps...)
}

// steps are the tables in the order of ARCHITECTURE: devices, parameters, then
// the firewall before the addresses that it closes, and the services that rest
// on them. Deletions go the other way.
func (d *dataplane) steps(ctx context.Context, h plan.Host) ([]reconcile.Step, error) {
	vips, err := d.vips(ctx, h)
	if err != nil {
		return nil, err
	}
	ownService := func(k plan.ServiceKey) bool { return vips[k.Addr] && !h.Kept[k] }
	ownDestination := func(k plan.DestinationKey) bool { return ownService(k.Service) }
	never := func(plan.TimeoutName) bool { return false }
	return []reconcile.Step{
		reconcile.Bind(d.link.Links(h.Links), h.Links, nil),
		reconcile.Bind(sysctl.New(sysctl.Root, slices.Collect(maps.Keys(h.Sysctls))), h.Sysctls, nil),
		reconcile.Bind(d.firewall.Chains(), h.Chains, nil),
		reconcile.Bind(d.firewall.Jumps(h.Jumps), h.Jumps, nil),
		reconcile.Bind(d.link.Routes(), h.Routes, nil),
		reconcile.Bind(d.link.Neighbors(), h.Neighbors, nil),
		reconcile.Bind(d.link.Addresses(), h.Addresses, nil),
		reconcile.Bind(d.ipvs.Timeouts(), h.Timeouts, never),
		reconcile.Bind(d.ipvs.Daemons(), h.Daemons, nil),
		reconcile.Bind(d.ipvs.Services(), h.Services, ownService),
		reconcile.Bind(d.ipvs.Destinations(), h.Destinations, ownDestination),
	}, nil
}

// serves reads back whether the kernel holds the VIPs' addresses, services and
// destinations as planned, whatever else could not be made.
func (d *dataplane) serves(ctx context.Context, h plan.Host) bool {
	return holds(ctx, d.link.Addresses(), h.Addresses) &&
		holds(ctx, d.ipvs.Services(), h.Services) &&
		holds(ctx, d.ipvs.Destinations(), h.Destinations)
}

// holds says whether nothing is missing or different in a table.
func holds[K reconcile.Key, V comparable](ctx context.Context, table reconcile.Table[K, V], want map[K]V) bool {
	have, err := table.Read(ctx)
	return err == nil && len(reconcile.Diff(want, have, func(K) bool { return false })) == 0
}

// vips are the addresses whose IPVS services are medway's: those of the plan,
// and those that stand on medway0, for a VIP that was taken out of the plan
// while no agent ran.
func (d *dataplane) vips(ctx context.Context, h plan.Host) (map[netip.Addr]bool, error) {
	have, err := d.link.Addresses().Read(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the addresses of %s: %w", plan.VIPLink, err)
	}
	vips := map[netip.Addr]bool{}
	for _, addresses := range []map[plan.Address]struct{}{have, h.Addresses} {
		for a := range addresses {
			if a.Link == plan.VIPLink {
				vips[a.Prefix.Addr()] = true
			}
		}
	}
	return vips, nil
}

type connections struct{ active, inactive uint64 }

// connections counts what is in the kernel's table, by VIP address.
func (d *dataplane) connections(ctx context.Context) (map[netip.Addr]connections, error) {
	services, err := d.ipvs.Stats(ctx)
	if err != nil {
		return nil, err
	}
	out := map[netip.Addr]connections{}
	for _, s := range services {
		c := out[s.Key.Addr]
		for _, destination := range s.Destinations {
			c.active += uint64(destination.ActiveConns)
			c.inactive += uint64(destination.InactConns)
		}
		out[s.Key.Addr] = c
	}
	return out, nil
}
