package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// maxDepth is more than any message needs.
const maxDepth = 16

// object is a JSON object with its names in order.
type object struct {
	names  []string
	fields map[string]any
}

// shape checks that a value is one JSON object in the one form in which medway
// stores a message: its fields' own names, each once, with values of their
// types. protojson alone takes more (other spellings of a name, numbers in
// quotes, null for anything) and does not say in which field it found a fault.
func shape(value []byte, m protoreflect.MessageDescriptor) error {
	var c checker
	whole := func(found string) error { return Invalid{{"", found, "a JSON object"}} }
	switch {
	case len(bytes.TrimSpace(value)) == 0:
		return whole("empty value")
	case bytes.HasPrefix(value, []byte("\ufeff")):
		return whole("begins with a byte order mark")
	case !utf8.Valid(value):
		return whole("not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(value))
	d.UseNumber()
	tree, err := c.parse(d, "", 0)
	if err == nil {
		if _, more := d.Token(); !errors.Is(more, io.EOF) {
			err = fmt.Errorf("something follows the JSON object at byte %d", d.InputOffset())
		}
	}
	if err != nil {
		return whole(syntax(err, value))
	}
	c.message("", tree, m)
	return c.err()
}

// syntax says in plain words why a value is no JSON.
func syntax(err error, value []byte) string {
	var s *json.SyntaxError
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Sprintf("not JSON: it ends in the middle, after %d bytes", len(value))
	case errors.As(err, &s) && strings.Contains(s.Error(), "unexpected end"):
		return fmt.Sprintf("not JSON: it ends in the middle, after %d bytes", len(value))
	case errors.As(err, &s):
		return fmt.Sprintf("value %s is not JSON: %s (byte %d)", Quote(string(value)), Line(s.Error()), s.Offset)
	}
	return Line(err.Error())
}

// parse reads one JSON value.
func (c *checker) parse(d *json.Decoder, path string, depth int) (any, error) {
	token, err := d.Token()
	if err != nil {
		return nil, err
	}
	if depth > maxDepth {
		return nil, fmt.Errorf("nested deeper than %d", maxDepth)
	}
	switch token {
	case json.Delim('{'):
		o := object{fields: map[string]any{}}
		for d.More() {
			token, err := d.Token()
			if err != nil {
				return nil, err
			}
			name, _ := token.(string)
			v, err := c.parse(d, join(path, name), depth+1)
			if err != nil {
				return nil, err
			}
			if _, twice := o.fields[name]; twice {
				c.errs = append(c.errs, FieldError{join(path, name), "given twice", "each field once"})
			} else {
				o.names = append(o.names, name)
			}
			o.fields[name] = v
		}
		_, err := d.Token()
		return o, err
	case json.Delim('['):
		list := []any{}
		for d.More() {
			v, err := c.parse(d, fmt.Sprintf("%s[%d]", path, len(list)), depth+1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		_, err := d.Token()
		return list, err
	}
	return token, nil
}

func (c *checker) message(path string, value any, m protoreflect.MessageDescriptor) {
	o, ok := value.(object)
	if !ok {
		expected := "an object"
		if path == "" {
			expected = "a JSON object"
		}
		c.errs = append(c.errs, FieldError{path, found(value), expected})
		return
	}
	for _, name := range o.names {
		f := m.Fields().ByName(protoreflect.Name(name))
		if f == nil {
			c.errs = append(c.errs, FieldError{join(path, name), fmt.Sprintf("unknown in schema %d", Schema), "one of " + fieldNames(m)})
			continue
		}
		c.field(join(path, name), o.fields[name], f)
	}
}

func (c *checker) field(path string, value any, f protoreflect.FieldDescriptor) {
	switch {
	case f.IsMap():
		o, ok := value.(object)
		if !ok {
			c.errs = append(c.errs, FieldError{path, found(value), "an object"})
			return
		}
		for _, name := range o.names {
			c.single(join(path, name), o.fields[name], f.MapValue())
		}
	case f.IsList():
		list, ok := value.([]any)
		if !ok {
			c.errs = append(c.errs, FieldError{path, found(value), "a list"})
			return
		}
		for i, v := range list {
			c.single(fmt.Sprintf("%s[%d]", path, i), v, f)
		}
	default:
		c.single(path, value, f)
	}
}

func (c *checker) single(path string, value any, f protoreflect.FieldDescriptor) {
	expected := ""
	switch f.Kind() {
	case protoreflect.MessageKind:
		c.message(path, value, f.Message())
	case protoreflect.StringKind:
		if _, ok := value.(string); !ok {
			expected = "a string"
		}
	case protoreflect.BoolKind:
		if _, ok := value.(bool); !ok {
			expected = "true or false"
		}
	case protoreflect.Uint32Kind:
		n, ok := value.(json.Number)
		if ok {
			_, err := strconv.ParseUint(n.String(), 10, 32)
			ok = err == nil
		}
		if !ok {
			expected = "a whole number from 0 to 4294967295, without quotes"
		}
	}
	if expected != "" {
		c.errs = append(c.errs, FieldError{path, found(value), expected})
	}
}

// found describes a JSON value of the wrong type.
func found(value any) string {
	switch v := value.(type) {
	case object:
		return "an object"
	case []any:
		return "a list"
	case nil:
		return "null"
	case string:
		return "value " + Quote(v)
	}
	return "value " + Line(cut(fmt.Sprint(value), maxQuoted))
}

func fieldNames(m protoreflect.MessageDescriptor) string {
	var names []string
	for i := range m.Fields().Len() {
		names = append(names, string(m.Fields().Get(i).Name()))
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// join appends a name to a path. Names that are not plain words are quoted: they
// may hold anything.
func join(path, name string) string {
	if len(name) > 63 || strings.ContainsFunc(name, func(r rune) bool { return !plain(r) }) || name == "" {
		name = Quote(name)
	}
	if path == "" {
		return name
	}
	return path + "." + name
}

func plain(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' || r == '-' || r == '/' || r == '.'
}
