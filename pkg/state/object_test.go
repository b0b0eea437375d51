package state

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

func TestObjectsGoUnderTheirKeys(t *testing.T) {
	for _, test := range []struct{ text, key, value string }{
		{`{"kind":"Settings","settle":"2s"}`, "settings", `{"settle":"2s"}`},
		{`{"kind":"Ladder"}`, "ladder", `{}`},
		{
			`{"kind":"VIP","name":"sip-1",` + goodVIP[1:], "vips/sip-1",
			`{"addresses":["203.0.113.10"],"services":[{"protocol":"tcp","port":5060,"pool":"sbc"}],"groups":{"dc1":"g1"}}`,
		},
		{` { "name": "sbc", "weights": {"remote": 0}, "kind": "Pool" } `, "pools/sbc", `{"weights":{"remote":0}}`},
		{
			`{"kind":"Backend","pool":"sbc","name":"b1","site":"dc1","address":"10.1.1.21"}`,
			"backends/sbc/b1", `{"site":"dc1","address":"10.1.1.21"}`,
		},
	} {
		o, err := ParseObject([]byte(test.text))
		if err != nil {
			t.Errorf("%s: %v", test.text, err)
			continue
		}
		if got := o.Key.String(); got != Prefix+test.key || string(o.Value) != test.value {
			t.Errorf("%s: got %s %s, want %s %s", test.text, got, o.Value, test.key, test.value)
		}
	}
}

func TestBadObjectsAreRefused(t *testing.T) {
	for text, want := range map[string]string{
		``:                                    "expected an object with a field kind",
		`[]`:                                  "expected an object with a field kind",
		`"x"`:                                 "expected an object with a field kind",
		`{"kind":"Pool","name":"a"} {}`:       "expected an object with a field kind",
		`null`:                                `field kind: missing`,
		`{}`:                                  `field kind: missing: expected one of Backend, Ladder, Pool, Settings, VIP`,
		`{"kind":"vip","name":"a"}`:           `field kind: value "vip"`,
		`{"Kind":"Pool","name":"a"}`:          `field kind: missing`,
		`{"kind":5}`:                          `field kind: value "5": expected a word`,
		`{"kind":"Node","name":"n"}`:          `field kind: value "Node"`,
		`{"kind":"Pool"}`:                     `field name: missing`,
		`{"kind":"Pool","name":7}`:            `field name: value "7": expected a word`,
		`{"kind":"Pool","name":null}`:         `field name: missing`,
		`{"kind":"Pool","name":"A"}`:          `field name: value "A"`,
		`{"kind":"Pool","name":"../nodes/x"}`: `field name: value "../nodes/x"`,
		`{"kind":"Backend","name":"b","site":"dc1","address":"10.0.0.1"}`: `field pool: missing`,
		`{"kind":"Backend","pool":"p","site":"dc1","address":"10.0.0.1"}`: `field name: missing`,
		// Not the key of pool p and backend b.
		`{"kind":"Backend","name":"p/b","site":"dc1","address":"10.0.0.1"}`: `field pool: missing`,
		`{"kind":"Backend","pool":"p/b","site":"dc1","address":"10.0.0.1"}`: `field pool: value "p/b"`,
		`{"kind":"Settings","name":"a"}`:                                    `field name: unknown in schema 4`,
		`{"kind":"Pool","name":"a","pool":"b"}`:                             `field pool: unknown in schema 4`,
		`{"kind":"Pool","name":"a","schedular":"rr"}`:                       `field schedular: unknown in schema 4`,
		`{"kind":"Pool","name":"a","scheduler":"x"}`:                        `field scheduler: value "x"`,
		`{"kind":"Backend","pool":"p","name":"b","site":1}`:                 `field site: value 1: expected a string`,
		`{"kind":"Pool","name":"a","\xff":1}`:                               ``,
	} {
		o, err := ParseObject([]byte(text))
		if err == nil {
			t.Errorf("%s: accepted as %s %s", text, o.Key, o.Value)
		} else if !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %q, expected it to contain %q", text, err, want)
		}
	}
}

// anyObject draws a good object of each kind, as a message with its key.
func anyObject(t *rapid.T) (string, Key, proto.Message) {
	name := anyName()
	number := func(least, most uint32) *uint32 {
		return rapid.Ptr(rapid.Uint32Range(least, most), true).Draw(t, "number")
	}
	duration := rapid.SampledFrom([]string{"", "1s", "1m0s", "59s"})
	switch kind := rapid.SampledFrom([]string{"Settings", "Ladder", "VIP", "Pool", "Backend"}).Draw(t, "kind"); kind {
	case "Settings":
		return kind, Key{Kind: KindSettings}, &medwayv1.Settings{
			Sync:           &medwayv1.Sync{Id: number(1, 255), Port: number(1, 65535), TunnelMtu: number(1052, 65000)},
			NormaliseAfter: duration.Draw(t, "normalise"), Settle: duration.Draw(t, "settle"),
			Timeouts: &medwayv1.Timeouts{Udp: duration.Draw(t, "udp")},
			Sysctls:  map[string]string{"net." + name.Draw(t, "sysctl"): rapid.StringMatching(`[!-~][ -~]{0,20}`).Draw(t, "value")},
		}
	case "Ladder":
		return kind, Key{Kind: KindLadder}, &medwayv1.Ladder{Force: number(1, 99), Step: number(1, 50), LastResort: number(680, 1<<31-1)}
	case "VIP":
		a := rapid.SliceOfNDistinct(rapid.ByteRange(1, 254), 1, 4, rapid.ID).Draw(t, "addresses")
		m := &medwayv1.VIP{Groups: rapid.MapOfN(name, name, 1, 3).Draw(t, "groups")}
		for _, last := range a {
			m.Addresses = append(m.Addresses, "203.0.113."+decimal(last))
		}
		for _, port := range rapid.SliceOfNDistinct(rapid.Uint32Range(1, 65535), 1, 4, rapid.ID).Draw(t, "ports") {
			m.Services = append(m.Services, &medwayv1.Service{
				Protocol: rapid.SampledFrom([]string{"tcp", "udp"}).Draw(t, "protocol"), Port: port,
				Pool: name.Draw(t, "pool"), Persistence: duration.Draw(t, "persistence"),
				Scheduler: rapid.SampledFrom(append([]string{""}, schedulers...)).Draw(t, "scheduler"),
			})
		}
		return kind, Key{Kind: KindVIP, A: name.Draw(t, "name")}, m
	case "Pool":
		return kind, Key{Kind: KindPool, A: name.Draw(t, "name")}, &medwayv1.Pool{
			Scheduler: rapid.SampledFrom(append([]string{""}, schedulers...)).Draw(t, "scheduler"),
			Weights:   &medwayv1.Weights{Local: number(0, 65535), Remote: number(0, 65535)},
		}
	default:
		return kind, Key{KindBackend, name.Draw(t, "pool"), name.Draw(t, "name")},
			&medwayv1.Backend{Site: name.Draw(t, "site"), Address: "10.0.0." + decimal(rapid.Byte().Draw(t, "last"))}
	}
}

func decimal(b byte) string { return strconv.Itoa(int(b)) }

// written is the operator's form of an object.
func written(t *rapid.T, kind string, key Key, value []byte) []byte {
	fields := map[string]any{}
	if err := json.Unmarshal(value, &fields); err != nil {
		t.Fatal(err)
	}
	fields["kind"] = kind
	switch names[key.Kind] {
	case 1:
		fields["name"] = key.A
	case 2:
		fields["pool"], fields["name"] = key.A, key.B
	}
	text, err := json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestObjectIsStoredAsItWasMeant: message -> operator's text -> stored value ->
// typed value, which is that of the message.
func TestObjectIsStoredAsItWasMeant(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		kind, key, m := anyObject(t)
		want, err := Decode(key, Encode(m))
		if err != nil {
			t.Fatalf("%s: %v", Encode(m), err)
		}
		text := written(t, kind, key, Encode(m))
		o, err := ParseObject(text)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if o.Key != key || !bytes.Equal(o.Value, Encode(m)) {
			t.Fatalf("%s became %s %s, expected %s %s", text, o.Key, o.Value, key, Encode(m))
		}
		got, err := Decode(o.Key, o.Value)
		if diff := cmp.Diff(want, got, compareAddresses); err != nil || diff != "" {
			t.Fatalf("%s: %v\n%s", o.Value, err, diff)
		}
	})
}

func FuzzParseObject(f *testing.F) {
	for _, seed := range []string{
		`{"kind":"Settings","sysctls":{"net.a":"1"}}`, `{"kind":"Ladder","force":1}`, `{"kind":"VIP","name":"v",` + goodVIP[1:],
		`{"kind":"Pool","name":"p","weights":{"local":1}}`, `{"kind":"Backend","pool":"p","name":"b","site":"s","address":"10.0.0.1"}`,
		`null`, `{"kind":null}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		o, err := ParseObject(text)
		if err != nil {
			demandPrintable(t, err.Error())
			return
		}
		if k, err := ParseKey(o.Key.String()); err != nil || k != o.Key {
			t.Errorf("%q goes under %q, which reads as %+v, %v", text, o.Key, k, err)
		}
		value, err := Decode(o.Key, o.Value)
		if err != nil {
			t.Fatalf("%q is stored as %q: %v", text, o.Value, err)
		}
		again, err := Decode(o.Key, encoded(t, o.Key.Kind, o.Value, value))
		if diff := cmp.Diff(value, again, compareAddresses); err != nil || diff != "" {
			t.Errorf("%q changes when it is stored again: %v\n%s", o.Value, err, diff)
		}
	})
}
