// Package ipvs is the adapter to IPVS, the kernel's layer-4 load balancer: it
// reads services, destinations, sync daemons and timeouts back from the kernel,
// applies one change at a time, and reads 64-bit statistics. It edits in place
// and never flushes, since calls run over what is there.
package ipvs

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	moby "github.com/moby/ipvs"
	"golang.org/x/sys/unix"

	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/reconcile"
)

// ErrAbsent is returned by New where the kernel has no IPVS.
var ErrAbsent = errors.New("the kernel has no IPVS: load the module ip_vs (modprobe ip_vs)")

// Kernel is IPVS in one network namespace. It is safe for concurrent use.
type Kernel struct {
	mu      sync.Mutex // one request at a time: neither socket may be shared
	conn    conn
	changes atomic.Uint64
}

// New opens IPVS in the network namespace of the calling thread.
func New() (*Kernel, error) {
	c, err := open()
	if err != nil {
		return nil, err
	}
	return &Kernel{conn: c}, nil
}

// NewReader opens IPVS for looking only. Unlike New it loads no module: where
// there is none, loaded is false and the Kernel is as empty as one that was
// just loaded.
func NewReader() (k *Kernel, loaded bool, err error) {
	s, err := openSession((*session).lookForFamily)
	if errors.Is(err, ErrAbsent) {
		k, _ = NewFake()
		return k, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	return &Kernel{conn: reader{s}}, true, nil
}

// Close releases the sockets; the kernel's state stays as it is.
func (k *Kernel) Close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.conn.close()
}

// Changes is the number of requests sent so far that were to change the
// kernel's state, whether they succeeded or not.
func (k *Kernel) Changes() uint64 { return k.changes.Load() }

// Services is the table of virtual services.
func (k *Kernel) Services() ServiceTable { return ServiceTable{k} }

// Destinations is the table of the destinations of all services.
func (k *Kernel) Destinations() DestinationTable { return DestinationTable{k: k} }

// DestinationsOf is the table of the destinations of some services, all of which
// exist.
func (k *Kernel) DestinationsOf(services map[plan.ServiceKey]bool) DestinationTable {
	return DestinationTable{k, services}
}

// Daemons is the table of sync daemons.
func (k *Kernel) Daemons() DaemonTable { return DaemonTable{k} }

// Timeouts is the table of connection timeouts.
func (k *Kernel) Timeouts() TimeoutTable { return TimeoutTable{k} }

// change sends one mutating request.
func (k *Kernel) change(ctx context.Context, send func(conn) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.changes.Add(1)
	return send(k.conn)
}

// read sends one reading request.
func read[T any](ctx context.Context, k *Kernel, get func(conn) (T, error)) (T, error) {
	if err := ctx.Err(); err != nil {
		var none T
		return none, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return get(k.conn)
}

// put adds or edits an object, in the order that the operation suggests, and
// does the other where the object turns out to be there already (EEXIST) or to
// have gone (the given error).
func put(op reconcile.Op, gone error, send func(verb) error) (verb, error) {
	v, other, turn := add, edit, error(unix.EEXIST)
	if op == reconcile.Update {
		v, other, turn = edit, add, gone
	}
	err := send(v)
	if errors.Is(err, turn) {
		v, err = other, send(other)
	}
	return v, err
}

// ServiceTable is the table of virtual services.
type ServiceTable struct{ k *Kernel }

// Read returns all TCP and UDP services; firewall-mark services are left out.
// A service with an option that medway never sets reads as one whose scheduler
// differs from any wanted one.
func (t ServiceTable) Read(ctx context.Context) (map[plan.ServiceKey]plan.Service, error) {
	found, err := t.k.readServices(ctx)
	if err != nil {
		return nil, err
	}
	all := make(map[plan.ServiceKey]plan.Service, len(found))
	for i := range found {
		if key, ok := serviceKeyToPlan(&found[i].Service); ok {
			all[key] = serviceToPlan(key, &found[i].Service)
		}
	}
	return all, nil
}

func (k *Kernel) readServices(ctx context.Context) ([]service, error) {
	found, err := read(ctx, k, func(c conn) ([]service, error) { return c.services(ctx) })
	if err != nil {
		return nil, fmt.Errorf("list services: %w", err)
	}
	return found, nil
}

// Apply makes one change. Deleting a service deletes its destinations.
func (t ServiceTable) Apply(ctx context.Context, c reconcile.Change[plan.ServiceKey, plan.Service]) error {
	if c.Op == reconcile.Delete {
		s, err := serviceKeyToLib(c.Key)
		if err == nil {
			err = t.k.change(ctx, func(k conn) error { return k.setService(remove, s) })
		}
		return fault(remove, c.Key, err, unix.ESRCH)
	}
	s, err := serviceToLib(c.Key, c.New)
	if err != nil {
		return fault(edit, c.Key, err)
	}
	v, err := put(c.Op, unix.ESRCH, func(v verb) error {
		return t.k.change(ctx, func(k conn) error { return k.setService(v, s) })
	})
	if errors.Is(err, unix.ENOENT) {
		lacks := fmt.Sprintf("scheduler %q (module ip_vs_%s)", s.SchedName, s.SchedName)
		if s.PEName != "" {
			lacks += fmt.Sprintf(", or no persistence engine %q (module ip_vs_pe_%s)", s.PEName, s.PEName)
		}
		err = fmt.Errorf("the kernel has no %s: %w", lacks, err)
	}
	return fault(v, c.Key, err)
}

// DestinationTable is the table of the destinations of all services, or of some.
type DestinationTable struct {
	k  *Kernel
	of map[plan.ServiceKey]bool // nil: all
}

// Read returns the destinations of the services, of all that ServiceTable reads.
// One that isn't in ipip tunnel mode reads as a value that no plan can want.
func (t DestinationTable) Read(ctx context.Context) (map[plan.DestinationKey]plan.Destination, error) {
	all := make(map[plan.DestinationKey]plan.Destination)
	add := func(of plan.ServiceKey, _ *service, found []destination) {
		for i := range found {
			if key, ok := destinationKeyToPlan(of, &found[i].Destination); ok {
				all[key] = destinationToPlan(&found[i])
			}
		}
	}
	if t.of == nil {
		return all, t.k.eachService(ctx, add)
	}
	for key := range t.of {
		s, err := serviceKeyToLib(key)
		if err != nil {
			return nil, fmt.Errorf("list destinations of %s: %w", key, err)
		}
		found, err := t.k.destinations(ctx, key, s)
		if err != nil {
			return nil, err
		}
		add(key, nil, found)
	}
	return all, nil
}

func (k *Kernel) destinations(ctx context.Context, key plan.ServiceKey, s *moby.Service) ([]destination, error) {
	found, err := read(ctx, k, func(c conn) ([]destination, error) { return c.destinations(ctx, s) })
	if err != nil {
		return nil, fmt.Errorf("list destinations of %s: %w", key, err)
	}
	return found, nil
}

// eachService calls yield for every TCP and UDP service.
func (k *Kernel) eachService(ctx context.Context, yield func(plan.ServiceKey, *service, []destination)) error {
	services, err := k.readServices(ctx)
	if err != nil {
		return err
	}
	for i := range services {
		s := &services[i]
		key, ok := serviceKeyToPlan(&s.Service)
		if !ok {
			continue
		}
		found, err := k.destinations(ctx, key, &s.Service)
		if err != nil {
			return err
		}
		yield(key, s, found)
	}
	return nil
}

// Apply makes one change. Deleting a destination kicks its connections where
// net.ipv4.vs.expire_nodest_conn is 1; weight 0 keeps them.
func (t DestinationTable) Apply(ctx context.Context, c reconcile.Change[plan.DestinationKey, plan.Destination]) error {
	name := destinationName(c.Key)
	if c.Op == reconcile.Delete {
		s, d, err := destinationKeyToLib(c.Key)
		if err == nil {
			err = t.k.change(ctx, func(k conn) error { return k.setDestination(remove, s, d) })
		}
		return fault(remove, name, err, unix.ENOENT, unix.ESRCH)
	}
	s, d, err := destinationToLib(c.Key, c.New)
	if err != nil {
		return fault(edit, name, err)
	}
	v, err := put(c.Op, unix.ENOENT, func(v verb) error {
		return t.k.change(ctx, func(k conn) error { return k.setDestination(v, s, d) })
	})
	switch {
	case errors.Is(err, unix.ESRCH):
		err = fmt.Errorf("no such service: %w", err)
	case errors.Is(err, unix.EINVAL):
		err = fmt.Errorf("refused, as for an address that is not unicast: %w", err)
	}
	return fault(v, name, err)
}

// DaemonTable is the table of sync daemons.
type DaemonTable struct{ k *Kernel }

// Read returns the running daemons.
func (t DaemonTable) Read(ctx context.Context) (map[plan.SyncRole]plan.SyncDaemon, error) {
	found, err := read(ctx, t.k, func(c conn) ([]daemon, error) { return c.daemons(ctx) })
	if err != nil {
		return nil, fmt.Errorf("list sync daemons: %w", err)
	}
	all := make(map[plan.SyncRole]plan.SyncDaemon, len(found))
	for _, d := range found {
		role, v := daemonToPlan(d)
		all[role] = v
	}
	return all, nil
}

// Apply makes one change. The kernel can't edit a daemon: one that differs is
// stopped and started again, which loses the sync messages of that instant and
// no connection.
func (t DaemonTable) Apply(ctx context.Context, c reconcile.Change[plan.SyncRole, plan.SyncDaemon]) error {
	send := func(v verb, d daemon) error {
		return t.k.change(ctx, func(k conn) error { return k.setDaemon(ctx, v, d) })
	}
	if c.Op == reconcile.Delete {
		d, err := roleToState(c.Key)
		if err == nil {
			err = send(remove, d)
		}
		return fault(remove, c.Key, err, unix.ESRCH)
	}
	d, err := daemonToKernel(c.Key, c.New)
	if err != nil {
		return fault(add, c.Key, err)
	}
	err = error(unix.EEXIST)
	if c.Op == reconcile.Create {
		err = send(add, d)
	}
	if errors.Is(err, unix.EEXIST) {
		if err := fault(remove, c.Key, send(remove, d), unix.ESRCH); err != nil {
			return err
		}
		err = send(add, d)
	}
	switch {
	case errors.Is(err, unix.ENODEV):
		err = fmt.Errorf("there is no interface %s: %w", d.ifn, err)
	case errors.Is(err, unix.EADDRNOTAVAIL), errors.Is(err, unix.ENETUNREACH):
		err = fmt.Errorf("interface %s is down or has no usable address of the group's family: %w", d.ifn, err)
	case errors.Is(err, unix.EINVAL):
		err = fmt.Errorf("refused, as while any service has a destination of the other address family: %w", err)
	}
	return fault(add, c.Key, err)
}

// TimeoutTable is the table of connection timeouts. It always has all three:
// bind it with an owned function that accepts none, for there is no deleting.
type TimeoutTable struct{ k *Kernel }

// Read returns the three timeouts.
func (t TimeoutTable) Read(ctx context.Context) (map[plan.TimeoutName]time.Duration, error) {
	c, err := read(ctx, t.k, conn.timeouts)
	if err != nil {
		return nil, fmt.Errorf("read timeouts: %w", err)
	}
	return timeoutsToPlan(c), nil
}

// Apply sets one timeout and keeps the others. A Delete leaves it as it is.
func (t TimeoutTable) Apply(ctx context.Context, c reconcile.Change[plan.TimeoutName, time.Duration]) error {
	if c.Op == reconcile.Delete {
		return nil
	}
	config, err := timeoutToLib(c.Key, c.New)
	if err == nil {
		err = t.k.change(ctx, func(k conn) error { return k.setTimeouts(config) })
	}
	return fault(edit, c.Key, err)
}

// fault names the object that err is about; nil for the errors that do not
// matter.
func fault(v verb, object fmt.Stringer, err error, harmless ...error) error {
	for _, h := range harmless {
		if errors.Is(err, h) {
			return nil
		}
	}
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %s: %w", v, object, err)
}

// destinationName is a destination in an operator's words.
type destinationName plan.DestinationKey

func (n destinationName) String() string {
	return "destination " + strings.TrimPrefix(plan.DestinationKey(n).String(), "service ")
}
