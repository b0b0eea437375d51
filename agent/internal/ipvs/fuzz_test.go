package ipvs

import "testing"

// FuzzDecode reads any bytes as the kernel's answers.
func FuzzDecode(f *testing.F) {
	f.Add(wireService(&service{}))
	f.Add(wireDestination(&destination{}))
	f.Add(encodeDaemon(daemon{state: stateMaster, ifn: "sync01", id: 10}).Serialize())
	f.Add([]byte{})
	f.Add([]byte{4, 0, 1})
	f.Add([]byte{255, 255, 1, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := decodeService(decode(b)); err == nil {
			if key, ok := serviceKeyToPlan(&s.Service); ok {
				_ = serviceToPlan(key, &s.Service)
			}
		}
		if d, err := decodeDestination(decode(b)); err == nil {
			_ = destinationToPlan(&d)
		}
		d, err := decodeDaemon(decode(b))
		if err != nil {
			return
		}
		again, err := decodeDaemon(decode(encodeDaemon(d).Serialize()[4:]))
		if err != nil || again != d {
			t.Errorf("%+v becomes %+v, %v", d, again, err)
		}
	})
}
