package lab

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// kernelModules are what the lab and the agents need; loaded by one modprobe, since
// the kernel doesn't load all of them by itself.
var kernelModules = []string{
	"ip_vs", "ip_vs_sed", "ip_vs_pe_sip", "ipip", "ip6_tunnel", "dummy", "veth", "bridge", "sch_netem",
	"xt_TEE", "iptable_mangle", "iptable_raw", "iptable_filter", "ip6table_raw", "ip6table_filter", "xt_mark", "xt_CT",
}

// CheckKernel loads the modules and says what this kernel lacks for IPVS in tunnel mode.
func CheckKernel() error {
	args := append([]string{"-a", "-q"}, kernelModules...)
	_ = exec.Command("modprobe", args...).Run() // built in, or missing: what counts is below
	var missing []string
	if _, err := os.Stat("/proc/net/ip_vs"); err != nil {
		missing = append(missing, "IPVS (module ip_vs)")
	}
	if _, err := netlink.LinkByName("tunl0"); err != nil {
		missing = append(missing, "IPIP (module ipip)")
	}
	if len(missing) > 0 {
		return fmt.Errorf("this kernel has no %s: run under scripts/with-kernel.sh", strings.Join(missing, " and no "))
	}
	return nil
}

// prepareBackend makes a host one that IPVS in tunnel mode can send to.
func (l *Lab) prepareBackend(n Node) error {
	var from, from6 []netip.Addr
	for _, lvs := range l.topo.Role(RoleLVS) {
		from, from6 = append(from, lvs.Addr), append(from6, lvs.Addr6)
	}
	return errors.Join(l.acceptTunnels(n, VIP, from), l.acceptTunnels(n, VIP6, from6))
}

// acceptTunnels gives a host a VIP of either family, and makes it unpack what LVS
// hosts, and nobody else, send to it in tunnels: IPv4 in IPv4 (protocol 4) on tunl0,
// IPv6 in IPv6 (41) on ip6tnl0. Both devices take what fits no tunnel with a remote.
func (l *Lab) acceptTunnels(n Node, vip netip.Addr, from []netip.Addr) error {
	h, err := l.openHandles(n.Name)
	if err != nil {
		return err
	}
	defer h.close()
	device, protocol, restore := "tunl0", 4, "iptables-restore"
	if vip.Is6() {
		device, protocol, restore = "ip6tnl0", 41, "ip6tables-restore"
	}
	nl := h.nl[n.Name]
	if err := setUp(nl, device); err != nil {
		return err
	}
	if vip.Is4() {
		// Strict and loose mode both drop what comes out of the tunnel. IPv6 has no such parameter.
		if err := l.writeSysctls(n.Name, map[string]string{"net/ipv4/conf/tunl0/rp_filter": "0"}); err != nil {
			return err
		}
	}
	if err := addVIP(nl, vip); err != nil {
		return err
	}
	return l.Inside(n.Name, func() error {
		cmd := exec.Command(restore, "--noflush")
		cmd.Stdin = strings.NewReader(tunnelRules(protocol, from))
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", restore, err, out)
		}
		return nil
	})
}

// addVIP puts a VIP on lo. Of IPv6 neighbours are told only about addresses of the
// device on which they ask, so nothing has to be hidden from them as ARP has to be;
// but a host chooses its own source address among those of all devices, and leaves
// out what is deprecated (preferred_lft 0; RFC 6724, 5, rule 3).
func addVIP(nl *netlink.Handle, vip netip.Addr) error {
	lo, err := nl.LinkByName("lo")
	if err != nil {
		return err
	}
	a := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(vip, vip.BitLen()))}
	if vip.Is6() {
		a.Flags, a.ValidLft, a.PreferedLft = unix.IFA_F_NODAD, math.MaxUint32, 0
	}
	if err := nl.AddrReplace(lo, a); err != nil {
		return fmt.Errorf("address %s on lo: %w", vip, err)
	}
	return nil
}

// tunnelRules accept a tunnel protocol only from some hosts: without a check of the
// reverse path a stranger's packet in a packet would reach any port of the backend.
func tunnelRules(protocol int, from []netip.Addr) string {
	var b strings.Builder
	b.WriteString("*filter\n")
	for _, a := range from {
		fmt.Fprintf(&b, "-A INPUT -p %d -s %s -j ACCEPT\n", protocol, a)
	}
	fmt.Fprintf(&b, "-A INPUT -p %d -j DROP\nCOMMIT\n", protocol)
	return b.String()
}

// StartBackend starts the SIP server of an SBC host.
func (l *Lab) StartBackend(node string) error {
	bin, err := l.bin("sbc")
	if err != nil {
		return err
	}
	_, err = l.Start(node, "sbc", bin, "--name", node, "--transport", "tcp", "--transport", "udp",
		"--listen", net.JoinHostPort(VIP.String(), "5060"), "--listen", net.JoinHostPort(VIP6.String(), "5060"))
	return err
}

// StopBackend ends the SIP server of an SBC host.
func (l *Lab) StopBackend(ctx context.Context, node string, sig syscall.Signal) error {
	return l.Stop(ctx, node, "sbc", sig)
}

// waitBackend waits until the SIP server takes connections on both addresses of the VIP, on its own host.
func (l *Lab) waitBackend(ctx context.Context, node string) error {
	err := until(ctx, 50*time.Millisecond, func() error {
		if d, err := l.Daemon(node, "sbc"); err != nil || !d.Alive() {
			return errors.New("sbc has ended")
		}
		for _, vip := range []netip.Addr{VIP, VIP6} {
			conn, err := l.Dial(ctx, node, "tcp", net.JoinHostPort(vip.String(), "5060"))
			if err != nil {
				return err
			}
			if err := conn.Close(); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("backend on %s: %w\n%s", node, err, indent(tail(l.path(node, "sbc.log"), 10)))
	}
	return nil
}
