package yamlfile

import (
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/medway-lb/medway/pkg/state"
)

const example = `# a comment
kind: VIP
addresses: [203.0.113.10, "2001:db8::1"]
groups: {dc1: g1}
services:
  - protocol: tcp
    port: 5060
  - {protocol: udp, port: 0x13c4}
sysctls:
  net.ipv4.vs.a: "1"
  net.ipv4: 2
text: |
  two
  lines
empty:
list: []
map: {}
yes: true
half: 0.5
big: 18446744073709551616 # no number of 64 bits: a string to the library
`

func TestPlacesAndJSON(t *testing.T) {
	docs, err := Parse("f.yaml", []byte("---\n# nothing\n---\n"+example+"---\n{a: 1}\n...\n"))
	if err != nil || len(docs) != 2 {
		t.Fatalf("%d documents, %v", len(docs), err)
	}
	want := `{"kind":"VIP","addresses":["203.0.113.10","2001:db8::1"],"groups":{"dc1":"g1"},` +
		`"services":[{"protocol":"tcp","port":5060},{"protocol":"udp","port":5060}],"sysctls":{"net.ipv4.vs.a":"1","net.ipv4":2},` +
		`"text":"two\nlines\n","empty":null,"list":[],"map":{},"yes":true,"half":0.5,"big":"18446744073709551616"}`
	if diff := cmp.Diff(want, string(docs[0].JSON())); diff != "" {
		t.Error(diff)
	}
	for path, want := range map[string]string{
		"":                      "f.yaml:5:1",
		"kind":                  "f.yaml:5:1",
		"addresses[1]":          "f.yaml:6:27",
		"addresses[7]":          "f.yaml:6:12",
		"groups.dc1":            "f.yaml:7:10",
		"groups.dc9":            "f.yaml:7:10",
		"services[0].port":      "f.yaml:10:5",
		"services[1].port":      "f.yaml:11:21",
		"services[1].pool":      "f.yaml:11:6",
		"sysctls.net.ipv4.vs.a": "f.yaml:13:3",
		"sysctls.net.ipv4":      "f.yaml:14:3",
		"empty":                 "f.yaml:18:1",
		"empty.x":               "f.yaml:18:1",
		"nowhere.x[3]":          "f.yaml:5:1",
	} {
		if got := docs[0].Place(path); got != want {
			t.Errorf("%q is at %s, expected %s", path, got, want)
		}
	}
	if got := docs[1].Place("a"); got != "f.yaml:25:2" {
		t.Errorf("the second document's is at %s", got)
	}
}

func TestWhatIsNoPlainYAML(t *testing.T) {
	for text, want := range map[string]string{
		"a: [1":                        "f.yaml:1:4: ",
		"a: 1\na: 2\n":                 "f.yaml:2:1: ",
		"a: &x 1\n":                    "f.yaml:1:4: an anchor, alias or tag",
		"a: 1\n---\nb: *x\n":           "f.yaml:",
		"a: !!binary aGk=\n":           "f.yaml:1:4: an anchor, alias or tag",
		"? {a: 1}\n: 2\n":              "f.yaml:2:1: ",
		"a: \xff\n":                    "f.yaml:1:4: not UTF-8",
		"a:\n\tb: 1\n":                 "f.yaml:2:",
		strings.Repeat("[", 100):       "f.yaml:1:",
		strings.Repeat("- ", 60) + "1": "f.yaml:1:65: nested deeper than 32",
		// What would take the parser minutes.
		"a:\n  " + strings.Repeat("[", 1e5): "f.yaml:2:35: nested deeper than 32",
		strings.Repeat("{a: ", 1e5):         "f.yaml:1:129: nested deeper than 32",
		strings.Repeat("- ", 1e5):           "f.yaml:1:65: nested deeper than 32",
		strings.Repeat("? ", 1e5):           "f.yaml:1:65: nested deeper than 32",
		"<<: {a: 1}\n":                      "f.yaml:1:1: an anchor, alias or tag",
		"'a': 1\n\"a\": 2\n":                "f.yaml:2:1: ",
		"a: \"\x1b[31m\nb: " + "1\n\"\"":    "f.yaml:",
	} {
		_, err := Parse("f.yaml", []byte(text))
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%.40q: %v, expected %q", text, err, want)
		} else if state.Line(err.Error()) != err.Error() {
			t.Errorf("%.40q: not printable: %q", text, err)
		}
	}
}

func TestEmptyFilesHaveNoDocument(t *testing.T) {
	for _, text := range []string{"", "\n", "# c\n", "---\n", "---\n---\n", "--- # c\n...\n", "null\n", "~"} {
		if docs, err := Parse("f", []byte(text)); err != nil || len(docs) != 0 {
			t.Errorf("%q: %d documents, %v", text, len(docs), err)
		}
	}
}

func TestDocuments(t *testing.T) {
	type doc struct {
		Line int
		Text string
	}
	for _, test := range []struct {
		name, text string
		want       []doc
	}{
		{"empty", "", nil},
		{"one", "a: 1\n", []doc{{1, "a: 1\n"}}},
		{"without a last newline", "a: 1", []doc{{1, "a: 1"}}},
		{"leading marker", "---\na: 1\n", []doc{{2, "a: 1\n"}}},
		{"trailing marker", "a: 1\n---\n", []doc{{1, "a: 1\n"}}},
		{"markers only", "---\n---\n---", nil},
		{"two", "a: 1\n---\nb: 2\n", []doc{{1, "a: 1\n"}, {3, "b: 2\n"}}},
		{"empty one between", "a: 1\n---\n\n# no\n---\nb: 2\n", []doc{{1, "a: 1\n"}, {6, "b: 2\n"}}},
		{"CRLF", "---\r\na: 1\r\n---\r\nb: 2\r\n", []doc{{2, "a: 1\r\n"}, {4, "b: 2\r\n"}}},
		{"white space and comments after the marker", "a: 1\n---  \nb: 2\n---\t# c\nc: 3\n", []doc{{1, "a: 1\n"}, {3, "b: 2\n"}, {5, "c: 3\n"}}},
		{"content after the marker", "a: 1\n--- {b: 2}\n", []doc{{1, "a: 1\n"}, {2, "    {b: 2}\n"}}},
		{"end marker", "a: 1\n...\nb: 2\n", []doc{{1, "a: 1\n"}, {3, "b: 2\n"}}},
		{"no marker", "a: |\n  ---\n  b\n----\n---x\n", []doc{{1, "a: |\n  ---\n  b\n----\n---x\n"}}},
		{"comments stay, for the lines of YAML's own errors", "# c\na: 1\n", []doc{{1, "# c\na: 1\n"}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var got []doc
			for _, d := range documents([]byte(test.text)) {
				got = append(got, doc{d.line, string(d.text)})
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

type inner struct {
	Port *uint16        `yaml:"port"`
	Wait *time.Duration `yaml:"wait"`
}

type outer struct {
	Name    string            `yaml:"name"`
	On      bool              `yaml:"on"`
	Address netip.Addr        `yaml:"address"`
	Prefix  netip.Prefix      `yaml:"prefix"`
	Wait    time.Duration     `yaml:"wait"`
	Count   int8              `yaml:"count"`
	List    []inner           `yaml:"list"`
	Inner   *inner            `yaml:"inner"`
	Words   map[string]string `yaml:"words"`
	Kept    string            `yaml:"kept"`
	Hidden  string
}

func decodeText(t *testing.T, text string, into *outer) error {
	t.Helper()
	docs, err := Parse("f.yaml", []byte(text))
	if err != nil || len(docs) != 1 {
		t.Fatal(len(docs), err)
	}
	return docs[0].Decode(into)
}

func TestDecode(t *testing.T) {
	got := outer{Kept: "default"}
	err := decodeText(t, `{name: 5, on: true, address: "2001:db8::1", prefix: 10.0.0.0/8, wait: 1m, count: -128, words: {a: b},
  list: [{port: 65535, wait: 0s}, {}], inner: {port: 0}}`, &got)
	if err != nil {
		t.Fatal(err)
	}
	most, none, never := uint16(65535), uint16(0), time.Duration(0)
	want := outer{
		Name: "5", On: true, Address: netip.MustParseAddr("2001:db8::1"), Prefix: netip.MustParsePrefix("10.0.0.0/8"), Wait: time.Minute,
		Count: -128, List: []inner{{Port: &most, Wait: &never}, {}}, Inner: &inner{Port: &none}, Words: map[string]string{"a": "b"}, Kept: "default",
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
		t.Error(diff)
	}
}

func TestDecodeSaysAllThatIsWrong(t *testing.T) {
	err := decodeText(t, `name: [x]
on: "yes"
address: 10.0.0
prefix: 10.0.0.0
wait: 7
count: 128
list: [{port: 65536}, {port: "1"}, 3]
inner:
words: {a: {}}
Hidden: x
hidden: secret
`, &outer{})
	if err == nil {
		t.Fatal("accepted")
	}
	want := []string{
		"f.yaml:1:1: field name: a list: expected a string",
		`f.yaml:2:1: field on: value "yes": expected true or false`,
		`f.yaml:3:1: field address: value "10.0.0": expected an IPv4 or IPv6 address`,
		`f.yaml:4:1: field prefix: value "10.0.0.0": expected a prefix, such as 203.0.113.0/24`,
		`f.yaml:5:1: field wait: value "7": expected a duration, such as 10s or 150ms`,
		`f.yaml:6:1: field count: value "128": expected a whole number from -128 to 127`,
		`f.yaml:7:9: field list[0].port: value "65536": expected a whole number from 0 to 65535`,
		`f.yaml:7:24: field list[1].port: value "1": expected a whole number from 0 to 65535`,
		`f.yaml:7:36: field list[2]: value "3": expected a mapping`,
		"f.yaml:8:1: field inner: nothing: expected a mapping",
		"f.yaml:9:9: field words.a: a mapping: expected a string",
		"f.yaml:10:1: field Hidden: unknown: expected one of name, on, address, prefix, wait, count, list, inner, words, kept",
		"f.yaml:11:1: field hidden: unknown: expected one of name, on, address, prefix, wait, count, list, inner, words, kept",
	}
	if diff := cmp.Diff(want, strings.Split(err.Error(), "\n")); diff != "" {
		t.Error(diff)
	}
}

// TestNumbersAsTheyAreWritten: a name may look like a number, and no number is
// read as another one than people mean.
func TestNumbersAsTheyAreWritten(t *testing.T) {
	for text, want := range map[string]string{
		"0": "0", "-0": "0", "+5": "5", "5060": "5060", "0x13c4": "5060", "0o17": "15", "1_000": "1000", "1.5": "1.5",
		"010": `"010"`, "00": `"00"`, "-010": `"-010"`, "18446744073709551615": "18446744073709551615",
	} {
		docs, err := Parse("f", []byte("name: "+text))
		if err != nil {
			t.Fatal(err)
		}
		var into outer
		if err := docs[0].Decode(&into); err != nil || into.Name != text {
			t.Errorf("%s: the name %q, %v", text, into.Name, err)
		}
		if got := string(docs[0].JSON()); got != `{"name":`+want+`}` {
			t.Errorf("%s: %s, expected %s", text, got, want)
		}
	}
	for _, text := range []string{"count: 010", "list: [{port: 010}]"} {
		if err := decodeText(t, text, &outer{}); err == nil || !strings.Contains(err.Error(), `value "010": expected a whole number`) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestLocate(t *testing.T) {
	docs, err := Parse("f.yaml", []byte("a: 1\nb: {c: 2}\n"))
	if err != nil {
		t.Fatal(err)
	}
	invalid := state.Invalid{{Field: "b.c", Found: "value 2", Expected: "3"}, {Field: "d", Found: "missing", Expected: "a word"}}
	one := state.FieldError{Field: "a", Found: "wrong"}
	for _, test := range []struct {
		err  error
		want string
	}{
		{invalid, "f.yaml:2:5: Pool x: field b.c: value 2: expected 3\nf.yaml:1:1: Pool x: field d: missing: expected a word"},
		{errors.Join(one, invalid[:1]), "f.yaml:1:1: Pool x: field a: wrong\nf.yaml:2:5: Pool x: field b.c: value 2: expected 3"},
		{errors.New("odd"), "f.yaml:1:1: Pool x: odd"},
	} {
		if got := docs[0].Locate(test.err, "Pool x"); got == nil || got.Error() != test.want {
			t.Errorf("got %v, want %s", got, test.want)
		}
	}
	if docs[0].Locate(nil, "x") != nil {
		t.Error("an error of nothing")
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"", example, "a: &x [*x]\n", "? a\n: b\n", "- - - -\n", "{a: [b, {c: d}]}", "a: >-\n  b\n", "'a''b': \"\\u263a\"", "%YAML 1.2\n---\na", ".inf", "0o17", "a: 1_000\n",
		"!!map {a: 1}", "\ufeffa: 1", "a: 1\n...\nb: 2", "<<: *a", "- ? a", "\"", "|\n", "{", "[,]", "*", "&", "a:b: c",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		docs, err := Parse("f", text)
		if err != nil {
			for line := range strings.Lines(err.Error()) {
				if line = strings.TrimSuffix(line, "\n"); len(line) > 1000 || state.Line(line) != line {
					t.Errorf("%d bytes, or not printable: %.1000q", len(line), line)
				}
			}
			return
		}
		for _, d := range docs {
			if !json.Valid(d.JSON()) {
				t.Errorf("%q is no JSON", d.JSON())
			}
			d.Place("a[0].b.c")
			var into outer
			_ = d.Decode(&into)
		}
	})
}
