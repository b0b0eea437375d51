package plan

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/medway-lb/medway/pkg/state"
)

// large is a snapshot of 1,000 VIPs in two sites, with so many pools of ten
// backends.
func large(b *testing.B, pools int) *state.Snapshot {
	b.Helper()
	c := state.NewCache()
	revision := int64(0)
	put := func(k state.Key, format string, args ...any) {
		revision++
		c.Put(k.String(), fmt.Appendf(nil, format, args...), revision, 1)
	}
	for i := range pools {
		pool := fmt.Sprintf("p%d", i)
		put(state.Key{Kind: state.KindPool, A: pool}, `{}`)
		for j := range 10 {
			put(state.Key{Kind: state.KindBackend, A: pool, B: fmt.Sprintf("b%d", j)},
				`{"site":"dc%d","address":"10.%d.%d.%d"}`, 1+j/5, 1+i>>8, i&0xff, 1+j)
		}
	}
	for site := 1; site <= 2; site++ {
		put(state.Key{Kind: state.KindNode, A: fmt.Sprintf("n%d", site)},
			`{"machine_id":"m%[1]d","site":"dc%[1]d","group":"g%[1]d","ipv4":"192.0.2.%[1]d","sync_address":"169.254.1.%[1]d","schema":2}`, site)
	}
	for i := range 1000 {
		vip := fmt.Sprintf("v%d", i)
		put(state.Key{Kind: state.KindVIP, A: vip},
			`{"addresses":["198.18.%d.%d"],"services":[{"protocol":"tcp","port":5060,"pool":"p%d"}],"groups":{"dc1":"g1","dc2":"g2"}}`,
			i>>8, i&0xff, i%pools)
		put(state.Key{Kind: state.KindTarget, A: vip}, `dc1`)
		for site := 1; site <= 2; site++ {
			put(state.Key{Kind: state.KindOwner, A: fmt.Sprintf("dc%d", site), B: vip}, `{"node":"n%d"}`, site)
			put(state.Key{Kind: state.KindClaim, A: fmt.Sprintf("n%d", site), B: vip}, `{"med":"100"}`)
		}
	}
	c.SetRevision(revision)
	s := c.Snapshot()
	if len(s.Faults) > 0 {
		b.Fatal(s.Faults[:min(5, len(s.Faults))])
	}
	return s
}

var benchSelf = Self{Name: "n1", Site: "dc1", Group: "g1", IPv4: netip.MustParseAddr("192.0.2.1"), Uplink: "eth0"}

// BenchmarkDecide is one step of the loop for all of 1,000 VIPs.
func BenchmarkDecide(b *testing.B) {
	s := large(b, 1)
	memory := map[string]Memory{}
	for b.Loop() {
		in := Input{Snapshot: s, Self: benchSelf, Now: time.Now(), Lease: 1, Fresh: true, CanServe: true, Sessions: 1, Flushed: true}
		for _, vip := range VIPs(s, benchSelf) {
			in.CanServe = Equipped(s, vip)
			memory[vip], _ = Decide(memory[vip], in, vip)
		}
	}
}

// BenchmarkKernelOf plans 1,000 services of ten backends each.
func BenchmarkKernelOf(b *testing.B) {
	for _, pools := range []int{1, 1000} {
		b.Run(fmt.Sprintf("pools-%d", pools), func(b *testing.B) {
			s := large(b, pools)
			for b.Loop() {
				KernelOf(s, benchSelf)
			}
		})
	}
}
