package api

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"connectrpc.com/connect"

	"github.com/medway-lb/medway/coordinator/internal/auth"
	"github.com/medway-lb/medway/coordinator/internal/operation"
	"github.com/medway-lb/medway/coordinator/internal/switchover"
	"github.com/medway-lb/medway/pkg/state"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// GetState tells everything.
func (s *Server) GetState(ctx context.Context, _ *connect.Request[medwayv1.GetStateRequest]) (*connect.Response[medwayv1.GetStateResponse], error) {
	_, out, err := s.Look(ctx)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(out), nil
}

// Look is GetState, and the same as typed values.
func (s *Server) Look(ctx context.Context) (*operation.Contents, *medwayv1.GetStateResponse, error) {
	if _, err := may(ctx, auth.Viewer, ""); err != nil {
		return nil, nil, err
	}
	have, err := s.load(ctx)
	if err != nil {
		return nil, nil, err
	}
	out := &medwayv1.GetStateResponse{
		Revision: have.Revision, Stored: map[string]*medwayv1.Stored{}, Nodes: map[string]*medwayv1.Status{},
		Switchovers: map[string]*medwayv1.Switchover{}, Evacuations: map[string]*medwayv1.Evacuation{},
	}
	for key, e := range have.Entries {
		if name, ok := strings.CutPrefix(key, state.Prefix); ok {
			out.Stored[valid(name)] = &medwayv1.Stored{Value: valid(string(e.Value)), Revision: e.ModRevision}
		}
	}
	for _, n := range have.Said {
		out.Nodes[n.Node] = n
	}
	if s.config.Live != nil {
		out.Live = s.config.Live()
	}
	faults := have.Faults
	fault := func(key string, err error) {
		faults = append(faults, state.Fault{Key: state.Printable(key), Reason: err.Error()})
	}
	ctx, cancel := context.WithTimeout(ctx, etcdTime)
	defer cancel()
	entries, _, err := s.config.Store.List(ctx, state.SwitchoverPrefix)
	if err != nil {
		return nil, nil, unavailable(err)
	}
	for _, e := range entries {
		if r, err := switchover.Decode(e); err != nil {
			fault(e.Key, err)
		} else {
			out.Switchovers[strings.TrimPrefix(e.Key, state.SwitchoverPrefix)] = r
		}
	}
	if entries, _, err = s.config.Store.List(ctx, state.EvacuationPrefix); err != nil {
		return nil, nil, unavailable(err)
	}
	for _, e := range entries {
		if r, err := switchover.DecodeEvacuation(e); err != nil {
			fault(e.Key, err)
		} else {
			out.Evacuations[strings.TrimPrefix(e.Key, state.EvacuationPrefix)] = r
		}
	}
	for _, f := range faults {
		told := &medwayv1.Fault{Subject: f.Key, Reason: f.Reason}
		if f.Notice {
			out.Notices = append(out.Notices, told)
		} else {
			out.Faults = append(out.Faults, told)
		}
	}
	return have, out, nil
}

// valid is text as a protobuf string may hold it: UTF-8.
func valid(text string) string { return strings.ToValidUTF8(text, "\ufffd") }

const defaultEvents = 50

// GetHistory tells what was done.
func (s *Server) GetHistory(ctx context.Context, r *connect.Request[medwayv1.GetHistoryRequest]) (*connect.Response[medwayv1.GetHistoryResponse], error) {
	if _, err := may(ctx, auth.Viewer, ""); err != nil {
		return nil, err
	}
	prefixes := []string{state.HistoryPrefix}
	if vip := r.Msg.Vip; vip != "" {
		if state.CheckName(vip) != nil {
			return nil, problem(invalid("vip", vip, "the name of a VIP"))
		}
		prefixes = []string{state.HistoryOf(vip), state.HistoryOf("")}
	}
	ctx, cancel := context.WithTimeout(ctx, etcdTime)
	defer cancel()
	out := &medwayv1.GetHistoryResponse{}
	for _, prefix := range prefixes {
		entries, _, err := s.config.Store.List(ctx, prefix)
		if err != nil {
			return nil, unavailable(err)
		}
		for _, e := range entries {
			vip, _, err := state.ParseHistoryKey(e.Key)
			if err != nil {
				continue // no event; who lists the keys sees it
			}
			event, err := state.DecodeEvent(e.Value)
			if err != nil {
				event = &medwayv1.Event{What: "can't be read: " + err.Error()}
			}
			event.At = e.Key[strings.LastIndexByte(e.Key, '/')+1:]
			out.Events = append(out.Events, &medwayv1.PastEvent{Vip: vip, Event: event})
		}
	}
	slices.SortStableFunc(out.Events, func(a, b *medwayv1.PastEvent) int {
		return cmp.Or(cmp.Compare(a.Event.At, b.Event.At), cmp.Compare(a.Vip, b.Vip))
	})
	if most := int(cmp.Or(r.Msg.Last, defaultEvents)); len(out.Events) > most {
		out.Events = out.Events[len(out.Events)-most:]
	}
	return connect.NewResponse(out), nil
}
