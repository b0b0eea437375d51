package yamlfile

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"github.com/medway-lb/medway/pkg/state"
)

// The bounds on a file: far above any use.
const (
	maxBytes = 16 << 20
	maxDepth = 32
)

// Document is one document of a YAML file.
type Document struct {
	file string
	root node
}

// node is a value with its place.
type node struct {
	line, column int
	// One of: the fields of a mapping in their order, the items of a list, or a
	// single value.
	fields []field
	items  []node
	kind   kind
	// text is a single value as it is written, without quotes: what looks like a
	// number may be meant for a name.
	text string
}

type field struct {
	name  string
	key   node
	value node
}

type kind string

// The kinds of nodes, in the words of errors.
const (
	mapping kind = "a mapping"
	list    kind = "a list"
	word    kind = "a string"
	number  kind = "a number"
	boolean kind = "true or false"
	null    kind = "nothing"
)

// Parse splits a file into its documents; empty ones are left out. All that is
// wrong with the form of a document is said at once.
func Parse(file string, text []byte) ([]Document, error) {
	at := func(line, column int, format string, args ...any) error {
		return fmt.Errorf("%s:%d:%d: %s", file, line, column, fmt.Sprintf(format, args...))
	}
	if len(text) > maxBytes {
		return nil, fmt.Errorf("%s: %d bytes: expected at most %d", file, len(text), maxBytes)
	}
	if !utf8.Valid(text) {
		line, column := firstInvalid(text)
		return nil, at(line, column, "not UTF-8")
	}
	var out []Document
	var errs []error
	for _, d := range documents(text) {
		root, err := d.parse()
		var p *placed
		switch {
		case errors.As(err, &p):
			errs = append(errs, at(p.line, p.column, "%s", p.text))
		case root.kind != null:
			out = append(out, Document{file, root})
		}
	}
	return out, errors.Join(errs...)
}

// parse reads one document.
func (d document) parse() (root node, err error) {
	// A fault of the library should not end the program.
	defer func() {
		if recover() != nil {
			err = &placed{d.line, 1, "not YAML"}
		}
	}()
	tokens := lexer.Tokenize(string(d.text))
	if p := d.tooDeep(tokens); p != nil {
		return root, p
	}
	parsed, err := parser.Parse(tokens, 0)
	var known yaml.Error
	switch {
	case errors.As(err, &known) && known.GetToken() != nil:
		// Without the lines around it: one of them may hold a password that does not belong there.
		p := known.GetToken().Position
		return root, &placed{d.line - 1 + p.Line, p.Column, state.Line(known.GetMessage())}
	case err != nil, len(parsed.Docs) > 1:
		return root, &placed{d.line, 1, "not YAML"}
	case len(parsed.Docs) == 0 || parsed.Docs[0].Body == nil:
		return node{kind: null}, nil
	}
	return convert(parsed.Docs[0].Body, d.line-1, 0)
}

// tooDeep finds where brackets or entries of one line are nested too deep: the
// parser takes the square of their number in time and memory. Nesting by
// indentation needs the square in text.
func (d document) tooDeep(tokens token.Tokens) error {
	brackets, entries, line := 0, 0, 0
	for _, t := range tokens {
		if t.Position.Line != line {
			line, entries = t.Position.Line, 0
		}
		switch t.Type {
		case token.SequenceStartType, token.MappingStartType:
			brackets++
		case token.SequenceEndType, token.MappingEndType:
			brackets--
		case token.SequenceEntryType, token.MappingKeyType:
			entries++
		}
		if max(brackets, entries) > maxDepth {
			return &placed{d.line - 1 + line, t.Position.Column, fmt.Sprintf("nested deeper than %d", maxDepth)}
		}
	}
	return nil
}

func firstInvalid(text []byte) (line, column int) {
	line, column = 1, 1
	for len(text) > 0 {
		r, size := utf8.DecodeRune(text)
		if r == utf8.RuneError && size == 1 {
			break
		}
		column++
		if r == '\n' {
			line, column = line+1, 1
		}
		text = text[size:]
	}
	return line, column
}

// placed is an error at a place.
type placed struct {
	line, column int
	text         string
}

func (p *placed) Error() string { return p.text }

// convert makes nodes of what the library read, above lines down in its file.
func convert(n ast.Node, above, depth int) (node, error) {
	out := node{line: above + 1, column: 1}
	if t := n.GetToken(); t != nil && t.Position != nil {
		out.line, out.column = above+t.Position.Line, t.Position.Column
	}
	wrong := func(format string, args ...any) (node, error) {
		return out, &placed{out.line, out.column, fmt.Sprintf(format, args...)}
	}
	if depth > maxDepth {
		return wrong("nested deeper than %d", maxDepth)
	}
	switch n := n.(type) {
	case *ast.MappingNode:
		return convertMapping(out, n.Values, above, depth)
	case *ast.MappingValueNode:
		return convertMapping(out, []*ast.MappingValueNode{n}, above, depth)
	case *ast.SequenceNode:
		out.kind = list
		for _, v := range n.Values {
			item, err := convert(v, above, depth+1)
			if err != nil {
				return out, err
			}
			out.items = append(out.items, item)
		}
	case *ast.StringNode:
		out.kind, out.text = word, n.Value
	case *ast.LiteralNode:
		out.kind, out.text = word, n.Value.Value
	case *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		out.kind, out.text = number, n.GetToken().Value
	case *ast.BoolNode:
		out.kind, out.text = boolean, strconv.FormatBool(n.Value)
	case *ast.NullNode:
		out.kind = null
	case *ast.AnchorNode, *ast.AliasNode, *ast.MergeKeyNode, *ast.TagNode:
		return wrong("an anchor, alias or tag: expected the value itself")
	default:
		return wrong("expected a mapping, a list or a value")
	}
	return out, nil
}

func convertMapping(out node, values []*ast.MappingValueNode, above, depth int) (node, error) {
	out.kind = mapping
	seen := map[string]bool{}
	for i, v := range values {
		key, err := convert(v.Key, above, depth+1)
		if err != nil {
			return out, err
		}
		if i == 0 {
			out.line, out.column = key.line, key.column // the token of a mapping is its first colon
		}
		if key.fields != nil || key.items != nil {
			return out, &placed{key.line, key.column, "expected a plain word as the name of a field"}
		}
		if seen[key.text] {
			return out, &placed{key.line, key.column, fmt.Sprintf("field %s: given twice: expected each field once", state.Printable(key.text))}
		}
		seen[key.text] = true
		value := node{kind: null, line: key.line, column: key.column}
		if v.Value != nil {
			if value, err = convert(v.Value, above, depth+1); err != nil {
				return out, err
			}
		}
		out.fields = append(out.fields, field{key.text, key, value})
	}
	return out, nil
}

// JSON is the document as JSON, its fields in their order.
func (d Document) JSON() []byte {
	var b bytes.Buffer
	d.root.json(&b)
	return b.Bytes()
}

func (n node) json(b *bytes.Buffer) {
	text := func(s string) {
		q, err := json.Marshal(s)
		if err == nil {
			b.Write(q)
		}
	}
	switch n.kind {
	case mapping:
		b.WriteByte('{')
		for i, f := range n.fields {
			if i > 0 {
				b.WriteByte(',')
			}
			text(f.name)
			b.WriteByte(':')
			f.value.json(b)
		}
		b.WriteByte('}')
	case list:
		b.WriteByte('[')
		for i, item := range n.items {
			if i > 0 {
				b.WriteByte(',')
			}
			item.json(b)
		}
		b.WriteByte(']')
	case boolean:
		b.WriteString(n.text)
	case null:
		b.WriteString("null")
	case number:
		if digits := n.digits(); json.Valid([]byte(digits)) {
			b.WriteString(digits)
			return
		}
		text(n.text) // .inf, 010 and the like, which JSON has not
	default:
		text(n.text)
	}
}

// digits is a number without YAML's other ways to write a whole one, such as
// 0x1f or 1_000. It is "" for 010: that is 8 in YAML 1.1, 10 in 1.2, and no number
// here.
func (n node) digits() string {
	if d := strings.TrimLeft(n.text, "+-"); len(d) > 1 && d[0] == '0' && d[1] >= '0' && d[1] <= '9' {
		return ""
	}
	if i, err := strconv.ParseInt(n.text, 0, 64); err == nil {
		return strconv.FormatInt(i, 10)
	}
	return n.text
}

// Place is the place of a field as "FILE:LINE:COLUMN", by its path in the form
// of [state.FieldError]. Where there is no such field it is that of the nearest
// one around it.
func (d Document) Place(path string) string {
	line, column := d.root.place(path)
	return fmt.Sprintf("%s:%d:%d", d.file, line, column)
}

func (n node) place(path string) (line, column int) {
	if path == "" {
		return n.line, n.column
	}
	if rest, ok := strings.CutPrefix(path, "["); ok {
		index, rest, _ := strings.Cut(rest, "]")
		if i, err := strconv.Atoi(index); err == nil && i >= 0 && i < len(n.items) {
			return n.items[i].place(strings.TrimPrefix(rest, "."))
		}
		return n.line, n.column
	}
	// A name may have dots in it: the longest one that fits is meant.
	best, rest := -1, ""
	for i, f := range n.fields {
		for _, name := range []string{f.name, state.Quote(f.name)} {
			after, ok := strings.CutPrefix(path, name)
			if ok && (after == "" || after[0] == '.' || after[0] == '[') && (best < 0 || len(after) < len(rest)) {
				best, rest = i, after
			}
		}
	}
	if best < 0 {
		return n.line, n.column
	}
	f := n.fields[best]
	if rest == "" || f.value.kind == null {
		return f.key.line, f.key.column
	}
	return f.value.place(strings.TrimPrefix(rest, "."))
}

// Locate makes of an error the list of all that is wrong, each with its place.
// label, where not empty, stands before each.
func (d Document) Locate(err error, label string) error {
	if label != "" {
		label += ": "
	}
	var errs []error
	var many state.Invalid
	var one state.FieldError
	switch joined, isJoined := err.(interface{ Unwrap() []error }); {
	case err == nil:
		return nil
	case isJoined:
		for _, e := range joined.Unwrap() {
			errs = append(errs, d.Locate(e, strings.TrimSuffix(label, ": ")))
		}
	case errors.As(err, &many):
		for _, e := range many {
			errs = append(errs, fmt.Errorf("%s: %s%w", d.Place(e.Field), label, e))
		}
	case errors.As(err, &one):
		return fmt.Errorf("%s: %s%w", d.Place(one.Field), label, one)
	default:
		return fmt.Errorf("%s: %s%w", d.Place(""), label, err)
	}
	return errors.Join(errs...)
}
