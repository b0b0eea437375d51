package main

import (
	"encoding/json"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/medway-lb/medway/pkg/state"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// document is what `status -o json` prints: all that the table shows.
type document struct {
	Revision int64         `json:"revision"`
	VIPs     []vipDocument `json:"vips"`
	Alive    []string      `json:"alive"` // the nodes that hold their lease
	Cold     []string      `json:"cold"`  // those of them whose connections were lost
	// Drains are by node.
	Drains map[string]*orderDocument `json:"drains"`
	// BackendDrains are by pool/backend.
	BackendDrains map[string]*orderDocument `json:"backend_drains,omitempty"`
	// Pause is that of all VIPs.
	Pause *orderDocument `json:"pause,omitempty"`
	// NotJoined are the nodes that nothing moves for since etcd was restored.
	Epoch     string            `json:"epoch,omitempty"`
	NotJoined []string          `json:"not_joined"`
	Nodes     []json.RawMessage `json:"nodes"` // what each said last of itself
	Faults    []faultDocument   `json:"faults"`
	Notices   []faultDocument   `json:"notices"`
	// The last planned switchover of each VIP, and the last evacuation of each site.
	Switchovers map[string]json.RawMessage `json:"switchovers"`
	Evacuations map[string]json.RawMessage `json:"evacuations"`
}

type vipDocument struct {
	VIP    string `json:"vip"`
	Target string `json:"target"`
	// Automatic is whether it may switch by itself: on, off, locked or paused.
	Automatic string            `json:"automatic"`
	Owners    map[string]string `json:"owners"` // by site
	Lock      *lockDocument     `json:"lock,omitempty"`
	Pause     *orderDocument    `json:"pause,omitempty"`
}

// orderDocument is a drain or a pause; empty where its value can't be read.
type orderDocument struct {
	Since  *time.Time `json:"since,omitempty"`
	By     string     `json:"by,omitempty"`
	Reason string     `json:"reason,omitempty"`
}

func newOrderDocument(o state.Order) *orderDocument {
	d := &orderDocument{By: o.By, Reason: o.Reason}
	if !o.Since.IsZero() {
		d.Since = &o.Since
	}
	return d
}

type lockDocument struct {
	Since  *time.Time `json:"since,omitempty"`
	From   string     `json:"from,omitempty"`
	To     string     `json:"to,omitempty"`
	By     string     `json:"by,omitempty"`
	Reason string     `json:"reason,omitempty"`
}

// faultDocument is a key and what is wrong with it.
type faultDocument struct {
	Key    string `json:"key"`
	Reason string `json:"reason"`
}

func documentOf(p *picture, only []string) document {
	s, nodes := p.Snapshot, p.Said
	d := document{
		Revision: s.Revision, VIPs: []vipDocument{}, Alive: slices.AppendSeq([]string{}, maps.Keys(s.Alive)),
		Cold: []string{}, Drains: map[string]*orderDocument{}, Epoch: s.Epoch.Word, NotJoined: append([]string{}, unjoined(s)...),
		Nodes: []json.RawMessage{}, Faults: []faultDocument{}, Notices: []faultDocument{},
		Switchovers: map[string]json.RawMessage{}, Evacuations: map[string]json.RawMessage{},
	}
	slices.Sort(d.Alive)
	for _, name := range d.Alive {
		if s.Alive[name].Cold {
			d.Cold = append(d.Cold, name)
		}
	}
	for name, o := range s.Drains {
		d.Drains[name] = newOrderDocument(o)
	}
	for k, o := range s.BackendDrains {
		if d.BackendDrains == nil {
			d.BackendDrains = map[string]*orderDocument{}
		}
		d.BackendDrains[k.Pool+"/"+k.Name] = newOrderDocument(o.Order)
	}
	if o, paused := s.Pauses[""]; paused {
		d.Pause = newOrderDocument(o)
	}
	shown := func(vip string) bool { return len(only) == 0 || slices.Contains(only, vip) }
	for _, vip := range vipNames(s, nodes) {
		if !shown(vip) {
			continue
		}
		v := vipDocument{VIP: vip, Target: s.Targets[vip].Site, Automatic: automatic(s, vip), Owners: map[string]string{}}
		for site := range s.VIPs[vip].Groups {
			if o, ok := s.Owner(site, vip); ok {
				v.Owners[site] = o.Node
			}
		}
		if o, paused := s.Pauses[vip]; paused {
			v.Pause = newOrderDocument(o)
		}
		if l, locked := s.Locks[vip]; locked {
			v.Lock = &lockDocument{From: l.From, To: l.To, By: l.By, Reason: l.Reason}
			if !l.Since.IsZero() {
				v.Lock.Since = &l.Since
			}
		}
		d.VIPs = append(d.VIPs, v)
	}
	for _, n := range nodes {
		n = proto.CloneOf(n)
		n.Vips = slices.DeleteFunc(n.Vips, func(v *medwayv1.VIPStatus) bool { return !shown(v.Vip) })
		d.Nodes = append(d.Nodes, state.Encode(n))
	}
	for _, f := range s.Faults {
		list := &d.Faults
		if f.Notice {
			list = &d.Notices
		}
		*list = append(*list, faultDocument{f.Key, f.Reason})
	}
	for vip, r := range p.switchovers {
		if shown(vip) {
			d.Switchovers[vip] = state.Encode(r)
		}
	}
	for site, r := range p.evacuations {
		d.Evacuations[site] = state.Encode(r)
	}
	return d
}
