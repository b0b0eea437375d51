package reconcile

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// Step is a table together with what it should hold.
type Step interface {
	read(ctx context.Context) error
	apply(ctx context.Context, deletions bool, report *Report)
	show(deletions bool) []Edit
}

// Report says what a run did.
type Report struct {
	// Done are the changes that succeeded, in the order in which they were made.
	Done []Edit
	// Failed are the changes (each a *Failure) and reads that did not; the
	// next run tries again.
	Failed []error
}

// Err joins the failures; nil where there is none.
func (r Report) Err() error { return errors.Join(r.Failed...) }

// Failure is a change that could not be made.
type Failure struct {
	Edit
	Err error
}

func (f *Failure) Error() string { return fmt.Sprintf("%s %s: %v", f.Op, f.Key, f.Err) }

// Unwrap returns what the table said.
func (f *Failure) Unwrap() error { return f.Err }

// Bind joins a table to the objects that it should hold. Only objects that
// owned accepts are deleted; nil accepts all that the table reads.
func Bind[K Key, V comparable](table Table[K, V], want map[K]V, owned func(K) bool) Step {
	return &step[K, V]{table: table, want: want, owned: owned}
}

type step[K Key, V comparable] struct {
	table   Table[K, V]
	want    map[K]V
	owned   func(K) bool
	changes []Change[K, V]
}

func (s *step[K, V]) read(ctx context.Context) error {
	have, err := s.table.Read(ctx)
	if err != nil {
		return fmt.Errorf("read %T: %w", s.table, err)
	}
	s.changes = Diff(s.want, have, s.owned)
	return nil
}

func (s *step[K, V]) apply(ctx context.Context, deletions bool, report *Report) {
	for _, c := range s.changes {
		if (c.Op == Delete) != deletions {
			continue
		}
		edit := s.edit(c)
		if err := s.table.Apply(ctx, c); err != nil {
			report.Failed = append(report.Failed, &Failure{edit, err})
			continue
		}
		report.Done = append(report.Done, edit)
	}
}

func (s *step[K, V]) edit(c Change[K, V]) Edit {
	return Edit{Text: s.table.Show(c), Op: c.Op, Key: c.Key.String()}
}

func (s *step[K, V]) show(deletions bool) []Edit {
	var edits []Edit
	for _, c := range s.changes {
		if (c.Op == Delete) == deletions {
			edits = append(edits, s.edit(c))
		}
	}
	return edits
}

// Run brings the tables to what they should hold. It reads and changes one
// table after the other, in the given order, so that what comes later may rest
// on what comes before; deletions come last and in reverse, so that nothing
// loses its ground. A table that can't be read is left alone. One failure does
// not stop the rest.
func Run(ctx context.Context, steps ...Step) Report {
	var report Report
	inOrder(ctx, steps, &report.Failed, func(s Step, deletions bool) { s.apply(ctx, deletions, &report) })
	return report
}

// Preview returns what Run would do now, in its order, and changes nothing.
// What would only show during the run is not in it: that the kernel takes away
// what rests on an object that has to be made anew.
func Preview(ctx context.Context, steps ...Step) ([]Edit, error) {
	var edits []Edit
	var failed []error
	inOrder(ctx, steps, &failed, func(s Step, deletions bool) { edits = append(edits, s.show(deletions)...) })
	return edits, errors.Join(failed...)
}

func inOrder(ctx context.Context, steps []Step, failed *[]error, do func(s Step, deletions bool)) {
	readable := make([]Step, 0, len(steps))
	for _, s := range steps {
		if err := s.read(ctx); err != nil {
			*failed = append(*failed, err)
			continue
		}
		readable = append(readable, s)
		do(s, false)
	}
	for _, s := range slices.Backward(readable) {
		do(s, true)
	}
}
