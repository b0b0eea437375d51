package integration

import (
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// modulePath is the start of the import path of each package of medway.
const modulePath = "github.com/medway-lb/medway/"

// mayImport says which packages of ours each one may import. A new package needs a line here. "x/..." is x and all
// that is below it, "..." is all.
var mayImport = map[string][]string{
	"proto/medway/v1":                 {},
	"proto/medway/v1/medwayv1connect": {"proto/medway/v1"},

	"pkg/state":          {"proto/..."},
	"pkg/plan":           {"pkg/state"},
	"pkg/plan/sim":       {"pkg/plan", "pkg/state"},
	"pkg/reconcile":      {},
	"pkg/store":          {"pkg/state"},
	"pkg/store/etcdtest": {},
	"pkg/yamlfile":       {"pkg/state"},
	"pkg/intent":         {"pkg/state", "pkg/store", "pkg/yamlfile"},
	"pkg/pki":            {},
	"pkg/probe":          {},
	"pkg/daemon":         {},

	"agent":                      {"pkg/...", "agent/internal/..."},
	"agent/internal/sysctl":      {"pkg/plan", "pkg/reconcile"},
	"agent/internal/link":        {"pkg/plan", "pkg/reconcile"},
	"agent/internal/firewall":    {"pkg/plan", "pkg/reconcile"},
	"agent/internal/ipvs":        {"pkg/plan", "pkg/reconcile"},
	"agent/internal/bgp":         {"pkg/plan"},
	"agent/internal/arp":         {"pkg/plan", "agent/internal/link"},
	"agent/internal/lease":       {"pkg/plan", "pkg/store"},
	"agent/internal/local":       {"pkg/state", "proto/..."},
	"agent/internal/telemetry":   {"pkg/state", "proto/..."},
	"agent/internal/link/nstest": {},
	"agent/cmd/medway-agent":     {"agent", "agent/internal/local", "pkg/daemon"},

	"coordinator":                        {"pkg/...", "coordinator/internal/...", "proto/..."},
	"coordinator/internal/auth":          {},
	"coordinator/internal/switchover":    {"coordinator/internal/operation", "pkg/state", "pkg/store", "pkg/plan", "pkg/probe", "proto/..."},
	"coordinator/internal/access":        {"pkg/pki", "pkg/state", "pkg/store"},
	"coordinator/internal/operation":     {"pkg/state", "pkg/store", "pkg/plan", "pkg/reconcile", "pkg/intent", "proto/..."},
	"coordinator/internal/api":           {"coordinator/internal/...", "pkg/state", "pkg/store", "pkg/plan", "pkg/intent", "proto/..."},
	"coordinator/cmd/medway-coordinator": {"coordinator", "pkg/daemon"},
	"coordinator/internal/console":       {"coordinator/internal/api", "coordinator/internal/auth", "coordinator/internal/operation", "pkg/state", "pkg/plan", "proto/..."},
	"coordinator/cmd/medwayctl":          {"coordinator", "proto/..."},

	"integration/...": {"..."},
}

// exceptions are imports beyond mayImport, with the reason for each. One that no longer exists must go from here.
var exceptions = []struct{ from, to, reason string }{
	{"agent", "proto/medway/v1", "it composes the values that it writes: its node, claims, ownership and status"},
	{"coordinator/cmd/medwayctl", "pkg/state", "it shows keys and values, and with --etcd reads and writes them itself"},
	{"coordinator/cmd/medwayctl", "pkg/intent", "it reads the files of intent"},
	{"coordinator/cmd/medwayctl", "pkg/yamlfile", "it reads its own file strictly"},
	{"coordinator/cmd/medwayctl", "pkg/store", "with --etcd, where no coordinator lives, it reads and writes etcd itself"},
	{"coordinator/cmd/medwayctl", "pkg/plan", "with --etcd it looks itself which node could serve"},
	{"coordinator/cmd/medwayctl", "coordinator/internal/operation", "with --etcd it does itself what the API does"},
	{"coordinator/cmd/medwayctl", "coordinator/internal/access", "etcd's certificates, users and roles are made before there can be a coordinator"},
}

// testsMayImport are what any test may use beyond its package's line.
var testsMayImport = []string{"agent/internal/link/nstest", "pkg/pki", "pkg/store/etcdtest"}

// never holds for tests as well, whatever mayImport and exceptions say.
var never = []struct {
	from string
	to   []string
}{
	{"proto/...", []string{"pkg/...", "agent/...", "coordinator/...", "integration/..."}},
	{"pkg/...", []string{"agent/...", "coordinator/...", "integration/..."}},
	{"agent/...", []string{"coordinator/...", "integration/..."}},
	{"coordinator/...", []string{"agent/...", "integration/..."}},
}

// libraries lists, for each library that touches the kernel, etcd or BGP, the one package that imports it, and others
// with the reason. A library is all that is below its path, save what is below the path of another. Tests are free.
var libraries = map[string]struct {
	owner  string
	others map[string]string
}{
	"go.etcd.io/etcd":                   {owner: "pkg/store", others: benchmark},
	"github.com/osrg/gobgp/v4":          {owner: "agent/internal/bgp", others: benchmark},
	"github.com/moby/ipvs":              {owner: "agent/internal/ipvs", others: benchmark},
	"github.com/mdlayher/packet":        {owner: "agent/internal/arp"},
	"github.com/coreos/go-iptables":     {owner: "agent/internal/firewall"},
	"github.com/vishvananda/netlink/nl": {owner: "agent/internal/ipvs"}, // the messages that moby/ipvs lacks
	"github.com/vishvananda/netlink": {owner: "agent/internal/link", others: map[string]string{
		"integration/lab": "lays the cables of the topology",
	}},
	"github.com/prometheus/client_golang": {owner: "agent/internal/telemetry"},
	"github.com/vishvananda/netns": {owner: "integration/lab", others: map[string]string{
		"agent/internal/link/nstest": "gives tests a namespace of their own",
	}},
}

// benchmark measures the libraries by themselves, beside what the agent makes of them.
var benchmark = map[string]string{"integration/bench": "measures the library alone, as the floor of what the agent can do"}

func TestImportsOfOurPackages(t *testing.T) {
	all := packages(t)
	excused := make(map[[2]string]bool)
	for _, e := range exceptions {
		excused[[2]string{e.from, e.to}] = true
		if !slices.Contains(all[e.from].production, modulePath+e.to) {
			t.Errorf("exceptions: %s no longer imports %s; remove the line", e.from, e.to)
		}
	}
	for pattern := range mayImport {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(all)), func(name string) bool { return matches(pattern, name) }) {
			t.Errorf("mayImport: there is no package %s; remove the line", pattern)
		}
	}

	for name, p := range all {
		allowed, ok := allowedTo(name)
		if !ok {
			t.Errorf("%s is not in mayImport: say what it may import", name)
		}
		for _, to := range ownImports(p.production) {
			if !matchesAny(allowed, to) && !excused[[2]string{name, to}] {
				t.Errorf("%s imports %s; it may import %q", name, to, allowed)
			}
		}
		for _, to := range ownImports(p.test) {
			if to != name && !matchesAny(allowed, to) && !matchesAny(testsMayImport, to) && !excused[[2]string{name, to}] {
				t.Errorf("a test of %s imports %s; it may import %q and %q", name, to, allowed, testsMayImport)
			}
		}
		for _, rule := range never {
			if !matches(rule.from, name) {
				continue
			}
			for _, to := range ownImports(append(slices.Clone(p.production), p.test...)) {
				if to != name && matchesAny(rule.to, to) {
					t.Errorf("%s imports %s; %s never imports %q", name, to, rule.from, rule.to)
				}
			}
		}
	}
}

// The reconciler knows nothing of what it reconciles, so it has no use for anything but the standard library.
func TestReconcileImportsTheStandardLibraryOnly(t *testing.T) {
	for _, to := range packages(t)["pkg/reconcile"].production {
		if host, _, _ := strings.Cut(to, "/"); strings.Contains(host, ".") {
			t.Errorf("pkg/reconcile imports %s", to)
		}
	}
}

func TestEachLibraryHasOneImportingPackage(t *testing.T) {
	importers := make(map[string]map[string]bool)
	for library := range libraries {
		importers[library] = make(map[string]bool)
	}
	for name, p := range packages(t) {
		for _, to := range p.production {
			library := libraryOf(to)
			if library == "" {
				continue
			}
			importers[library][name] = true
			use := libraries[library]
			if _, ok := use.others[name]; name != use.owner && !ok {
				t.Errorf("%s imports %s; only %s may", name, to, use.owner)
			}
		}
	}
	for library, use := range libraries {
		for _, name := range append(slices.Sorted(maps.Keys(use.others)), use.owner) {
			if !importers[library][name] {
				t.Errorf("libraries: %s no longer imports %s; correct the line", name, library)
			}
		}
	}
}

// allowedTo returns what a package may import, and whether mayImport has a line for it.
func allowedTo(name string) ([]string, bool) {
	for pattern, allowed := range mayImport {
		if matches(pattern, name) {
			return allowed, true
		}
	}
	return nil, false
}

// imports are the import paths in one package's folder.
type imports struct {
	production, test []string
}

// packages reads the imports of all our packages, by the folder's path from the repository's root. It reads the files
// itself: `go test` would not see that `go list` reads them, and would take an old result for a new one.
func packages(t *testing.T) map[string]imports {
	t.Helper()
	const root = ".."
	found := make(map[string]imports)
	err := filepath.WalkDir(root, func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if base := entry.Name(); file != root && (base[0] == '.' || base[0] == '_' || base == "testdata") {
				return fs.SkipDir
			}
			return nil
		}
		if filepath.Ext(file) != ".go" {
			return nil
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		folder, err := filepath.Rel(root, filepath.Dir(file))
		if err != nil {
			return err
		}
		p := found[filepath.ToSlash(folder)]
		list := &p.production
		if strings.HasSuffix(file, "_test.go") {
			list = &p.test
		}
		for _, spec := range parsed.Imports {
			to, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if !slices.Contains(*list, to) {
				*list = append(*list, to)
			}
		}
		found[filepath.ToSlash(folder)] = p
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// ownImports returns those of the paths that are of ours, from the repository's root.
func ownImports(paths []string) []string {
	var own []string
	for _, p := range paths {
		if name, ok := strings.CutPrefix(p, modulePath); ok {
			own = append(own, name)
		}
	}
	return own
}

// libraryOf returns the longest path in libraries that importPath is or is below, or "".
func libraryOf(importPath string) string {
	for p := importPath; p != "."; p = path.Dir(p) {
		if _, ok := libraries[p]; ok {
			return p
		}
	}
	return ""
}

func matchesAny(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return matches(p, name) })
}

func matches(pattern, name string) bool {
	parent, below := strings.CutSuffix(pattern, "...")
	return pattern == name || below && strings.HasPrefix(name+"/", parent)
}
