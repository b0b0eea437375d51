package local

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/medway-lb/medway/pkg/state"
)

// FuzzReadOrder reads any bytes as the body of a request.
func FuzzReadOrder(f *testing.F) {
	for _, seed := range []string{
		"", " ", "{}", `{"vip":"v","reason":"why","now":true}`, `{"vip":"v"}{"vip":"w"}`, `{"vip":5}`, `{"vip":null}`, `{"nwo":1}`, "null", "[]", "{", "\xff", `{"vip":"\ud800"}`, `{"VIP":"v"}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		o, err := readOrder(bytes.NewReader(body))
		if err != nil {
			if o != (Order{}) {
				t.Errorf("%+v beside %v", o, err)
			}
			return
		}
		if !utf8.ValidString(o.VIP) || !utf8.ValidString(o.Reason) {
			t.Errorf("%+v: not UTF-8", o)
		}
		text, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := readOrder(bytes.NewReader(text)); err != nil || again != o {
			t.Errorf("%+v becomes %+v, %v", o, again, err)
		}
	})
}

// FuzzStatus prints any bytes that an agent of another version may answer.
func FuzzStatus(f *testing.F) {
	for _, seed := range []string{
		`{"node":{"node":"n","vips":[{"vip":"v","med":100}],"sessions":[{"neighbor":"10.0.0.1","since":"2024-11-22T17:00:00Z"}]},"snapshot":{"source":"etcd","revision":5},` +
			`"vips":["v"],"routes":[{"vip":"v","prefix":"203.0.113.10/32","med":100}],"withdrawn":[]}`,
		`{"node":{"faults":[{"subject":"kernel","reason":"a\\nb\\u001b[2J"}]}}`,
		`{"snapshot":{"source":"disk","saved":"2024-11-22T17:00:00Z"}}`, "{}", "null", `{"node":{"surprise":1},"more":1}`, `{"node":5}`, `{"routes":[{"prefix":"x"}]}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var s Status
		if json.Unmarshal(text, &s) != nil {
			return
		}
		s.IsWithdrawn("v")
		s.Announces("v")
		var out bytes.Buffer
		if s.Print(&out, time.Unix(1e9, 0)) != nil {
			return
		}
		for line := range strings.Lines(out.String()) {
			if line = strings.TrimSuffix(line, "\n"); state.Line(line) != line {
				t.Errorf("%q", line)
			}
		}
	})
}
