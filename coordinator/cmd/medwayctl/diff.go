package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/medway-lb/medway/pkg/intent"
	"github.com/medway-lb/medway/pkg/state"
)

// writeDiff shows what becomes of an object, field by field: "+" comes, "-"
// goes, "~" changes.
func writeDiff(out io.Writer, o intent.Object, have []byte, found bool) {
	key := o.Key.String()
	switch {
	case found && bytes.Equal(have, o.Value):
		fmt.Fprintf(out, "  %s\n", key)
		return
	case found:
		fmt.Fprintf(out, "~ %s\n", key)
	default:
		fmt.Fprintf(out, "+ %s\n", key)
	}
	before, after := map[string]string{}, map[string]string{}
	flatten("", o.Value, after)
	if found && !flatten("", have, before) {
		fmt.Fprintf(out, "    - %s\n", state.Quote(string(have)))
	}
	if len(before)+len(after) == 0 {
		fmt.Fprintln(out, "    all defaults")
	}
	all := maps.Clone(before)
	maps.Copy(all, after)
	for _, field := range slices.Sorted(maps.Keys(all)) {
		b, had := before[field]
		a, has := after[field]
		switch {
		case !had:
			fmt.Fprintf(out, "    + %s: %s\n", field, a)
		case !has:
			fmt.Fprintf(out, "    - %s: %s\n", field, b)
		case a != b:
			fmt.Fprintf(out, "    ~ %s: %s -> %s\n", field, b, a)
		}
	}
}

// flatten notes each single value of a JSON object by its path; false where the
// text is no object.
func flatten(path string, text []byte, into map[string]string) bool {
	var fields map[string]json.RawMessage
	var items []json.RawMessage
	switch {
	case json.Unmarshal(text, &fields) == nil && fields != nil:
		for name, value := range fields {
			flatten(join(path, name), value, into)
		}
	case path != "" && json.Unmarshal(text, &items) == nil && items != nil:
		for i, value := range items {
			flatten(fmt.Sprintf("%s[%d]", path, i), value, into)
		}
	case path != "":
		into[path] = state.Line(string(text))
	default:
		return false
	}
	return true
}

func join(path, name string) string {
	name = state.Printable(name)
	if path == "" {
		return name
	}
	return path + "." + name
}
