package integration

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/medway-lb/medway/pkg/intent"
	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// TestIntentDocs: the example of docs/intent.md is accepted, and the page names every
// field that an operator can write.
func TestIntentDocs(t *testing.T) {
	page, err := os.ReadFile("../docs/intent.md")
	if err != nil {
		t.Fatal(err)
	}
	example := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindSubmatch(page)
	if example == nil {
		t.Fatal("no example")
	}
	objects, err := intent.Read([]string{"-"}, strings.NewReader(string(example[1])))
	if err != nil {
		t.Fatal(err)
	}
	if notices, err := intent.Check(nil, 1, objects, nil); err != nil || len(notices) > 0 || len(objects) != 4 {
		t.Errorf("%d objects, %v, %q", len(objects), err, notices)
	}
	var named func(m protoreflect.MessageDescriptor)
	named = func(m protoreflect.MessageDescriptor) {
		for i := range m.Fields().Len() {
			f := m.Fields().Get(i)
			if !regexp.MustCompile("[`.\"]" + string(f.Name()) + "[`.\"]").Match(page) {
				t.Errorf("field %s of %s is not on the page", f.Name(), m.Name())
			}
			if f.Message() != nil && !f.IsMap() {
				named(f.Message())
			}
		}
	}
	for _, m := range []protoreflect.ProtoMessage{&medwayv1.VIP{}, &medwayv1.Pool{}, &medwayv1.Backend{}, &medwayv1.Settings{}} {
		named(m.ProtoReflect().Descriptor())
	}
}
