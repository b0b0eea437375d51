package hostile

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
)

// full is, for each kind that is stored as JSON, a key and a value with every
// field set. All of them are good values.
var full = []Good{
	{Key: "settings", Value: `{"sync":{"id":10,"group":"224.0.0.81","port":8848,"max_length":1024,"tunnel_mtu":1480},"normalise_after":"3s","settle":"2s",
		"resync_interval":"10s","timeouts":{"tcp":"900s","tcp_fin":"120s","udp":"300s"},"sysctls":{"net.ipv4.vs.sync_ports":"1"},"longest_keepalive":"300s","parity":90}`},
	{Key: "ladder", Value: `{"force":50,"step":5,"active":100,"unconfirmed":101,"standby":110,"backup":500,"site_step":20,"last_resort":900}`},
	{Key: "vips/sip-1", Value: `{"addresses":["203.0.113.10"],"groups":{"dc1":"dc1-edge1","dc2":"dc2-edge1"},
		"services":[{"protocol":"udp","port":5060,"pool":"sbc","persistence":"300s","persistence_engine":"sip","one_packet":true}],
		"announcement":{"communities":["65001:100"],"prefixes":["203.0.113.0/24"],"ladder":{"force":50,"step":5},
			"roles":{"backup":{"communities":["no-export"],"prepend":2}}},
		"automatic_switchover":{"enabled":true,"share":"50%","packets_per_second":200,"for":"10s","settle":"60s"},
		"ownership":{"preference":["dc1-lvs-a"],"preempt":true}}`},
	{Key: "pools/sbc", Value: `{"scheduler":"sed","weights":{"local":50000,"remote":2},"thresholds":{"upper":25000,"lower":20000}}`},
	{Key: "backends/sbc/dc1-sbc1", Value: `{"site":"dc1","address":"10.1.0.21","address6":"2001:db8:1::21"}`},
	{Key: "nodes/dc2-lvs-a", Value: `{"machine_id":"b","site":"dc2","group":"dc2-edge1","ipv4":"10.2.0.11","sync_address":"169.254.1.2","version":"v1","ipv6":"2001:db8:2::11","schema":2}`},
	{Key: "alive/dc2-lvs-a", Value: `{"since":"2024-11-22T17:00:00Z","boot_id":"b","bgp_sessions":1,"cold":true,"unable":["sip-1"]}`},
	{Key: "owners/dc2/sip-1", Value: `{"node":"dc2-lvs-a"}`},
	{Key: "claims/dc2-lvs-a/sip-1", Value: `{"med":"none"}`},
	{Key: "locks/sip-1", Value: `{"since":"2024-11-22T17:00:00Z","reason":"r","from":"dc1","to":"dc2","by":"dc2-lvs-a"}`},
}

// forms are values that are no message at all, for every kind.
func forms() (out []Case) {
	for _, g := range full {
		good := g.Value
		for _, f := range []struct{ name, value, words string }{
			{"empty", "", "empty value: expected a JSON object"},
			{"white space", " \t\r\n", "empty value"},
			{"cut off", good[:len(good)-1], "it ends in the middle"},
			{"cut in half", good[:len(good)/2], "it ends in the middle"},
			{"something after it", good + "x", "byte"},
			{"twice", good + good, "something follows"},
			{"list", "[" + good + "]", "a list: expected a JSON object"},
			{"null", "null", "null: expected a JSON object"},
			{"number", "1e999", "value 1e999: expected a JSON object"},
			{"true", "true", "expected a JSON object"},
			{"string", `"` + "x" + `"`, `value "x": expected a JSON object`},
			{"byte order mark", "\ufeff" + good, "byte order mark"},
			{"invalid UTF-8", strings.Replace(good, `":`, "\xff\":", 1), "not UTF-8"},
			{"overlong UTF-8", strings.Replace(good, `":`, "\xc0\xaf\":", 1), "not UTF-8"},
			{"UTF-16", "\xff\xfe{\x00}\x00", "not UTF-8"},
			{"NUL", "\x00", "not JSON"},
			{"NUL after it", good + "\x00", "byte"},
			{"deep nesting", strings.Repeat(`{"a":`, 100000), "nested deeper"},
			{"deep lists", strings.Repeat(`[`, 100000), "nested deeper"},
			{"comment", good + "// by hand", "byte"},
			{"names without quotes", "{a:1}", "not JSON"},
			{"single quotes", "{'a':1}", "not JSON"},
			{"trailing comma", good[:len(good)-1] + ",}", "not JSON"},
			{"YAML", "site: dc1\n", "not JSON"},
			{"unknown field", `{"surprise":1,` + good[1:], "field surprise: unknown in schema"},
			{"unknown field of hostile text", `{"\u202e\u001b[2J":1,` + good[1:], `field "\u202e\x1b[2J": unknown`},
			{"unknown field of 100 kB", `{"` + strings.Repeat("x", 100000) + `":1,` + good[1:], "unknown"},
			{"protobuf's own field", `{"@type":"x",` + good[1:], `field "@type": unknown`},
		} {
			out = append(out, bad(g.Key+": "+f.name, g.Key, f.value, f.words))
		}
		name := strings.Split(good, `"`)[1]
		out = append(out,
			bad(g.Key+": field twice", g.Key, fmt.Sprintf(`{%q:null,%s`, name, good[1:]), "field "+name+": given twice"),
			bad(g.Key+": field in upper case", g.Key, strings.Replace(good, name, strings.ToUpper(name), 1), "field "+strings.ToUpper(name)+": unknown"))
	}
	for _, key := range []string{"vips/sip-1", "settings", "target_state/sip-1", "claims/dc2-lvs-a/sip-1", "locks/sip-1"} {
		out = append(out, bad(key+": 1 MB of noise", key, noise(1<<20), "expected"), bad(key+": 1 MB of letters", key, strings.Repeat("a", 1<<20), "(1048576 bytes)"),
			bad(key+": 1 MB of white space", key, strings.Repeat(" ", 1<<20), "expected"))
	}
	return out
}

// noise is n random bytes, the same ones each time.
func noise(n int) string {
	r := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return string(b)
}

// change returns a value with another one at a path of names and indices.
func change(value string, with any, path ...any) string {
	var tree any
	if err := json.Unmarshal([]byte(value), &tree); err != nil {
		panic(err) // the values are those above
	}
	tree = set(tree, with, path)
	text, err := json.Marshal(tree)
	if err != nil {
		panic(err)
	}
	return string(text)
}

func set(tree, with any, path []any) any {
	if len(path) == 0 {
		return with
	}
	switch at := path[0].(type) {
	case string:
		o, _ := tree.(map[string]any)
		if o == nil {
			o = map[string]any{}
		}
		o[at] = set(o[at], with, path[1:])
		return o
	case int:
		l := tree.([]any)
		l[at] = set(l[at], with, path[1:])
		return l
	}
	panic("a path is of names and indices")
}

// name is a path as faults write it.
func name(path []any) string {
	text := ""
	for _, p := range path {
		switch p := p.(type) {
		case string:
			text = strings.TrimPrefix(text+"."+p, ".")
		case int:
			text += fmt.Sprintf("[%d]", p)
		}
	}
	return text
}

// types puts values of the wrong type into every field of every message.
func types() (out []Case) {
	for _, g := range full {
		var tree any
		if err := json.Unmarshal([]byte(g.Value), &tree); err != nil {
			panic(err)
		}
		each(tree, nil, func(path []any, value any) {
			wrong := map[string]any{"null": nil}
			switch value.(type) {
			case string:
				wrong["a number"], wrong["an object"] = 5, map[string]any{}
			case float64:
				wrong["a string"], wrong["a list"], wrong["a fraction"] = "5", []any{}, 1.5
				wrong["negative"], wrong["2^32"], wrong["NaN"] = -1, 1<<32, "NaN"
			case bool:
				wrong["a string"], wrong["a number"] = "true", 1
			case []any:
				wrong["an object"], wrong["a string"] = map[string]any{}, "x"
			case map[string]any:
				wrong["a list"], wrong["a string"] = []any{}, "x"
			}
			for _, kind := range slices.Sorted(maps.Keys(wrong)) {
				out = append(out, bad(g.Key+": "+name(path)+" is "+kind, g.Key, change(g.Value, wrong[kind], path...), "field "+name(path)+": ", "expected"))
			}
		})
	}
	return out
}

// each calls f for everything inside a value.
func each(value any, path []any, f func(path []any, value any)) {
	if len(path) > 0 {
		f(slices.Clone(path), value)
	}
	switch v := value.(type) {
	case map[string]any:
		for _, name := range slices.Sorted(maps.Keys(v)) {
			each(v[name], append(slices.Clone(path), name), f)
		}
	case []any:
		for i, item := range v {
			each(item, append(slices.Clone(path), i), f)
		}
	}
}

// Number is a field with the range that it may have.
type Number struct {
	Key         string
	path        []any
	Least, Most int64
	// value is one in which the whole range of the field is good.
	value string
}

// Field is the field's name.
func (n Number) Field() string { return name(n.path) }

// With is the value with the field set to v.
func (n Number) With(v int64) string { return change(n.value, v, n.path...) }

// Numbers are the fields that hold a number, each with its range.
func Numbers() []Number {
	const wide = `{"force":1,"step":1,"active":1073741823,"unconfirmed":1073741824,"standby":1073741833,"backup":1073741842,"site_step":18,"last_resort":2147483647}`
	vip := full[2].Value
	tcp := change(vip, map[string]any{"protocol": "tcp", "port": 5060, "pool": "sbc"}, "services", 0)
	return []Number{
		{"settings", []any{"sync", "id"}, 1, 255, `{}`},
		{"settings", []any{"sync", "port"}, 1, 65535, `{}`},
		{"settings", []any{"sync", "tunnel_mtu"}, 1052, 65000, `{}`},
		{"settings", []any{"sync", "max_length"}, 1024, 1452, `{}`},
		{"ladder", []any{"force"}, 1, 1073741822, wide},
		{"ladder", []any{"step"}, 1, 2147483647, wide},
		{"ladder", []any{"active"}, 2, 1073741823, wide},
		{"ladder", []any{"unconfirmed"}, 1073741824, 1073741824, wide},
		{"ladder", []any{"standby"}, 1073741833, 1073741833, wide},
		{"ladder", []any{"backup"}, 1073741842, 2147483647 - 162, wide},
		{"ladder", []any{"site_step"}, 18, 1000, wide},
		{"ladder", []any{"last_resort"}, 1073741842 + 162, 2147483647, wide},
		{"vips/sip-1", []any{"services", 0, "port"}, 1, 65535, tcp},
		{"vips/sip-1", []any{"announcement", "roles", "backup", "prepend"}, 0, 32, tcp},
		{"pools/sbc", []any{"weights", "local"}, 0, 65535, `{}`},
		{"pools/sbc", []any{"weights", "remote"}, 0, 65535, `{}`},
		{"pools/sbc", []any{"thresholds", "upper"}, 0, 2147483647, `{}`},
		{"pools/sbc", []any{"thresholds", "lower"}, 0, 2147483647, `{"thresholds":{"upper":2147483647}}`},
	}
}

// numbers goes one beyond either end of every range.
func numbers() (out []Case) {
	for _, n := range Numbers() {
		field := n.Field()
		// A rung that is out of order may be told by the one above it.
		if n.Key == "ladder" {
			field = "expected"
		}
		for _, v := range []int64{n.Least - 1, n.Most + 1, 4294967295, 4294967296, 1 << 62} {
			if v == 4294967295 && n.Most >= v {
				continue
			}
			out = append(out, bad(fmt.Sprintf("%s: %s is %d", n.Key, n.Field(), v), n.Key, n.With(v), field, "expected"))
		}
	}
	return out
}

// durations goes just beyond either end of every range.
func durations() (out []Case) {
	for _, d := range []struct {
		key          string
		path         []any
		under, over  string
		wholeSeconds bool
	}{
		{"settings", []any{"normalise_after"}, "-1ns", "24h0m0.000000001s", false},
		{"settings", []any{"settle"}, "-1ns", "60.000000001s", false},
		{"settings", []any{"resync_interval"}, "999.999999ms", "1h0m0.000000001s", false},
		{"settings", []any{"timeouts", "tcp"}, "0s", "24h0m1s", true},
		{"settings", []any{"timeouts", "tcp_fin"}, "0s", "24h0m1s", true},
		{"settings", []any{"timeouts", "udp"}, "0s", "24h0m1s", true},
		{"vips/sip-1", []any{"services", 0, "persistence"}, "0s", "24h0m1s", true},
	} {
		value := full[0].Value
		if d.key != "settings" {
			value = full[2].Value
		}
		texts := []string{d.under, d.over, "10", "10 s", "ten seconds", "1e3s", "9223372036854775808ns", "106751991167300d", "\u0661s", "1s\n", "-10s"}
		if d.wholeSeconds {
			texts = append(texts, "1.5s", "1500ms")
		}
		for _, text := range texts {
			out = append(out, bad(fmt.Sprintf("%s: %s is %q", d.key, name(d.path), text), d.key, change(value, text, d.path...), "field "+name(d.path)+": ", "expected"))
		}
	}
	return out
}
