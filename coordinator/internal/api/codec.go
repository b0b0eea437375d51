package api

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// strictJSON is JSON with the names of the .proto files, as etcd holds it; a field that
// is not known is an error, since whoever wrote it meant something by it.
type strictJSON struct{ name string }

func (c strictJSON) Name() string { return c.name }

func (strictJSON) Marshal(m any) ([]byte, error) {
	message, ok := m.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("%T is no message", m)
	}
	return protojson.MarshalOptions{UseProtoNames: true}.Marshal(message)
}

func (strictJSON) Unmarshal(text []byte, m any) error {
	message, ok := m.(proto.Message)
	switch {
	case !ok:
		return fmt.Errorf("%T is no message", m)
	case len(text) == 0:
		return nil // nothing is an empty message
	}
	return protojson.Unmarshal(text, message)
}
