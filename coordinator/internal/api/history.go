package api

import (
	"cmp"
	"context"
	"time"

	"connectrpc.com/connect"

	"github.com/medway-lb/medway/coordinator/internal/auth"
	"github.com/medway-lb/medway/coordinator/internal/operation"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

const (
	defaultEvents = 50
	maxEvents     = 1000
)

// GetHistory tells what was done, a page of it.
func (s *Server) GetHistory(ctx context.Context, r *connect.Request[medwayv1.GetHistoryRequest]) (*connect.Response[medwayv1.GetHistoryResponse], error) {
	if _, err := may(ctx, auth.Viewer, ""); err != nil {
		return nil, err
	}
	before, err := operation.ParseMark(r.Msg.PageToken)
	if err != nil {
		return nil, problem(err)
	}
	ctx, cancel := context.WithTimeout(ctx, etcdTime)
	defer cancel()
	history, err := s.openHistory(ctx, r.Msg.Vip)
	if err != nil {
		return nil, reading(err)
	}
	page, next, err := history.Page(ctx, before, int(min(cmp.Or(r.Msg.Last, defaultEvents), maxEvents)))
	if err != nil {
		return nil, reading(err)
	}
	out := &medwayv1.GetHistoryResponse{NextPageToken: next.String()}
	for _, p := range page {
		if event := past(p); event != nil {
			out.Events = append(out.Events, event)
		}
	}
	return connect.NewResponse(out), nil
}

// ExportHistory tells all that was done.
func (s *Server) ExportHistory(ctx context.Context, r *connect.Request[medwayv1.ExportHistoryRequest], stream *connect.ServerStream[medwayv1.PastEvent]) error {
	who, err := may(ctx, auth.Viewer, "")
	if err != nil {
		return err
	}
	var since time.Time
	if text := r.Msg.Since; text != "" {
		if since, err = time.Parse(time.RFC3339, text); err != nil {
			return problem(invalid("since", text, "a time such as 2026-01-31T00:00:00Z"))
		}
	}
	history, err := s.openHistory(ctx, r.Msg.Vip)
	if err != nil {
		return reading(err)
	}
	for p, err := range history.Since(ctx, since) {
		if err == nil {
			err = s.still(who, auth.Viewer)
		}
		if err != nil {
			return reading(err)
		}
		if event := past(p); event != nil {
			if err := stream.Send(event); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Server) openHistory(ctx context.Context, vip string) (*operation.History, error) {
	h, err := operation.OpenHistory(ctx, s.config.Store, vip)
	if err != nil {
		return nil, err
	}
	return h, h.CheckVIP(ctx)
}

// past is an event as it is told; nil where the key is no event's: who lists the keys
// sees it.
func past(p operation.Past) *medwayv1.PastEvent {
	switch {
	case p.At.IsZero():
		return nil
	case p.Err != nil:
		p.Event = &medwayv1.Event{What: "can't be read: " + p.Err.Error()}
	}
	p.Event.At = p.Stamp()
	return &medwayv1.PastEvent{Vip: p.VIP, Event: p.Event}
}

// reading gives an error of reading etcd its code.
func reading(err error) error {
	if out := problem(err); connect.CodeOf(out) != connect.CodeInternal {
		return out
	}
	return unavailable(err)
}
