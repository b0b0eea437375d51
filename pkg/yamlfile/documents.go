package yamlfile

import (
	"bytes"
	"strings"
)

type document struct {
	line int
	text []byte
}

// documents splits a YAML stream. The library does that too, but it loses the
// document after one that holds nothing but a comment.
func documents(text []byte) []document {
	var out []document
	current := document{line: 1}
	flush := func(next int) {
		if len(bytes.TrimSpace(stripComments(current.text))) > 0 {
			out = append(out, current)
		}
		current = document{line: next}
	}
	for i, line := range strings.SplitAfter(string(text), "\n") {
		if rest, ok := marker(line); ok {
			flush(i + 2)
			if rest != "" && rest[0] != '#' {
				// White space for the marker keeps the columns right.
				current = document{line: i + 1, text: []byte("   " + line[3:])}
			}
			continue
		}
		current.text = append(current.text, line...)
	}
	flush(0)
	return out
}

// marker says whether a line begins or ends a document (YAML 1.2, 9.1.2), and
// returns what follows the marker on it.
func marker(line string) (rest string, ok bool) {
	for _, m := range []string{"---", "..."} {
		rest, ok := strings.CutPrefix(line, m)
		if ok && (rest == "" || strings.ContainsRune(" \t\r\n", rune(rest[0]))) {
			return strings.TrimSpace(rest), true
		}
	}
	return "", false
}

func stripComments(text []byte) []byte {
	var out []byte
	for line := range bytes.Lines(text) {
		if !bytes.HasPrefix(bytes.TrimSpace(line), []byte("#")) {
			out = append(out, line...)
		}
	}
	return out
}
