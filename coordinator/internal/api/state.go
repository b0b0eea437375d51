package api

import (
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
			out.Stored[valid(name)] = &medwayv1.Stored{Value: valid(string(e.Value)), Revision: e.ModRevision, Lease: e.Lease}
		}
	}
	for _, n := range have.Said {
		out.Nodes[n.Node] = n
	}
	if s.config.Live != nil {
		out.Live = s.config.Live()
	}
	faults := slices.Clone(have.Faults)
	if s.config.Own != nil {
		faults = append(faults, s.config.Own()...)
	}
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
