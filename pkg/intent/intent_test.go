package intent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"
)

// files writes a directory of files, name to text.
func files(t *testing.T, texts map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range texts {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const (
	vipText = `kind: VIP
name: sip-1
addresses: [203.0.113.10]
groups: {dc1: g1, dc2: g2}
services:
  - {protocol: tcp, port: 5060, pool: sbc}
`
	poolText    = "kind: Pool\nname: sbc\nscheduler: sed\n"
	backendText = "kind: Backend\npool: sbc\nname: b1\nsite: dc1\naddress: 10.1.1.21\n"
)

func TestRead(t *testing.T) {
	dir := files(t, map[string]string{
		"b/pool.yml":   poolText + "--- # with a word\n" + backendText,
		"a-vip.yaml":   "# what we serve\n---\n" + vipText + "---\n# nothing more\n",
		"empty.yaml":   "# all commented out\n---\n\n",
		"notes.txt":    "kind: Nonsense",
		"b/swap.yaml~": "kind: Nonsense",
	})
	objects, err := Read([]string{dir}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, o := range objects {
		got = append(got, o.Key.String()+" "+string(o.Value))
	}
	want := []string{
		`/medway/v1/vips/sip-1 {"addresses":["203.0.113.10"],"services":[{"protocol":"tcp","port":5060,"pool":"sbc"}],"groups":{"dc1":"g1","dc2":"g2"}}`,
		`/medway/v1/pools/sbc {"scheduler":"sed"}`,
		`/medway/v1/backends/sbc/b1 {"site":"dc1","address":"10.1.1.21"}`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestBadFilesSayWhereAndWhat: all that is wrong is said at once, each with the
// line on which the object begins.
func TestBadFilesSayWhereAndWhat(t *testing.T) {
	for _, test := range []struct {
		name  string
		texts map[string]string
		want  []string // "DIR" stands for the directory
	}{
		{"nothing", nil, []string{"DIR: expected at least one object"}},
		{"comments only", map[string]string{"a.yaml": "# one\n---\n# two\n"}, []string{"DIR: expected at least one object"}},
		{
			"two faults in two files",
			map[string]string{"a.yaml": poolText + "---\n" + "kind: Pol\nname: x\n", "b.yaml": "\n\n---\nkind: Pool\nname: X\n"},
			[]string{`DIR/a.yaml:5:1: field kind: value "Pol"`, `DIR/b.yaml:5:1: Pool X: field name: value "X"`},
		},
		{
			"twice in one file", map[string]string{"a.yaml": poolText + "---\n" + poolText},
			[]string{"DIR/a.yaml:5:1: Pool sbc is in DIR/a.yaml:1:1 already"},
		},
		{
			"twice in two files", map[string]string{"a.yaml": poolText, "b/c.yaml": poolText},
			[]string{"DIR/b/c.yaml:1:1: Pool sbc is in DIR/a.yaml:1:1 already"},
		},
		{"not YAML", map[string]string{"a.yaml": "---\nkind: [\n"}, []string{"DIR/a.yaml:2:7: "}},
		{"duplicate field", map[string]string{"a.yaml": poolText + "scheduler: rr\n"}, []string{"DIR/a.yaml:4:1: ", `"scheduler" already defined`}},
		{"unknown field", map[string]string{"a.yaml": poolText + "schedular: rr\n"}, []string{`DIR/a.yaml:4:1: Pool sbc: field schedular: unknown in schema 4: expected one of scheduler`}},
		{"a list", map[string]string{"a.yaml": "- kind: Pool\n"}, []string{"DIR/a.yaml:1:1: ", "expected an object"}},
		{"beside the marker", map[string]string{"a.yaml": poolText + "--- {kind: Pol}\n"}, []string{`DIR/a.yaml:4:6: field kind: value "Pol"`}},
		{"after the end of a document", map[string]string{"a.yaml": poolText + "...\nkind: Pol\n"}, []string{`DIR/a.yaml:5:1: field kind: value "Pol"`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := files(t, test.texts)
			_, err := Read([]string{dir}, nil)
			if err == nil {
				t.Fatal("accepted")
			}
			for _, want := range test.want {
				if want = strings.ReplaceAll(want, "DIR", dir); !strings.Contains(err.Error(), want) {
					t.Errorf("error %q, expected it to contain %q", err, want)
				}
			}
		})
	}
	if _, err := Read([]string{"/nowhere"}, nil); err == nil || !strings.Contains(err.Error(), "/nowhere") {
		t.Errorf("%v", err)
	}
}

// TestStandardInput, and several paths, are one set of objects.
func TestStandardInput(t *testing.T) {
	dir := files(t, map[string]string{"a.yaml": poolText})
	objects, err := Read([]string{"-", dir}, strings.NewReader(vipText))
	if err != nil || len(objects) != 2 {
		t.Errorf("%d objects, %v", len(objects), err)
	}
	_, err = Read([]string{dir, "-"}, strings.NewReader(poolText+"---\nkind: Pool\n"))
	for _, want := range []string{"stdin:5:1: Pool: field name: missing", "stdin:1:1: Pool sbc is in " + dir + "/a.yaml:1:1 already"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, expected it to contain %q", err, want)
		}
	}
	if _, err = Read([]string{"-"}, strings.NewReader("")); err == nil || !strings.Contains(err.Error(), "-: expected at least one object") {
		t.Error(err)
	}
}

// TestLinkToADirectory: configurations are often switched by one.
func TestLinkToADirectory(t *testing.T) {
	dir, link := files(t, map[string]string{"a.yaml": poolText}), filepath.Join(t.TempDir(), "current")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{link, link + "/"} {
		objects, err := Read([]string{path}, nil)
		if err != nil || len(objects) != 1 || objects[0].document.Place("") != link+"/a.yaml:1:1" {
			t.Errorf("%s: %v, %v", path, objects, err)
		}
	}
}

// entries are what is stored, key below the prefix to value.
func entries(values map[string]string) (out []store.Entry) {
	for key, value := range values {
		out = append(out, store.Entry{Key: state.Prefix + key, Value: []byte(value), ModRevision: 5})
	}
	return out
}

// TestCheck: what is right by itself may be wrong beside what is stored.
func TestCheck(t *testing.T) {
	const (
		node  = `{"machine_id":"m","site":"dc1","group":"g1","ipv4":"10.1.0.11","sync_address":"169.254.3.4"`
		other = `{"addresses":["203.0.113.10"],"groups":{"dc1":"g1"},"services":[{"protocol":"tcp","port":5060,"pool":"sbc"}]}`
	)
	newer := vipText + "announcement:\n  communities: [\"1:2\"]\n  roles: {backup: {prepend: 2}}\n"
	for _, test := range []struct {
		name, text string
		stored     map[string]string
		want       []string // parts of the error; "-" is none
		notice     string
	}{
		{"a missing pool", vipText, nil, []string{`stdin:6:33: VIP sip-1: field services[0].pool: pool "sbc" does not exist`}, ""},
		{"a pool that comes with it", vipText + "---\n" + poolText, nil, []string{"-"}, `VIP sip-1: field services[0].pool: pool "sbc" has no backend with an IPv4 address`},
		{"another VIP's address", vipText, map[string]string{"pools/sbc": "{}", "vips/other": other}, []string{`stdin:3:13: VIP sip-1: field addresses[0]: value "203.0.113.10": expected one that VIP other does not have`}, ""},
		{
			"two of them in the files", vipText + "---\n" + poolText + "---\n" + strings.Replace(vipText, "sip-1", "sip-2", 1), nil,
			[]string{`stdin:14:13: VIP sip-2: field addresses[0]`}, "",
		},
		{"two backends with one address", poolText + "---\n" + backendText + "---\n" + strings.Replace(backendText, "b1", "b2", 1), nil, []string{`stdin:15:1: Backend sbc/b2: field address`}, ""},
		{"what was wrong before", backendText, map[string]string{"vips/other": "?", "pools/sbc": "{}"}, []string{"-"}, ""},
		{
			"wrong as it was before", vipText, map[string]string{"vips/sip-1": strings.Replace(other, `"dc1":"g1"`, `"dc1":"g1","dc2":"g2"`, 1)},
			[]string{`stdin:6:33: VIP sip-1: field services[0].pool: pool "sbc" does not exist`}, "",
		},
		{
			"a field that a node does not know", newer + "---\n" + poolText, map[string]string{"nodes/n-old": node + "}", "nodes/n-new": node + `,"schema":2}`},
			[]string{"stdin:9:3: VIP sip-1: field announcement.roles needs schema 2; node n-old knows 1: upgrade its agent first, or, if the node is gone for good: etcdctl del /medway/v1/nodes/n-old"}, "",
		},
		{"a field that all nodes know", newer + "---\n" + poolText, map[string]string{"nodes/n-new": node + `,"schema":2}`}, []string{"-"}, ""},
		{"a node newer than this tool", newer + "---\n" + poolText, map[string]string{"nodes/n": node + `,"schema":3,"of_schema_3":1}`}, []string{"-"}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			objects, err := Read([]string{"-"}, strings.NewReader(test.text))
			if err != nil {
				t.Fatal(err)
			}
			notices, err := Check(entries(test.stored), 9, objects, nil)
			for _, want := range test.want {
				if want == "-" && err != nil || want != "-" && (err == nil || !strings.Contains(err.Error(), want)) {
					t.Errorf("error %v, expected %q", err, want)
				}
			}
			if test.notice != "" && !strings.Contains(strings.Join(notices, "\n"), test.notice) {
				t.Errorf("notices %q, expected %q", notices, test.notice)
			}
		})
	}
}

func FuzzRead(f *testing.F) {
	for _, seed := range []string{
		vipText, poolText + "---\n" + backendText, "kind: Settings\nsysctls: {net.a: \"1\"}\n", "kind: [x]\n", "- kind: Pool\n", "---\n# c\n---\nkind: Ladder\n", "kind: Pool\nname: \"\\u202e\"\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		objects, err := parseObjects("f", text)
		if err != nil {
			for line := range strings.Lines(err.Error()) {
				if line = strings.TrimSuffix(line, "\n"); len(line) > 1000 || state.Line(line) != line {
					t.Errorf("%d bytes, or not printable: %.1000q", len(line), line)
				}
			}
		}
		for _, o := range objects {
			if _, err := state.Decode(o.Key, o.Value); err != nil {
				t.Errorf("%s is written as %q: %v", o, o.Value, err)
			}
		}
	})
}

// FuzzCheck checks good objects beside anything that may be stored.
func FuzzCheck(f *testing.F) {
	for key, value := range map[string]string{
		"vips/other": `{"addresses":["203.0.113.10"],"groups":{"dc1":"g1"},"services":[{"protocol":"tcp","port":5060,"pool":"sbc"}]}`,
		"nodes/n":    `{"machine_id":"m","site":"dc1","group":"g1","ipv4":"203.0.113.10","sync_address":"169.254.3.4","schema":3,"of_schema_3":1}`,
		"pools/sbc":  "?", "vips/sip-1": "{", "target_state/sip-1": "dc9", "\u202e": "\x1b", "backends/sbc/b1": `{"site":"dc1","address":"203.0.113.10"}`,
	} {
		f.Add(key, []byte(value))
	}
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		objects, err := Read([]string{"-"}, strings.NewReader(vipText+"announcement: {ladder: {force: 40}}\n---\n"+poolText+"---\n"+backendText))
		if err != nil {
			t.Fatal(err)
		}
		notices, err := Check([]store.Entry{{Key: state.Prefix + key, Value: value, ModRevision: 5}}, 9, objects, nil)
		if err != nil {
			notices = append(notices, strings.Split(err.Error(), "\n")...)
		}
		for _, line := range notices {
			if len(line) > 1000 || state.Line(line) != line {
				t.Errorf("%d bytes, or not printable: %.1000q", len(line), line)
			}
		}
	})
}
