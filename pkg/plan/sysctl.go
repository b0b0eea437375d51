package plan

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/medway-lb/medway/pkg/state"
)

// syncRefresh is how often a connection in use is synced.
const syncRefresh = 10 * time.Second

// ipvsSysctls are the kernel parameters below net.ipv4.vs that switching needs;
// see the kernel's Documentation/networking/ipvs-sysctl.rst.
var ipvsSysctls = map[Sysctl]string{
	// Every connection is synced at its first packet and then once per refresh
	// period: with the kernel's own "3 50" an idle connection's entry runs out
	// on the backup, and the switch resets it.
	"net.ipv4.vs.sync_threshold":      "0 0",
	"net.ipv4.vs.sync_refresh_period": fmt.Sprint(int(syncRefresh.Seconds())),
	// Version 0 loses timeouts and persistence data.
	"net.ipv4.vs.sync_version": "1",
	"net.ipv4.vs.sync_ports":   "1",
	"net.ipv4.vs.sync_retries": "0",
	// 1 would leave out connections that a persistence template stands for.
	"net.ipv4.vs.sync_persist_mode": "0",
	// Both roles at once: 1 would pass no connection on.
	"net.ipv4.vs.backup_only": "0",
	// Deleting a destination is a deliberate kick; weight 0 keeps its calls.
	"net.ipv4.vs.expire_nodest_conn":        "1",
	"net.ipv4.vs.expire_quiescent_template": "1",
	// A phone that reconnects from its old port is scheduled anew, also while its
	// entry is in FIN_WAIT, the last state that a balancer in tunnel mode sees
	// (is_new_conn_expected in ip_vs_core.c): 1 would do for NAT only.
	"net.ipv4.vs.conn_reuse_mode": "2",
	"net.ipv4.vs.conntrack":       "0",
	// A connection that nobody knows is reset, so that its phone comes back at once.
	"net.ipv4.vs.sloppy_tcp":  "0",
	"net.ipv4.vs.drop_entry":  "0",
	"net.ipv4.vs.drop_packet": "0",
	"net.ipv4.vs.secure_tcp":  "0",
	"net.ipv4.vs.pmtu_disc":   "1",
}

// sysctls returns the kernel parameters of a node. Forwarding needs none, in
// either family: IPVS takes packets where they are delivered locally and sends
// its own. Nor does medway0 need accept_dad: a dummy device has no neighbours
// to ask (IFF_NOARP), so an IPv6 address can be used at once.
func sysctls(s *state.Snapshot, self Self) map[Sysctl]string {
	out := map[Sysctl]string{}
	maps.Copy(out, ipvsSysctls)
	maps.Copy(out, reversePath(s, self))
	// Either of the two set would send redirects.
	for _, device := range []string{"all", self.Uplink} {
		out[conf("ipv4", device, "send_redirects")] = "0"
	}
	for _, name := range vipsOf(s, self.Site, self.Group) {
		if self.Segment == "" && slices.ContainsFunc(s.VIPs[name].Addresses, netip.Addr.Is6) {
			// A host may have IPv6 off by default and on where it is used.
			out[conf("ipv6", string(VIPLink), "disable_ipv6")] = "0"
		}
	}
	for key, value := range s.Settings.Sysctls {
		out[Sysctl(key)] = value
	}
	return out
}

// reversePath turns off the check of the reverse path where it would hit what
// medway needs. The effective rp_filter is the greater of "all" and the device's
// own, so both are 0: on the devices of sync, where duplicates arrive with a
// source that is routed elsewhere; and on the uplink, since a balancer does not
// answer clients itself, and its own route to them, if it has any, says nothing
// about the way by which they come. IPv6 has no such parameter (see addFirewall
// for what takes its place).
func reversePath(s *state.Snapshot, self Self) map[Sysctl]string {
	devices := []string{"all", self.Uplink, string(SyncLink), string(SyncPeerLink)}
	peers, _ := peersOf(s, self)
	for _, p := range peers {
		devices = append(devices, string(TunnelName(p.name)))
	}
	out := map[Sysctl]string{}
	for _, device := range devices {
		out[conf("ipv4", device, "rp_filter")] = "0"
	}
	return out
}

// conf is a device's own parameter; a dot in its name is written as a slash.
func conf(family, device, name string) Sysctl {
	return Sysctl("net." + family + ".conf." + strings.ReplaceAll(device, ".", "/") + "." + name)
}
