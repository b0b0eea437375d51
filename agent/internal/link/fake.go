package link

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/reconcile"
)

// Fake is a kernel in memory. It refuses what the kernel refuses for want of a
// device or of free endpoints, and what rests on a device goes with it.
type Fake struct {
	links     map[plan.LinkName]plan.Link
	addresses map[plan.Address]struct{}
	routes    map[plan.Route]struct{}
	neighbors map[plan.Neighbor]plan.MAC
	changes   uint64
}

// NewFake returns a kernel without devices.
func NewFake() *Fake {
	return &Fake{
		links:     make(map[plan.LinkName]plan.Link),
		addresses: make(map[plan.Address]struct{}),
		routes:    make(map[plan.Route]struct{}),
		neighbors: make(map[plan.Neighbor]plan.MAC),
	}
}

// Changes counts the changes so far.
func (f *Fake) Changes() uint64 { return f.changes }

// Links is as Kernel.Links.
func (f *Fake) Links(want map[plan.LinkName]plan.Link) reconcile.Table[plan.LinkName, plan.Link] {
	return fakeLinks{f, want}
}

// Addresses is as Kernel.Addresses.
func (f *Fake) Addresses() reconcile.Table[plan.Address, struct{}] {
	return fakeTable[plan.Address, struct{}]{f, f.addresses, func(a plan.Address) plan.LinkName { return a.Link }}
}

// Routes is as Kernel.Routes.
func (f *Fake) Routes() reconcile.Table[plan.Route, struct{}] { return fakeRoutes{f} }

// Neighbors is as Kernel.Neighbors.
func (f *Fake) Neighbors() reconcile.Table[plan.Neighbor, plan.MAC] {
	return fakeTable[plan.Neighbor, plan.MAC]{f, f.neighbors, func(n plan.Neighbor) plan.LinkName { return n.Link }}
}

func (f *Fake) exists(name plan.LinkName) bool {
	if _, ok := f.links[name]; ok {
		return true
	}
	for _, l := range f.links {
		if l.Peer == name {
			return true
		}
	}
	return false
}

func (f *Fake) remove(name plan.LinkName) {
	peer := f.links[name].Peer
	delete(f.links, name)
	gone := func(n plan.LinkName) bool { return n == name || n == peer }
	maps.DeleteFunc(f.addresses, func(a plan.Address, _ struct{}) bool { return gone(a.Link) })
	maps.DeleteFunc(f.routes, func(r plan.Route, _ struct{}) bool { return gone(r.Link) })
	maps.DeleteFunc(f.neighbors, func(n plan.Neighbor, _ plan.MAC) bool { return gone(n.Link) })
}

type fakeLinks struct {
	*Fake
	want map[plan.LinkName]plan.Link
}

func (t fakeLinks) Read(context.Context) (map[plan.LinkName]plan.Link, error) {
	have := make(map[plan.LinkName]plan.Link, len(t.links))
	for name, l := range t.links {
		have[name] = compared(l, t.want[name])
	}
	return have, nil
}

func (t fakeLinks) Apply(_ context.Context, c reconcile.Change[plan.LinkName, plan.Link]) error {
	if c.Op == reconcile.Delete {
		t.changes++
		t.remove(c.Key)
		return nil
	}
	if !may(c.Key, c.New.Kind) {
		return fmt.Errorf("%s of type %q is not medway's to make", c.Key, c.New.Kind)
	}
	for other, l := range t.links {
		if !c.New.Remote.IsValid() || other == c.Key || l.Local != c.New.Local || l.Remote != c.New.Remote {
			continue
		}
		if w, ok := t.want[other]; ok && w.Local == l.Local && w.Remote == l.Remote {
			return fmt.Errorf("%s: %s is already the tunnel from %s to %s", c.Key, other, l.Local, l.Remote)
		}
		t.remove(other)
	}
	t.changes++
	if l, ok := t.links[c.Key]; ok && (l.Peer != c.New.Peer || l.Kind != c.New.Kind) {
		t.remove(c.Key)
	}
	t.links[c.Key] = c.New
	return nil
}

type fakeTable[K reconcile.Key, V comparable] struct {
	*Fake
	state map[K]V
	link  func(K) plan.LinkName
}

func (t fakeTable[K, V]) Read(context.Context) (map[K]V, error) { return maps.Clone(t.state), nil }

func (t fakeTable[K, V]) Apply(_ context.Context, c reconcile.Change[K, V]) error {
	t.changes++
	if c.Op == reconcile.Delete {
		delete(t.state, c.Key)
		return nil
	}
	if !t.exists(t.link(c.Key)) {
		return fmt.Errorf("%s: there is no such device", c.Key)
	}
	t.state[c.Key] = c.New
	return nil
}

type fakeRoutes struct{ *Fake }

func (t fakeRoutes) Read(context.Context) (map[plan.Route]struct{}, error) {
	return maps.Clone(t.routes), nil
}

// Apply keeps one route to a prefix, as the kernel does.
func (t fakeRoutes) Apply(_ context.Context, c reconcile.Change[plan.Route, struct{}]) error {
	t.changes++
	if c.Op == reconcile.Delete {
		delete(t.routes, c.Key)
		return nil
	}
	if !t.exists(c.Key.Link) {
		return fmt.Errorf("%s: there is no such device", c.Key)
	}
	maps.DeleteFunc(t.routes, func(r plan.Route, _ struct{}) bool { return r.Prefix == c.Key.Prefix })
	t.routes[c.Key] = struct{}{}
	return nil
}

// String prints as `ip -br link`, `ip -br address`, `ip route` and `ip neigh`
// do, one after the other.
func (f *Fake) String() string {
	var lines []string
	line := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	for name, l := range f.links {
		switch l.Kind {
		case plan.Veth:
			line("1 %s@%s UP %s mtu %d", string(name), string(l.Peer), l.MAC, l.MTU)
			line("1 %s@%s UP mtu %d", string(l.Peer), string(name), l.MTU)
		case plan.IPIP, plan.IP6Tnl:
			line("1 %s@NONE UNKNOWN %s peer %s ttl %d mtu %d", string(name), l.Local, l.Remote, l.TTL, l.MTU)
		default:
			line("1 %s UNKNOWN %s mtu %d", string(name), l.MAC, l.MTU)
		}
	}
	for a := range f.addresses {
		line("2 %s %s", string(a.Link), a.Prefix)
	}
	for r := range f.routes {
		line("3 %s dev %s proto %d scope link", r.Prefix, string(r.Link), plan.RouteProtocol)
	}
	for n, mac := range f.neighbors {
		line("4 %s dev %s lladdr %s PERMANENT", n.Addr, string(n.Link), mac)
	}
	slices.Sort(lines)
	var b strings.Builder
	for _, l := range lines {
		b.WriteString(l[2:] + "\n")
	}
	return b.String()
}
