package plan

import "net/netip"

// The names by which an operator recognises what medway owns on a host.
// Everything else is left alone.
const (
	// VIPLink is the dummy device that holds the VIPs.
	VIPLink LinkName = "medway0"
	// SyncLink is the end of the veth pair on which the IPVS sync daemons
	// send and listen; SyncPeerLink is the end through which duplicates from
	// peers are put in.
	SyncLink     LinkName = "sync01"
	SyncPeerLink LinkName = "sync01p"
	// TunnelPrefix begins the name of every tunnel to a peer.
	TunnelPrefix = "mw-"
	// ChainPrefix begins the name of every iptables chain of medway.
	ChainPrefix = "MEDWAY-"
	// RouteProtocol is the protocol number of medway's routes
	// (ip-route(8), rtm_protocol); not in iproute2's rt_protos.
	RouteProtocol = 109
)

// SyncMAC is the address of SyncLink. It is fixed, since it has meaning only
// on the veth pair inside the host.
var SyncMAC = MAC{0x02, 0x6d, 0x77, 0x00, 0x00, 0x01}

// ReinjectGateway is the next hop behind SyncPeerLink to which duplicates from
// peers are sent, so that they arrive on SyncLink. It has meaning only inside
// the host.
var ReinjectGateway = netip.MustParseAddr("169.254.0.1")
