package reconcile

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

type name string

func (n name) String() string { return "thing " + string(n) }

type change = Change[name, int]

func TestDiff(t *testing.T) {
	for _, test := range []struct {
		name       string
		want, have map[name]int
		owned      func(name) bool
		changes    []change
	}{
		{name: "nothing and nothing"},
		{name: "agreement", want: map[name]int{"a": 1}, have: map[name]int{"a": 1}},
		{name: "absent", want: map[name]int{"a": 1}, changes: []change{{Op: Create, Key: "a", New: 1}}},
		{
			// A wanted zero value is not absence.
			name: "zero", want: map[name]int{"a": 0}, changes: []change{{Op: Create, Key: "a"}},
		},
		{name: "other", want: map[name]int{"a": 2}, have: map[name]int{"a": 1}, changes: []change{{Op: Update, Key: "a", Old: 1, New: 2}}},
		{name: "not wanted", have: map[name]int{"a": 1}, changes: []change{{Op: Delete, Key: "a", Old: 1}}},
		{
			name: "only what is owned is deleted", have: map[name]int{"ours": 1, "theirs": 2},
			owned: func(n name) bool { return n == "ours" }, changes: []change{{Op: Delete, Key: "ours", Old: 1}},
		},
		{
			// What is wanted by name is made so, whoever made it.
			name: "what is wanted need not be owned", want: map[name]int{"a": 2, "b": 3}, have: map[name]int{"a": 1},
			owned:   func(name) bool { return false },
			changes: []change{{Op: Create, Key: "b", New: 3}, {Op: Update, Key: "a", Old: 1, New: 2}},
		},
		{
			name: "creations, updates, deletions, each by name",
			want: map[name]int{"f": 1, "a": 1, "e": 2, "b": 2}, have: map[name]int{"e": 1, "b": 1, "d": 1, "c": 1},
			changes: []change{
				{Op: Create, Key: "a", New: 1}, {Op: Create, Key: "f", New: 1},
				{Op: Update, Key: "b", Old: 1, New: 2}, {Op: Update, Key: "e", Old: 1, New: 2},
				{Op: Delete, Key: "c", Old: 1}, {Op: Delete, Key: "d", Old: 1},
			},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			if diff := cmp.Diff(test.changes, Diff(test.want, test.have, test.owned)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestOpsHaveTheWordsOfReports(t *testing.T) {
	for op, want := range map[Op]string{Create: "create", Update: "update", Delete: "delete", 0: "op(0)"} {
		if got := op.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
