package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/medway-lb/medway/pkg/state"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// document is what `status -o json` prints: all that the table shows.
type document struct {
	Revision int64             `json:"revision"`
	VIPs     []vipDocument     `json:"vips"`
	Alive    []string          `json:"alive"` // the nodes that hold their lease
	Nodes    []json.RawMessage `json:"nodes"` // what each said last of itself
	Faults   []faultDocument   `json:"faults"`
	Notices  []faultDocument   `json:"notices"`
}

type vipDocument struct {
	VIP    string        `json:"vip"`
	Target string        `json:"target"`
	Lock   *lockDocument `json:"lock,omitempty"`
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

func writeJSON(out io.Writer, s *state.Snapshot, nodes []*medwayv1.Status, only []string) error {
	d := document{
		Revision: s.Revision, VIPs: []vipDocument{}, Alive: slices.AppendSeq([]string{}, maps.Keys(s.Alive)),
		Nodes: []json.RawMessage{}, Faults: []faultDocument{}, Notices: []faultDocument{},
	}
	slices.Sort(d.Alive)
	shown := func(vip string) bool { return len(only) == 0 || slices.Contains(only, vip) }
	for _, vip := range vipNames(s, nodes) {
		if !shown(vip) {
			continue
		}
		v := vipDocument{VIP: vip, Target: s.Targets[vip].Site}
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
	text, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "%s\n", text)
	return err
}
