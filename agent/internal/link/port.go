package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/medway-lb/medway/pkg/plan"
)

// Port is a device of the operator's, as it is now.
type Port struct {
	// Index is 0 where there is no such device.
	Index int
	MAC   plan.MAC
	// Up is true while it is up and has a carrier.
	Up bool
}

// Port looks at a device.
func (k *Kernel) Port(name plan.LinkName) (Port, error) {
	d, err := k.find(name)
	if err != nil || d == nil {
		return Port{}, err
	}
	a := d.Attrs()
	p := Port{Index: a.Index, Up: a.Flags&net.FlagUp != 0 && a.RawFlags&unix.IFF_RUNNING != 0}
	if len(a.HardwareAddr) != len(p.MAC) {
		return Port{}, fmt.Errorf("%s: expected an Ethernet device", name)
	}
	copy(p.MAC[:], a.HardwareAddr)
	return p, nil
}

// On returns the addresses on a device, with all prefixes under which each is there.
func (k *Kernel) On(name plan.LinkName) (map[netip.Addr][]netip.Prefix, error) {
	d, err := k.find(name)
	if err != nil || d == nil {
		return nil, err
	}
	list, err := addresses{k}.on(d)
	if err != nil {
		return nil, err
	}
	on := map[netip.Addr][]netip.Prefix{}
	for _, p := range list {
		on[p.Addr()] = append(on[p.Addr()], p)
	}
	return on, nil
}

// Lend puts an address on a device for a time, in whole seconds, or renews it.
func (k *Kernel) Lend(name plan.LinkName, address netip.Addr, life time.Duration) error {
	d, err := k.need(name)
	if err != nil {
		return err
	}
	p := netip.PrefixFrom(address, address.BitLen())
	a := &netlink.Addr{IPNet: ipNet(p), ValidLft: int(life / time.Second)}
	if address.Is6() {
		// See addresses.add; who else might have it is heard on the segment.
		a.Flags = unix.IFA_F_NODAD
	} else {
		a.PreferedLft = a.ValidLft // what the kernel gives it without lifetimes
	}
	return wrap(k.made(k.h.AddrReplace(d, a)), "link %s: lend address %s", name, p)
}

// TakeBack removes an address from a device, under a prefix of [Kernel.On]. One
// that is not there is no error.
func (k *Kernel) TakeBack(name plan.LinkName, p netip.Prefix) error {
	d, err := k.find(name)
	if err != nil || d == nil {
		return err
	}
	err = k.made(k.h.AddrDel(d, &netlink.Addr{IPNet: ipNet(p)}))
	if errors.Is(err, syscall.EADDRNOTAVAIL) {
		return nil
	}
	return wrap(err, "link %s: take back address %s", name, p)
}
