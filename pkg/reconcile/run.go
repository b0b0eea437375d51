package reconcile

import (
	"context"
	"errors"
	"fmt"
)

// Step is a table together with what it should hold.
type Step interface {
	read(ctx context.Context) error
	apply(ctx context.Context, deletions bool, report *Report)
}

// Report says what a run did.
type Report struct {
	// Done are the changes that succeeded, in the order in which they were made.
	Done []string
	// Failed are the changes and reads that did not; the next run tries again.
	Failed []error
}

// Err joins the failures; nil where there is none.
func (r Report) Err() error { return errors.Join(r.Failed...) }

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
		what := fmt.Sprintf("%s %s", c.Op, c.Key)
		if err := s.table.Apply(ctx, c); err != nil {
			report.Failed = append(report.Failed, fmt.Errorf("%s: %w", what, err))
			continue
		}
		report.Done = append(report.Done, what)
	}
}

// Run brings the tables to what they should hold. It reads and changes one
// table after the other, in the given order, so that what comes later may rest
// on what comes before; deletions come last and in reverse, so that nothing
// loses its ground. A table that can't be read is left alone. One failure does
// not stop the rest.
func Run(ctx context.Context, steps ...Step) Report {
	var report Report
	readable := make([]Step, 0, len(steps))
	for _, s := range steps {
		if err := s.read(ctx); err != nil {
			report.Failed = append(report.Failed, err)
			continue
		}
		readable = append(readable, s)
		s.apply(ctx, false, &report)
	}
	for i := len(readable) - 1; i >= 0; i-- {
		readable[i].apply(ctx, true, &report)
	}
	return report
}
