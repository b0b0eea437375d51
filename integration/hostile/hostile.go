// Package hostile is a corpus of bad values: what hands, scripts and faults may
// put under medway's keys, and what must become of it. The same cases run
// through the cache of an agent, through a real etcd, as seeds of fuzzing, and
// under calls.
//
// What is legal intent is not in it, however unwise: deleting a VIP, a target
// that is a site of the VIP, a well-formed claim of another node (the rightful
// node undercuts it, and so its MED moves).
package hostile

import (
	"slices"
	"strings"

	"github.com/medway-lb/medway/pkg/state"
)

// Case is one bad value.
type Case struct {
	// Name tells it from every other case.
	Name string
	// Key is the whole key; Value the bytes to put.
	Key   string
	Value []byte
	// Words are what the fault's reason must hold.
	Words []string
	// Effect is what may change beside the fault that is shown.
	Effect Effect
}

// FaultKey is the key as a fault names it.
func (c Case) FaultKey() string { return state.Printable(c.Key) }

// Effect is what a bad value may change, by the protocol.
type Effect string

// The effects. Put by hand, a value also takes a key off its lease.
const (
	// Nothing: no kernel, no announcement, no claim but that a node writes its
	// own key anew.
	Nothing Effect = "nothing"
	// OwnerAbsent: an owner key that can't be read, or is off its lease, counts as
	// absent. Its site elects an owner anew; until then the one that serves goes on,
	// and one of a backup site announces a standby's MED.
	OwnerAbsent Effect = "the owner counts as absent"
	// NoLowering: nobody lowers a MED to or below the line while it stands, since
	// the claim may be any (PROTOCOL R12).
	NoLowering Effect = "no MED is lowered"
)

// Good is one value of the state that the cases are put into.
type Good struct {
	Key, Value string
	// Leased values are bound to a lease.
	Leased bool
}

// Base is a state without a fault: one VIP in two sites, with two LVS nodes and
// two backends in each, as in the lab. Every key of the cases that is of the
// layout is below a name in it, or below no name.
func Base() []Good {
	return []Good{
		{Key: "settings", Value: `{"normalise_after":"3s","settle":"2s"}`},
		{Key: "ladder", Value: `{}`},
		{Key: "pools/sbc", Value: `{"scheduler":"sed","weights":{"local":50000,"remote":2},"thresholds":{"upper":25000,"lower":20000}}`},
		{Key: "backends/sbc/dc1-sbc1", Value: `{"site":"dc1","address":"10.1.0.21"}`},
		{Key: "backends/sbc/dc1-sbc2", Value: `{"site":"dc1","address":"10.1.0.22"}`},
		{Key: "backends/sbc/dc2-sbc1", Value: `{"site":"dc2","address":"10.2.0.21"}`},
		{Key: "backends/sbc/dc2-sbc2", Value: `{"site":"dc2","address":"10.2.0.22"}`},
		{Key: "nodes/dc1-lvs-a", Value: `{"machine_id":"a","site":"dc1","group":"dc1-edge1","ipv4":"10.1.0.11","sync_address":"169.254.1.1","version":"v1","schema":2}`},
		{Key: "nodes/dc1-lvs-b", Value: `{"machine_id":"c","site":"dc1","group":"dc1-edge1","ipv4":"10.1.0.12","sync_address":"169.254.1.3","version":"v1","schema":2}`},
		{Key: "nodes/dc2-lvs-a", Value: `{"machine_id":"b","site":"dc2","group":"dc2-edge1","ipv4":"10.2.0.11","sync_address":"169.254.1.2","version":"v1","schema":2}`},
		{Key: "nodes/dc2-lvs-b", Value: `{"machine_id":"d","site":"dc2","group":"dc2-edge1","ipv4":"10.2.0.12","sync_address":"169.254.1.4","version":"v1","schema":2}`},
		{Key: "vips/sip-1", Value: `{"addresses":["203.0.113.10"],"services":[{"protocol":"tcp","port":5060,"pool":"sbc"}],"groups":{"dc1":"dc1-edge1","dc2":"dc2-edge1"}}`},
		{Key: "target_state/sip-1", Value: `dc1`},
		{Key: "alive/dc1-lvs-a", Value: `{"since":"2024-11-22T17:00:00Z","boot_id":"a","bgp_sessions":1}`, Leased: true},
		{Key: "alive/dc1-lvs-b", Value: `{"since":"2024-11-22T17:00:00Z","boot_id":"c","bgp_sessions":1}`, Leased: true},
		{Key: "alive/dc2-lvs-a", Value: `{"since":"2024-11-22T17:00:00Z","boot_id":"b","bgp_sessions":1}`, Leased: true},
		{Key: "alive/dc2-lvs-b", Value: `{"since":"2024-11-22T17:00:00Z","boot_id":"d","bgp_sessions":1}`, Leased: true},
		{Key: "owners/dc1/sip-1", Value: `{"node":"dc1-lvs-a"}`, Leased: true},
		{Key: "owners/dc2/sip-1", Value: `{"node":"dc2-lvs-a"}`, Leased: true},
		{Key: "claims/dc1-lvs-a/sip-1", Value: `{"med":"100"}`},
		{Key: "claims/dc1-lvs-b/sip-1", Value: `{"med":"none"}`},
		{Key: "claims/dc2-lvs-a/sip-1", Value: `{"med":"none"}`},
		{Key: "claims/dc2-lvs-b/sip-1", Value: `{"med":"none"}`},
	}
}

// Cases is the corpus, in a fixed order, with keys below prefix (state.Prefix).
func Cases() []Case {
	return slices.Concat(forms(), types(), numbers(), durations(), fields(), together(), targets(), keys())
}

// Sample is the part of the corpus that is written by hand and every so many of
// what is generated from the messages: for where one put takes long.
func Sample() []Case {
	generated := slices.Concat(forms(), types(), numbers(), durations())
	var out []Case
	const every = 7
	for i := 0; i < len(generated); i += every {
		out = append(out, generated[i])
	}
	return slices.Concat(out, fields(), together(), targets(), keys())
}

// Etcdctl is how to put the value with etcdctl: arguments, and what to write to
// its standard input, nil for nothing. A key that no argument can hold is not ok.
func (c Case) Etcdctl() (args []string, stdin []byte, ok bool) {
	const longest = 100 << 10 // Linux takes 128 KiB
	if strings.ContainsRune(c.Key, 0) || len(c.Key) > longest {
		return nil, nil, false
	}
	if len(c.Value) == 0 {
		// From an empty standard input etcdctl puts nothing at all.
		return []string{"put", "--", c.Key, ""}, nil, true
	}
	return []string{"put", "--", c.Key}, c.Value, true
}

// effect is what may come of a bad value of a kind of key.
func effect(key string) Effect {
	k, err := state.ParseKey(state.Prefix + key)
	switch {
	case err != nil:
	case k.Kind == state.KindOwner:
		return OwnerAbsent
	case k.Kind == state.KindClaim && !slices.ContainsFunc(Base(), func(g Good) bool { return g.Key == key }):
		return NoLowering
	}
	return Nothing
}

func bad(name, key, value string, words ...string) Case {
	return Case{Name: name, Key: state.Prefix + key, Value: []byte(value), Words: words, Effect: effect(key)}
}
