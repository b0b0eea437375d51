package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// Object is a piece of intent on its way into etcd.
type Object struct {
	Key Key
	// Value is the stored form.
	Value []byte
	// Message is what Value holds.
	Message proto.Message
}

// String is the object in an operator's words, for example "VIP sip-1".
func (o Object) String() string {
	for kind, k := range objectKinds {
		if k.kind == o.Key.Kind {
			return strings.TrimSuffix(kind+" "+strings.Trim(o.Key.A+"/"+o.Key.B, "/"), " ")
		}
	}
	return o.Key.String()
}

var objectKinds = map[string]struct {
	kind    Kind
	message func() proto.Message
}{
	"Settings": {KindSettings, func() proto.Message { return &medwayv1.Settings{} }},
	"Ladder":   {KindLadder, func() proto.Message { return &medwayv1.Ladder{} }},
	"VIP":      {KindVIP, func() proto.Message { return &medwayv1.VIP{} }},
	"Pool":     {KindPool, func() proto.Message { return &medwayv1.Pool{} }},
	"Backend":  {KindBackend, func() proto.Message { return &medwayv1.Backend{} }},
}

// ParseObject reads an object, as JSON, in the form in which operators write
// it: the fields of its value, and beside them kind, name and, for a backend,
// pool. An error is [Invalid]; the object's key is set then as far as it is
// known.
func ParseObject(text []byte) (Object, error) {
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(text, &fields); err != nil {
		return Object{}, Invalid{{"", "value " + Quote(string(bytes.TrimSpace(text))), "an object with a field kind"}}
	}
	var c checker
	word := func(field string) (word string) {
		raw, ok := fields[field]
		if ok && json.Unmarshal(raw, &word) != nil {
			c.errs = append(c.errs, FieldError{field, "value " + Quote(string(raw)), "a word"})
		}
		delete(fields, field)
		return word
	}
	_, hasKind := fields["kind"]
	kind := word("kind")
	k, ok := objectKinds[kind]
	switch {
	case ok:
	case !hasKind:
		c.missing("kind", "one of "+objectNames())
	case len(c.errs) == 0:
		c.wrong("kind", kind, "one of "+objectNames())
	}
	if !ok {
		return Object{}, c.err()
	}
	o := Object{Key: Key{Kind: k.kind}, Message: k.message()}
	// Checked one by one: a slash in one name may not make up for the lack of the other.
	switch names[k.kind] {
	case 1:
		o.Key.A = c.name("name", word("name"))
	case 2:
		o.Key.A, o.Key.B = c.name("pool", word("pool")), c.name("name", word("name"))
	}
	value, err := json.Marshal(fields)
	if err == nil {
		_, err = Decode(o.Key, value)
	}
	if err == nil {
		err = unmarshal(value, o.Message)
	}
	var invalid Invalid
	switch {
	case errors.As(err, &invalid):
		c.errs = append(c.errs, invalid...)
	case err != nil:
		c.errs = append(c.errs, FieldError{"", Line(err.Error()), "a JSON object"})
	}
	o.Value = Encode(o.Message)
	return o, c.err()
}

func objectNames() string { return strings.Join(slices.Sorted(maps.Keys(objectKinds)), ", ") }
