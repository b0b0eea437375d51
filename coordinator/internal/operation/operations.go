package operation

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/medway-lb/medway/pkg/state"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// Switch puts the target of a VIP, if it is from now; "" as from is any. A lock stays.
func Switch(have *Contents, vip, from, to string) (*Change, error) {
	if err := have.checkVIP(vip); err != nil {
		return nil, err
	}
	groups := have.VIPs[vip].Groups
	if _, ok := groups[to]; !ok {
		return nil, state.FieldError{
			Field: "to", Found: "value " + state.Quote(to),
			Expected: fmt.Sprintf("a site of %s: %s", vip, strings.Join(slices.Sorted(maps.Keys(groups)), ", ")),
		}
	}
	now := "not known" // where the key is wrong, or not there
	if t, ok := have.Targets[vip]; ok {
		now = t.Site
	}
	switch {
	case from != "" && from != now:
		return nil, state.FieldError{Field: "from", Found: "value " + state.Quote(from) + ": the target is " + now}
	case now == to:
		return &Change{Already: fmt.Sprintf("%s: the target is %s already", vip, to), Since: have.Targets[vip].Revision}, nil
	}
	c := &Change{
		vip: vip, event: &medwayv1.Event{What: "switch", From: have.Targets[vip].Site, To: to},
		done: func(revision int64) string {
			return fmt.Sprintf("%s: target %s -> %s at revision %d", vip, now, to, revision)
		},
	}
	if !have.ableIn(to, vip, "") {
		c.note("no node of %s could take it now, by what they say last: dead, drained, cold, unable or without a BGP session; the traffic stays until one can", to)
	}
	if lock, locked := have.Locks[vip]; locked {
		c.note("it stays locked, until medwayctl unlock %s: %s", vip, state.Line(DescribeLock(lock)))
	}
	c.put(have, state.Key{Kind: state.KindTarget, A: vip}, []byte(to))
	return c, nil
}

// Unlock removes the lock that an automatic switchover left.
func Unlock(have *Contents, vip string) (*Change, error) {
	key := state.Key{Kind: state.KindLock, A: vip}
	if !have.Has(key) {
		return nil, cmp.Or(have.checkVIP(vip), refuse(ErrPrecondition, "VIP %s is not locked", state.Quote(vip)))
	}
	c := &Change{
		vip: vip, event: &medwayv1.Event{What: "unlock"},
		done: saying("%s: unlocked, target %s; it was locked: %s", vip, cmp.Or(have.Targets[vip].Site, "-"), state.Line(DescribeLock(have.Locks[vip]))),
	}
	if have.Paused(vip) {
		c.note("it is paused, so nothing is switched automatically yet")
	}
	c.delete(have, key.String())
	return c, nil
}

// fromThen is for what is in force from a revision on.
func fromThen(what string) func(int64) string {
	return func(revision int64) string { return fmt.Sprintf("%s from revision %d on", what, revision) }
}

// pauseOf is the key of a pause, and the words for what it concerns: a VIP, or
// with "" all.
func pauseOf(vip string) (key state.Key, what string) {
	if vip == "" {
		return state.Key{Kind: state.KindPauseAll}, "all VIPs"
	}
	return state.Key{Kind: state.KindPause, A: vip}, vip
}

// Pause forbids automatic switchover of a VIP, or with "" of all.
func Pause(have *Contents, vip string, author Author, now time.Time) (*Change, error) {
	key, what := pauseOf(vip)
	if vip != "" {
		if err := have.checkVIP(vip); err != nil {
			return nil, err
		}
	}
	if err := have.checkSchema(state.OrdersSchema, slices.Sorted(maps.Keys(have.Nodes))...); err != nil {
		return nil, err
	}
	if was, ok := have.Pauses[vip]; ok && !was.Malformed {
		return &Change{Already: fmt.Sprintf("%s: paused already: %s", what, DescribeOrder(was)), Since: have.Entries[key.String()].ModRevision}, nil
	}
	c := &Change{vip: vip, event: &medwayv1.Event{What: "pause"}, done: fromThen(what + ": paused")}
	c.put(have, key, state.Encode(&medwayv1.Pause{Since: now.UTC().Format(time.RFC3339), Reason: author.Reason, By: author.By}))
	return c, nil
}

// Resume takes a pause back; with "" that of all VIPs, and those of single ones stay.
func Resume(have *Contents, vip string) (*Change, error) {
	key, what := pauseOf(vip)
	if !have.Has(key) {
		if vip == "" {
			return nil, refuse(ErrPrecondition, "there is no pause of all VIPs")
		}
		return nil, cmp.Or(have.checkVIP(vip), refuse(ErrPrecondition, "VIP %s is not paused", state.Quote(vip)))
	}
	c := &Change{
		vip: vip, event: &medwayv1.Event{What: "resume"},
		done: saying("%s: resumed; paused %s", what, DescribeOrder(have.Pauses[vip])),
	}
	c.delete(have, key.String())
	if rest := pausedStill(have, vip); rest != "" {
		c.note("paused still: %s", rest)
	}
	return c, nil
}

// pausedStill names the pauses that concern what was resumed and stay.
func pausedStill(have *Contents, resumed string) string {
	if resumed != "" {
		if _, all := have.Pauses[""]; all {
			return "all VIPs"
		}
		return ""
	}
	return ShortList(slices.DeleteFunc(slices.Sorted(maps.Keys(have.Pauses)), func(vip string) bool { return vip == "" }))
}

// DrainKey is where the order to drain a node is stored.
func DrainKey(node string) state.Key { return state.Key{Kind: state.KindDrain, A: node} }

// Drain has a node give its VIPs to others and then announce nothing.
func Drain(have *Contents, node string, author Author, now time.Time) (*Change, error) {
	n, ok := have.Nodes[node]
	if !ok {
		return nil, unknownNode(node)
	}
	if err := have.checkSchema(state.OrdersSchema, node); err != nil {
		return nil, err
	}
	key := DrainKey(node)
	if was, ok := have.Drains[node]; ok {
		return &Change{Already: fmt.Sprintf("%s: drained already: %s", node, DescribeOrder(was)), Since: have.Entries[key.String()].ModRevision}, nil
	}
	var kept []string
	for _, vip := range slices.Sorted(maps.Keys(have.VIPs)) {
		// Another node of the target's site, and otherwise any other node, lets it go.
		needed := have.Targets[vip].Site == n.Site && !have.ableIn(n.Site, vip, node) || !have.ableAnywhere(vip, node)
		if have.VIPs[vip].Groups[n.Site] == n.Group && needed {
			kept = append(kept, vip)
		}
	}
	c := &Change{event: &medwayv1.Event{What: "drain " + node}, done: fromThen(node + ": drained")}
	if _, alive := have.Alive[node]; !alive {
		c.note("it is silent: the drain is for when it is back; if it is gone for good: medwayctl forget %s", node)
	} else if len(kept) > 0 {
		c.note("it goes on with %s until another node can take over, or the target is another site: none can now", ShortList(kept))
	}
	c.put(have, key, state.Encode(&medwayv1.Drain{Since: now.UTC().Format(time.RFC3339), Reason: author.Reason, By: author.By}))
	return c, nil
}

// Undrain takes a drain back.
func Undrain(have *Contents, node string) (*Change, error) {
	key := DrainKey(node)
	if !have.Has(key) {
		if !have.knowsNode(node) {
			return nil, unknownNode(node)
		}
		return nil, refuse(ErrPrecondition, "node %s is not drained", state.Quote(node))
	}
	was, ok := have.Drains[node]
	was.Malformed = !ok
	c := &Change{
		event: &medwayv1.Event{What: "undrain " + node},
		done:  saying("%s: back in service; it was drained: %s", node, DescribeOrder(was)),
	}
	c.delete(have, key.String())
	return c, nil
}

// DescribeLock is a lock in words.
func DescribeLock(l state.Lock) string {
	if l.Malformed {
		return "locked; why can't be read"
	}
	text := "since " + l.Since.UTC().Format(time.RFC3339)
	if l.From != "" || l.To != "" {
		text += fmt.Sprintf(", %s to %s", cmp.Or(l.From, "-"), cmp.Or(l.To, "-"))
	}
	if l.By != "" {
		text += ", by " + l.By
	}
	if l.Reason != "" {
		text += ": " + l.Reason
	}
	return text
}

// DescribeOrder is a drain or a pause in words.
func DescribeOrder(o state.Order) string {
	if o.Malformed {
		return "why can't be read"
	}
	return DescribeLock(state.Lock{Since: o.Since, By: o.By, Reason: o.Reason})
}
