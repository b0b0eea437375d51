package link

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"

	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/reconcile"
	"github.com/vishvananda/netlink"
)

type links struct {
	*Kernel
	want map[plan.LinkName]plan.Link
}

// Read returns the devices that bear a name of medway's and are of the type
// that the name stands for. One of another type is a stranger's: it is not
// reported, so it is never deleted, and a wanted link runs into it in Apply.
func (t links) Read(context.Context) (map[plan.LinkName]plan.Link, error) {
	devices, err := t.devices()
	if err != nil {
		return nil, err
	}
	have := make(map[plan.LinkName]plan.Link)
	for _, d := range devices {
		name := plan.LinkName(d.Attrs().Name)
		if !may(name, plan.LinkKind(d.Type())) {
			continue
		}
		have[name] = compared(planned(d, peerOf(d, devices)), t.want[name])
	}
	return have, nil
}

// compared drops from l what w leaves to the kernel.
func compared(l, w plan.Link) plan.Link {
	if w.MTU == 0 {
		l.MTU = 0
	}
	if w.MAC == (plan.MAC{}) {
		l.MAC = plan.MAC{}
	}
	return l
}

// Apply makes, changes or deletes one device; a change is made in place where
// the kernel can, since what rests on a device goes with it. If it must be made
// anew, the tables after this one find what was lost and put it back.
func (t links) Apply(_ context.Context, c reconcile.Change[plan.LinkName, plan.Link]) error {
	if c.Op != reconcile.Delete && !may(c.Key, c.New.Kind) {
		return fmt.Errorf("%s of type %q is not medway's to make", c.Key, c.New.Kind)
	}
	d, err := t.find(c.Key)
	if err != nil {
		return err
	}
	if d != nil && !may(c.Key, plan.LinkKind(d.Type())) {
		return fmt.Errorf("%s exists and is a %s; medway wants a %s of that name and deletes nobody else's: rename or delete it",
			c.Key, d.Type(), c.New.Kind)
	}
	switch {
	case c.Op == reconcile.Delete && d == nil:
		return nil
	case c.Op == reconcile.Delete:
		return t.remove(d)
	case d == nil:
		return t.create(c.Key, c.New)
	}
	return t.update(d, c.Key, c.New)
}

func (t links) remove(d netlink.Link) error {
	err := t.made(t.h.LinkDel(d))
	if errors.Is(err, syscall.ENODEV) {
		return nil
	}
	return wrap(err, "delete link %s", d.Attrs().Name)
}

func (t links) create(name plan.LinkName, l plan.Link) error {
	if err := t.makeRoom(name, l); err != nil {
		return err
	}
	err := t.made(t.h.LinkAdd(device(name, l)))
	if errors.Is(err, syscall.EEXIST) && l.Kind == plan.Veth {
		return fmt.Errorf("%s: its peer %s exists already and belongs to another device: %w", name, l.Peer, err)
	}
	if err != nil {
		return fmt.Errorf("%s: add type %s: %w", name, l.Kind, err)
	}
	d, err := t.need(name)
	if err != nil {
		return err
	}
	return t.settle(d, l)
}

func (t links) update(d netlink.Link, name plan.LinkName, l plan.Link) error {
	devices, err := t.devices()
	if err != nil {
		return err
	}
	have := planned(d, peerOf(d, devices))
	again := have.Peer != l.Peer || d.Type() != string(l.Kind) || strings.Contains(string(have.Kind), external)
	if !again && l.Remote.IsValid() && compared(have, plan.Link{}) != compared(l, plan.Link{}) {
		if err := t.makeRoom(name, l); err != nil {
			return err
		}
		err := t.made(t.h.LinkModify(device(name, l)))
		// An IPv4 tunnel without a remote can't be changed into one with both
		// ends (ipip_changelink in net/ipv4/ipip.c).
		again = errors.Is(err, syscall.EINVAL)
		if err != nil && !again {
			return fmt.Errorf("%s: change: %w", name, err)
		}
	}
	if again {
		if err := t.remove(d); err != nil {
			return err
		}
		return t.create(name, l)
	}
	return t.settle(d, l)
}

// settle sets what every type of device can change while it is up.
func (t links) settle(d netlink.Link, l plan.Link) error {
	a := d.Attrs()
	if l.MAC != (plan.MAC{}) && !bytes.Equal(a.HardwareAddr, l.MAC[:]) {
		if err := t.made(t.h.LinkSetHardwareAddr(d, l.MAC[:])); err != nil {
			return fmt.Errorf("link %s: set address %s: %w", a.Name, l.MAC, err)
		}
	}
	if err := t.mtuAndUp(d, l.MTU); err != nil || l.Kind != plan.Veth {
		return err
	}
	peer, err := t.need(l.Peer)
	if err != nil {
		return err
	}
	mtu := l.MTU
	if mtu == 0 {
		// Both ends alike: the larger one's packets would be dropped.
		mtu = a.MTU
	}
	return t.mtuAndUp(peer, mtu)
}

func (t links) mtuAndUp(d netlink.Link, mtu int) error {
	a := d.Attrs()
	if mtu != 0 && a.MTU != mtu {
		if err := t.made(t.h.LinkSetMTU(d, mtu)); err != nil {
			return fmt.Errorf("link %s: set mtu %d: %w", a.Name, mtu, err)
		}
	}
	if a.Flags&net.FlagUp == 0 {
		return wrap(t.made(t.h.LinkSetUp(d)), "link %s: set up", a.Name)
	}
	return nil
}

// makeRoom deletes a tunnel of medway's that has the endpoints which l is to
// get and is not to keep them: the kernel allows a pair of endpoints only
// once, so tunnels that trade theirs could never be changed one by one.
func (t links) makeRoom(name plan.LinkName, l plan.Link) error {
	if !l.Remote.IsValid() {
		return nil
	}
	devices, err := t.devices()
	if err != nil {
		return err
	}
	for _, d := range devices {
		local, remote := endpoints(d)
		other := plan.LinkName(d.Attrs().Name)
		if other == name || local != l.Local || remote != l.Remote {
			continue
		}
		w, wanted := t.want[other]
		if !may(other, plan.LinkKind(d.Type())) || wanted && w.Local == l.Local && w.Remote == l.Remote {
			return fmt.Errorf("%s: %s is already the tunnel from %s to %s", name, other, l.Local, l.Remote)
		}
		if err := t.remove(d); err != nil {
			return err
		}
	}
	return nil
}

func wrap(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf(format+": %w", append(args, err)...)
}
