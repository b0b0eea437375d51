package api

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/zap"

	"github.com/medway-lb/medway/coordinator/internal/auth"
	"github.com/medway-lb/medway/coordinator/internal/operation"
	"github.com/medway-lb/medway/coordinator/internal/switchover"
	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/state"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

func checkNames(names []string) (out []plan.CheckName) {
	for _, name := range names {
		out = append(out, plan.CheckName(name))
	}
	return out
}

func order(r *medwayv1.SwitchRequest, who auth.Identity) (switchover.Order, error) {
	o := switchover.Order{VIP: r.Vip, From: r.From, To: r.To, By: who.Name, Address: who.Address, Reason: r.Reason, Force: checkNames(r.Force)}
	switch within, err := time.ParseDuration(r.DrainWithin); {
	case r.DrainWithin == "" && r.Drain:
		o.Drain = switchover.DefaultDrain
	case r.DrainWithin == "":
	case err != nil || within <= 0:
		return o, invalid("drain_within", r.DrainWithin, "a duration such as 30m")
	case !r.Drain:
		return o, invalid("drain_within", r.DrainWithin, "drain beside it")
	default:
		o.Drain = within
	}
	return o, nil
}

// Preflight looks whether a switchover would be carried out.
func (s *Server) Preflight(ctx context.Context, r *connect.Request[medwayv1.SwitchRequest]) (*connect.Response[medwayv1.PreflightResponse], error) {
	who, err := may(ctx, auth.Viewer, r.Msg.Vip)
	if err != nil {
		return nil, err
	}
	o, err := order(r.Msg, who)
	if err != nil {
		return nil, problem(err)
	}
	checks, err := s.config.Engine.Preflight(ctx, o)
	if err != nil {
		return nil, problem(err)
	}
	return connect.NewResponse(&medwayv1.PreflightResponse{
		Checks: switchover.ChecksOf(checks, o.Force), Ok: len(plan.Refusing(checks, o.Force)) == 0,
	}), nil
}

// refused tells the history of an order that a preflight has refused. Whoever gave it
// hears of that in any case.
func (s *Server) refused(ctx context.Context, vip string, author operation.Author, event *medwayv1.Event, why error) {
	var refused *switchover.RefusedError
	if !errors.As(why, &refused) {
		return
	}
	const most = 500 // bytes
	event.Result = state.Line(why.Error())
	if len(event.Result) > most {
		event.Result = strings.ToValidUTF8(event.Result[:most], "") + "..."
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), etcdTime)
	defer cancel()
	if err := operation.Tell(ctx, s.config.Store, vip, author, event); err != nil {
		s.log.Warn("can't tell the history of what was refused", zap.String("by", author.By), zap.Error(err))
	}
}

// Switch begins a planned switchover.
func (s *Server) Switch(ctx context.Context, r *connect.Request[medwayv1.SwitchRequest]) (*connect.Response[medwayv1.Switchover], error) {
	who, err := may(ctx, auth.Operator, r.Msg.Vip)
	if err != nil {
		return nil, err
	}
	o, err := order(r.Msg, who)
	if err != nil {
		return nil, problem(err)
	}
	if r.Msg.Drain && slices.Contains(o.Force, plan.CheckDrain) { // the backends are other VIPs' too
		if _, err := may(ctx, auth.Operator, ""); err != nil {
			return nil, err
		}
	}
	record, err := s.config.Engine.Start(ctx, o)
	if err != nil {
		s.refused(ctx, r.Msg.Vip, author(who, r.Msg.Reason), &medwayv1.Event{What: "switch", From: r.Msg.From, To: r.Msg.To}, err)
		return nil, problem(err)
	}
	s.log.Info("a switchover begins", zap.String("vip", r.Msg.Vip), zap.String("from", r.Msg.From), zap.String("to", r.Msg.To),
		zap.String("by", who.Name), zap.String("reason", r.Msg.Reason), zap.Strings("force", r.Msg.Force))
	return connect.NewResponse(record), nil
}

// Cancel has a switchover go back.
func (s *Server) Cancel(ctx context.Context, r *connect.Request[medwayv1.CancelRequest]) (*connect.Response[medwayv1.CancelResponse], error) {
	who, err := may(ctx, auth.Operator, r.Msg.Vip)
	if err != nil {
		return nil, err
	}
	if err := s.config.Engine.Cancel(ctx, r.Msg.Vip, author(who, r.Msg.Reason)); err != nil {
		return nil, problem(err)
	}
	s.log.Info("a switchover is cancelled", zap.String("vip", r.Msg.Vip), zap.String("by", who.Name), zap.String("reason", r.Msg.Reason))
	return connect.NewResponse(&medwayv1.CancelResponse{}), nil
}

// Evacuate begins to move all VIPs of a site away.
func (s *Server) Evacuate(ctx context.Context, r *connect.Request[medwayv1.EvacuateRequest]) (*connect.Response[medwayv1.Evacuation], error) {
	who, err := may(ctx, auth.Operator, "")
	if err != nil {
		return nil, err
	}
	record, err := s.config.Engine.Evacuate(ctx, switchover.Evacuation{
		Site: r.Msg.Site, To: r.Msg.To, By: who.Name, Address: who.Address, Reason: r.Msg.Reason, Force: checkNames(r.Msg.Force),
	})
	if err != nil {
		s.refused(ctx, "", author(who, r.Msg.Reason), &medwayv1.Event{What: "evacuate " + r.Msg.Site, To: r.Msg.To}, err)
		return nil, problem(err)
	}
	s.log.Info("an evacuation begins", zap.String("site", r.Msg.Site), zap.String("by", who.Name), zap.String("reason", r.Msg.Reason))
	return connect.NewResponse(record), nil
}

// CancelEvacuation stops an evacuation.
func (s *Server) CancelEvacuation(ctx context.Context, r *connect.Request[medwayv1.CancelEvacuationRequest]) (*connect.Response[medwayv1.CancelResponse], error) {
	who, err := may(ctx, auth.Operator, "")
	if err != nil {
		return nil, err
	}
	if err := s.config.Engine.CancelEvacuation(ctx, r.Msg.Site, author(who, r.Msg.Reason)); err != nil {
		return nil, problem(err)
	}
	s.log.Info("an evacuation is cancelled", zap.String("site", r.Msg.Site), zap.String("by", who.Name), zap.String("reason", r.Msg.Reason))
	return connect.NewResponse(&medwayv1.CancelResponse{}), nil
}
