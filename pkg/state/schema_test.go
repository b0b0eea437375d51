package state

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

const newVIP = `{"addresses":["203.0.113.10"],"groups":{"dc1":"g1"},
	"services":[{"protocol":"tcp","port":5060,"pool":"sbc"},{"protocol":"udp","port":5060,"pool":"sbc","one_packet":true}],
	"announcement":{"communities":["1:2"],"prefixes":["203.0.113.0/24"],"ladder":{"force":10},"roles":{"backup":{"prepend":2}}}}`

func message[M proto.Message](t *testing.T, text string, m M) M {
	t.Helper()
	if err := protojson.Unmarshal([]byte(text), m); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestNewerFields(t *testing.T) {
	m := message(t, newVIP, &medwayv1.VIP{})
	want := []NewerField{{"announcement.ladder", 2}, {"announcement.prefixes", 2}, {"announcement.roles", 2}, {"services[1].one_packet", 2}}
	if diff := cmp.Diff(want, NewerFields(m, 1)); diff != "" {
		t.Error(diff)
	}
	if got := NewerFields(m, 2); got != nil {
		t.Errorf("newer than this build: %v", got)
	}
}

// TestANodeTellsItsSchemaFromTheStart, or nobody would ever learn of it.
func TestANodeTellsItsSchemaFromTheStart(t *testing.T) {
	m := &medwayv1.Node{MachineId: "m", Ipv4: "10.1.0.11", Ipv6: "2001:db8::1", Schema: 2}
	if diff := cmp.Diff([]NewerField{{"ipv6", 2}}, NewerFields(m, 1)); diff != "" {
		t.Error(diff)
	}
	for text, want := range map[string]uint32{`{"schema":7,"of_schema_7":1}`: 7, `{}`: 1, `?`: 1, goodNode: 1} {
		if got := SchemaOf([]byte(text)); got != want {
			t.Errorf("%s: schema %d, want %d", text, got, want)
		}
	}
}

// TestEveryFieldHasASchemaThatThisBuildKnows, and a field of a map or a list is
// reached too.
func TestEveryFieldHasASchemaThatThisBuildKnows(t *testing.T) {
	for kind, o := range objectKinds {
		fields := o.message().ProtoReflect().Descriptor().Fields()
		for i := range fields.Len() {
			if since := sinceOf(fields.Get(i)); since > Schema {
				t.Errorf("%s.%s came with schema %d; this build says it knows %d", kind, fields.Get(i).Name(), since, Schema)
			}
		}
	}
}

// FuzzSchemaOf: the value may be of a newer schema, or of nobody's.
func FuzzSchemaOf(f *testing.F) {
	for _, seed := range []string{"", "{}", goodNode, `{"schema":7,"of_schema_7":{"a":[1]}}`, `{"schema":"2"}`, `{"schema":-1}`, `{"schema":4294967296}`, "null", "\xff"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		schema := SchemaOf(value)
		n, err := Decode(Key{Kind: KindNode, A: "n"}, value)
		if schema < 1 || err == nil && n.(Node).Schema != schema {
			t.Errorf("%q: schema %d, and decoded %+v", value, schema, n)
		}
	})
}
