package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/medway-lb/medway/agent/internal/firewall"
	"github.com/medway-lb/medway/agent/internal/ipvs"
	"github.com/medway-lb/medway/agent/internal/link"
	"github.com/medway-lb/medway/agent/internal/sysctl"
	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/reconcile"
)

// dataplane is the host's kernel: everything but the routes that BGP carries.
type dataplane struct {
	link      *link.Kernel
	firewalls map[plan.Family]*firewall.Kernel
	ipvs      *ipvs.Kernel
	// served are the VIPs of the plans so far that stand on no device of medway's:
	// what is left of one that leaves the plan is medway's to remove.
	served map[netip.Addr]bool
	// known is nil before the first run and after one that failed.
	known *known
}

func openDataplane() (d *dataplane, err error) {
	d = &dataplane{served: map[netip.Addr]bool{}}
	// ipvs first: opening it loads the module, whose sysctls come after.
	if d.ipvs, err = ipvs.New(); err != nil {
		return nil, err
	}
	return d, d.open()
}

// readDataplane opens the kernel for looking only; where it has no IPVS, loaded
// is false.
func readDataplane() (d *dataplane, loaded bool, err error) {
	d = &dataplane{served: map[netip.Addr]bool{}}
	if d.ipvs, loaded, err = ipvs.NewReader(); err != nil {
		return nil, false, err
	}
	if err := d.open(); err != nil {
		return nil, false, err
	}
	for _, f := range d.firewalls {
		f.LookOnly()
	}
	return d, loaded, nil
}

// open opens all but IPVS.
func (d *dataplane) open() (err error) {
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	if d.link, err = link.New(); err != nil {
		return err
	}
	d.firewalls = map[plan.Family]*firewall.Kernel{}
	for _, family := range families {
		if d.firewalls[family], err = firewall.New(family); err != nil {
			return err
		}
	}
	return nil
}

var families = []plan.Family{plan.IPv4, plan.IPv6}

func (d *dataplane) close() {
	if d.link != nil {
		d.link.Close()
	}
	if d.ipvs != nil {
		d.ipvs.Close()
	}
}

// apply brings the kernel to the plan. VIPs that stand on medway0 and are not
// planned stay closed while they are taken down, which may fail: only then go
// the rules that close them.
func (d *dataplane) apply(ctx context.Context, h plan.Host) reconcile.Report {
	if report, ok := d.applyDestinations(ctx, h); ok {
		return report
	}
	began := time.Now()
	report := d.applyAll(ctx, h)
	report.Failed = append(report.Failed, d.lacksOwn(h)...)
	d.remember(h, began, report)
	return report
}

// notHere is an address of the node's file that the host does not have.
type notHere netip.Addr

func (a notHere) Error() string {
	return fmt.Sprintf("this host does not have %s, which its file names as its own: nothing of that family can be forwarded", netip.Addr(a))
}

// lacksOwn finds what somebody else has to put right.
func (d *dataplane) lacksOwn(h plan.Host) (faults []error) {
	if len(h.Own) == 0 {
		return nil
	}
	have, err := d.link.Has(h.Own)
	if err != nil {
		return []error{err}
	}
	for _, a := range slices.SortedFunc(maps.Keys(h.Own), netip.Addr.Compare) {
		if !have[a] {
			faults = append(faults, notHere(a))
		}
	}
	return faults
}

func (d *dataplane) applyAll(ctx context.Context, h plan.Host) reconcile.Report {
	vips, err := d.vips(ctx)
	if err != nil {
		return reconcile.Report{Failed: []error{err}}
	}
	for a := range h.Segment {
		d.served[a] = true
	}
	leaving := h.Unplanned(vips)
	if len(leaving) == 0 {
		return reconcile.Run(ctx, d.steps(ctx, h, vips)...)
	}
	// What both runs do together: rules that come and go between are nobody's news.
	edits, err := reconcile.Preview(ctx, d.steps(ctx, h, vips)...)
	report := reconcile.Run(ctx, d.steps(ctx, h.Closing(leaving), vips)...)
	if err != nil || report.Err() != nil {
		return report
	}
	failed := reconcile.Run(ctx, d.steps(ctx, h, vips)...).Failed
	if len(failed) == 0 {
		maps.DeleteFunc(d.served, func(a netip.Addr, _ bool) bool { return slices.Contains(leaving, a) })
	}
	return reconcile.Report{Done: without(edits, failed), Failed: failed}
}

// without are the edits but for those that failed.
func without(edits []reconcile.Edit, failed []error) []reconcile.Edit {
	return slices.DeleteFunc(edits, func(e reconcile.Edit) bool {
		return slices.ContainsFunc(failed, func(err error) bool {
			var f *reconcile.Failure
			return errors.As(err, &f) && f.Table == e.Table && f.Key == e.Key
		})
	})
}

// preview returns what apply would do.
func (d *dataplane) preview(ctx context.Context, h plan.Host) ([]reconcile.Edit, error) {
	vips, err := d.vips(ctx)
	if err != nil {
		return nil, err
	}
	return reconcile.Preview(ctx, d.steps(ctx, h, vips)...)
}

// steps are the tables with what they should hold. The order is that of
// ARCHITECTURE: devices, parameters, then the firewall before the addresses
// that it closes, and the services that rest on them. Deletions go the other
// way.
//
// IPVS services are medway's if they belong to a planned VIP, or to one that
// stands on medway0: a VIP that was taken out of the plan while no agent ran.
func (d *dataplane) steps(ctx context.Context, h plan.Host, vips []netip.Addr) []reconcile.Step {
	ownService := func(k plan.ServiceKey) bool {
		_, planned := h.Addresses[plan.VIPAddress(k.Addr)]
		return !h.Kept[k] && (planned || h.Segment[k.Addr] || slices.Contains(vips, k.Addr))
	}
	ownDestination := func(k plan.DestinationKey) bool { return ownService(k.Service) }
	never := func(plan.TimeoutName) bool { return false }
	steps := []reconcile.Step{
		reconcile.Bind(d.link.Links(h.Links), h.Links, nil),
		reconcile.Bind(sysctl.New(sysctl.Root, slices.Collect(maps.Keys(h.Sysctls))), h.Sysctls, nil),
	}
	for _, family := range families {
		chains, jumps := h.ChainsOf(family), h.JumpsOf(family)
		steps = append(steps,
			reconcile.Bind(d.firewalls[family].Chains(chains), chains, nil),
			reconcile.Bind(d.firewalls[family].Jumps(jumps), jumps, nil))
	}
	return append(steps,
		reconcile.Bind(d.link.Routes(), h.Routes, nil),
		reconcile.Bind(d.link.Neighbors(), h.Neighbors, nil),
		reconcile.Bind(d.guardedAddresses(ctx, h), h.Addresses, nil),
		reconcile.Bind(d.ipvs.Timeouts(), h.Timeouts, never),
		reconcile.Bind(d.ipvs.Daemons(), h.Daemons, nil),
		reconcile.Bind(d.ipvs.Services(), h.Services, ownService),
		reconcile.Bind(d.ipvs.Destinations(), h.Destinations, ownDestination),
	)
}

// guarded is a table in which each change has a condition.
type guarded[K reconcile.Key, V comparable] struct {
	reconcile.Table[K, V]
	check func(reconcile.Change[K, V]) error
}

func (t guarded[K, V]) Apply(ctx context.Context, c reconcile.Change[K, V]) error {
	if err := t.check(c); err != nil {
		return err
	}
	return t.Table.Apply(ctx, c)
}

// guardedAddresses are the addresses, of which a VIP is not made before the
// firewall closes it, and not deleted before its services are gone: it is by its
// address that a service is known to be medway's. Both are read back from the
// kernel, once in a run, when the tables on which they rest have had their turn.
func (d *dataplane) guardedAddresses(ctx context.Context, h plan.Host) reconcile.Table[plan.Address, struct{}] {
	closed := map[plan.Family]func() error{}
	for _, family := range families {
		closed[family] = sync.OnceValue(func() error { return d.closes(ctx, h, family) })
	}
	services := sync.OnceValues(func() (map[plan.ServiceKey]plan.Service, error) { return d.ipvs.Services().Read(ctx) })
	check := func(c reconcile.Change[plan.Address, struct{}]) error {
		vip := c.Key.Prefix.Addr()
		switch {
		case c.Key.Link != plan.VIPLink:
			return nil
		case c.Op == reconcile.Delete && len(h.Unplanned([]netip.Addr{vip})) == 0:
			return nil // the VIP itself stays, under another prefix
		case c.Op != reconcile.Delete:
			return closed[plan.FamilyOf(vip)]()
		}
		left, err := services()
		for k := range left {
			if k.Addr == vip && err == nil {
				err = fmt.Errorf("stays until %s is gone", k)
			}
		}
		return err
	}
	return guarded[plan.Address, struct{}]{d.link.Addresses(), check}
}

// closes says whether the kernel has the rules of a family that close VIPs: any
// daemon of the host would answer on an open one.
func (d *dataplane) closes(ctx context.Context, h plan.Host, family plan.Family) error {
	chains, jumps := h.ChainsOf(family), h.JumpsOf(family)
	maps.DeleteFunc(chains, func(c plan.Chain, _ plan.Rules) bool { return c.Table != "filter" })
	maps.DeleteFunc(jumps, func(j plan.Jump, _ struct{}) bool { return j.Table != "filter" })
	if holds(ctx, d.firewalls[family].Chains(chains), chains) && holds(ctx, d.firewalls[family].Jumps(jumps), jumps) {
		return nil
	}
	return fmt.Errorf("not before the rules of %s close it", family.Tables())
}

// holds says whether nothing is missing or different in a table.
func holds[K reconcile.Key, V comparable](ctx context.Context, table reconcile.Table[K, V], want map[K]V) bool {
	have, err := table.Read(ctx)
	return err == nil && len(reconcile.Diff(want, have, func(K) bool { return false })) == 0
}

// vips are the addresses on medway0, and those that this process has served on a
// segment.
func (d *dataplane) vips(ctx context.Context) ([]netip.Addr, error) {
	have, err := d.link.Addresses().Read(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the addresses of %s: %w", plan.VIPLink, err)
	}
	var vips []netip.Addr
	for a := range have {
		if a.Link == plan.VIPLink {
			vips = append(vips, a.Prefix.Addr())
		}
	}
	return slices.AppendSeq(vips, maps.Keys(d.served)), nil
}

// connections are numbers of them; those of a VIP also by destination.
type connections struct {
	active, inactive uint64
	to               map[plan.DestinationKey]connections
}

// connections counts what is in the kernel's table, by VIP address.
func (d *dataplane) connections(ctx context.Context) (map[netip.Addr]connections, error) {
	services, err := d.ipvs.Stats(ctx)
	if err != nil {
		return nil, err
	}
	out := map[netip.Addr]connections{}
	for _, s := range services {
		c := out[s.Key.Addr]
		if c.to == nil {
			c.to = map[plan.DestinationKey]connections{}
		}
		for _, destination := range s.Destinations {
			active, inactive := uint64(destination.ActiveConns), uint64(destination.InactConns)
			c.active += active
			c.inactive += inactive
			c.to[destination.Key] = connections{active: active, inactive: inactive}
		}
		out[s.Key.Addr] = c
	}
	return out, nil
}

// arrivals are what clients sent to a VIP's address: packets, and how many
// connections they opened.
type arrivals struct{ packets, opened uint64 }

// arrived reads the counters of all services, by VIP address.
func (d *dataplane) arrived(ctx context.Context) (map[netip.Addr]arrivals, error) {
	services, err := d.ipvs.Arrived(ctx)
	if err != nil {
		return nil, err
	}
	out := map[netip.Addr]arrivals{}
	for key, c := range services {
		a := out[key.Addr]
		a.packets += c.InPackets
		a.opened += c.Connections
		out[key.Addr] = a
	}
	return out, nil
}

func (d *dataplane) syncing(ctx context.Context) (bool, error) {
	have, err := d.ipvs.Daemons().Read(ctx)
	return len(have) == 2, err
}

// packets counts those that came to VIPs, of any service.
func (d *dataplane) packets(context.Context) (uint64, error) { return ipvs.Packets() }
