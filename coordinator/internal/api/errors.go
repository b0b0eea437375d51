package api

import (
	"context"
	"errors"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/medway-lb/medway/coordinator/internal/operation"
	"github.com/medway-lb/medway/coordinator/internal/switchover"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// problem gives an error its code, and its details in a form for programs.
func problem(err error) error {
	if err == nil {
		return nil
	}
	var known *connect.Error
	if errors.As(err, &known) {
		return err
	}
	out := connect.NewError(codeOf(err), err)
	for _, f := range fields(err) {
		detail(out, &medwayv1.FieldViolation{Field: f.Field, Found: f.Found, Expected: f.Expected})
	}
	var unknown *operation.UnknownError
	if errors.As(err, &unknown) {
		detail(out, &medwayv1.FieldViolation{Field: unknown.Field, Found: "value " + state.Quote(unknown.Value), Expected: unknown.Expected})
	}
	var refused *switchover.RefusedError
	if errors.As(err, &refused) {
		r := &medwayv1.Refusal{Checks: map[string]*medwayv1.Checks{}}
		for vip, checks := range refused.Checks {
			r.Checks[vip] = &medwayv1.Checks{Checks: switchover.ChecksOf(checks, refused.Force)}
		}
		detail(out, r)
	}
	return out
}

func codeOf(err error) connect.Code {
	var refused *switchover.RefusedError
	switch {
	case errors.Is(err, operation.ErrNotFound):
		return connect.CodeNotFound
	case len(fields(err)) > 0:
		return connect.CodeInvalidArgument
	case errors.Is(err, operation.ErrPrecondition), errors.Is(err, switchover.ErrIdle), errors.As(err, &refused):
		return connect.CodeFailedPrecondition
	case errors.Is(err, operation.ErrPartly), errors.Is(err, operation.ErrUnknownOutcome):
		return connect.CodeUnknown
	case errors.Is(err, operation.ErrConflict):
		return connect.CodeAborted
	case errors.Is(err, switchover.ErrStale):
		return connect.CodeUnavailable
	case errors.Is(err, context.Canceled):
		return connect.CodeCanceled
	case errors.Is(err, store.ErrDenied):
		return connect.CodeInternal // the coordinator's own user lacks a right
	case errors.Is(err, store.ErrRefused):
		return connect.CodeUnavailable
	}
	return connect.CodeInternal
}

// fields are all the fields in an error that are wrong.
func fields(err error) (out []state.FieldError) {
	switch e := err.(type) { //nolint:errorlint // it walks down itself
	case state.FieldError:
		return []state.FieldError{e}
	case interface{ Unwrap() []error }:
		for _, one := range e.Unwrap() {
			out = append(out, fields(one)...)
		}
	case interface{ Unwrap() error }:
		return fields(e.Unwrap())
	}
	return out
}

func detail(e *connect.Error, m proto.Message) {
	if d, err := connect.NewErrorDetail(m); err == nil {
		e.AddDetail(d)
	}
}

// unavailable is an error of reading etcd.
func unavailable(err error) error { return connect.NewError(connect.CodeUnavailable, err) }

func invalid(field, value, expected string) error {
	return state.FieldError{Field: field, Found: "value " + state.Quote(value), Expected: expected}
}
