package state

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// Object is a piece of intent on its way into etcd.
type Object struct {
	Key Key
	// Value is the stored form.
	Value []byte
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

// ParseObject reads an object in the form in which operators write it: the
// fields of its value, and beside them kind, name and, for a backend, pool.
func ParseObject(text []byte) (Object, error) {
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(text, &fields); err != nil {
		return Object{}, fmt.Errorf("expected an object with a field kind: %w", err)
	}
	var head struct{ Kind, Name, Pool string }
	for name, into := range map[string]*string{"kind": &head.Kind, "name": &head.Name, "pool": &head.Pool} {
		if raw, ok := fields[name]; ok {
			if err := json.Unmarshal(raw, into); err != nil {
				return Object{}, fieldError(name, string(raw), "a word")
			}
		}
	}
	k, ok := objectKinds[head.Kind]
	if !ok {
		known := []string{}
		for name := range objectKinds {
			known = append(known, name)
		}
		slices.Sort(known)
		return Object{}, fieldError("kind", head.Kind, "one of "+strings.Join(known, ", "))
	}
	delete(fields, "kind")
	key := Key{Kind: k.kind}
	switch names[k.kind] {
	case 1:
		key.A = head.Name
	case 2:
		key.A, key.B = head.Pool, head.Name
		if err := checkNameField("pool", head.Pool); err != nil {
			return Object{}, fmt.Errorf("%s: %w", head.Kind, err)
		}
		delete(fields, "pool")
	}
	if names[k.kind] > 0 {
		// Checked one by one: a slash in one name may not make up for the lack of the other.
		if err := checkNameField("name", head.Name); err != nil {
			return Object{}, fmt.Errorf("%s: %w", head.Kind, err)
		}
		delete(fields, "name")
	}
	object, err := stored(key, fields, k.message())
	if err != nil {
		return Object{}, fmt.Errorf("%s %s: %w", head.Kind, strings.Trim(key.A+"/"+key.B, "/"), err)
	}
	return object, nil
}

func stored(key Key, fields map[string]json.RawMessage, m proto.Message) (Object, error) {
	value, err := json.Marshal(fields)
	if err != nil {
		return Object{}, err
	}
	if _, err := Decode(key, value); err != nil {
		return Object{}, err
	}
	if err := protojson.Unmarshal(value, m); err != nil {
		return Object{}, err
	}
	return Object{Key: key, Value: Encode(m)}, nil
}
