package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/medway-lb/medway/pkg/intent"
	"github.com/medway-lb/medway/pkg/state"
)

// FuzzDiff shows the difference to any bytes that may be stored.
func FuzzDiff(f *testing.F) {
	objects, err := intent.Read([]string{"-"}, strings.NewReader("kind: Pool\nname: sbc\nscheduler: rr\nweights: {local: 1}\n"))
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{"", "{}", `{"scheduler":"sed","weights":{"remote":2},"x":[1,{"y":null}]}`, "null", "[]", "{", `{"a":{"a":{"a":[[[]]]}}}`, `{"\u202e":"\u001b[2J"}`, "\xff"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, have []byte) {
		var out bytes.Buffer
		writeDiff(&out, objects[0], have, true)
		for line := range strings.Lines(out.String()) {
			if line = strings.TrimSuffix(line, "\n"); state.Line(line) != line {
				t.Errorf("%q", line)
			}
		}
	})
}
