package store

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestHosts(t *testing.T) {
	got := Hosts([]string{"https://10.1.0.5:2379", "10.2.0.5:2379", " http://[2001:db8::5]:2379/ ", "https://etcd1.example:2379", "https://", ""})
	want := map[netip.Addr]string{
		netip.MustParseAddr("10.1.0.5"):    "etcd (https://10.1.0.5:2379)",
		netip.MustParseAddr("10.2.0.5"):    "etcd (10.2.0.5:2379)",
		netip.MustParseAddr("2001:db8::5"): "etcd (http://[2001:db8::5]:2379/)",
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
}
