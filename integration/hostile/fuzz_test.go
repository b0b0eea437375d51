package hostile

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/state"
)

// The fuzzer's bytes are a script: operations, divided by separator. "p" puts,
// "l" puts under a lease, "d" deletes; a key below the prefix follows, and after
// equals the value.
const (
	separator = "\x1e"
	equals    = "\x1f"
)

// FuzzCache runs any sequence of puts and deletions through an agent's cache.
func FuzzCache(f *testing.F) {
	for _, c := range Sample() {
		if len(c.Key)+len(c.Value) < 4096 {
			f.Add([]byte("p" + strings.TrimPrefix(c.Key, state.Prefix) + equals + string(c.Value)))
		}
	}
	for _, g := range Base() {
		f.Add([]byte("d" + g.Key))
		f.Add([]byte("d" + g.Key + separator + "p" + g.Key + equals + g.Value))
	}
	vip := func(address string) string {
		return `{"addresses":["` + address + `"],"services":[{"protocol":"tcp","port":5060,"pool":"sbc"}],"groups":{"dc1":"dc1-edge1"}}`
	}
	f.Add([]byte("pvips/b" + equals + vip("203.0.113.11") + separator + "pvips/sip-1" + equals + vip("203.0.113.11") + separator + "dvips/b"))
	f.Add([]byte("pvips/b" + equals + vip("203.0.113.10") + separator + "dvips/sip-1" + separator + "pvips/sip-1" + equals + vip("203.0.113.10")))
	f.Fuzz(func(t *testing.T, script []byte) {
		c := base(t)
		revision := int64(100)
		for op := range bytes.SplitSeq(script, []byte(separator)) {
			if len(op) == 0 || revision > 140 {
				break
			}
			revision++
			key, value, _ := bytes.Cut(op[1:], []byte(equals))
			before := c.Snapshot()
			decodes := true
			switch op[0] {
			case 'd':
				c.Delete(state.Prefix + string(key))
			case 'p', 'l':
				l := int64(0)
				if op[0] == 'l' {
					l = lease
				}
				c.Put(state.Prefix+string(key), value, revision, l)
				k, err := state.ParseKey(state.Prefix + string(key))
				if err == nil {
					_, err = state.Decode(k, value)
				}
				decodes = err == nil
			}
			c.SetRevision(revision)
			s := c.Snapshot()
			if diff := cmp.Diff(inForce(before), inForce(s), compareAddresses); !decodes && diff != "" {
				t.Fatalf("%q is no good value, but changed something: %s", op, diff)
			}
			demandSound(t, c, s)
		}
	})
}

// demandSound demands what holds of every snapshot.
func demandSound(t *testing.T, c *state.Cache, s *state.Snapshot) {
	demandReadable(t, s.Faults)
	holders := map[string]string{}
	take := func(what, who string) {
		if other, taken := holders[what]; taken {
			t.Errorf("%s is that of %s and of %s", what, other, who)
		}
		holders[what] = who
	}
	for name, v := range s.VIPs {
		for _, a := range v.Addresses {
			take(a.String(), "VIP "+name)
		}
		for _, p := range v.Announcement.Prefixes {
			take(p.String(), "VIP "+name)
		}
	}
	for k, b := range s.Backends {
		if b.IPv4.IsValid() {
			take(k.Pool+" "+b.IPv4.String(), "backend "+k.Name)
		}
		if b.IPv6.IsValid() {
			take(k.Pool+" "+b.IPv6.String(), "backend "+k.Name)
		}
	}
	for vip, target := range s.Targets {
		if _, member := s.VIPs[vip].Groups[target.Site]; !member {
			t.Errorf("target %+v of %s", target, vip)
		}
	}
	for _, self := range selves() {
		plan.KernelOf(s, self)
	}
	// What is kept on disk is what is in force.
	again := state.NewCache()
	c.Each(again.Put)
	again.SetRevision(s.Revision)
	if diff := cmp.Diff(inForce(s), inForce(again.Snapshot()), compareAddresses); diff != "" {
		t.Errorf("in force after a restart: %s", diff)
	}
}
