package plan

import (
	"strings"

	"github.com/medway-lb/medway/pkg/state"
)

// ipvsSysctls are the kernel parameters below net.ipv4.vs that switching needs;
// see the kernel's Documentation/networking/ipvs-sysctl.rst.
var ipvsSysctls = map[Sysctl]string{
	// Every connection is synced at its first packet and then once per refresh
	// period: with the kernel's own "3 50" an idle connection's entry runs out
	// on the backup, and the switch resets it.
	"net.ipv4.vs.sync_threshold":      "0 0",
	"net.ipv4.vs.sync_refresh_period": "10",
	// Version 0 loses timeouts and persistence data.
	"net.ipv4.vs.sync_version": "1",
	"net.ipv4.vs.sync_ports":   "1",
	"net.ipv4.vs.sync_retries": "0",
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

// sysctls returns the kernel parameters of a node. The effective rp_filter is
// the greater of "all" and the device's own, so both are set to 0 where
// duplicates of sync messages arrive with a source that is routed elsewhere.
func sysctls(s *state.Snapshot, self Self) map[Sysctl]string {
	out := map[Sysctl]string{}
	for key, value := range ipvsSysctls {
		out[key] = value
	}
	devices := []string{"all", string(SyncLink), string(SyncPeerLink)}
	for _, peer := range peersOf(s, self) {
		devices = append(devices, string(TunnelName(peer)))
	}
	for _, device := range devices {
		out[Sysctl("net.ipv4.conf."+device+".rp_filter")] = "0"
	}
	// Either of the two set would send redirects.
	for _, device := range []string{"all", strings.ReplaceAll(self.Uplink, ".", "/")} {
		out[Sysctl("net.ipv4.conf."+device+".send_redirects")] = "0"
	}
	for key, value := range s.Settings.Sysctls {
		out[Sysctl(key)] = value
	}
	return out
}
