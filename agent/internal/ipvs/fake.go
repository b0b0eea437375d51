package ipvs

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	moby "github.com/moby/ipvs"
	"golang.org/x/sys/unix"
)

// Fake is an IPVS that holds its state in memory, answers as the kernel does,
// and prints itself as ipvsadm(8) does.
type Fake struct {
	// Fail, where set, is asked before each change with the ipvsadm command
	// line that would make it; an error (a unix.Errno, as the kernel would
	// give) is returned instead of making the change.
	Fail func(command string) error

	mu      sync.Mutex
	table   []*fakeService
	sync    map[uint32]daemon // by state: master, backup
	timeout moby.Config
}

type fakeService struct {
	service
	dests []destination
}

// NewFake returns a Kernel on a fake IPVS, which has the kernel's default
// timeouts and is otherwise empty.
func NewFake() (*Kernel, *Fake) {
	f := &Fake{
		sync:    make(map[uint32]daemon),
		timeout: moby.Config{TimeoutTCP: 900 * time.Second, TimeoutTCPFin: 120 * time.Second, TimeoutUDP: 300 * time.Second},
	}
	return &Kernel{conn: f}, f
}

// String is the output of `ipvsadm -Sn` (1.31), which leaves out thresholds.
// Objects come in the order of family, protocol, address and port; ipvsadm
// compares parts of addresses with signed numbers and may order them otherwise.
func (f *Fake) String() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var b strings.Builder
	for _, s := range f.table {
		fmt.Fprintln(&b, serviceCommand(add, &s.Service))
		for i := range s.dests {
			d := s.dests[i]
			d.UpperThreshold, d.LowerThreshold = 0, 0
			line := destinationCommand(add, &s.Service, &d.Destination)
			if d.ConnectionFlags&moby.ConnectionFlagFwdMask == moby.ConnectionFlagTunnel {
				line += " --tun-type " + [...]string{"ipip", "gue", "gre"}[d.tunType]
			}
			fmt.Fprintln(&b, line)
		}
	}
	return b.String()
}

// DaemonsString is the output of `ipvsadm -ln --daemon`.
func (f *Fake) DaemonsString() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var b strings.Builder
	for _, state := range []uint32{stateMaster, stateBackup} {
		if d, ok := f.sync[state]; ok {
			fmt.Fprintf(&b, "%s sync daemon (mcast=%s, syncid=%d, maxlen=%d, group=%s, port=%d, ttl=%d)\n",
				roleNames[state], d.ifn, d.id, d.maxLen, d.group, d.port, d.ttl)
		}
	}
	return b.String()
}

// TimeoutsString is the output of `ipvsadm -ln --timeout`.
func (f *Fake) TimeoutsString() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return fmt.Sprintf("Timeout (tcp tcpfin udp): %d %d %d\n", f.timeout.TimeoutTCP/time.Second,
		f.timeout.TimeoutTCPFin/time.Second, f.timeout.TimeoutUDP/time.Second)
}

func (f *Fake) failing(command string) error {
	if f.Fail == nil {
		return nil
	}
	return f.Fail(command)
}

func compareServices(a, b *moby.Service) int {
	return cmp.Or(cmp.Compare(a.FWMark, b.FWMark), cmp.Compare(a.AddressFamily, b.AddressFamily),
		cmp.Compare(a.Protocol, b.Protocol), bytes.Compare(a.Address, b.Address), cmp.Compare(a.Port, b.Port))
}

func compareDestinations(a, b *moby.Destination) int {
	return cmp.Or(bytes.Compare(a.Address, b.Address), cmp.Compare(a.Port, b.Port))
}

func (f *Fake) find(s *moby.Service) (int, bool) {
	return slices.BinarySearchFunc(f.table, s, func(e *fakeService, s *moby.Service) int {
		return compareServices(&e.Service, s)
	})
}

func (f *Fake) services(context.Context) ([]service, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []service
	for _, s := range f.table {
		all = append(all, s.service)
	}
	return all, nil
}

func (f *Fake) destinations(_ context.Context, of *moby.Service) ([]destination, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i, ok := f.find(of)
	if !ok {
		return nil, nil // as the kernel: an empty dump
	}
	return slices.Clone(f.table[i].dests), nil
}

func (f *Fake) setService(v verb, s *moby.Service) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.failing(serviceCommand(v, s)); err != nil {
		return err
	}
	i, ok := f.find(s)
	switch {
	case v == add && ok:
		return unix.EEXIST
	case v != add && !ok:
		return unix.ESRCH
	case v == remove:
		f.table = slices.Delete(f.table, i, i+1)
		return nil
	case v == add:
		f.table = slices.Insert(f.table, i, &fakeService{})
	}
	f.table[i].Service = *s
	f.table[i].Flags |= flagHashed
	return nil
}

func (f *Fake) setDestination(v verb, s *moby.Service, d *moby.Destination) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.failing(destinationCommand(v, s, d)); err != nil {
		return err
	}
	i, ok := f.find(s)
	if !ok {
		return unix.ESRCH
	}
	dests := &f.table[i].dests
	j, ok := slices.BinarySearchFunc(*dests, d, func(e destination, d *moby.Destination) int {
		return compareDestinations(&e.Destination, d)
	})
	switch {
	case v != remove && d.UpperThreshold > maxThreshold:
		return unix.EINVAL
	case v != remove && d.LowerThreshold > d.UpperThreshold:
		return unix.ERANGE
	case v == add && ok:
		return unix.EEXIST
	case v != add && !ok:
		return unix.ENOENT
	case v == remove:
		*dests = slices.Delete(*dests, j, j+1)
		return nil
	case v == add:
		*dests = slices.Insert(*dests, j, destination{})
	}
	(*dests)[j].Destination = *d
	// moby sends no tunnel type; the kernel then takes ipip.
	(*dests)[j].tunType = tunIPIP
	return nil
}

func (f *Fake) daemons(context.Context) ([]daemon, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []daemon
	for _, d := range f.sync {
		all = append(all, d)
	}
	return all, nil
}

func (f *Fake) setDaemon(_ context.Context, v verb, d daemon) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.failing(daemonCommand(v, d)); err != nil {
		return err
	}
	_, ok := f.sync[d.state]
	switch {
	case v == add && ok:
		return unix.EEXIST
	case v == remove && !ok:
		return unix.ESRCH
	case v == remove:
		delete(f.sync, d.state)
		return nil
	}
	// Through the wire form, so that nothing is kept that it can't carry.
	kept, err := decodeDaemon(decode(encodeDaemon(d).Serialize()[4:]))
	if err != nil {
		return unix.EINVAL
	}
	f.sync[d.state] = kept
	return nil
}

func (f *Fake) timeouts() (*moby.Config, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.timeout
	return &c, nil
}

func (f *Fake) setTimeouts(c *moby.Config) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.failing(timeoutsCommand(c)); err != nil {
		return err
	}
	f.timeout.TimeoutTCP = cmp.Or(c.TimeoutTCP, f.timeout.TimeoutTCP)
	f.timeout.TimeoutTCPFin = cmp.Or(c.TimeoutTCPFin, f.timeout.TimeoutTCPFin)
	f.timeout.TimeoutUDP = cmp.Or(c.TimeoutUDP, f.timeout.TimeoutUDP)
	return nil
}

func (f *Fake) close() {}
