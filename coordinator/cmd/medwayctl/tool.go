package main

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/medway-lb/medway/coordinator/internal/operation"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
	"github.com/medway-lb/medway/proto/medway/v1/medwayv1connect"
)

// tool is the two ways on which everything is done: a coordinator is asked, or with
// --etcd it is done here, straight on etcd.
type tool struct {
	connection // to etcd
	api        coordinators
	etcd       bool
	client     *store.Client // once it is open
}

// store is etcd, which is open until the command ends.
func (t *tool) store() (*store.Client, error) {
	if t.client == nil {
		client, err := t.open()
		if err != nil {
			return nil, err
		}
		t.client = client
	}
	return t.client, nil
}

func (t *tool) close() {
	if t.client != nil {
		t.client.Close()
		t.client = nil
	}
}

// onlyByCoordinator refuses what takes a coordinator.
func (t *tool) onlyByCoordinator(what string) error {
	if t.etcd {
		return errors.New(what + " takes a coordinator: not with --etcd")
	}
	return nil
}

// picture is all that is known at a moment.
type picture struct {
	*operation.Contents
	// Switchovers are the last ones by VIP, evacuations by site.
	switchovers map[string]*medwayv1.Switchover
	evacuations map[string]*medwayv1.Evacuation
}

// look reads everything.
func (t *tool) look(ctx context.Context) (*picture, error) {
	if t.etcd {
		ctx, cancel := context.WithTimeout(ctx, t.timeout)
		defer cancel()
		return t.lookAtEtcd(ctx)
	}
	all, err := ask(ctx, t, true, medwayv1connect.CoordinatorClient.GetState, &medwayv1.GetStateRequest{})
	if err != nil {
		return nil, err
	}
	return pictureOf(all), nil
}

func (t *tool) lookAtEtcd(ctx context.Context) (*picture, error) {
	client, err := t.store()
	if err != nil {
		return nil, err
	}
	p := &picture{switchovers: map[string]*medwayv1.Switchover{}, evacuations: map[string]*medwayv1.Evacuation{}}
	if p.Contents, err = operation.Load(ctx, client); err != nil {
		return nil, err
	}
	err = cmp.Or(
		readRecords(ctx, client, state.SwitchoverPrefix, p.switchovers, func() *medwayv1.Switchover { return &medwayv1.Switchover{} }),
		readRecords(ctx, client, state.EvacuationPrefix, p.evacuations, func() *medwayv1.Evacuation { return &medwayv1.Evacuation{} }))
	return p, err
}

// readRecords reads what coordinators keep; what can't be read is left out, as a node's
// user may not, and what is newer than this tool is shown as far as it is known.
func readRecords[M proto.Message](ctx context.Context, client *store.Client, prefix string, into map[string]M, fresh func() M) error {
	entries, _, err := client.List(ctx, prefix)
	for _, e := range entries {
		m := fresh()
		if (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(e.Value, m) == nil {
			into[strings.TrimPrefix(e.Key, prefix)] = m
		}
	}
	if errors.Is(err, store.ErrDenied) {
		return nil
	}
	return err
}

// pictureOf is what a coordinator tells, in the form in which etcd is read.
func pictureOf(all *medwayv1.GetStateResponse) *picture {
	have := &operation.Contents{Entries: map[string]store.Entry{}}
	cache := state.NewCache()
	for name, s := range all.Stored {
		e := store.Entry{Key: state.Prefix + name, Value: []byte(s.Value), ModRevision: s.Revision, Lease: s.Lease}
		have.Entries[e.Key] = e
		cache.Put(e.Key, e.Value, e.ModRevision, e.Lease)
	}
	cache.SetRevision(all.Revision)
	have.Snapshot = cache.Snapshot()
	for _, name := range slices.Sorted(maps.Keys(all.Nodes)) {
		have.Entries[state.StatusPrefix+name] = store.Entry{Key: state.StatusPrefix + name}
		have.Said = append(have.Said, newest(all.Nodes[name], all.Live[name].GetStatus()))
	}
	// They are of the coordinator, which knows more than can be seen from here.
	have.Faults = nil
	for _, f := range all.Faults {
		have.Faults = append(have.Faults, state.Fault{Key: f.Subject, Reason: f.Reason})
	}
	for _, f := range all.Notices {
		have.Faults = append(have.Faults, state.Fault{Key: f.Subject, Reason: f.Reason, Notice: true})
	}
	return &picture{have, all.Switchovers, all.Evacuations}
}

// newest is what a node told a coordinator, unless what it has written since is newer.
func newest(written, told *medwayv1.Status) *medwayv1.Status {
	if told == nil || told.Node != written.Node || told.Updated < written.Updated {
		return written
	}
	return told
}
