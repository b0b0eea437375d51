package operation

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// Why an operation was not done. What is wrong with a word that a person gave is a
// [state.FieldError].
var (
	// ErrNotFound says that what is named does not exist.
	ErrNotFound = errors.New("it does not exist")
	// ErrPrecondition says that the state of things does not allow it.
	ErrPrecondition = errors.New("it is not possible now")
	// ErrConflict says that somebody else changed the same thing at the same time.
	ErrConflict = errors.New("somebody else changed it at the same time, nothing was written: look again")
	// ErrPartly says that a part was written: what does not fit into one transaction is
	// written in several.
	ErrPartly = errors.New("a part was written")
	// ErrUnknownOutcome says that etcd did not answer: it may have been written.
	ErrUnknownOutcome = errors.New("it is not known whether this was written, look with medwayctl status")
)

// refusal is one of the errors above in other words.
type refusal struct{ kind, text error }

func (r *refusal) Error() string { return r.text.Error() }

func (r *refusal) Unwrap() []error { return []error{r.kind, r.text} }

func refuse(kind error, format string, args ...any) error {
	return &refusal{kind, fmt.Errorf(format, args...)}
}

// UnknownError says that what a field of a request names does not exist: an [ErrNotFound].
type UnknownError struct {
	Field, Value string
	// Expected is what would have been right.
	Expected string

	text string
}

// AnyThatExists is what is expected where there is no more to say than that in words.
const AnyThatExists = "one that exists"

func (e *UnknownError) Error() string { return e.text }

// Is makes it an [ErrNotFound].
func (*UnknownError) Is(target error) bool { return target == ErrNotFound }

// Unknown is an [UnknownError] in words.
func Unknown(field, value, format string, args ...any) error {
	return &UnknownError{field, value, AnyThatExists, fmt.Sprintf(format, args...)}
}

// UnknownBut is an [UnknownError] that says what was expected.
func UnknownBut(field, value, expected string) error {
	return &UnknownError{field, value, expected, fmt.Sprintf("field %s: value %s: expected %s", field, state.Quote(value), expected)}
}

// Author is who does something, why, and from which address; all are for the history.
type Author struct{ By, Reason, Address string }

// Event is something that the author does.
func (a Author) Event(what string) *medwayv1.Event {
	e := &medwayv1.Event{What: what}
	a.sign(e)
	return e
}

// sign makes an event the author's.
func (a Author) sign(e *medwayv1.Event) {
	e.By, e.Reason, e.FromAddress = a.By, a.Reason, a.Address
}

// maxWords is the longest name or reason that is stored, in bytes.
const maxWords = 200

// Check looks at the words, which are stored and shown to others.
func (a Author) Check() error {
	var errs []error
	for _, f := range []struct{ field, value string }{{"by", a.By}, {"reason", a.Reason}} {
		if len(f.value) > maxWords || state.Line(f.value) != f.value {
			errs = append(errs, state.FieldError{
				Field: f.field, Found: "value " + state.Quote(f.value),
				Expected: fmt.Sprintf("at most %d bytes of text that can be printed", maxWords),
			})
		}
	}
	if a.By == "" {
		errs = append(errs, state.FieldError{Field: "by", Found: `value ""`, Expected: "a name"})
	}
	return errors.Join(errs...)
}

// Change is what one transaction does, if every key in it is still as it was read.
type Change struct {
	// Already is why there is nothing to do; nothing else is set then but Since.
	Already string
	// Since is the revision of what was done already.
	Since int64
	// Notes are what whoever does it should know.
	Notes []string

	guards  []store.Guard
	puts    []store.Put
	deletes []string
	// event is told in the history of a VIP, "" for all; nil is none.
	vip   string
	event *medwayv1.Event
	// done is what was done at a revision, in words.
	done func(revision int64) string
}

func (c *Change) guard(have *Contents, key string) {
	c.guards = append(c.guards, store.Guard{Key: key, ModRevision: have.Entries[key].ModRevision})
}

func (c *Change) put(have *Contents, key state.Key, value []byte) {
	c.guard(have, key.String())
	c.puts = append(c.puts, store.Put{Key: key.String(), Value: value})
}

func (c *Change) delete(have *Contents, key string) {
	c.guard(have, key)
	c.deletes = append(c.deletes, key)
}

func (c *Change) note(format string, args ...any) {
	c.Notes = append(c.Notes, fmt.Sprintf(format, args...))
}

// Keys are how many keys it writes or deletes, but for the history.
func (c *Change) Keys() int { return len(c.puts) + len(c.deletes) }

// Diff is what it would do, a line for each key: "+" for a new one, "~" for another
// value, "-" for one that goes.
func (c *Change) Diff() (lines []string) {
	there := map[string]bool{}
	for _, g := range c.guards {
		there[g.Key] = g.ModRevision != 0
	}
	for _, key := range c.deletes {
		lines = append(lines, "- "+state.Printable(key))
	}
	for _, p := range c.puts {
		mark := "+"
		if there[p.Key] {
			mark = "~"
		}
		lines = append(lines, fmt.Sprintf("%s %s: %s", mark, state.Printable(p.Key), p.Value))
	}
	return lines
}

// Done says what was done at a revision.
func (c *Change) Done(revision int64) string { return c.done(revision) }

// saying is for what is done whatever the revision.
func saying(format string, args ...any) func(int64) string {
	text := fmt.Sprintf(format, args...)
	return func(int64) string { return text }
}

// Commit makes a change, together with its event in the history.
func (c *Change) Commit(ctx context.Context, client *store.Client, author Author) (revision int64, err error) {
	guards, puts := c.guards, c.puts
	if c.event != nil {
		author.sign(c.event)
		key, value := state.EncodeEvent(c.vip, time.Now(), c.event)
		guards = append(guards[:len(guards):len(guards)], store.Guard{Key: key})
		puts = append(puts[:len(puts):len(puts)], store.Put{Key: key, Value: value})
	}
	committed, revision, err := client.Commit(ctx, guards, puts, c.deletes)
	switch {
	case errors.Is(err, store.ErrRefused):
		return 0, err
	case err != nil:
		return 0, fmt.Errorf("%w: %w", ErrUnknownOutcome, err)
	case !committed:
		var keys []string
		for _, g := range c.guards {
			keys = append(keys, g.Key)
		}
		return 0, refuse(ErrConflict, "nothing was written: somebody else changed %s at the same time: look again with medwayctl status", ShortList(keys))
	}
	return revision, nil
}

// ShortList names a few and counts the rest.
func ShortList(names []string) string {
	const most = 5
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}
