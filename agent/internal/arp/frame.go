package arp

import (
	"bytes"
	"encoding/binary"
	"net/netip"

	"github.com/medway-lb/medway/pkg/plan"
)

// Numbers of RFC 826, RFC 4861 and the IANA registries.
const (
	etherARP, etherIPv4, etherIPv6 = 0x0806, 0x0800, 0x86dd

	hardwareEthernet   = 1
	opRequest, opReply = 1, 2

	protocolICMPv6 = 58
	typeNA         = 136
	optionTarget   = 2 // target link-layer address

	flagSolicited, flagOverride = 0x40, 0x20
)

// Lengths in bytes; those of whole frames count what comes before.
const (
	etherHeader = 14
	arpFrame    = etherHeader + 28
	ipv6Header  = 40
	naStart     = etherHeader + ipv6Header
	naLength    = 24 // without options
	naFrame     = naStart + naLength + 8
)

var (
	broadcast   = plan.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	allNodesMAC = plan.MAC{0x33, 0x33, 0, 0, 0, 1}
	allNodes    = netip.MustParseAddr("ff02::1")
)

// frames are the announcements of an address: for IPv4 a gratuitous ARP as request
// and as reply, since hosts differ in which of them they learn from (RFC 5227, 3);
// for IPv6 an unsolicited neighbour advertisement that overrides (RFC 4861, 7.2.6).
func frames(a netip.Addr, mac plan.MAC) [][]byte {
	if a.Is4() {
		return [][]byte{gratuitous(a, mac, opRequest), gratuitous(a, mac, opReply)}
	}
	return [][]byte{advertisement(a, mac)}
}

func ether(to, from plan.MAC, kind uint16, size int) []byte {
	f := make([]byte, 0, size)
	f = append(append(f, to[:]...), from[:]...)
	return binary.BigEndian.AppendUint16(f, kind)
}

func gratuitous(a netip.Addr, mac plan.MAC, op uint16) []byte {
	f := ether(broadcast, mac, etherARP, arpFrame)
	f = append(f, 0, hardwareEthernet, etherIPv4>>8, etherIPv4&0xff, 6, 4, 0, byte(op))
	f = append(append(f, mac[:]...), a.AsSlice()...)
	var target plan.MAC // a request asks for it; Linux takes a reply only with the sender's (arp_is_garp in net/ipv4/arp.c)
	if op == opReply {
		target = mac
	}
	return append(append(f, target[:]...), a.AsSlice()...)
}

func advertisement(a netip.Addr, mac plan.MAC) []byte {
	f := ether(allNodesMAC, mac, etherIPv6, naFrame)
	f = append(f, 0x60, 0, 0, 0, 0, naLength+8, protocolICMPv6, 255)
	f = append(append(f, a.AsSlice()...), allNodes.AsSlice()...)
	f = append(f, typeNA, 0, 0, 0, flagOverride, 0, 0, 0)
	f = append(f, a.AsSlice()...)
	f = append(append(f, optionTarget, 1), mac[:]...)
	binary.BigEndian.PutUint16(f[naStart+2:], ^sum(f[etherHeader:naStart], f[naStart:]))
	return f
}

// sum is the Internet checksum, not inverted, of an ICMPv6 message and its
// pseudo-header (RFC 8200, 8.1).
func sum(ip, message []byte) uint16 {
	total := uint32(len(message)) + protocolICMPv6
	for _, part := range [][]byte{ip[8:ipv6Header], message} {
		for len(part) > 1 {
			total += uint32(part[0])<<8 | uint32(part[1])
			part = part[2:]
		}
		if len(part) == 1 {
			total += uint32(part[0]) << 8
		}
	}
	for total > 0xffff {
		total = total>>16 + total&0xffff
	}
	return uint16(total)
}

// announcement is what a frame says to all: that an address is at a hardware
// address. Answers to somebody's question are none: they say nothing of a lease.
type announcement struct {
	addr netip.Addr
	mac  plan.MAC
}

// decode reads an announcement of either family; ok is false for all else.
func decode(f []byte) (a announcement, ok bool) {
	if len(f) < etherHeader {
		return a, false
	}
	switch binary.BigEndian.Uint16(f[12:]) {
	case etherARP:
		a, ok = decodeARP(f)
	case etherIPv6:
		a, ok = decodeNA(f)
	}
	return a, ok && a.mac != plan.MAC{} && a.mac[0]&1 == 0
}

// decodeARP takes gratuitous requests and replies.
func decodeARP(f []byte) (a announcement, ok bool) {
	if len(f) < arpFrame {
		return a, false
	}
	p := f[etherHeader:]
	if !bytes.Equal(p[:7], []byte{0, hardwareEthernet, etherIPv4 >> 8, etherIPv4 & 0xff, 6, 4, 0}) || p[7] != opRequest && p[7] != opReply {
		return a, false
	}
	copy(a.mac[:], p[8:14])
	a.addr, _ = netip.AddrFromSlice(p[14:18])
	return a, bytes.Equal(p[14:18], p[24:28])
}

// decodeNA takes advertisements that nobody solicited, and that a host has to take
// (RFC 4861, 7.1.2).
func decodeNA(f []byte) (a announcement, ok bool) {
	if len(f) < naStart+naLength {
		return a, false
	}
	ip := f[etherHeader:]
	length := int(binary.BigEndian.Uint16(ip[4:]))
	if ip[0]>>4 != 6 || ip[6] != protocolICMPv6 || ip[7] != 255 || length < naLength || len(f) < naStart+length {
		return a, false
	}
	na := f[naStart : naStart+length]
	if na[0] != typeNA || na[1] != 0 || na[4]&flagSolicited != 0 || sum(ip, na) != 0xffff {
		return a, false
	}
	a.addr, _ = netip.AddrFromSlice(na[8:24])
	copy(a.mac[:], f[6:12]) // for one without the option
	for options := na[naLength:]; len(options) > 0; {
		if len(options) < 2 || options[1] == 0 || len(options) < 8*int(options[1]) {
			return a, false
		}
		if options[0] == optionTarget && options[1] == 1 {
			copy(a.mac[:], options[2:8])
		}
		options = options[8*int(options[1]):]
	}
	return a, !a.addr.IsMulticast() && !a.addr.Is4In6()
}
