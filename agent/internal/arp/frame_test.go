package arp

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"

	"github.com/medway-lb/medway/pkg/plan"
)

var (
	vip4 = netip.MustParseAddr("203.0.113.10")
	vip6 = netip.MustParseAddr("2001:db8:10::10")
	mac  = plan.MAC{0x02, 0, 0, 0, 0, 0x0a}
)

// The bytes are those that RFC 826 and RFC 4861 ask for; that hosts obey them is
// for the tests on the kernel to show.
func TestFramesAreWhatTheStandardsSay(t *testing.T) {
	request := "ffffffffffff 02000000000a 0806 0001 0800 06 04 0001 02000000000a cb00710a 000000000000 cb00710a"
	reply := "ffffffffffff 02000000000a 0806 0001 0800 06 04 0002 02000000000a cb00710a 02000000000a cb00710a"
	advertisement := "333300000001 02000000000a 86dd 60000000 0020 3a ff 20010db8001000000000000000000010 ff020000000000000000000000000001" +
		"88 00 f8e3 20000000 20010db8001000000000000000000010 02 01 02000000000a"
	for a, want := range map[netip.Addr][]string{vip4: {request, reply}, vip6: {advertisement}} {
		got := frames(a, mac)
		if len(got) != len(want) {
			t.Fatalf("%s: %d frames, expected %d", a, len(got), len(want))
		}
		for i, f := range got {
			if text := hex.EncodeToString(f); text != strings.ReplaceAll(want[i], " ", "") {
				t.Errorf("%s: frame %d is\n%s, expected\n%s", a, i, text, want[i])
			}
			if a2, ok := decode(f); !ok || a2 != (announcement{a, mac}) {
				t.Errorf("%s: frame %d is read as %v, %t", a, i, a2, ok)
			}
		}
	}
}

// edited is an announcement with some bytes changed, and the checksum of ICMPv6
// right again.
func edited(a netip.Addr, change func(f []byte) []byte) []byte {
	f := change(frames(a, mac)[0])
	if a.Is6() && len(f) >= naStart+4 {
		f[naStart+2], f[naStart+3] = 0, 0
		s := ^sum(f[etherHeader:naStart], f[naStart:])
		f[naStart+2], f[naStart+3] = byte(s>>8), byte(s)
	}
	return f
}

func set(at int, to ...byte) func([]byte) []byte {
	return func(f []byte) []byte { copy(f[at:], to); return f }
}

func TestHostileFramesAreNoAnnouncements(t *testing.T) {
	const p = etherHeader
	for name, f := range map[string][]byte{
		"empty":                        nil,
		"half an Ethernet header":      make([]byte, 13),
		"another protocol":             edited(vip4, set(12, 0x08, 0)),
		"no Ethernet":                  edited(vip4, set(p, 0, 6)),
		"not of IPv4":                  edited(vip4, set(p+2, 0x86, 0xdd)),
		"long hardware address":        edited(vip4, set(p+4, 8)),
		"long protocol address":        edited(vip4, set(p+5, 16)),
		"another operation":            edited(vip4, set(p+6, 0, 3)),
		"an operation above 255":       edited(vip4, set(p+6, 1, 1)),
		"a question for another":       edited(vip4, set(p+24, 203, 0, 113, 11)),
		"a probe":                      edited(vip4, set(p+14, 0, 0, 0, 0)), // RFC 5227
		"broadcast as the sender":      edited(vip4, set(p+8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)),
		"multicast as the sender":      edited(vip4, set(p+8, 0x01, 0, 0x5e, 0, 0, 1)),
		"nobody as the sender":         edited(vip4, set(p+8, 0, 0, 0, 0, 0, 0)),
		"NA: another version":          edited(vip6, set(p, 0x40)),
		"NA: another protocol":         edited(vip6, set(p+6, 17)),
		"NA: from beyond a router":     edited(vip6, set(p+7, 254)),
		"NA: length beyond the frame":  edited(vip6, set(p+4, 0, 40)),
		"NA: huge length":              edited(vip6, set(p+4, 0xff, 0xff)),
		"NA: short length":             edited(vip6, set(p+4, 0, 23)),
		"NA: a solicitation":           edited(vip6, set(naStart, 135)),
		"NA: a code":                   edited(vip6, set(naStart+1, 1)),
		"NA: solicited":                edited(vip6, set(naStart+4, flagSolicited|flagOverride)),
		"NA: multicast target":         edited(vip6, set(naStart+8, 0xff, 2)),
		"NA: option without a length":  edited(vip6, set(naStart+naLength, optionTarget, 0)),
		"NA: option beyond the end":    edited(vip6, set(naStart+naLength, optionTarget, 2)),
		"NA: multicast as the sender":  edited(vip6, set(naStart+naLength+2, 0x33, 0x33)),
		"NA: wrong checksum":           set(naStart+2, 0, 0)(frames(vip6, mac)[0]),
		"NA: checksum of another body": set(naStart+23, 0x11)(frames(vip6, mac)[0]),
	} {
		if a, ok := decode(f); ok {
			t.Errorf("%s: is read as %v", name, a)
		}
	}
	for _, a := range []netip.Addr{vip4, vip6} {
		for _, f := range frames(a, mac) {
			for n := range f {
				if got, ok := decode(f[:n]); ok {
					t.Errorf("%s cut to %d bytes is read as %v", a, n, got)
				}
			}
		}
	}
}

// What others may do differently and still announces.
func TestOtherFormsOfAnnouncements(t *testing.T) {
	other := plan.MAC{2, 0, 0, 0, 0, 9}
	for name, test := range map[string]struct {
		frame []byte
		want  announcement
	}{
		"padded to Ethernet's least": {append(frames(vip4, mac)[0], make([]byte, 18)...), announcement{vip4, mac}},
		"NA, padded":                 {append(frames(vip6, mac)[0], 1, 2, 3), announcement{vip6, mac}},
		"broadcast as the target":    {edited(vip4, set(etherHeader+18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)), announcement{vip4, mac}},
		"NA without the option": {edited(vip6, func(f []byte) []byte {
			f = f[:naStart+naLength]
			f[etherHeader+5] = naLength
			copy(f[6:], other[:])
			return f
		}), announcement{vip6, other}},
		"NA with another option": {edited(vip6, set(naStart+naLength, 14)), announcement{vip6, mac}},
		"NA from another source": {edited(vip6, set(etherHeader+8, 0xfe, 0x80)), announcement{vip6, mac}},
	} {
		if a, ok := decode(test.frame); !ok || a != test.want {
			t.Errorf("%s: is read as %v, %t; expected %v", name, a, ok, test.want)
		}
	}
}

// FuzzDecode reads any bytes as a frame. What is read as an announcement can be
// written, and is read as the same.
func FuzzDecode(f *testing.F) {
	for _, a := range []netip.Addr{vip4, vip6} {
		for _, frame := range frames(a, mac) {
			f.Add(frame)
			f.Add(frame[:len(frame)-1])
		}
	}
	f.Add(edited(vip6, func(f []byte) []byte { f[etherHeader+5] = naLength; return f[:naStart+naLength] }))
	f.Fuzz(func(t *testing.T, frame []byte) {
		before := bytes.Clone(frame)
		a, ok := decode(frame)
		if !bytes.Equal(frame, before) {
			t.Fatal("the frame was changed")
		}
		if !ok {
			return
		}
		for _, again := range frames(a.addr, a.mac) {
			if b, ok := decode(again); !ok || b != a {
				t.Errorf("%v comes back as %v, %t", a, b, ok)
			}
		}
	})
}
