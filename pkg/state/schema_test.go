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
	old := WithoutNewer(m, 1)
	if got := NewerFields(old, 1); got != nil {
		t.Errorf("left: %v", got)
	}
	want1 := message(t, goodVIP, &medwayv1.VIP{})
	want1.Services = append(want1.Services, &medwayv1.Service{Protocol: "udp", Port: 5060, Pool: "sbc"})
	want1.Announcement = &medwayv1.Announcement{Communities: []string{"1:2"}}
	if !proto.Equal(old, want1) {
		t.Errorf("got %v, want %v", old, want1)
	}
	if len(NewerFields(m, 1)) != 4 {
		t.Error("the original was changed")
	}
}

// TestANodeTellsItsSchemaFromTheStart, or nobody would ever learn of it.
func TestANodeTellsItsSchemaFromTheStart(t *testing.T) {
	m := &medwayv1.Node{MachineId: "m", Ipv4: "10.1.0.11", Ipv6: "2001:db8::1", Schema: 2}
	if got := WithoutNewer(m, 1); got.Schema != 2 || got.Ipv6 != "" || got.Ipv4 == "" {
		t.Errorf("got %v", got)
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
