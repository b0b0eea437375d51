package operation

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// Contents is all that is stored, typed, with the keys as they stand.
type Contents struct {
	*state.Snapshot
	// Said is what nodes said last of themselves, without what can't be read.
	Said    []*medwayv1.Status
	Entries map[string]store.Entry
}

// Load reads all that agents and people look at.
func Load(ctx context.Context, client *store.Client) (*Contents, error) {
	entries, revision, err := client.List(ctx, state.Prefix)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", state.Prefix, err)
	}
	have := &Contents{Entries: map[string]store.Entry{}}
	cache := state.NewCache()
	for _, e := range entries {
		have.Entries[e.Key] = e
		cache.Put(e.Key, e.Value, e.ModRevision, e.Lease)
	}
	cache.SetRevision(revision)
	entries, _, err = client.List(ctx, state.StatusPrefix)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", state.StatusPrefix, err)
	}
	have.Snapshot = cache.Snapshot()
	var more []state.Fault
	for _, e := range entries {
		have.Entries[e.Key] = e
		s, err := state.DecodeStatus(e.Value)
		if err != nil {
			// One bad value should not hide what the other nodes say.
			more = append(more, state.Fault{Key: state.Printable(e.Key), Reason: err.Error()})
			continue
		}
		have.Said = append(have.Said, s)
	}
	for _, trouble := range client.Troubles() {
		more = append(more, state.Fault{Key: "etcd", Reason: trouble, Notice: true})
	}
	have.Faults = slices.Concat(have.Faults, more, Elsewhere(have.Snapshot, have.Said))
	return have, nil
}

// Elsewhere tells of VIPs that no living node of their target site announces, while
// another site carries their traffic.
func Elsewhere(s *state.Snapshot, nodes []*medwayv1.Status) (notices []state.Fault) {
	for _, vip := range slices.Sorted(maps.Keys(s.Targets)) {
		site, served, carrier, lowest := s.Targets[vip].Site, false, "", uint32(math.MaxUint32)
		for _, n := range nodes {
			_, alive := s.Alive[n.Node]
			for _, v := range n.Vips {
				switch {
				case !alive || v.Vip != vip || v.Med == nil:
				case n.Site == site:
					served = true
				case *v.Med < lowest:
					carrier, lowest = n.Node, *v.Med
				}
			}
		}
		if !served && carrier != "" {
			notices = append(notices, state.Fault{
				Key: state.Key{Kind: state.KindTarget, A: vip}.String(), Notice: true,
				Reason: fmt.Sprintf("no living node of %s announces it: the traffic goes to %s, MED %d, once routers have dropped the routes of %s", site, carrier, lowest, site),
			})
		}
	}
	return notices
}

// intent is what agents look at, by key.
func (h *Contents) intent() (entries []store.Entry) {
	for _, key := range slices.Sorted(maps.Keys(h.Entries)) {
		if strings.HasPrefix(key, state.Prefix) {
			entries = append(entries, h.Entries[key])
		}
	}
	return entries
}

// Has tells whether a key exists, whatever its value.
func (h *Contents) Has(k state.Key) bool {
	_, found := h.Entries[k.String()]
	return found
}

// NodeNames are all nodes that anything is known of.
func NodeNames(s *state.Snapshot, nodes []*medwayv1.Status) []string {
	names := map[string]bool{}
	add(names, s.Nodes)
	add(names, s.Alive)
	add(names, s.Drains)
	add(names, s.Joined)
	for k := range s.Claims {
		names[k.Node] = true
	}
	for _, n := range nodes {
		names[n.Node] = true
	}
	return slices.Sorted(maps.Keys(names))
}

func add[V any](names map[string]bool, of map[string]V) {
	for name := range of {
		names[name] = true
	}
}

// knowsNode tells whether anything is known of a node.
func (h *Contents) knowsNode(name string) bool {
	return slices.Contains(NodeNames(h.Snapshot, h.Said), name)
}

func unknownNode(name string) error {
	return Unknown("node", name, "node %s does not exist", state.Quote(name))
}

// checkVIP says whether a VIP is in the plan.
func (h *Contents) checkVIP(name string) error {
	if _, ok := h.VIPs[name]; ok {
		return nil
	}
	if h.Has(state.Key{Kind: state.KindVIP, A: name}) {
		return refuse(ErrPrecondition, "VIP %q: its key can't be read: see medwayctl status", name)
	}
	return unknownVIP(name)
}

func unknownVIP(name string) error {
	return Unknown("vip", name, "VIP %s does not exist", state.Quote(name))
}

// checkSchema holds back a kind of key that a node doesn't know.
func (h *Contents) checkSchema(since uint32, nodes ...string) error {
	for _, name := range nodes {
		if n := h.Nodes[name]; n.Schema < since {
			return refuse(ErrPrecondition, "node %s knows schema %d, expected %d: upgrade its agent first", name, n.Schema, since)
		}
	}
	return nil
}

// ableIn tells whether a node of a site, other than the one named, could take a
// VIP's traffic.
func (h *Contents) ableIn(site, vip, other string) bool {
	return slices.ContainsFunc(h.NodesOf(site, h.VIPs[vip].Groups[site]), func(n string) bool {
		return n != other && plan.Able(h.Snapshot, n, vip)
	})
}

// ableAnywhere is ableIn of all sites.
func (h *Contents) ableAnywhere(vip, other string) bool {
	for site := range h.VIPs[vip].Groups {
		if h.ableIn(site, vip, other) {
			return true
		}
	}
	return false
}
