package agent

import (
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"go.uber.org/zap"
	"pgregory.net/rapid"

	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/state"
)

// planner is the part of the loop that makes the kernel's plan, with a clock of
// its own, for one node of dc1.
type planner struct {
	*decider
	cache   *state.Cache
	now     time.Time
	flushed bool
	plans   int // handed over
}

func newPlanner() *planner {
	a := &Agent{
		self: plan.Self{Name: "dc1-lvs-a", Site: "dc1", Group: "dc1-edge1", IPv4: netip.MustParseAddr("192.0.2.11"), Uplink: "eth0"},
		log:  zap.NewNop(), replan: make(chan struct{}, 1),
	}
	p := &planner{decider: a.newDecider(), cache: state.NewCache(), now: time.Unix(1000, 0), flushed: true}
	p.timer.Stop()
	p.put("settings", `{"settle":"2s"}`)
	p.put("pools/sbc", poolValue)
	p.put("backends/sbc/b1", backendValue)
	p.put("vips/v", vipValue("203.0.113.10"))
	return p
}

func (p *planner) put(key, value string) {
	p.cache.SetRevision(p.cache.Revision() + 1)
	p.cache.Put(state.Prefix+key, []byte(value), p.cache.Revision(), 0)
}

func (p *planner) delete(key string) {
	p.cache.SetRevision(p.cache.Revision() + 1)
	p.cache.Delete(state.Prefix + key)
}

// plan makes the plan and returns it, and when it wants to be made again.
func (p *planner) plan() (h plan.Host, next time.Time) {
	before := p.wanted
	next = p.now.Add(time.Hour)
	p.planKernel(plan.Input{Snapshot: p.cache.Snapshot(), Self: p.self, Now: p.now, Flushed: p.flushed}, &next)
	if p.wanted != before {
		p.plans++
	}
	return p.wanted.host, next
}

func (p *planner) pass(d time.Duration) { p.now = p.now.Add(d) }

// demand demands that the last call handed a plan over, or that it did not, and
// the VIP addresses in the kernel's plan.
func (p *planner) demand(t *testing.T, what string, handedOver bool, addresses ...string) {
	t.Helper()
	before := p.plans
	h, _ := p.plan()
	var got []string
	for _, a := range vipAddresses(h) {
		got = append(got, a.Prefix.Addr().String())
	}
	slices.Sort(got)
	if (p.plans > before) != handedOver || !slices.Equal(got, addresses) {
		t.Errorf("%s: %d plans, with %q; expected %v and %q", what, p.plans-before, got, handedOver, addresses)
	}
}

// TestTheKernelsPlanFollowsIntent, and is left alone by all else.
func TestTheKernelsPlanFollowsIntent(t *testing.T) {
	p := newPlanner()
	p.demand(t, "the first", true, "203.0.113.10")
	first := p.planned
	for _, fact := range [][2]string{
		{"target_state/v", "dc1"}, {"locks/v", `{}`}, {"claims/dc1-lvs-a/v", claim100}, {"owners/dc1/v", `{"node":"dc1-lvs-a"}`},
		{"alive/dc1-lvs-a", `{}`}, {"no-such-kind/x", "?"},
	} {
		p.put(fact[0], fact[1])
		p.demand(t, fact[0], false, "203.0.113.10")
		if p.planned != first {
			t.Errorf("made anew for %s", fact[0])
		}
	}
	p.put("vips/w", `{`)
	p.demand(t, "a malformed VIP", false, "203.0.113.10")
	for _, intent := range [][2]string{
		{"backends/sbc/b1", `{"site":"dc2","address":"10.1.1.21"}`}, // another weight: nobody else's concern
		{"backends/sbc/b1", backendValue},
		{"backends/sbc/b2", `{"site":"dc2","address":"10.2.1.21"}`},
		{"pools/sbc", `{"scheduler":"wlc"}`},
		{"settings", `{"settle":"2s","sync":{"id":7}}`},
		{"settings", `{"settle":"2s","resync_interval":"7s"}`},
		{"nodes/dc2-lvs-a", `{"machine_id":"m","site":"dc2","group":"dc2-edge1","ipv4":"192.0.2.21","sync_address":"169.254.3.4"}`},
		{"nodes/dc2-lvs-a", `{"machine_id":"m","site":"dc2","group":"dc2-edge1","ipv4":"192.0.2.22","sync_address":"169.254.3.4"}`},
	} {
		p.put(intent[0], intent[1])
		p.demand(t, intent[0]+" "+intent[1], true, "203.0.113.10")
		p.demand(t, "once more", false, "203.0.113.10")
	}
	if p.wanted.resync != 7*time.Second {
		t.Errorf("resync every %s", p.wanted.resync)
	}
	p.delete("backends/sbc/b2")
	p.demand(t, "a backend goes", true, "203.0.113.10")

	// A list of a store that holds the same changes nothing.
	keep := map[string]bool{}
	p.cache.Each(func(key string, value []byte, revision, lease int64) { keep[key] = true })
	p.cache.Retain(keep)
	p.put("vips/v", vipValue("203.0.113.10"))
	p.demand(t, "a list", false, "203.0.113.10")
	// One of another store does.
	p.cache.Retain(map[string]bool{state.Prefix + "settings": true})
	p.put("vips/w", vipValue("203.0.113.11"))
	p.demand(t, "another store", true, "203.0.113.10", "203.0.113.11")
}

// TestAnAddressLingersUntilNoRouterHasIt, whatever happens meanwhile, and then
// goes though nothing of intent changes.
func TestAnAddressLingersUntilNoRouterHasIt(t *testing.T) {
	p := newPlanner()
	address := netip.MustParseAddr("203.0.113.10")
	p.demand(t, "the first", true, "203.0.113.10")
	p.announced[address] = true
	p.delete("vips/v")
	p.plan()
	p.demand(t, "announced", false, "203.0.113.10")
	p.put("claims/dc1-lvs-a/v", claimNone)
	p.demand(t, "announced", false, "203.0.113.10")
	p.put("pools/sbc", `{"scheduler":"wlc"}`)
	p.demand(t, "announced, and its pool changes", true, "203.0.113.10")
	delete(p.announced, address)
	p.flushed = false
	p.demand(t, "routers may have it", false, "203.0.113.10")
	if _, next := p.plan(); next.Sub(p.now) > flushPoll {
		t.Errorf("looks again in %s", next.Sub(p.now))
	}
	p.flushed = true
	p.demand(t, "the settle delay begins", false, "203.0.113.10")
	p.pass(time.Second)
	if _, next := p.plan(); next.Sub(p.now) != time.Second {
		t.Errorf("looks again in %s", next.Sub(p.now))
	}
	p.flushed = false // a router came back, and has not taken all yet
	p.pass(time.Minute)
	p.demand(t, "routers may have it", false, "203.0.113.10")
	p.flushed = true
	p.demand(t, "the settle delay begins anew", false, "203.0.113.10")
	p.pass(2 * time.Second)
	p.demand(t, "let go", true)
	p.demand(t, "gone", false)

	p.put("vips/v", vipValue("203.0.113.10"))
	p.demand(t, "put again", true, "203.0.113.10")
	p.delete("vips/v")
	p.demand(t, "deleted again", false, "203.0.113.10")
	p.put("vips/v", vipValue("203.0.113.10"))
	p.demand(t, "back before it was gone", false, "203.0.113.10")
	p.pass(time.Hour)
	p.demand(t, "stays", false, "203.0.113.10")
}

// TestLingeringAddressesKeepTheirOwnServices: two may have left the same VIP, with
// other services at the time of each.
func TestLingeringAddressesKeepTheirOwnServices(t *testing.T) {
	p := newPlanner()
	const v = `{"addresses":[%s],"services":[{"protocol":"tcp","port":%d,"pool":"sbc"}],"groups":{"dc1":"dc1-edge1"}}`
	p.put("vips/v", fmt.Sprintf(v, `"203.0.113.10","203.0.113.11","203.0.113.12"`, 5060))
	p.plan()
	p.flushed = false
	p.put("vips/v", fmt.Sprintf(v, `"203.0.113.11","203.0.113.12"`, 5061))
	p.plan()
	p.put("vips/v", fmt.Sprintf(v, `"203.0.113.12"`, 5062))
	for range 50 { // maps have no order
		p.plan()
	}
	var got []string
	for k := range p.wanted.host.Services {
		got = append(got, k.String())
	}
	slices.Sort(got)
	want := []string{"service tcp 203.0.113.10:5060", "service tcp 203.0.113.11:5061", "service tcp 203.0.113.12:5062"}
	if !slices.Equal(got, want) || p.plans != 3 {
		t.Errorf("%d plans, the last with %q", p.plans, got)
	}
}

// TestAnAddressThatComesBackIsNotReady before the kernel has it again.
func TestAnAddressThatComesBackIsNotReady(t *testing.T) {
	p := newPlanner()
	address := netip.MustParseAddr("203.0.113.10")
	p.plan()
	p.ready[address] = true
	p.put("settings", `{"settle":"0s"}`)
	p.demand(t, "other settings", false, "203.0.113.10")
	p.flushed = false
	p.delete("vips/v")
	p.plan()
	p.put("vips/v", vipValue("203.0.113.10"))
	p.demand(t, "back before it was gone", false, "203.0.113.10")
	if !p.ready[address] {
		t.Error("not ready, though it never left the kernel's plan")
	}
	p.flushed = true
	p.delete("vips/v")
	p.demand(t, "deleted", true)
	p.put("vips/v", vipValue("203.0.113.10"))
	p.demand(t, "put again", true, "203.0.113.10")
	if p.ready[address] {
		t.Error("ready by what was heard before it went")
	}
}

// TestTheSnapshotOnDiskAndThenEtcd: what was served before lingers, though intent
// is the same from the first look on.
func TestTheSnapshotOnDiskAndThenEtcd(t *testing.T) {
	p := newPlanner()
	old := state.NewCache()
	old.Put(state.Prefix+"vips/w", []byte(vipValue("203.0.113.11")), 1, 0)
	p.before = old.Snapshot().VIPs
	p.remember()
	p.flushed = false
	p.demand(t, "the disk's", true, "203.0.113.10", "203.0.113.11")
	p.put("claims/dc1-lvs-a/v", claimNone)
	p.demand(t, "etcd's", false, "203.0.113.10", "203.0.113.11")
	p.flushed = true
	p.plan()
	p.pass(2 * time.Second)
	p.demand(t, "let go", true, "203.0.113.10")
}

// TestPlansMadeAnewOrNot: whatever happens, the plan is the one that a loop has
// which makes it anew every time.
func TestPlansMadeAnewOrNot(t *testing.T) {
	values := map[string][]string{
		"settings":        {`{"settle":"2s"}`, `{"settle":"1s","resync_interval":"7s"}`, `{`},
		"pools/sbc":       {poolValue, `{"scheduler":"wlc","weights":{"local":7,"remote":1}}`},
		"backends/sbc/b1": {backendValue, `{"site":"dc2","address":"10.1.1.21"}`, `{"site":"dc1","address":"10.1.1.22"}`, `{`},
		"backends/sbc/b2": {`{"site":"dc1","address":"10.1.1.22"}`, `{"site":"dc2","address":"10.1.1.22"}`, `{"site":"dc9","address":"10.1.1.22"}`},
		"vips/v":          {vipValue("203.0.113.10"), vipValue("203.0.113.10", "203.0.113.11"), vipValue("203.0.113.12"), `{`},
		"vips/w":          {vipValue("203.0.113.11"), vipValue("203.0.113.12", "203.0.113.13")},
		"nodes/dc2-lvs-a": {
			`{"machine_id":"m","site":"dc2","group":"dc2-edge1","ipv4":"192.0.2.21","sync_address":"169.254.3.4"}`,
			`{"machine_id":"m","site":"dc2","group":"dc2-edge1","ipv4":"203.0.113.12","sync_address":"169.254.3.4"}`,
		},
		"target_state/v":     {"dc1", "dc2", "dc9"},
		"claims/dc1-lvs-a/v": {claim100, claimNone, "{"},
		"claims/dc2-lvs-a/v": {claim100, claimNone},
		"owners/dc1/v":       {`{"node":"dc1-lvs-a"}`},
	}
	keys := slices.Sorted(maps.Keys(values))
	addresses := []string{"203.0.113.10", "203.0.113.11", "203.0.113.12", "203.0.113.13"}
	rapid.Check(t, func(t *rapid.T) {
		p, anew := newPlanner(), newPlanner()
		both := []*planner{p, anew}
		if rapid.Bool().Draw(t, "disk") {
			old := state.NewCache()
			old.Put(state.Prefix+"vips/v", []byte(vipValue(addresses[:3]...)), 1, 0)
			for _, p := range both {
				p.before = old.Snapshot().VIPs
				p.remember()
			}
		}
		change := func(t *rapid.T) {
			key := rapid.SampledFrom(keys).Draw(t, "key")
			value := rapid.SampledFrom(append(values[key], "")).Draw(t, "value")
			for _, p := range both {
				if value == "" {
					p.delete(key)
				} else {
					p.put(key, value)
				}
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"change": change, "change more": change,
			"the fact alone": func(t *rapid.T) {
				value := rapid.SampledFrom(values["target_state/v"]).Draw(t, "target")
				for _, p := range both {
					p.put("target_state/v", value)
				}
			},
			"list": func(t *rapid.T) {
				keep := map[string]bool{}
				for _, key := range rapid.SliceOf(rapid.SampledFrom(keys)).Draw(t, "keep") {
					keep[state.Prefix+key] = true
				}
				for _, p := range both {
					p.cache.Retain(keep)
				}
			},
			"announce": func(t *rapid.T) {
				a := netip.MustParseAddr(rapid.SampledFrom(addresses).Draw(t, "address"))
				on := rapid.Bool().Draw(t, "on")
				for _, p := range both {
					p.announced[a] = on
				}
			},
			"flush": func(t *rapid.T) {
				on := rapid.Bool().Draw(t, "on")
				p.flushed, anew.flushed = on, on
			},
			"time": func(t *rapid.T) {
				d := time.Duration(rapid.IntRange(1, 3000).Draw(t, "ms")) * time.Millisecond
				p.pass(d)
				anew.pass(d)
			},
			"": func(t *rapid.T) {
				anew.planned = nil
				got, next := p.plan()
				want, wantNext := anew.plan()
				if !reflect.DeepEqual(got, want) || p.wanted.resync != anew.wanted.resync || !next.Equal(wantNext) {
					t.Fatalf("again in %s, every %s, with\n%+v\nanew: again in %s, every %s, with\n%+v",
						next.Sub(p.now), p.wanted.resync, got, wantNext.Sub(p.now), anew.wanted.resync, want)
				}
				if p.plans != anew.plans {
					t.Fatalf("%d plans, anew %d", p.plans, anew.plans)
				}
			},
		})
	})
}
