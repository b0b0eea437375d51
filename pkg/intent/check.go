package intent

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"

	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"
)

// Check refuses objects that would be wrong beside what is stored, such
// as a VIP that names a pool that is nowhere, or another VIP's address, and
// those that a node does not understand yet. It returns what is right but
// should be looked at. reserved are addresses that no VIP may have, as for
// [state.Cache.Reserve].
func Check(entries []store.Entry, revision int64, objects []Object, reserved map[netip.Addr]string) (notices []string, err error) {
	cache := state.NewCache()
	cache.Reserve(reserved)
	for _, e := range entries {
		cache.Put(e.Key, e.Value, e.ModRevision, e.Lease)
	}
	before := map[state.Fault]bool{}
	for _, f := range cache.Snapshot().Faults {
		before[f] = true
	}
	from := map[string]Object{}
	for _, o := range objects {
		from[o.Key.String()] = o
		cache.Put(o.Key.String(), o.Value, revision+1, 0)
	}
	var errs []error
	for _, f := range cache.Snapshot().Faults {
		o, ours := from[f.Key]
		if before[f] && !ours {
			continue // no object of these files can mend it
		}
		text := f.Key + ": " + f.Reason
		if ours {
			field := ""
			if match := faultField.FindStringSubmatch(f.Reason); match != nil {
				field = match[1]
			}
			text = fmt.Sprintf("%s: %s: %s", o.document.Place(field), o, f.Reason)
		}
		if f.Notice {
			notices = append(notices, text)
		} else {
			errs = append(errs, errors.New(text))
		}
	}
	errs = append(errs, checkSchema(entries, objects)...)
	return notices, errors.Join(errs...)
}

// faultField finds the field in a fault's reason.
var faultField = regexp.MustCompile(`^field (\S+): `)

// checkSchema holds back fields that not every node understands: one that does
// not would refuse the whole value. A key that a dead node left behind counts,
// since the node may come back.
func checkSchema(entries []store.Entry, objects []Object) (errs []error) {
	oldest, node := uint32(state.Schema), ""
	for _, e := range entries {
		k, err := state.ParseKey(e.Key)
		if err != nil || k.Kind != state.KindNode {
			continue
		}
		if schema := state.SchemaOf(e.Value); schema < oldest {
			oldest, node = schema, k.A
		}
	}
	for _, o := range objects {
		for _, f := range state.NewerFields(o.Message, oldest) {
			errs = append(errs, fmt.Errorf("%s: %s: field %s needs schema %d; node %s knows %d: upgrade its agent first, or, if the node is gone for good: etcdctl del %s",
				o.document.Place(f.Field), o, f.Field, f.Since, node, oldest, state.Key{Kind: state.KindNode, A: node}))
		}
	}
	return errs
}
