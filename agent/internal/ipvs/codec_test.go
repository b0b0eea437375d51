package ipvs

import (
	"errors"
	"os"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/medway-lb/medway/pkg/plan"
)

func stats64(c Counters) []byte {
	a := nl.NewRtAttr(0, nil)
	a.AddRtAttr(statsConns, nl.Uint64Attr(c.Connections))
	a.AddRtAttr(statsInPkts, nl.Uint64Attr(c.InPackets))
	a.AddRtAttr(statsInBytes, nl.Uint64Attr(c.InBytes))
	return a.Serialize()[4:]
}

// union is the kernel's union nf_inet_addr.
func union(ip []byte) []byte { return append(append([]byte{}, ip...), make([]byte, 16-len(ip))...) }

func genCounters() *rapid.Generator[Counters] {
	return rapid.Custom(func(t *rapid.T) Counters {
		n := rapid.Uint64()
		return Counters{Connections: n.Draw(t, "conns"), InPackets: n.Draw(t, "packets"), InBytes: n.Draw(t, "bytes")}
	})
}

// wireService writes s as ip_vs_genl_fill_service does.
func wireService(s *service) []byte {
	a := nl.NewRtAttr(attrService, nil)
	a.AddRtAttr(svcFamily, nl.Uint16Attr(s.AddressFamily))
	a.AddRtAttr(svcProtocol, nl.Uint16Attr(s.Protocol))
	a.AddRtAttr(svcAddr, union(s.Address))
	a.AddRtAttr(svcPort, nl.BEUint16Attr(s.Port))
	a.AddRtAttr(svcSched, nl.ZeroTerminated(s.SchedName))
	if s.PEName != "" {
		a.AddRtAttr(svcPE, nl.ZeroTerminated(s.PEName))
	}
	a.AddRtAttr(svcFlags, append(nl.Uint32Attr(s.Flags|flagHashed), 0xff, 0xff, 0xff, 0xff))
	a.AddRtAttr(svcTimeout, nl.Uint32Attr(s.Timeout))
	a.AddRtAttr(svcNetmask, nl.Uint32Attr(s.Netmask))
	a.AddRtAttr(svcStats64, stats64(s.counters))
	return a.Serialize()[4:]
}

// wireDestination writes d as ip_vs_genl_fill_dest does.
func wireDestination(d *destination) []byte {
	a := nl.NewRtAttr(attrDest, nil)
	a.AddRtAttr(destAddr, union(d.Address))
	a.AddRtAttr(destPort, nl.BEUint16Attr(d.Port))
	a.AddRtAttr(destFwd, nl.Uint32Attr(d.ConnectionFlags))
	a.AddRtAttr(destWeight, nl.Uint32Attr(uint32(d.Weight)))
	a.AddRtAttr(destTunType, nl.Uint8Attr(d.tunType))
	a.AddRtAttr(destUpper, nl.Uint32Attr(d.UpperThreshold))
	a.AddRtAttr(destLower, nl.Uint32Attr(d.LowerThreshold))
	a.AddRtAttr(destActive, nl.Uint32Attr(uint32(d.ActiveConnections)))
	a.AddRtAttr(destInactive, nl.Uint32Attr(uint32(d.InactiveConnections)))
	a.AddRtAttr(destFamily, nl.Uint16Attr(d.AddressFamily))
	a.AddRtAttr(destStats64, stats64(d.counters))
	return a.Serialize()[4:]
}

func TestServiceRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		key, counters := genServiceKey().Draw(t, "key"), genCounters().Draw(t, "counters")
		want := genService(key.Protocol).Draw(t, "value")
		lib, err := serviceToLib(key, want)
		if err != nil {
			t.Fatal(err)
		}
		read, err := decodeService(decode(wireService(&service{Service: *lib, counters: counters})))
		if err != nil {
			t.Fatal(err)
		}
		gotKey, ok := serviceKeyToPlan(&read.Service)
		got := serviceToPlan(gotKey, &read.Service)
		if !ok || gotKey != key || got != want || read.counters != counters {
			t.Fatalf("got %v %+v, want %v %+v", gotKey, got, key, want)
		}
	})
}

func TestDestinationRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		key := plan.DestinationKey{Service: genServiceKey().Draw(t, "service"), Port: rapid.Uint16().Draw(t, "port")}
		key.Addr = key.Service.Addr
		want, counters := genDestination().Draw(t, "value"), genCounters().Draw(t, "counters")
		_, lib, err := destinationToLib(key, want)
		if err != nil {
			t.Fatal(err)
		}
		read, err := decodeDestination(decode(wireDestination(&destination{Destination: *lib, counters: counters})))
		if err != nil {
			t.Fatal(err)
		}
		gotKey, ok := destinationKeyToPlan(key.Service, &read.Destination)
		got := destinationToPlan(&read)
		if !ok || gotKey != key || got != want || read.counters != counters {
			t.Fatalf("got %v %+v, want %v %+v", gotKey, got, key, want)
		}
	})
}

func TestDaemonRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		role := rapid.SampledFrom([]plan.SyncRole{plan.Master, plan.Backup}).Draw(t, "role")
		want := genDaemon().Draw(t, "daemon")
		d, err := daemonToKernel(role, want)
		if err != nil {
			t.Fatal(err)
		}
		read, err := decodeDaemon(decode(encodeDaemon(d).Serialize()[4:]))
		if err != nil {
			t.Fatal(err)
		}
		if gotRole, got := daemonToPlan(read); gotRole != role || got != want {
			t.Fatalf("got %s %+v, want %s %+v", gotRole, got, role, want)
		}
	})
}

// Bytes that make no sense give an error; they never panic.
func TestMalformedBytes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		lib, err := serviceToLib(genServiceKey().Draw(t, "key"), genService(plan.TCP).Draw(t, "value"))
		if err != nil {
			t.Fatal(err)
		}
		b := wireService(&service{Service: *lib})
		b = b[:rapid.IntRange(0, len(b)-5).Draw(t, "cut")]
		for range rapid.IntRange(0, 3).Draw(t, "flips") {
			if len(b) > 0 {
				b[rapid.IntRange(0, len(b)-1).Draw(t, "at")] = rapid.Byte().Draw(t, "byte")
			}
		}
		if _, err := decodeService(decode(b)); err == nil {
			t.Error("a cut service was accepted")
		}
		_, _ = decodeDestination(decode(b))
		_, _ = decodeDaemon(decode(b))
	})
}

// On a kernel without IPVS, New must say what is missing.
func TestNewWithoutIPVS(t *testing.T) {
	k, err := New()
	switch {
	case err == nil:
		k.Close()
	case !errors.Is(err, ErrAbsent) && !errors.Is(err, os.ErrPermission) && !errors.Is(err, unix.EPROTONOSUPPORT):
		t.Error(err)
	}
}
