package ipvs

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	moby "github.com/moby/ipvs"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Generic netlink numbers of IPVS: linux include/uapi/linux/ip_vs.h.
const (
	familyName    = "IPVS"
	familyVersion = 1

	cmdGetService = 4
	cmdGetDest    = 8
	cmdNewDaemon  = 9
	cmdDelDaemon  = 10
	cmdGetDaemon  = 11
	cmdGetConfig  = 13

	attrService = 1
	attrDest    = 2
	attrDaemon  = 3

	configTCP    = 4
	configTCPFin = 5
	configUDP    = 6

	svcFamily   = 1
	svcProtocol = 2
	svcAddr     = 3
	svcPort     = 4
	svcFWMark   = 5
	svcSched    = 6
	svcFlags    = 7
	svcTimeout  = 8
	svcNetmask  = 9
	svcPE       = 11
	svcStats64  = 12

	destAddr     = 1
	destPort     = 2
	destFwd      = 3
	destWeight   = 4
	destUpper    = 5
	destLower    = 6
	destActive   = 7
	destInactive = 8
	destFamily   = 11
	destStats64  = 12
	destTunType  = 13

	statsConns   = 1
	statsInPkts  = 2
	statsInBytes = 4

	daemonState  = 1
	daemonIfn    = 2
	daemonID     = 3
	daemonMaxLen = 4
	daemonGroup4 = 5
	daemonGroup6 = 6
	daemonPort   = 7
	daemonTTL    = 8

	stateMaster = 1
	stateBackup = 2
)

// service is what the kernel says about a virtual service. moby's own reader
// leaves out the persistence engine and the 64-bit counters.
type service struct {
	moby.Service
	counters Counters
}

// destination is what the kernel says about a destination. moby's own reader
// cuts the weight to 16 bits and leaves out the tunnel type.
type destination struct {
	moby.Destination
	tunType  uint8
	counters Counters
}

// daemon is a sync daemon in the kernel's terms.
type daemon struct {
	state  uint32
	ifn    string
	id     uint32
	maxLen uint16
	group  netip.Addr
	port   uint16
	ttl    uint8
	// deaf says that the daemon's device is not the one that now has its name.
	deaf bool
}

func encodeDaemon(d daemon) *nl.RtAttr {
	a := nl.NewRtAttr(attrDaemon, nil)
	a.AddRtAttr(daemonState, nl.Uint32Attr(d.state))
	a.AddRtAttr(daemonIfn, nl.ZeroTerminated(d.ifn))
	a.AddRtAttr(daemonID, nl.Uint32Attr(d.id))
	a.AddRtAttr(daemonMaxLen, nl.Uint16Attr(d.maxLen))
	if d.group.Is4() {
		a.AddRtAttr(daemonGroup4, d.group.AsSlice())
	} else if d.group.Is6() {
		a.AddRtAttr(daemonGroup6, d.group.AsSlice())
	}
	a.AddRtAttr(daemonPort, nl.Uint16Attr(d.port))
	a.AddRtAttr(daemonTTL, nl.Uint8Attr(d.ttl))
	return a
}

func decodeDaemon(d *decoder) (daemon, error) {
	v := daemon{
		state:  d.u32(daemonState),
		ifn:    d.text(daemonIfn),
		id:     d.u32(daemonID),
		maxLen: d.u16(daemonMaxLen),
		port:   d.u16(daemonPort),
		ttl:    d.bytes(daemonTTL, 1)[0],
	}
	if d.has(daemonGroup6) {
		v.group = netip.AddrFrom16([16]byte(d.bytes(daemonGroup6, 16)))
	} else {
		v.group = netip.AddrFrom4([4]byte(d.bytes(daemonGroup4, 4)))
	}
	return v, d.err
}

func decodeService(d *decoder) (service, error) {
	var s service
	s.AddressFamily = d.u16(svcFamily)
	if d.has(svcFWMark) {
		s.FWMark = d.u32(svcFWMark)
	} else {
		s.Protocol = d.u16(svcProtocol)
		s.Address = d.addr(svcAddr, s.AddressFamily)
		s.Port = d.port(svcPort)
	}
	s.SchedName = d.text(svcSched)
	if d.has(svcPE) {
		s.PEName = d.text(svcPE)
	}
	// struct ip_vs_flags: the value, then the mask.
	s.Flags = native.Uint32(d.bytes(svcFlags, 8))
	s.Timeout = d.u32(svcTimeout)
	s.Netmask = d.u32(svcNetmask)
	s.counters = d.counters(svcStats64)
	return s, d.err
}

func decodeDestination(d *decoder) (destination, error) {
	var v destination
	v.AddressFamily = d.u16(destFamily)
	v.Address = d.addr(destAddr, v.AddressFamily)
	v.Port = d.port(destPort)
	v.ConnectionFlags = d.u32(destFwd)
	v.Weight = int(int32(d.u32(destWeight)))
	v.UpperThreshold = d.u32(destUpper)
	v.LowerThreshold = d.u32(destLower)
	v.ActiveConnections = int(d.u32(destActive))
	v.InactiveConnections = int(d.u32(destInactive))
	if d.has(destTunType) { // since Linux 5.3
		v.tunType = d.bytes(destTunType, 1)[0]
	}
	v.counters = d.counters(destStats64)
	return v, d.err
}

var native = nl.NativeEndian()

// decoder takes typed values out of a sequence of attributes. The first
// missing, short or malformed one is kept in err; what is returned after it is
// zero.
type decoder struct {
	attrs map[uint16][]byte
	err   error
}

// decode splits b by itself, since nl.ParseRouteAttr of netlink v1.3.1 panics on
// bytes that are cut short.
func decode(b []byte) *decoder {
	d := &decoder{attrs: make(map[uint16][]byte)}
	for len(b) >= unix.SizeofRtAttr {
		n := int(native.Uint16(b))
		if n < unix.SizeofRtAttr || n > len(b) {
			d.err = fmt.Errorf("netlink attribute of %d bytes in %d", n, len(b))
			return d
		}
		d.attrs[native.Uint16(b[2:])&nl.NLA_TYPE_MASK] = b[unix.SizeofRtAttr:n]
		aligned := (n + unix.RTA_ALIGNTO - 1) &^ (unix.RTA_ALIGNTO - 1)
		b = b[min(aligned, len(b)):]
	}
	return d
}

func (d *decoder) has(attr uint16) bool { _, ok := d.attrs[attr]; return ok }

// bytes returns at least n bytes.
func (d *decoder) bytes(attr uint16, n int) []byte {
	v, ok := d.attrs[attr]
	if !ok || len(v) < n {
		if d.err == nil {
			d.err = fmt.Errorf("netlink attribute %d has %d bytes, want %d", attr, len(v), n)
		}
		return make([]byte, n)
	}
	return v
}

func (d *decoder) u16(attr uint16) uint16  { return native.Uint16(d.bytes(attr, 2)) }
func (d *decoder) u32(attr uint16) uint32  { return native.Uint32(d.bytes(attr, 4)) }
func (d *decoder) u64(attr uint16) uint64  { return native.Uint64(d.bytes(attr, 8)) }
func (d *decoder) port(attr uint16) uint16 { return binary.BigEndian.Uint16(d.bytes(attr, 2)) }

func (d *decoder) text(attr uint16) string { return unix.ByteSliceToString(d.bytes(attr, 0)) }

// addr reads the union nf_inet_addr, 16 bytes of which IPv4 uses the first 4.
func (d *decoder) addr(attr, family uint16) []byte {
	if family == unix.AF_INET6 {
		return d.bytes(attr, 16)[:16]
	}
	return d.bytes(attr, 4)[:4]
}

func (d *decoder) counters(attr uint16) Counters {
	in := decode(d.bytes(attr, 0))
	c := Counters{Connections: in.u64(statsConns), InPackets: in.u64(statsInPkts), InBytes: in.u64(statsInBytes)}
	if d.err == nil {
		d.err = in.err
	}
	return c
}
