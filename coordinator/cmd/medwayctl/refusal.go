package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	rpc "connectrpc.com/connect"

	"github.com/medway-lb/medway/coordinator/internal/operation"
	"github.com/medway-lb/medway/pkg/state"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// refusal is what a coordinator says that can't be done, in the words of who does it
// straight on etcd.
func refusal(err error) error {
	var c *rpc.Error
	if !errors.As(err, &c) {
		return err
	}
	var wrong []error
	for _, d := range c.Details() {
		m, err := d.Value()
		if err != nil {
			continue
		}
		switch m := m.(type) {
		case *medwayv1.FieldViolation:
			if m.Expected == operation.AnyThatExists {
				continue // the message says it better
			}
			wrong = append(wrong, flagError(state.FieldError{Field: m.Field, Found: m.Found, Expected: m.Expected}))
		case *medwayv1.Refusal:
			return &refusedError{m}
		}
	}
	if len(wrong) > 0 {
		return errors.Join(wrong...)
	}
	text := c.Message()
	var lines []string
	for line := range strings.Lines(text) {
		lines = append(lines, state.Line(strings.TrimSuffix(line, "\n")))
	}
	text = strings.Join(lines, "\n")
	if c.Code() == rpc.CodeUnauthenticated {
		text += ": --token-file, or --cert and --key, say who you are"
	}
	return errors.New(cmp.Or(text, c.Code().String()))
}

// refusedError is a preflight that was not passed. Nothing was written.
type refusedError struct{ *medwayv1.Refusal }

func (e *refusedError) Error() string {
	var names []string
	for vip, checks := range e.Checks {
		for _, c := range refusing(checks.Checks) {
			names = append(names, vip+" "+c.Name)
		}
	}
	slices.Sort(names)
	const most = 10
	if len(names) > most {
		names = append(names[:most], fmt.Sprintf("%d more", len(names)-most))
	}
	return "refused, nothing was written: " + strings.Join(names, ", ") + " (--force CHECK overrides a check, with a reason)"
}

// show is the table of what stands in the way.
func (e *refusedError) show(out io.Writer) error {
	for _, vip := range slices.Sorted(maps.Keys(e.Checks)) {
		fmt.Fprintf(out, "%s: the preflight is not passed\n", state.Printable(vip))
		if err := writeChecks(out, refusing(e.Checks[vip].Checks)); err != nil {
			return err
		}
	}
	return nil
}

func refusing(checks []*medwayv1.Check) []*medwayv1.Check {
	return slices.DeleteFunc(slices.Clone(checks), func(c *medwayv1.Check) bool { return c.Ok || c.Forced })
}

// writeChecks is a line for each check, and for each of its problems.
func writeChecks(out io.Writer, checks []*medwayv1.Check) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "CHECK\tRESULT\tWHAT\tWHERE\tMEND")
	for _, c := range checks {
		result := "refused"
		switch {
		case c.Forced:
			result = "forced"
		case c.Ok && c.Assumed:
			result = "assumed"
		case c.Ok:
			result = "ok"
		}
		problems := c.Problems
		if len(problems) == 0 || c.Note != "" {
			problems = slices.Concat([]*medwayv1.Problem{{What: c.Note}}, problems)
		}
		for i, p := range problems {
			name := c.Name
			if i > 0 {
				name, result = "", ""
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", state.Printable(name), result, orDash(state.Line(p.What)), cell(p.Where), orDash(state.Line(p.Mend)))
		}
	}
	return w.Flush()
}
