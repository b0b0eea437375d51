package reconcile

import (
	"context"
	"errors"
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
		"create thing new", "update thing grown", "create thing new",
		"delete thing elder", "delete thing old", "delete thing old",
	}, report.Done); diff != "" || report.Err() != nil {
		t.Error(report.Err(), diff)
	}
}

func TestSecondRunChangesNothing(t *testing.T) {
	links, routes, log := twoTables()
	for _, want := range []int{6, 0} {
		*log = nil
		report := Run(t.Context(), Bind(links, wantLinks, nil), Bind(routes, wantRoutes, nil))
		if len(report.Done) != want || report.Err() != nil {
			t.Errorf("changes %q, failures %v, expected %d changes", report.Done, report.Err(), want)
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
	if diff := cmp.Diff([]string{"update thing grown", "create thing new", "delete thing elder", "delete thing old"}, report.Done); diff != "" {
		t.Error(diff)
	}
	if !errors.Is(report.Err(), busy) || len(report.Failed) != 2 {
		t.Fatalf("failures %v, expected two of %v", report.Failed, busy)
	}
	for i, want := range []string{"create thing new: busy", "delete thing old: busy"} {
		if got := report.Failed[i].Error(); got != want {
			t.Errorf("failure %d is %q, expected %q", i, got, want)
		}
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
