package state

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/proto"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

var compareAddresses = cmp.Options{cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.IgnoreUnexported(Snapshot{})}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

const (
	goodVIP  = `{"addresses":["203.0.113.10"],"groups":{"dc1":"g1"},"services":[{"protocol":"tcp","port":5060,"pool":"sbc"}]}`
	goodNode = `{"machine_id":"m","site":"dc1","group":"g1","ipv4":"10.1.0.11","sync_address":"169.254.3.4","version":"v1"}`
)

func TestGoodValues(t *testing.T) {
	for _, test := range []struct {
		name, value string
		kind        Kind
		want        any
	}{
		{"settings: all defaults", `{}`, KindSettings, DefaultSettings()},
		{
			"settings: everything set",
			`{"sync":{"id":255,"group":"239.1.2.3","port":65535,"max_length":1024,"tunnel_mtu":1052},"normalise_after":"0s",
			  "settle":"1m","resync_interval":"1s","timeouts":{"tcp":"24h","tcp_fin":"1s","udp":"90s"},
			  "sysctls":{"net.ipv4.vs.sync_threshold":" 3\t50 ","net.ipv4.conf.eth0/7.rp_filter":"0"},
			  "longest_keepalive":"29s","parity":100}`,
			KindSettings,
			Settings{
				Sync:   Sync{ID: 255, Group: addr("239.1.2.3"), Port: 65535, MaxLength: 1024, TunnelMTU: 1052},
				Settle: time.Minute, ResyncInterval: time.Second,
				Timeouts: Timeouts{TCP: 24 * time.Hour, TCPFin: time.Second, UDP: 90 * time.Second},
				Sysctls:  map[string]string{"net.ipv4.vs.sync_threshold": "3 50", "net.ipv4.conf.eth0/7.rp_filter": "0"},

				LongestKeepalive: 29 * time.Second, Parity: 100,
			},
		},
		{"ladder: all defaults", `{}`, KindLadder, DefaultLadder()},
		{
			"ladder: as narrow as it may be",
			`{"force":1,"step":1,"active":2,"unconfirmed":3,"standby":12,"backup":21,"site_step":18,"last_resort":183}`,
			KindLadder, Ladder{1, 1, 2, 3, 12, 21, 18, 183},
		},
		{
			"vip", `{"addresses":["203.0.113.10","203.0.113.11"],"groups":{"dc1":"g1","dc2":"g2"},
			  "services":[{"protocol":"tcp","port":1,"pool":"sbc"},{"protocol":"udp","port":1,"pool":"sbc"},
			              {"protocol":"tcp","port":65535,"pool":"p","persistence":"300s"}],
			  "announcement":{"communities":["0:0","65535:65535"]}}`,
			KindVIP,
			VIP{
				Addresses: []netip.Addr{addr("203.0.113.10"), addr("203.0.113.11")},
				Groups:    map[string]string{"dc1": "g1", "dc2": "g2"},
				Services: []Service{
					{Protocol: "tcp", Port: 1, Pool: "sbc"},
					{Protocol: "udp", Port: 1, Pool: "sbc"},
					{Protocol: "tcp", Port: 65535, Pool: "p", Persistence: 300 * time.Second},
				},
				Announcement: Announcement{Communities: []uint32{0, 0xffffffff}, Routes: map[Rung]Route{}},
			},
		},
		{
			"vip: switches by itself", goodVIP[:len(goodVIP)-1] + `,"automatic_switchover":{"enabled":true,"share":"60%","packets_per_second":1,"for":"5s","settle":"0s"},
			  "ownership":{"preference":["n2","n1"],"preempt":true}}`,
			KindVIP,
			VIP{
				Addresses: []netip.Addr{addr("203.0.113.10")}, Groups: map[string]string{"dc1": "g1"},
				Services:  []Service{{Protocol: "tcp", Port: 5060, Pool: "sbc"}},
				Automatic: Automatic{Enabled: true, Share: 60, Floor: 1, For: 5 * time.Second},
				Ownership: Ownership{Preference: []string{"n2", "n1"}, Preempt: true},
			},
		},
		{"pool: all defaults", `{}`, KindPool, Pool{Local: 50000, Remote: 2}},
		{
			"pool: weights of 0 are not the default", `{"scheduler":"wrr","weights":{"local":0,"remote":65535},"thresholds":{"upper":5,"lower":5}}`,
			KindPool, Pool{Scheduler: "wrr", Remote: 65535, Upper: 5, Lower: 5},
		},
		{"backend", `{"site":"dc1","address":"10.1.1.21"}`, KindBackend, Backend{Site: "dc1", IPv4: addr("10.1.1.21")}},
		{
			"node", goodNode, KindNode,
			Node{MachineID: "m", Site: "dc1", Group: "g1", IPv4: addr("10.1.0.11"), SyncAddress: addr("169.254.3.4"), Version: "v1", Schema: 1},
		},
		{
			"alive", `{"since":"2024-11-22T17:00:00Z","boot_id":"b","bgp_sessions":4294967295}`, KindAlive,
			Alive{Since: time.Date(2024, 11, 22, 17, 0, 0, 0, time.UTC), BootID: "b", BGPSessions: 1<<32 - 1},
		},
		{"owner", `{"node":"n1"}`, KindOwner, "n1"},
		{"claim: lowest", `{"med":"0"}`, KindClaim, MED(0)},
		{"claim: highest", `{"med":"4294967295"}`, KindClaim, MED(1<<32 - 1)},
		{"claim: none", `{"med":"none"}`, KindClaim, NoMED},
		{"target: a plain word", "dc2", KindTarget, "dc2"},
		{"target: echo adds a newline", " \tdc2\r\n", KindTarget, "dc2"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := Decode(Key{Kind: test.kind}, []byte(test.value))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got, compareAddresses); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestBadValuesSayWhatIsWrong: an operator mends a value from the error alone,
// so that names the field, the value found and what was expected.
func TestBadValuesSayWhatIsWrong(t *testing.T) {
	const (
		vip     = KindVIP
		service = `{"protocol":"tcp","port":5060,"pool":"sbc"}`
	)
	inVIP := func(services string) string {
		return `{"addresses":["203.0.113.10"],"groups":{"dc1":"g1"},"services":[` + services + `]}`
	}
	replaced := func(text, old, new string) string {
		if !strings.Contains(text, old) {
			t.Fatalf("%q is not in %q", old, text)
		}
		return strings.Replace(text, old, new, 1)
	}
	for _, test := range []struct {
		kind  Kind
		value string
		want  []string
	}{
		{KindSettings, `{"sync":{"id":0}}`, []string{"sync.id", "value 0", "1 to 255"}},
		{KindSettings, `{"sync":{"id":256}}`, []string{"sync.id", "value 256", "1 to 255"}},
		{KindSettings, `{"sync":{"id":-1}}`, []string{"id", "-1"}},
		{KindSettings, `{"sync":{"port":0}}`, []string{"sync.port", "value 0", "1 to 65535"}},
		{KindSettings, `{"sync":{"port":65536}}`, []string{"sync.port", "value 65536", "1 to 65535"}},
		{KindSettings, `{"sync":{"tunnel_mtu":1051}}`, []string{"sync.tunnel_mtu", "value 1051", "1052 to 65000"}},
		{KindSettings, `{"sync":{"tunnel_mtu":65001}}`, []string{"sync.tunnel_mtu", "value 65001", "1052 to 65000"}},
		{KindSettings, `{"sync":{"max_length":1023}}`, []string{"sync.max_length", "value 1023", "1024 to 1452"}},
		{KindSettings, `{"sync":{"max_length":1453}}`, []string{"sync.max_length", "value 1453", "1024 to 1452"}},
		{KindSettings, `{"sync":{"group":"10.0.0.1"}}`, []string{"sync.group", `"10.0.0.1"`, "multicast"}},
		{KindSettings, `{"sync":{"group":"ff02::1"}}`, []string{"sync.group", `"ff02::1"`, "IPv4 multicast"}},
		{KindSettings, `{"normalise_after":"60"}`, []string{"normalise_after", `"60"`, "a duration from 0s to 24h"}},
		{KindSettings, `{"normalise_after":"24h0m1s"}`, []string{"normalise_after", "a duration from 0s to 24h"}},
		{KindSettings, `{"settle":"-1s"}`, []string{"settle", `"-1s"`, "a duration from 0s to 1m"}},
		{KindSettings, `{"resync_interval":"0s"}`, []string{"resync_interval", `"0s"`, "a duration from 1s to 1h"}},
		{KindSettings, `{"timeouts":{"tcp":"999ms"}}`, []string{"timeouts.tcp", `"999ms"`, "a duration from 1s"}},
		{KindSettings, `{"timeouts":{"tcp_fin":"1.5s"}}`, []string{"timeouts.tcp_fin", `"1.5s"`, "whole seconds"}},
		{KindSettings, `{"timeouts":{"udp":"1e9s"}}`, []string{"timeouts.udp", `"1e9s"`, "a duration"}},
		{KindSettings, `{"sysctls":{"kernel.panic":"1"}}`, []string{"sysctls.kernel.panic", `"kernel.panic"`, "begins with net."}},
		{KindSettings, `{"sysctls":{"net...kernel.panic":"1"}}`, []string{"sysctls", `"net...kernel.panic"`, "begins with net."}},
		// sysctl(8) swaps dots and slashes: this is net/../kernel/panic.
		{KindSettings, `{"sysctls":{"net.//.kernel.panic":"1"}}`, []string{"sysctls", `"net.//.kernel.panic"`}},

		{KindLadder, `{"force":0}`, []string{"force", "value 0", "a number from 1 to 2147483647"}},
		{KindLadder, `{"force":100}`, []string{"active", "value 100", "at least 1 more than force (100)"}},
		{KindLadder, `{"unconfirmed":100}`, []string{"unconfirmed", "value 100", "at least 1 more than active (100)"}},
		{KindLadder, `{"standby":109}`, []string{"standby", "value 109", "at least 9 more than unconfirmed (101)"}},
		{KindLadder, `{"backup":118}`, []string{"backup", "value 118", "at least 9 more than standby (110)"}},
		{KindLadder, `{"last_resort":679}`, []string{"last_resort", "value 679", "at least 180 more than backup (500)"}},
		{KindLadder, `{"step":0}`, []string{"step", "value 0", "1 to 2147483647"}},
		{KindLadder, `{"site_step":17}`, []string{"site_step", "value 17", "18 to 1000"}},
		{KindLadder, `{"site_step":1001,"last_resort":1000000}`, []string{"site_step", "value 1001", "18 to 1000"}},
		{KindLadder, `{"last_resort":2147483648}`, []string{"last_resort", "value 2147483648", "0 to 2147483647"}},

		{vip, `{}`, []string{"addresses", "at least one address"}},
		{vip, replaced(goodVIP, "203.0.113.10", "203.0.113"), []string{"addresses", `"203.0.113"`, "unicast"}},
		{vip, replaced(goodVIP, "203.0.113.10", "203.0.113.10/32"), []string{"addresses", `"203.0.113.10/32"`, "unicast"}},
		{vip, replaced(goodVIP, "203.0.113.10", "224.0.0.1"), []string{"addresses", `"224.0.0.1"`, "unicast"}},
		{vip, replaced(goodVIP, "203.0.113.10", "0.0.0.0"), []string{"addresses", `"0.0.0.0"`, "unicast"}},
		{vip, replaced(goodVIP, "203.0.113.10", "255.255.255.255"), []string{"addresses", "unicast"}},
		{vip, replaced(goodVIP, "203.0.113.10", "::ffff:203.0.113.10"), []string{"addresses", "unicast"}},
		{vip, replaced(goodVIP, `"203.0.113.10"`, `"10.0.0.1","10.0.0.1"`), []string{"addresses", `"10.0.0.1"`, "each address once"}},
		{vip, replaced(goodVIP, `{"dc1":"g1"}`, `{}`), []string{"groups", "at least one site"}},
		{vip, replaced(goodVIP, `"dc1":`, `"DC1":`), []string{"groups", `"DC1"`, "1 to 63 of a-z"}},
		{vip, replaced(goodVIP, `:"g1"`, `:""`), []string{"groups.dc1", "missing", "1 to 63 of a-z"}},
		{vip, inVIP(``), []string{"services", "at least one service"}},
		{vip, inVIP(service + `,` + service), []string{"services[1].port", "value 5060", "each port of a protocol once"}},
		{vip, inVIP(replaced(service, "tcp", "TCP")), []string{"services[0].protocol", `"TCP"`, "tcp or udp"}},
		{vip, inVIP(replaced(service, "5060", "0")), []string{"services[0].port", "value 0", "1 to 65535"}},
		{vip, inVIP(replaced(service, "5060", "65536")), []string{"services[0].port", "value 65536", "1 to 65535"}},
		{vip, inVIP(replaced(service, "sbc", "s/c")), []string{"services[0].pool", `"s/c"`, "1 to 63 of a-z"}},
		{vip, inVIP(replaced(service, `5060`, `5060,"persistence":"1s1ms"`)), []string{"services[0].persistence", `"1s1ms"`, "whole seconds"}},
		{vip, inVIP(replaced(service, `5060`, `5060,"persistence":"0s"`)), []string{"services[0].persistence", `"0s"`, "a duration from 1s"}},
		{vip, replaced(goodVIP, `{"a`, `{"announcement":{"communities":["65536:1"]},"a`), []string{"announcement.communities", `"65536:1"`, "two numbers from 0 to 65535"}},
		{vip, replaced(goodVIP, `{"a`, `{"announcement":{"communities":["1"]},"a`), []string{"announcement.communities", `"1"`, "with a colon"}},
		{vip, replaced(goodVIP, `{"a`, `{"announcement":{"communities":["1:2:3"]},"a`), []string{"announcement.communities", `"1:2:3"`}},

		{KindPool, `{"scheduler":"random"}`, []string{"scheduler", `"random"`, "one of rr, wrr"}},
		{KindPool, `{"weights":{"local":65536}}`, []string{"weights.local", "value 65536", "0 to 65535"}},
		{KindPool, `{"weights":{"remote":65536}}`, []string{"weights.remote", "value 65536", "0 to 65535"}},
		{KindPool, `{"thresholds":{"upper":1,"lower":2}}`, []string{"thresholds.lower", "value 2", "at most thresholds.upper (1)"}},

		{KindBackend, `{"address":"10.0.0.1"}`, []string{"site", "missing", "1 to 63 of a-z"}},
		{KindBackend, `{"site":"dc1"}`, []string{"address", "missing", "unicast"}},

		{KindNode, replaced(goodNode, `"m"`, `""`), []string{"machine_id", "missing", "machine id"}},
		{KindNode, replaced(goodNode, `dc1`, `-`), []string{"site", `"-"`, "1 to 63 of a-z"}},
		{KindNode, replaced(goodNode, `g1`, ``), []string{"group", "missing", "1 to 63 of a-z"}},
		{KindNode, replaced(goodNode, `10.1.0.11`, `10.1.0.256`), []string{"ipv4", `"10.1.0.256"`, " unicast"}},
		{KindNode, replaced(goodNode, `169.254.3.4`, `10.1.0.11`), []string{"sync_address", `"10.1.0.11"`, "169.254.0.0/16"}},
		{KindNode, replaced(goodNode, `169.254.3.4`, `fe80::1`), []string{"sync_address", `"fe80::1"`, "169.254.0.0/16"}},

		{KindAlive, `{}`, []string{"since", "missing", "RFC 3339"}},
		{KindAlive, `{"since":"yesterday"}`, []string{"since", `"yesterday"`, "RFC 3339"}},
		{KindAlive, `{"since":"2024-11-22T17:00:00Z","bgp_sessions":4294967296}`, []string{"4294967296"}},
		{KindOwner, `{}`, []string{"missing", "1 to 63 of a-z"}},
		{KindOwner, `{"node":"N1"}`, []string{`"N1"`, "1 to 63 of a-z"}},
		{KindClaim, `{}`, []string{"med", `""`, `"none"`}},
		{KindClaim, `{"med":"-1"}`, []string{"med", `"-1"`, "0 to 4294967295"}},
		{KindClaim, `{"med":"4294967296"}`, []string{"med", `"4294967296"`, "0 to 4294967295"}},
		{KindClaim, `{"med":"NONE"}`, []string{"med", `"NONE"`, `"none"`}},
		{KindClaim, `{"med":"50 "}`, []string{"med", `"50 "`, "0 to 4294967295"}},
		{KindTarget, ``, []string{"name of a site", `""`}},
		{KindTarget, `"dc1"`, []string{"name of a site as a plain word", `"\"dc1\""`}},
		{KindTarget, `{"site":"dc1"}`, []string{"name of a site as a plain word"}},
		{KindTarget, "dc1\x00", []string{`"dc1\x00"`}},
		{KindTarget, "dc1 dc2", []string{`"dc1 dc2"`}},
		{KindTarget, "\xff", []string{"name of a site as a plain word"}},
		{KindTarget, long(1 << 20), []string{"name of a site as a plain word"}},
		{"epochs", `{}`, []string{`unknown kind "epochs"`}},
	} {
		t.Run(string(test.kind)+" "+test.value[:min(len(test.value), 60)], func(t *testing.T) {
			refused(t, Key{Kind: test.kind}, test.value, test.want...)
		})
	}
}

// refused demands an error that contains the parts, and stays short enough for
// a status key whatever the value was.
func refused(t *testing.T, k Key, value string, parts ...string) {
	t.Helper()
	got, err := Decode(k, []byte(value))
	if err == nil {
		t.Fatalf("accepted as %+v", got)
	}
	if got != nil {
		t.Errorf("a value beside the error: %+v", got)
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q, expected it to contain %q", err, part)
		}
	}
	if len(err.Error()) > maxErrorText {
		t.Errorf("an error of %d bytes, expected at most 400", len(err.Error()))
	}
}

// TestDecodingIsStrict holds for every kind that is stored as JSON.
func TestDecodingIsStrict(t *testing.T) {
	huge := long(1 << 20)
	for kind, good := range goodValues {
		if kind == KindTarget || kind == KindEpoch || kind == KindJoined {
			continue // plain words
		}
		for name, test := range map[string]struct {
			value string
			want  string
		}{
			"unknown field":     {`{"surprise":1,` + good[1:], "field surprise: unknown in schema 4"},
			"huge field":        {`{"` + huge + `":1,` + good[1:], "aaaa"},
			"wrong case":        {`{"NODE":"x",` + good[1:], "field NODE: unknown in schema 4"},
			"given twice":       {good[:len(good)-1] + `,` + good[1:], "given twice"},
			"trailing garbage":  {good + `x`, "x"},
			"a second value":    {good + good, "a JSON object"},
			"an array":          {`[` + good + `]`, "a JSON object"},
			"a word":            {`dc1`, `"dc1" is not JSON`},
			"null":              {`null`, "null: expected a JSON object"},
			"empty":             {``, "empty value"},
			"white space":       {" \n\t", "empty value"},
			"cut off":           {good[:len(good)-1], "not JSON: it ends in the middle"},
			"comment":           {good + ` // note`, ""},
			"invalid UTF-8":     {`{"` + "\xff" + `":1,` + good[1:], "UTF-8"},
			"byte order mark":   {"\ufeff" + good, ""},
			"deeply nested":     {strings.Repeat(`{"a":`, 1<<16), ""},
			"unquoted name":     {`{node:"x"}`, ""},
			"trailing comma":    {good[:len(good)-1] + `,}`, ""},
			"number as a value": {`5`, ""},
		} {
			t.Run(string(kind)+"/"+name, func(t *testing.T) { refused(t, Key{Kind: kind}, test.value, test.want) })
		}
	}
	for _, test := range []struct {
		kind  Kind
		value string
		want  string
	}{
		{KindBackend, `{"site":5,"address":"10.0.0.1"}`, "site"},
		{KindBackend, `{"site":["dc1"],"address":"10.0.0.1"}`, "site"},
		{KindBackend, `{"site":"dc` + "\xff" + `","address":"10.0.0.1"}`, "UTF-8"},
		{KindSettings, `{"sync":{"id":"ten"}}`, "id"},
		{KindSettings, `{"sync":{"id":1.5}}`, "1.5"},
		{KindSettings, `{"sync":{"idd":1}}`, "field sync.idd: unknown"},
		{KindSettings, `{"sync":7}`, "7"},
		{KindSettings, `{"sysctls":{"net.a":"1","net.a":"2"}}`, "sysctls.net.a: given twice"},
		{KindSettings, `{"sysctls":{"net.a":1}}`, "1"},
		{KindVIP, `{"addresses":"203.0.113.10"}`, `"203.0.113.10"`},
		{KindClaim, `{"med":50}`, "50"},
	} {
		t.Run(test.value, func(t *testing.T) { refused(t, Key{Kind: test.kind}, test.value, test.want) })
	}
}

// goodValues is one good value of every kind.
var goodValues = map[Kind]string{
	KindSettings:     `{"settle":"2s"}`,
	KindLadder:       `{"force":40}`,
	KindVIP:          goodVIP,
	KindPool:         `{"scheduler":"sed"}`,
	KindBackend:      `{"site":"dc1","address":"10.1.1.21"}`,
	KindNode:         goodNode,
	KindAlive:        `{"since":"2024-11-22T17:00:00Z"}`,
	KindOwner:        `{"node":"n1"}`,
	KindClaim:        `{"med":"50"}`,
	KindTarget:       `dc1`,
	KindEpoch:        `e7f0`,
	KindJoined:       `e7f0`,
	KindDrain:        `{"since":"2024-11-22T17:00:00Z","reason":"new kernel","by":"ada"}`,
	KindPause:        `{"since":"2024-11-22T17:00:00Z"}`,
	KindBackendDrain: `{"since":"2024-11-22T17:00:00Z","reason":"new disk","by":"ada","switchover":"x"}`,
	KindPauseAll:     `{"since":"2024-11-22T17:00:00Z","reason":"maintenance"}`,
	KindLock:         `{"since":"2024-11-22T17:00:00Z","reason":"traffic in dc2","from":"dc1","to":"dc2","by":"dc2-lvs-a"}`,
}

func TestGoodValuesCoverEveryKind(t *testing.T) {
	for kind := range names {
		if _, err := Decode(Key{Kind: kind}, []byte(goodValues[kind])); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
	}
}

// TestStatus: only people act on one, so an older tool shows what a newer node
// says as far as it can.
func TestStatus(t *testing.T) {
	want := &medwayv1.Status{Node: "n1", Vips: []*medwayv1.VIPStatus{{Vip: "v", Med: proto.Uint32(0)}}}
	got, err := DecodeStatus(Encode(want))
	if err != nil || !proto.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	if got, err = DecodeStatus([]byte(`{"node":"n1","surprise":1}`)); err != nil || got.Node != "n1" {
		t.Errorf("a newer node's: %v, %v", got, err)
	}
	for _, bad := range []string{"", "x", `{"node":5}`, `{"node":"n1"`} {
		if _, err := DecodeStatus([]byte(bad)); err == nil {
			t.Errorf("%q: accepted", bad)
		}
	}
}

// TestEncodingIsStable: apply compares stored bytes, and protojson varies its
// white space on purpose.
func TestEncodingIsStable(t *testing.T) {
	got := string(Encode(&medwayv1.Node{MachineId: "m", SyncAddress: "169.254.3.4"}))
	if want := `{"machine_id":"m","sync_address":"169.254.3.4"}`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func FuzzDecode(f *testing.F) {
	kinds := slices.Sorted(maps.Keys(names))
	for kind, value := range goodValues {
		f.Add(uint8(slices.Index(kinds, kind)), []byte(value))
		f.Add(uint8(slices.Index(kinds, kind)), []byte(`{}`))
		f.Add(uint8(slices.Index(kinds, kind)), []byte(value+value))
	}
	for _, value := range []string{newVIP, `{"x":{"y":[1,"\u202e",null,1e9]}}`, "\xff", "{", `{"sysctls":{"net.a/b":"1"}}`, `{"announcement":{"ladder":{"force":1}}}`} {
		for kind := range kinds {
			f.Add(uint8(kind), []byte(value))
		}
	}
	f.Fuzz(func(t *testing.T, kind uint8, value []byte) {
		key := Key{Kind: kinds[int(kind)%len(kinds)]}
		got, err := Decode(key, value)
		if err != nil {
			demandPrintable(t, err.Error())
			return
		}
		again, err := Decode(key, encoded(t, key.Kind, value, got))
		if err != nil {
			t.Fatalf("%q decodes, but not once it is encoded: %v", value, err)
		}
		if diff := cmp.Diff(got, again, compareAddresses); diff != "" {
			t.Errorf("%q decodes otherwise once it is encoded: %s", value, diff)
		}
	})
}

func newMessage(kind Kind) proto.Message {
	switch kind {
	case KindNode:
		return &medwayv1.Node{}
	case KindAlive:
		return &medwayv1.Alive{}
	case KindOwner:
		return &medwayv1.Owner{}
	case KindClaim:
		return &medwayv1.Claim{}
	case KindLock:
		return &medwayv1.Lock{}
	case KindDrain:
		return &medwayv1.Drain{}
	case KindBackendDrain:
		return &medwayv1.BackendDrain{}
	case KindPause, KindPauseAll:
		return &medwayv1.Pause{}
	}
	for _, o := range objectKinds {
		if o.kind == kind {
			return o.message()
		}
	}
	return nil
}

// encoded is the stored form of a value that decodes.
func encoded(t *testing.T, kind Kind, value []byte, typed any) []byte {
	if kind == KindTarget || kind == KindEpoch || kind == KindJoined {
		return []byte(typed.(string))
	}
	m := newMessage(kind)
	if err := unmarshal(value, m); err != nil {
		t.Fatal(err)
	}
	return Encode(m)
}

func FuzzDecodeStatus(f *testing.F) {
	for _, seed := range []string{"", "{}", `{"node":"n","vips":[{"vip":"v","med":0,"active_connections":"5"}],"drift":{"mended":1},"surprise":{"a":[1]}}`, `{"node":5}`, "\xff"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		m, err := DecodeStatus(value)
		if err != nil {
			demandPrintable(t, err.Error())
			return
		}
		again, err := DecodeStatus(Encode(m))
		if err != nil || !proto.Equal(m, again) {
			t.Errorf("%q becomes %v, %v", value, again, err)
		}
	})
}
