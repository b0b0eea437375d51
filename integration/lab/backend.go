package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
)

// kernelModules are what the lab and the agents need; loaded by one modprobe, since
// the kernel doesn't load all of them by itself.
var kernelModules = []string{
	"ip_vs", "ip_vs_sed", "ipip", "dummy", "veth", "bridge", "sch_netem",
	"xt_TEE", "iptable_mangle", "iptable_raw", "iptable_filter", "xt_mark", "xt_CT",
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

// prepareBackend makes a host one that IPVS in tunnel mode can send to: it unpacks
// protocol 4 from LVS hosts only, and has the VIP.
func (l *Lab) prepareBackend(n Node) error {
	h, err := l.openHandles(n.Name)
	if err != nil {
		return err
	}
	defer h.close()
	nl := h.nl[n.Name]
	if err := setUp(nl, "tunl0"); err != nil {
		return err
	}
	// Strict and loose mode both drop what comes out of the tunnel.
	if err := l.writeSysctls(n.Name, map[string]string{"net/ipv4/conf/tunl0/rp_filter": "0"}); err != nil {
		return err
	}
	if err := addAddress(nl, "lo", netip.PrefixFrom(VIP, 32)); err != nil {
		return err
	}
	return l.Inside(n.Name, func() error {
		cmd := exec.Command("iptables-restore", "--noflush")
		cmd.Stdin = strings.NewReader(l.tunnelRules())
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("iptables-restore: %w: %s", err, out)
		}
		return nil
	})
}

// tunnelRules accept ipip only from LVS hosts: with rp_filter off, a stranger's
// protocol-4 packet would reach any port of the backend.
func (l *Lab) tunnelRules() string {
	var b strings.Builder
	b.WriteString("*filter\n")
	for _, n := range l.topo.Role(RoleLVS) {
		fmt.Fprintf(&b, "-A INPUT -p 4 -s %s -j ACCEPT\n", n.Addr)
	}
	b.WriteString("-A INPUT -p 4 -j DROP\nCOMMIT\n")
	return b.String()
}

// StartBackend starts the SIP server of an SBC host.
func (l *Lab) StartBackend(node string) error {
	bin, err := l.bin("sbc")
	if err != nil {
		return err
	}
	_, err = l.Start(node, "sbc", bin, "--name", node, "--listen", net.JoinHostPort(VIP.String(), "5060"))
	return err
}

// StopBackend ends the SIP server of an SBC host.
func (l *Lab) StopBackend(ctx context.Context, node string, sig syscall.Signal) error {
	return l.Stop(ctx, node, "sbc", sig)
}

// waitBackend waits until the SIP server takes connections on the VIP, on its own host.
func (l *Lab) waitBackend(ctx context.Context, node string) error {
	err := until(ctx, 50*time.Millisecond, func() error {
		if d, err := l.Daemon(node, "sbc"); err != nil || !d.Alive() {
			return errors.New("sbc has ended")
		}
		conn, err := l.Dial(ctx, node, "tcp4", net.JoinHostPort(VIP.String(), "5060"))
		if err != nil {
			return err
		}
		return conn.Close()
	})
	if err != nil {
		return fmt.Errorf("backend on %s: %w\n%s", node, err, indent(tail(l.path(node, "sbc.log"), 10)))
	}
	return nil
}
