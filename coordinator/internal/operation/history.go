package operation

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// Past is an event of the history, or what is wrong with its key or its value.
type Past struct {
	// VIP is that which it concerns; "": all. Unset where the key is wrong, as At.
	VIP   string
	At    time.Time
	Event *medwayv1.Event
	Err   error

	key string
}

// Stamp is the time as the key has it, with all nine digits.
func (p Past) Stamp() string { return p.key[strings.LastIndexByte(p.key, '/')+1:] }

// compare is by time, and of one time by VIP.
func (p Past) compare(o Past) int { return cmp.Or(p.At.Compare(o.At), cmp.Compare(p.VIP, o.VIP)) }

// Mark is a place in the history, before which a page ends. The zero Mark is its end.
type Mark struct {
	at  time.Time
	vip string
}

// String is what [ParseMark] takes.
func (m Mark) String() string {
	if m.at.IsZero() {
		return ""
	}
	return strings.TrimPrefix(state.HistoryKey(m.vip, m.at), state.HistoryPrefix)
}

// ParseMark reads a mark.
func ParseMark(text string) (Mark, error) {
	if text == "" {
		return Mark{}, nil
	}
	vip, at, err := state.ParseHistoryKey(state.HistoryPrefix + text)
	if err != nil {
		return Mark{}, state.FieldError{Field: "page_token", Found: "value " + state.Quote(text), Expected: "next_page_token of another answer"}
	}
	return Mark{at, vip}, nil
}

// History is the whole history of a VIP, with what concerns all, or with "" of
// everything: the oldest first, still without the events themselves.
type History struct {
	client *store.Client
	vip    string
	all    []Past
}

// OpenHistory reads which events there are.
func OpenHistory(ctx context.Context, client *store.Client, vip string) (*History, error) {
	prefixes := []string{state.HistoryPrefix}
	if vip != "" {
		if state.CheckName(vip) != nil { // it would be another prefix
			return nil, unknownVIP(vip)
		}
		prefixes = []string{state.HistoryOf(vip), state.HistoryOf("")}
	}
	h := &History{client: client, vip: vip}
	for _, prefix := range prefixes {
		keys, err := client.Keys(ctx, prefix)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", prefix, err)
		}
		for _, e := range keys {
			p := Past{key: e.Key}
			p.VIP, p.At, p.Err = state.ParseHistoryKey(e.Key)
			h.all = append(h.all, p)
		}
	}
	slices.SortStableFunc(h.all, Past.compare)
	return h, nil
}

// CheckVIP is an [ErrNotFound] where the VIP neither exists nor has any event.
func (h *History) CheckVIP(ctx context.Context) error {
	if h.vip == "" || slices.ContainsFunc(h.all, func(p Past) bool { return p.VIP == h.vip }) {
		return nil
	}
	_, there, err := h.client.Get(ctx, state.Key{Kind: state.KindVIP, A: h.vip}.String())
	if err == nil && !there {
		err = Unknown("vip", h.vip, "VIP %s does not exist, and has no history", state.Quote(h.vip))
	}
	return err
}

// Page reads the newest events before a mark, the newest last; 0 as most is all. next is
// the mark for the page before it; the zero Mark where that is the first one.
func (h *History) Page(ctx context.Context, before Mark, most int) (page []Past, next Mark, err error) {
	end := len(h.all)
	if !before.at.IsZero() {
		end, _ = slices.BinarySearchFunc(h.all, Past{At: before.at, VIP: before.vip}, Past.compare)
	}
	begin := 0
	if most > 0 {
		begin = max(0, end-most)
	}
	page, err = h.read(ctx, h.all[begin:end])
	if err == nil && begin > 0 && !h.all[begin].At.IsZero() {
		next = Mark{h.all[begin].At, h.all[begin].VIP}
	}
	return page, next, err
}

// piece is how many events are read at once.
const piece = 500

// Since are all events from a time on, the oldest first. It ends with an error.
func (h *History) Since(ctx context.Context, since time.Time) iter.Seq2[Past, error] {
	return func(yield func(Past, error) bool) {
		begin, _ := slices.BinarySearchFunc(h.all, since, func(p Past, t time.Time) int { return p.At.Compare(t) })
		for some := range slices.Chunk(h.all[begin:], piece) {
			read, err := h.read(ctx, some)
			if err != nil {
				yield(Past{}, err)
				return
			}
			for _, p := range read {
				if !yield(p, nil) {
					return
				}
			}
		}
	}
}

// read reads the events of a stretch: those of one VIP lie side by side. What was
// trimmed meanwhile is left out.
func (h *History) read(ctx context.Context, stretch []Past) (read []Past, err error) {
	type ends struct{ first, last string }
	of := map[string]ends{}
	for _, p := range stretch {
		if p.Err == nil {
			e := of[p.VIP]
			of[p.VIP] = ends{cmp.Or(e.first, p.key), p.key}
		}
	}
	values := map[string][]byte{}
	for _, e := range of {
		entries, err := h.client.Between(ctx, e.first, e.last)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			values[e.Key] = e.Value
		}
	}
	for _, p := range stretch {
		value, there := values[p.key]
		switch {
		case p.Err != nil:
		case !there:
			continue
		default:
			p.Event, p.Err = state.DecodeEvent(value)
		}
		read = append(read, p)
	}
	return read, nil
}

// Trimming is how much of the history stays.
type Trimming struct {
	// Newest is how many events of a VIP stay, and of what concerns all; 0: all.
	Newest int
	// Age is how old an event may be; 0: as old as it is.
	Age time.Duration
}

// trimBatch is how many events one transaction deletes: readers of changes are told of
// each, and agents write beside it.
const trimBatch = 100

// Once deletes a batch of what is too much, the oldest of each VIP first, and says how
// many that were. What is not an event's key stays. Any number of coordinators may do it
// at the same time: a batch of which another was faster deletes nothing.
func (t Trimming) Once(ctx context.Context, client *store.Client, now time.Time) (deleted int, err error) {
	keys, err := client.Keys(ctx, state.HistoryPrefix)
	if err != nil {
		return 0, err
	}
	var guards []store.Guard
	var deletes []string
	for _, e := range t.tooMuch(keys, now) {
		if len(deletes) == trimBatch {
			break
		}
		guards, deletes = append(guards, store.Guard{Key: e.Key, ModRevision: e.ModRevision}), append(deletes, e.Key)
	}
	if len(deletes) == 0 {
		return 0, nil
	}
	committed, _, err := client.Commit(ctx, guards, nil, deletes)
	if err != nil || !committed {
		return 0, err
	}
	return len(deletes), nil
}

// tooMuch are the keys to delete. An event's age is what is between it and the newest
// one: a clock that is wrong makes nothing old.
func (t Trimming) tooMuch(keys []store.Entry, now time.Time) (out []store.Entry) {
	newer := map[string]int{}
	newest := time.Time{}
	for _, e := range keys {
		if _, at, err := state.ParseHistoryKey(e.Key); err == nil && at.After(newest) {
			newest = at
		}
	}
	if newest.Before(now) {
		now = newest
	}
	for _, e := range slices.Backward(keys) { // sorted: the newest of each VIP first
		vip, at, err := state.ParseHistoryKey(e.Key)
		if err != nil {
			continue
		}
		newer[vip]++
		if t.Newest > 0 && newer[vip] > t.Newest || t.Age > 0 && now.Sub(at) > t.Age {
			out = append(out, e)
		}
	}
	slices.Reverse(out)
	return out
}

// Tell writes an event into the history by itself: of what was refused, or is stored
// elsewhere.
func Tell(ctx context.Context, client *store.Client, vip string, author Author, e *medwayv1.Event) error {
	author.sign(e)
	key, value := state.EncodeEvent(vip, time.Now(), e)
	_, _, err := client.Commit(ctx, []store.Guard{{Key: key}}, []store.Put{{Key: key, Value: value}}, nil)
	return err
}
