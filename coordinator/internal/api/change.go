package api

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/zap"

	"github.com/medway-lb/medway/coordinator/internal/auth"
	"github.com/medway-lb/medway/coordinator/internal/operation"
	"github.com/medway-lb/medway/pkg/intent"
	"github.com/medway-lb/medway/pkg/state"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// Apply writes intent.
func (s *Server) Apply(ctx context.Context, r *connect.Request[medwayv1.ApplyRequest]) (*connect.Response[medwayv1.ApplyResponse], error) {
	who, err := may(ctx, auth.Admin, "")
	if err != nil {
		return nil, err
	}
	author := author(who, r.Msg.Reason)
	if err := author.Check(); err != nil {
		return nil, problem(err)
	}
	name := r.Msg.Name
	if name == "" {
		name = "documents"
	}
	if len(name) > 200 || state.Line(name) != name {
		return nil, problem(invalid("name", name, "at most 200 bytes of text that can be printed"))
	}
	objects, err := intent.Parse(name, []byte(r.Msg.Documents))
	if err != nil {
		return nil, wrongIntent(err)
	}
	have, err := s.load(ctx)
	if err != nil {
		return nil, err
	}
	a, err := operation.Apply(have, objects, s.config.Reserved)
	if err != nil {
		return nil, wrongIntent(err)
	}
	if err := a.Expect(r.Msg.Revisions); err != nil {
		return nil, problem(err)
	}
	out := a.Answer()
	if r.Msg.DryRun || len(a.Differs) == 0 {
		return connect.NewResponse(out), nil
	}
	ctx, cancel := context.WithTimeout(ctx, etcdTime)
	defer cancel()
	out.Revision, err = a.Write(ctx, s.config.Store, author)
	s.log.Info("intent was written", zap.String("by", who.Name), zap.Int("objects", len(a.Differs)), zap.Int64("revision", out.Revision), zap.Error(err))
	if err != nil {
		return nil, problem(err)
	}
	return connect.NewResponse(out), nil
}

// wrongIntent tells what is wrong with documents, line by line; of very much the
// beginning.
func wrongIntent(err error) error {
	const most = 50
	lines := strings.SplitN(err.Error(), "\n", most+1)
	if len(lines) > most {
		lines[most] = "and more"
	}
	return connect.NewError(connect.CodeInvalidArgument, errors.New(strings.Join(lines, "\n")))
}

// changing has one change made for who asks.
func (s *Server) changing(ctx context.Context, vip, reason string, dryRun bool, f func(*operation.Contents, operation.Author) (*operation.Change, error)) (*connect.Response[medwayv1.ChangeResponse], error) {
	who, err := may(ctx, auth.Operator, vip)
	if err != nil {
		return nil, err
	}
	author := author(who, reason)
	if err := author.Check(); err != nil {
		return nil, problem(err)
	}
	have, err := s.load(ctx)
	if err != nil {
		return nil, err
	}
	c, err := f(have, author)
	if err != nil {
		return nil, problem(err)
	}
	out := &medwayv1.ChangeResponse{Notes: c.Notes}
	switch {
	case c.Already != "":
		out.Done, out.Revision = c.Already, c.Since
	case dryRun:
		for _, line := range c.Diff() {
			out.Diff = append(out.Diff, valid(line))
		}
	default:
		ctx, cancel := context.WithTimeout(ctx, etcdTime)
		defer cancel()
		if out.Revision, err = c.Commit(ctx, s.config.Store, author); err != nil {
			return nil, problem(err)
		}
		out.Done = c.Done(out.Revision)
		s.log.Info(out.Done, zap.String("by", who.Name), zap.String("reason", reason))
	}
	return connect.NewResponse(out), nil
}

// vipOf is the VIP that a request concerns, "" for all.
func vipOf(r *medwayv1.VIPRequest) (string, error) {
	if r.All == (r.Vip != "") {
		return "", invalid("vip", r.Vip, "a VIP, or all, and not both")
	}
	return r.Vip, nil
}

// reasoned refuses a request without a reason.
func reasoned(reason string) error {
	if strings.TrimSpace(reason) == "" {
		return invalid("reason", reason, "a few words")
	}
	return nil
}

// Unlock removes a lock.
func (s *Server) Unlock(ctx context.Context, r *connect.Request[medwayv1.VIPRequest]) (*connect.Response[medwayv1.ChangeResponse], error) {
	if r.Msg.All || r.Msg.Vip == "" {
		return nil, problem(invalid("vip", r.Msg.Vip, "a VIP: each lock is removed by itself"))
	}
	return s.changing(ctx, r.Msg.Vip, r.Msg.Reason, r.Msg.DryRun, func(have *operation.Contents, _ operation.Author) (*operation.Change, error) {
		return operation.Unlock(have, r.Msg.Vip)
	})
}

// Pause switches nothing automatically for now.
func (s *Server) Pause(ctx context.Context, r *connect.Request[medwayv1.VIPRequest]) (*connect.Response[medwayv1.ChangeResponse], error) {
	vip, err := vipOf(r.Msg)
	if err := errors.Join(err, reasoned(r.Msg.Reason)); err != nil {
		return nil, problem(err)
	}
	return s.changing(ctx, vip, r.Msg.Reason, r.Msg.DryRun, func(have *operation.Contents, a operation.Author) (*operation.Change, error) {
		return operation.Pause(have, vip, a, s.now())
	})
}

// Resume takes a pause back.
func (s *Server) Resume(ctx context.Context, r *connect.Request[medwayv1.VIPRequest]) (*connect.Response[medwayv1.ChangeResponse], error) {
	vip, err := vipOf(r.Msg)
	if err != nil {
		return nil, problem(err)
	}
	return s.changing(ctx, vip, r.Msg.Reason, r.Msg.DryRun, func(have *operation.Contents, _ operation.Author) (*operation.Change, error) {
		return operation.Resume(have, vip)
	})
}

// Drain takes a node out of service.
func (s *Server) Drain(ctx context.Context, r *connect.Request[medwayv1.NodeRequest]) (*connect.Response[medwayv1.ChangeResponse], error) {
	return s.changing(ctx, "", r.Msg.Reason, r.Msg.DryRun, func(have *operation.Contents, a operation.Author) (*operation.Change, error) {
		return operation.Drain(have, r.Msg.Node, a, s.now())
	})
}

// Undrain takes a node back into service.
func (s *Server) Undrain(ctx context.Context, r *connect.Request[medwayv1.NodeRequest]) (*connect.Response[medwayv1.ChangeResponse], error) {
	return s.changing(ctx, "", r.Msg.Reason, r.Msg.DryRun, func(have *operation.Contents, _ operation.Author) (*operation.Change, error) {
		return operation.Undrain(have, r.Msg.Node)
	})
}

// DrainBackend gives a backend no new connections.
func (s *Server) DrainBackend(ctx context.Context, r *connect.Request[medwayv1.BackendRequest]) (*connect.Response[medwayv1.ChangeResponse], error) {
	if r.Msg.Force {
		if err := reasoned(r.Msg.Reason); err != nil {
			return nil, problem(err)
		}
	}
	return s.changing(ctx, "", r.Msg.Reason, r.Msg.DryRun, func(have *operation.Contents, a operation.Author) (*operation.Change, error) {
		return operation.DrainBackend(have, backendOf(r.Msg), a, r.Msg.Force, s.now())
	})
}

// UndrainBackend gives a backend new connections again.
func (s *Server) UndrainBackend(ctx context.Context, r *connect.Request[medwayv1.BackendRequest]) (*connect.Response[medwayv1.ChangeResponse], error) {
	return s.changing(ctx, "", r.Msg.Reason, r.Msg.DryRun, func(have *operation.Contents, _ operation.Author) (*operation.Change, error) {
		return operation.UndrainBackend(have, backendOf(r.Msg))
	})
}

func backendOf(r *medwayv1.BackendRequest) state.BackendKey {
	return state.BackendKey{Pool: r.Pool, Name: r.Backend}
}

// maxKeep is more than any router keeps a dead host's routes.
const maxKeep = time.Hour

// Forget lets go of what a dead node may still announce.
func (s *Server) Forget(ctx context.Context, r *connect.Request[medwayv1.ForgetRequest], stream *connect.ServerStream[medwayv1.ForgetResponse]) error {
	who, err := may(ctx, auth.Admin, "")
	if err != nil {
		return err
	}
	author := author(who, r.Msg.Reason)
	keep := operation.RoutersKeep
	if text := r.Msg.RoutersKeep; text != "" {
		if keep, err = time.ParseDuration(text); err != nil || keep < time.Second || keep > maxKeep {
			return problem(invalid("routers_keep", text, fmt.Sprintf("a duration of 1s to %s", maxKeep)))
		}
	}
	switch err := errors.Join(reasoned(r.Msg.Reason), author.Check()); {
	case err != nil:
		return problem(err)
	case !r.Msg.RoutersChecked:
		return problem(invalid("routers_checked", "false", "true, once somebody has looked: no router has a route of the node's"))
	}
	f := operation.Forgetting{Node: r.Msg.Node, Delete: r.Msg.Delete}
	changes := func() ([]*operation.Change, error) {
		have, err := s.load(ctx)
		if err != nil {
			return nil, err
		}
		return f.Changes(have)
	}
	all, err := changes()
	if err != nil {
		return problem(err)
	}
	if len(all) > 0 {
		report := func(left time.Duration, _ bool) {
			_ = stream.Send(&medwayv1.ForgetResponse{Left: max(0, left).Round(time.Second).String()})
		}
		watching, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		go func() {
			select {
			case <-watching.Done():
			case <-s.stopping:
				cancel(errStopping)
			}
		}()
		// Who may no more do it by then does not.
		if err := f.Watch(watching, s.config.Store, keep, report, func(context.Context) error { return s.still(who, auth.Admin) }); err != nil {
			return problem(err)
		}
		if all, err = changes(); err != nil {
			return problem(err)
		}
	}
	written, err := f.Write(ctx, s.config.Store, all, author, etcdTime)
	if err != nil {
		return problem(err)
	}
	s.log.Info("a node was forgotten", zap.String("node", f.Node), zap.String("by", who.Name), zap.String("reason", r.Msg.Reason), zap.Bool("deleted", f.Delete))
	n := uint32(written)
	return stream.Send(&medwayv1.ForgetResponse{Written: &n})
}
