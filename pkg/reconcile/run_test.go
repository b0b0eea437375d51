package reconcile

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// memory is a table that holds its objects, and writes down in a log, shared
// between tables, what is done to it.
type memory struct {
	name    string
	objects map[name]int
	log     *[]string
	// unreadable and broken fail: all reads, and the changes to these objects.
	unreadable error
	broken     map[name]error
}

func (m *memory) Read(context.Context) (map[name]int, error) {
	*m.log = append(*m.log, "read "+m.name)
	if m.unreadable != nil {
		return nil, m.unreadable
	}
	return maps.Clone(m.objects), nil
}

func (m *memory) Apply(_ context.Context, c change) error {
	*m.log = append(*m.log, c.Op.String()+" "+m.name+" "+string(c.Key))
	if err := m.broken[c.Key]; err != nil {
		return err
	}
	if c.Op == Delete {
		delete(m.objects, c.Key)
	} else {
		m.objects[c.Key] = c.New
	}
	return nil
}

func (m *memory) Show(c change) Text {
	return Text{Table: m.name, Old: fmt.Sprint(c.Old), New: fmt.Sprint(c.New),
		Commands: Commands(c.Op, fmt.Sprintf("%s %s %s", c.Op, m.name, string(c.Key)))}
}

// said are the edits as String says them.
func said(edits []Edit) []string {
	var out []string
	for _, e := range edits {
		out = append(out, e.String())
	}
	return out
}

// twoTables are links and routes, where routes need links.
func twoTables() (links, routes *memory, log *[]string) {
	log = &[]string{}
	links = &memory{name: "links", objects: map[name]int{"old": 1, "same": 1, "grown": 1}, log: log}
	routes = &memory{name: "routes", objects: map[name]int{"old": 1, "elder": 1}, log: log}
	return links, routes, log
}

var wantLinks, wantRoutes = map[name]int{"new": 1, "same": 1, "grown": 2}, map[name]int{"new": 1}

func TestDeletionsComeLastAndInReverse(t *testing.T) {
	links, routes, log := twoTables()
	report := Run(t.Context(), Bind(links, wantLinks, nil), Bind(routes, wantRoutes, nil))
	if diff := cmp.Diff([]string{
		"read links", "create links new", "update links grown",
		"read routes", "create routes new",
		"delete routes elder", "delete routes old", "delete links old",
	}, *log); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{
		"create links new", "update links grown", "create routes new",
		"delete routes elder", "delete routes old", "delete links old",
	}, said(report.Done)); diff != "" || report.Err() != nil {
		t.Error(report.Err(), diff)
	}
}

func TestSecondRunChangesNothing(t *testing.T) {
	links, routes, log := twoTables()
	for _, want := range []int{6, 0} {
		*log = nil
		report := Run(t.Context(), Bind(links, wantLinks, nil), Bind(routes, wantRoutes, nil))
		if len(report.Done) != want || report.Err() != nil {
			t.Errorf("changes %q, failures %v, expected %d changes", said(report.Done), report.Err(), want)
		}
	}
	if diff := cmp.Diff([]string{"read links", "read routes"}, *log); diff != "" {
		t.Error(diff)
	}
}

func TestOneFailureDoesNotStopTheRest(t *testing.T) {
	links, routes, _ := twoTables()
	busy := errors.New("busy")
	links.broken = map[name]error{"new": busy, "old": busy}
	report := Run(t.Context(), Bind(links, wantLinks, nil), Bind(routes, wantRoutes, nil))
	if diff := cmp.Diff([]string{
		"update links grown", "create routes new", "delete routes elder", "delete routes old",
	}, said(report.Done)); diff != "" {
		t.Error(diff)
	}
	if !errors.Is(report.Err(), busy) || len(report.Failed) != 2 {
		t.Fatalf("failures %v, expected two of %v", report.Failed, busy)
	}
	for i, want := range []string{"create thing new: busy", "delete thing old: busy"} {
		var failure *Failure
		if got := report.Failed[i].Error(); got != want || !errors.As(report.Failed[i], &failure) || failure.Table != "links" {
			t.Errorf("failure %d is %q, expected %q", i, got, want)
		}
	}
}

// A preview says what a run then does, and does nothing.
func TestPreviewSaysWhatRunDoes(t *testing.T) {
	links, routes, log := twoTables()
	steps := []Step{Bind(links, wantLinks, nil), Bind(routes, wantRoutes, nil)}
	preview, err := Preview(t.Context(), steps...)
	if diff := cmp.Diff([]string{"read links", "read routes"}, *log); err != nil || diff != "" {
		t.Fatal(err, diff)
	}
	if diff := cmp.Diff(Run(t.Context(), steps...).Done, preview); diff != "" {
		t.Error(diff)
	}
	if preview, err := Preview(t.Context(), steps...); err != nil || preview != nil {
		t.Errorf("after the run: %q, %v", said(preview), err)
	}
	links.unreadable = errors.New("no netlink")
	routes.objects = nil
	if preview, err := Preview(t.Context(), steps...); !errors.Is(err, links.unreadable) ||
		!slices.Equal(said(preview), []string{"create routes new"}) {
		t.Errorf("with an unreadable table: %q, %v", said(preview), err)
	}
}

func TestEditWithoutCommandsIsNamed(t *testing.T) {
	if got := (Edit{Op: Create, Key: "thing new"}).String(); got != "create thing new" {
		t.Errorf("got %q", got)
	}
}

func TestUnreadableTableIsLeftAlone(t *testing.T) {
	links, routes, log := twoTables()
	links.unreadable = errors.New("no netlink")
	before := maps.Clone(links.objects)
	report := Run(t.Context(), Bind(links, wantLinks, nil), Bind(routes, wantRoutes, nil))
	if !errors.Is(report.Err(), links.unreadable) || !strings.HasPrefix(report.Failed[0].Error(), "read ") {
		t.Errorf("failures %v, expected that of the read", report.Failed)
	}
	if !maps.Equal(links.objects, before) || slices.ContainsFunc(*log, func(s string) bool {
		return strings.Contains(s, " links ")
	}) {
		t.Errorf("changed without having been read: %q", *log)
	}
	if !maps.Equal(routes.objects, wantRoutes) {
		t.Errorf("the other table holds %v, expected %v", routes.objects, wantRoutes)
	}
}

func TestWhatIsNotOwnedStays(t *testing.T) {
	links, _, _ := twoTables()
	report := Run(t.Context(), Bind(links, nil, func(n name) bool { return n != "same" }))
	if want := map[name]int{"same": 1}; report.Err() != nil || !maps.Equal(links.objects, want) {
		t.Errorf("%v, %v, expected %v", links.objects, report.Err(), want)
	}
}

func TestRunWithoutTablesIsNoError(t *testing.T) {
	if report := Run(t.Context()); report.Err() != nil || report.Done != nil {
		t.Errorf("%+v", report)
	}
}

// TestConverges: from any state to any wanted state, whatever failed on the
// way, and what is not owned is still there.
func TestConverges(t *testing.T) {
	anyTable := rapid.MapOf(rapid.Map(rapid.StringMatching(`[ab][a-d]?`), func(s string) name { return name(s) }), rapid.IntRange(0, 2))
	owned := func(n name) bool { return n[0] == 'a' }
	rapid.Check(t, func(t *rapid.T) {
		ctx := context.Background()
		var tables []*memory
		var wanted, before []map[name]int
		var log []string
		for range rapid.IntRange(1, 3).Draw(t, "tables") {
			m := &memory{objects: anyTable.Draw(t, "have"), log: &log, broken: map[name]error{}}
			for _, n := range rapid.SliceOfN(rapid.SampledFrom([]name{"a", "aa", "ab", "b", "ba"}), 0, 3).Draw(t, "broken") {
				m.broken[n] = errors.New("broken")
			}
			if rapid.IntRange(0, 4).Draw(t, "unreadable") == 0 {
				m.unreadable = errors.New("unreadable")
			}
			tables, before = append(tables, m), append(before, maps.Clone(m.objects))
			wanted = append(wanted, anyTable.Draw(t, "want"))
		}
		run := func() Report {
			var steps []Step
			for i, m := range tables {
				steps = append(steps, Bind(m, wanted[i], owned))
			}
			return Run(ctx, steps...)
		}
		_ = run()
		for _, m := range tables {
			m.broken, m.unreadable = nil, nil
		}
		if err := run().Err(); err != nil {
			t.Fatal(err)
		}
		for i, m := range tables {
			want := maps.Clone(wanted[i])
			for n, v := range before[i] {
				if _, ok := want[n]; !ok && !owned(n) {
					want[n] = v
				}
			}
			if diff := cmp.Diff(want, m.objects); diff != "" {
				t.Fatalf("table %d: %s", i, diff)
			}
		}
		if report := run(); len(report.Done) > 0 || report.Err() != nil {
			t.Fatalf("a third run made changes: %+v", report)
		}
	})
}
