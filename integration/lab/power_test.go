package lab

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// reaches tells whether a connection is taken, and fails the test unless that is as it
// should be. A refusal is an answer: what is cut off must not answer at all.
func reaches(t *testing.T, l *Lab, from, addr string, want bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	if !want {
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
	}
	defer cancel()
	err := until(ctx, 50*time.Millisecond, func() error {
		conn, err := l.Dial(ctx, from, "tcp", addr)
		if err == nil {
			conn.Close()
		}
		return err
	})
	var failed net.Error
	silent := errors.Is(err, context.DeadlineExceeded) || errors.As(err, &failed) && failed.Timeout()
	switch {
	case want && err != nil:
		t.Errorf("from %s: %v", from, err)
	case !want && err == nil:
		t.Errorf("from %s: %s takes connections", from, addr)
	case !want && !silent:
		t.Errorf("from %s: %s answers: %v", from, addr, err)
	}
}

// A host without power answers nobody, and its port has a carrier; with it, it is what
// it was, on the disk that it had.
func TestPower(t *testing.T) {
	l := upRouting(t)
	const host, edge, client = "dc1-etcd", "dc1-edge", "10.1.0.5:2379"
	edgeLink := func(name string) netlink.Link {
		t.Helper()
		h, err := l.openHandles(edge)
		if err != nil {
			t.Fatal(err)
		}
		defer h.close()
		link, err := h.nl[edge].LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		return link
	}
	link, err := l.hostLink(host)
	if err != nil {
		t.Fatal(err)
	}
	mac, err := l.hardwareAddr(link.B)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Put(t.Context(), Witness, "/medway/v1/target_state/x", "dc1"); err != nil {
		t.Fatal(err)
	}
	reaches(t, l, edge, client, true)
	if err := l.PowerOff(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	reaches(t, l, edge, client, false)
	gateway := edgeLink(lanBridge).Attrs().HardwareAddr.String()
	if p := edgeLink(host); p.Attrs().OperState != netlink.OperUp {
		t.Errorf("the port's carrier is %s", p.Attrs().OperState)
	}
	if _, err := l.Daemon(host, "etcd"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the host's daemon is still on record: %v", err)
	}
	if err := l.PowerOn(host); err != nil {
		t.Fatal(err)
	}
	reaches(t, l, edge, client, true)
	if again, err := l.hardwareAddr(link.B); err != nil || again.String() != mac.String() {
		t.Errorf("the hardware address was %s and is %s (%v)", mac, again, err)
	}
	if again := edgeLink(lanBridge).Attrs().HardwareAddr.String(); again != gateway {
		t.Errorf("the gateway's hardware address was %s and is %s", gateway, again)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := until(ctx, 200*time.Millisecond, func() error {
		try, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		value, _, err := l.Get(try, host, "/medway/v1/target_state/x")
		if err == nil && value != "dc1" {
			err = errors.New("the value is " + value)
		}
		return err
	}); err != nil {
		t.Errorf("what the member had on its disk: %v\n%s", err, tail(l.path(host, "etcd.log"), 10))
	}

	for _, node := range []string{edge, Transit, "nobody"} {
		if err := l.PowerOff(t.Context(), node); err == nil || !strings.Contains(err.Error(), node) {
			t.Errorf("power off %s: %v, expected an error that names it", node, err)
		}
	}
}

// A node that is cut from etcd alone reaches everything else.
func TestCutEtcd(t *testing.T) {
	l := upRouting(t)
	const node, clients, peers = "dc1-lvs-a", "10.1.0.5:2379", "10.1.0.5:2380"
	reaches(t, l, node, clients, true)
	if err := l.CutEtcd(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	reaches(t, l, node, clients, false)
	reaches(t, l, node, peers, true)
	reaches(t, l, "dc1-edge", clients, true)
	if err := l.MendEtcd(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	reaches(t, l, node, clients, true)
}
