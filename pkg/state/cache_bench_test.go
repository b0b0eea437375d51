package state

import (
	"fmt"
	"testing"
)

// thousand is a cache of 1,000 VIPs in two sites, each with an owner and a claim
// there, and of so many pools with ten backends each.
func thousand(b *testing.B, pools int) *Cache {
	b.Helper()
	c := NewCache()
	revision := int64(0)
	put := func(k Key, format string, args ...any) {
		revision++
		c.Put(k.String(), fmt.Appendf(nil, format, args...), revision, 1)
	}
	for i := range pools {
		pool := fmt.Sprintf("p%d", i)
		put(Key{Kind: KindPool, A: pool}, `{}`)
		for j := range 10 {
			put(Key{Kind: KindBackend, A: pool, B: fmt.Sprintf("b%d", j)}, `{"site":"dc%d","address":"10.%d.%d.%d"}`, 1+j/5, 1+i>>8, i&0xff, 1+j)
		}
	}
	for site := 1; site <= 2; site++ {
		put(Key{Kind: KindNode, A: fmt.Sprintf("n%d", site)},
			`{"machine_id":"m%[1]d","site":"dc%[1]d","group":"g%[1]d","ipv4":"192.0.2.%[1]d","sync_address":"169.254.1.%[1]d","schema":2}`, site)
	}
	for i := range 1000 {
		vip := fmt.Sprintf("v%d", i)
		put(Key{Kind: KindVIP, A: vip}, `{"addresses":["198.18.%d.%d"],"services":[{"protocol":"tcp","port":5060,"pool":"p%d"}],"groups":{"dc1":"g1","dc2":"g2"}}`,
			i>>8, i&0xff, i%pools)
		put(Key{Kind: KindTarget, A: vip}, `dc1`)
		for site := 1; site <= 2; site++ {
			put(Key{Kind: KindOwner, A: fmt.Sprintf("dc%d", site), B: vip}, `{"node":"n%d"}`, site)
			put(Key{Kind: KindClaim, A: fmt.Sprintf("n%d", site), B: vip}, `{"med":"100"}`)
		}
	}
	if faults := c.Snapshot().Faults; len(faults) > 0 {
		b.Fatal(faults[:min(5, len(faults))])
	}
	return c
}

// BenchmarkSnapshot is what each event from etcd costs before anything is
// decided.
func BenchmarkSnapshot(b *testing.B) {
	for _, test := range []struct {
		name, key, value string
		pools            int
	}{
		{"claim", "/medway/v1/claims/n1/v500", `{"med":"50"}`, 1},
		{"target", "/medway/v1/target_state/v500", "dc2", 1},
		{"backend-of-10000", "/medway/v1/backends/p500/b1", `{"site":"dc2","address":"10.2.244.2"}`, 1000},
	} {
		b.Run(test.name, func(b *testing.B) {
			c := thousand(b, test.pools)
			revision := int64(100000)
			for b.Loop() {
				revision++
				c.Put(test.key, []byte(test.value), revision, 0)
				c.SetRevision(revision)
				c.Snapshot()
			}
		})
	}
}
