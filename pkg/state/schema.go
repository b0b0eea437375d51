package state

import (
	"cmp"
	"fmt"
	"slices"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// Schema is the newest schema of stored values that this build understands.
// proto/medway/v1 says with the option since which field came with which.
//
// Decoding is strict, so a node refuses a value with a field that it does not
// know; the last good one stays in force there while newer nodes go on with the
// new one. Hence the rule of rolling upgrades: agents before writers. Every node
// publishes its schema in its own key. A tool that writes intent refuses a value
// with fields newer than the oldest schema of any node ([NewerFields]); an agent
// leaves such fields out of its own keys that others read (plan.PublishedIPv6).
// The field schema itself has no since: it is how the others learn.
const Schema = 4

// The schemas with which kinds of keys came, and all their fields.
const (
	OrdersSchema       = 3 // drains of nodes, and pauses
	BackendDrainSchema = 4
)

// NewerField is a field that came after a schema.
type NewerField struct {
	Field string // its path, as in FieldError
	Since uint32
}

// NewerFields lists the fields set in a message, at any depth, that came after
// schema.
func NewerFields(m proto.Message, schema uint32) []NewerField {
	out := newerFields("", m.ProtoReflect(), schema)
	slices.SortFunc(out, func(a, b NewerField) int { return cmp.Compare(a.Field, b.Field) })
	return out
}

func newerFields(path string, m protoreflect.Message, schema uint32) (out []NewerField) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		field, since := join(path, string(f.Name())), sinceOf(f)
		switch {
		case since > schema:
			out = append(out, NewerField{field, since})
		case f.IsMap() && f.MapValue().Message() != nil:
			v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				out = append(out, newerFields(join(field, k.String()), v.Message(), schema)...)
				return true
			})
		case f.IsList() && f.Message() != nil:
			for i := range v.List().Len() {
				out = append(out, newerFields(fmt.Sprintf("%s[%d]", field, i), v.List().Get(i).Message(), schema)...)
			}
		case !f.IsMap() && !f.IsList() && f.Message() != nil:
			out = append(out, newerFields(field, v.Message(), schema)...)
		}
		return true
	})
	return out
}

// sinceOf is the schema that a field came with.
func sinceOf(f protoreflect.FieldDescriptor) uint32 {
	since, _ := proto.GetExtension(f.Options(), medwayv1.E_Since).(uint32)
	return max(since, 1)
}

// SchemaOf reads the schema out of the value of a node's key, which may be newer
// than this build and so need not decode; 1 where there is none.
func SchemaOf(node []byte) uint32 {
	m := &medwayv1.Node{}
	if (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(node, m) != nil {
		return 1
	}
	return max(m.Schema, 1)
}
