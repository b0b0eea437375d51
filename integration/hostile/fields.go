package hostile

import (
	"fmt"
	"strings"
)

// fields are values that are wrong in what they mean.
func fields() (out []Case) {
	value := map[string]string{}
	for _, g := range full {
		value[g.Key] = g.Value
	}
	wrong := func(key string, path []any, words string, with ...any) {
		for _, w := range with {
			out = append(out, bad(fmt.Sprintf("%s: %s is %.60q", key, name(path), fmt.Sprint(w)), key, change(value[key], w, path...), "field "+name(path), words))
		}
	}
	at := func(path ...any) []any { return path }
	notNames := []any{"", "DC1", "dc_1", "-dc1", "dc1-", "dc1 ", "d\u0441" + "1", "dc1\n", "..", "a/b", strings.Repeat("a", 64), "dc1\u0000", "\u202e1cd"}

	const vip = "vips/sip-1"
	wrong(vip, at("addresses", 0), "unicast address", "", "203.0.113", "203.0.113.256", "203.0.113.010", "203.0.113.10/32", " 203.0.113.10", "224.0.0.1", "0.0.0.0", "0.1.2.3",
		"127.0.0.1", "169.254.1.1", "240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fe80::1%eth0", "ff02::1", "::ffff:203.0.113.10", "sip.example.com", "\u0662\u0660\u0663.0.113.10")
	wrong(vip, at("addresses"), "expected", []any{}, []any{"203.0.113.10", "203.0.113.10"}, []any{"2001:db8::1", "2001:DB8:0::1"}, many(65, "10.0.0.%d"))
	wrong(vip, at("groups"), "expected", map[string]any{})
	wrong(vip, at("groups", "dc1"), "1 to 63 of a-z", notNames...)
	for _, site := range []string{"DC1", "dc 1", "\x1b[31mdc1", ""} {
		out = append(out, bad(fmt.Sprintf("%s: a site %q", vip, site), vip, change(value[vip], "g", "groups", site), "field groups.", "1 to 63 of a-z"))
	}
	sites := map[string]any{}
	for i := range 10 {
		sites[fmt.Sprintf("dc%d", i)] = "g"
	}
	wrong(vip, at("groups"), "at most 9", sites)
	wrong(vip, at("services"), "expected", []any{}, many(257, "%d"))
	wrong(vip, at("services", 0, "protocol"), "tcp or udp", "", "TCP", "sctp", "6", "tcp ")
	wrong(vip, at("services", 0, "pool"), "1 to 63 of a-z", notNames...)
	wrong(vip, at("services", 0, "persistence_engine"), "sip", "SIP", "sctp", " sip")
	service := func(fields string) string {
		return `{"addresses":["203.0.113.10"],"groups":{"dc1":"dc1-edge1","dc2":"dc2-edge1"},"services":[` + fields + `]}`
	}
	const tcp = `{"protocol":"tcp","port":5060,"pool":"sbc"}`
	out = append(out,
		bad(vip+": two services on one port", vip, service(tcp+","+tcp), "field services[1].port", "services[0] has it"),
		bad(vip+": two services on one port, other pools", vip, service(tcp+`,{"protocol":"tcp","port":5060,"pool":"other"}`), "field services[1].port"),
		bad(vip+": a service without a port", vip, service(`{"protocol":"tcp","pool":"sbc"}`), "field services[0].port: value 0"),
		bad(vip+": a service without anything", vip, service(`{}`), "field services[0].protocol: missing", "field services[0].pool: missing"),
		bad(vip+": an engine for TCP", vip, service(`{"protocol":"tcp","port":5060,"pool":"sbc","persistence":"5s","persistence_engine":"sip"}`), "field services[0].persistence_engine", "protocol udp"),
		bad(vip+": an engine without persistence", vip, service(`{"protocol":"udp","port":5060,"pool":"sbc","persistence_engine":"sip"}`), "field services[0].persistence_engine", "a persistence beside it"),
		bad(vip+": one packet for TCP", vip, service(`{"protocol":"tcp","port":5060,"pool":"sbc","one_packet":true}`), "field services[0].one_packet", "protocol udp"),
		bad(vip+": one packet with persistence", vip, service(`{"protocol":"udp","port":5060,"pool":"sbc","one_packet":true,"persistence":"5s"}`), "field services[0].one_packet", "no persistence"),
		bad(vip+": everything wrong at once", vip, `{"addresses":["x","y"],"groups":{"A":"B"},"services":[{"protocol":"z"}]}`, "field addresses[0]", "field groups.A", "more)"))

	wrong(vip, at("announcement", "prefixes", 0), "a prefix", "203.0.113.10", "203.0.113.0/33", "203.0.113.1/24", "0.0.0.0/0", "::/0", "198.51.100.0/24", "203.0.113.0/-1", "::ffff:203.0.113.0/120")
	wrong(vip, at("announcement", "prefixes"), "overlap", []any{"203.0.113.0/24", "203.0.113.0/25"}, []any{"203.0.113.0/24", "203.0.113.0/24"})
	wrong(vip, at("announcement", "communities", 0), "two numbers from 0 to 65535", "1", "65536:1", "1:65536", "-1:1", "1:2:3", "no-such", "NO-EXPORT", "1: 2")
	wrong(vip, at("announcement", "communities"), "at most 64", many(65, "1:%d"))
	wrong(vip, at("announcement", "roles"), "one of", map[string]any{"master": map[string]any{}}, map[string]any{"Active": map[string]any{}})
	wrong(vip, at("announcement", "roles"), "at least 2", map[string]any{"active": map[string]any{"prepend": 2}, "backup": map[string]any{"prepend": 1}})
	wrong(vip, at("announcement", "ladder"), "expected", map[string]any{"force": 100}, map[string]any{"step": 0}, map[string]any{"backup": 900, "last_resort": 500})

	wrong(vip, at("automatic_switchover", "share"), "a share from 1% to 100%", "0%", "101%", "50", "half", "-1%", "1e1%", "%", "\u0665%")
	wrong(vip, at("automatic_switchover", "packets_per_second"), "a number from 1", 0)
	wrong(vip, at("automatic_switchover", "for"), "a duration from 1s", "0s", "10", "-1s", "2h")
	wrong(vip, at("automatic_switchover", "settle"), "a duration from 0s", "-1s", "25h")
	wrong(vip, at("ownership", "preference", 0), "1 to 63 of a-z", notNames[:3]...)
	wrong(vip, at("ownership", "preference"), "each name once", []any{"dc1-lvs-a", "dc1-lvs-a"})
	wrong("settings", at("longest_keepalive"), "expected", "0s", "1.5s", "25h", "five minutes")
	wrong("settings", at("parity"), "a number from 1 to 100", 0, 101)
	for _, key := range []string{"epoch", "joined/dc1-lvs-a"} {
		for _, word := range []string{"", "Two Words", "\x00"} {
			out = append(out, bad(fmt.Sprintf("%s: %.20q", key, word), key, word, "an epoch as a plain word"))
		}
	}
	for _, key := range []string{"node_drains/dc1-lvs-a", "drains/sbc/dc1-sbc1", "pauses/sip-1", "pause"} {
		out = append(out, bad(key+": empty", key, "", "empty value"), bad(key+": no time", key, `{"reason":"x"}`, "field since"),
			bad(key+": a word", key, "yes", "not JSON"))
	}

	wrong("settings", at("sync", "group"), "an IPv4 multicast address", "10.0.0.1", "ff02::1", "224.0.0", "all", "239.255.255.255.1")
	for _, key := range []string{
		"kernel.panic", "net", "net.", ".net.a", "net..a", "net.../kernel/panic", "net.//.kernel.panic", "net./", "net.a b", "net.a\nb", "net.ipv4.conf.$(reboot)", "net.é",
		"net." + strings.Repeat("a", 200), "vm.swappiness", "/proc/sys/net/ipv4", "net/ipv4/ip_forward", "NET.ipv4.ip_forward", "-w", "",
	} {
		out = append(out, bad(fmt.Sprintf("settings: sysctl %.60q", key), "settings", change(`{}`, "1", "sysctls", key), "field sysctls.", "begins with net."))
	}
	for _, v := range []string{"", " ", "1\n2", "1\x00", strings.Repeat("1", 201), "\x1b[31m"} {
		out = append(out, bad(fmt.Sprintf("settings: sysctl value %.60q", v), "settings", change(`{}`, v, "sysctls", "net.ipv4.vs.sync_ports"), "field sysctls.net.ipv4.vs.sync_ports", "printable"))
	}
	wrong(vip, at("services", 0, "scheduler"), "one of rr, wrr", "WRR", "random", "wrr ")
	wrong("pools/sbc", at("scheduler"), "one of rr, wrr", "SED", "random", "sed ", "\x00", "sed\n")
	out = append(out, bad("pools/sbc: lower above upper", "pools/sbc", `{"thresholds":{"upper":5,"lower":6}}`, "field thresholds.lower: value 6", "at most thresholds.upper (5)"),
		bad("pools/sbc: lower without upper", "pools/sbc", `{"thresholds":{"lower":1}}`, "field thresholds.lower"))

	const backend = "backends/sbc/dc1-sbc1"
	wrong(backend, at("site"), "1 to 63 of a-z", notNames...)
	wrong(backend, at("address"), "unicast address", "", "10.1.0", "127.0.0.1", "0.0.0.0", "224.0.0.1", "169.254.0.1", "sbc1", "10.1.0.21:5060", "fe80::1")
	wrong(backend, at("address6"), "an IPv6 unicast address", "10.1.0.21", "fe80::1", "::1", "ff02::1", "::ffff:10.1.0.21")
	out = append(out, bad(backend+": two IPv6 addresses", backend, `{"site":"dc1","address":"2001:db8::1","address6":"2001:db8::2"}`, "field address6", "an IPv4 address in the field address"))

	const node = "nodes/dc2-lvs-a"
	wrong(node, at("machine_id"), "expected", "", strings.Repeat("a", 201), "a\nb", "\x1b]0;title\a")
	wrong(node, at("version"), "expected", "v1\n", "\u202ev1", strings.Repeat("9", 1000))
	wrong(node, at("site"), "1 to 63 of a-z", notNames...)
	wrong(node, at("group"), "1 to 63 of a-z", notNames...)
	wrong(node, at("ipv4"), "an IPv4 unicast address", "2001:db8::1", "127.0.0.1", "10.2.0", "0.0.0.0")
	wrong(node, at("ipv6"), "an IPv6 unicast address", "10.2.0.11", "fe80::1", "::1", "::ffff:10.2.0.11")
	wrong(node, at("sync_address"), "169.254.0.0/16", "", "10.2.0.11", "fe80::1", "169.253.255.255", "169.255.0.0")

	wrong("alive/dc2-lvs-a", at("since"), "RFC 3339", "", "yesterday", "2024-11-22", "1732294800", "2024-13-22T17:00:00Z", "2024-11-22 17:00:00Z")
	wrong("owners/dc2/sip-1", at("node"), "1 to 63 of a-z", notNames...)
	for _, key := range []string{"claims/dc2-lvs-a/sip-1", "claims/dc1-lvs-a/sip-1", "claims/nobody/sip-1"} {
		value[key] = `{}`
		wrong(key, at("med"), `"none"`, "", "-1", "4294967296", "NONE", "none ", "5.0", "0x32", "5e1", "\u0665\u0660", "+50", " 50")
	}
	wrong("locks/sip-1", at("since"), "RFC 3339", "", "now", "2024-11-22T17:00:00")
	wrong("locks/sip-1", at("from"), "1 to 63 of a-z", "DC1", "dc1 ")
	wrong("locks/sip-1", at("to"), "1 to 63 of a-z", "DC2", "..")
	wrong("locks/sip-1", at("reason"), "printed", "\x1b[2J", strings.Repeat("a", 201), "a\nb")
	wrong("locks/sip-1", at("by"), "printed", "\u202enimda")
	return out
}

// many is a list of n texts.
func many(n int, format string) []any {
	var out []any
	for i := range n {
		if format == "%d" {
			out = append(out, map[string]any{"protocol": "tcp", "port": 1000 + i, "pool": "sbc"})
		} else {
			out = append(out, fmt.Sprintf(format, i))
		}
	}
	return out
}

// together are values that are right by themselves and wrong beside the others.
func together() []Case {
	vip := func(address string) string {
		return `{"addresses":["` + address + `"],"services":[{"protocol":"tcp","port":5060,"pool":"sbc"}],"groups":{"dc1":"dc1-edge1","dc2":"dc2-edge1"}}`
	}
	const sip1 = "203.0.113.10"
	return []Case{
		bad("vips/thief: another VIP's address", "vips/thief", vip(sip1), "field addresses[0]", sip1, "VIP sip-1"),
		bad("vips/a-thief: another VIP's address, first by name", "vips/a-thief", vip(sip1), "field addresses[0]", "VIP sip-1"),
		bad("vips/thief: a node's address", "vips/thief", vip("10.1.0.11"), "field addresses[0]", "node dc1-lvs-a"),
		bad("vips/thief: a backend's address", "vips/thief", vip("10.1.0.21"), "field addresses[0]", "backend sbc/dc1-sbc1"),
		bad("vips/sip-1: a node's address", "vips/sip-1", vip("10.2.0.11"), "field addresses[0]", "node dc2-lvs-a"),
		bad("vips/sip-1: a pool that does not exist", "vips/sip-1", strings.Replace(vip(sip1), `"sbc"`, `"sbcc"`, 1), "field services[0].pool", `"sbcc"`, "a pool that exists"),
		bad("vips/sip-1: a group that no node is in", "vips/sip-1", strings.Replace(vip(sip1), "dc1-edge1", "dc1-edge9", 1), "field groups.dc1", `"dc1-edge9"`, "a group that a node is in"),
		bad("backends/sbc/twin: another's address", "backends/sbc/twin", `{"site":"dc2","address":"10.1.0.21"}`, "field address", "10.1.0.21", "backend sbc/dc1-sbc1"),
		bad("backends/sbc/dc1-sbc2: another's address", "backends/sbc/dc1-sbc2", `{"site":"dc1","address":"10.1.0.21"}`, "field address", "backend sbc/dc1-sbc1"),
		bad("backends/sbc/a-twin: another's address, first by name", "backends/sbc/a-twin", `{"site":"dc2","address":"10.1.0.21"}`, "field address", "backend sbc/dc1-sbc1"),
		bad("backends/sbc/evil: a VIP's address", "backends/sbc/evil", `{"site":"dc1","address":"203.0.113.10"}`, "field address", "VIP sip-1"),
		bad("backends/sbc/dc1-sbc1: a VIP's address", "backends/sbc/dc1-sbc1", `{"site":"dc1","address":"203.0.113.10"}`, "field address", "VIP sip-1"),
		bad("backends/none/b: a pool that does not exist", "backends/none/b", `{"site":"dc1","address":"10.1.0.29"}`, `pool "none" does not exist`),
		bad("nodes/evil: a VIP's address", "nodes/evil", `{"machine_id":"e","site":"dc1","group":"dc1-edge1","ipv4":"203.0.113.10","sync_address":"169.254.9.9"}`, "field ipv4", "VIP sip-1"),
		bad("nodes/dc2-lvs-a: a VIP's address", "nodes/dc2-lvs-a", `{"machine_id":"b","site":"dc2","group":"dc2-edge1","ipv4":"203.0.113.10","sync_address":"169.254.1.2"}`, "field ipv4", "VIP sip-1"),
		bad("alive/dc2-lvs-a: off its lease", "alive/dc2-lvs-a", `{"since":"2024-11-22T17:00:00Z","boot_id":"b"}`, "not bound to a lease"),
		bad("alive/nobody: no node, no lease", "alive/nobody", `{"since":"2024-11-22T17:00:00Z"}`, "not bound to a lease"),
		bad("owners/dc1/sip-1: off its lease", "owners/dc1/sip-1", `{"node":"dc2-lvs-a"}`, "not bound to a lease"),
		bad("owners/dc2/sip-1: no node", "owners/dc2/sip-1", `{"node":"nobody"}`, `node "nobody" does not exist`),
		bad("owners/dc9/sip-1: no site", "owners/dc9/sip-1", `{"node":"nobody"}`, `node "nobody" does not exist`),
		bad("locks/nothing: no VIP", "locks/nothing", `{"since":"2024-11-22T17:00:00Z"}`, `VIP "nothing" does not exist`),
	}
}

// targets are what is no site of the VIP.
func targets() (out []Case) {
	for _, v := range []string{"", " ", "dc9", "DC2", "dc1,dc2", "dc1 dc2", `"dc2"`, `{"site":"dc2"}`, "dc2\x00", "\x00", "\xff\xfe", "d\u0441" + "2", "dc2\u200f", "\ufeffdc2", "none", "../dc2", "sip-1", "dc2;reboot", "%s%n", strings.Repeat("dc2", 40), "null", "0", "dc-", "\x1b[31mdc2"} {
		out = append(out, bad(fmt.Sprintf("target_state/sip-1: %.60q", v), "target_state/sip-1", v, "site"))
	}
	return append(out, bad("target_state/nothing: no VIP", "target_state/nothing", "dc1", `VIP "nothing" does not exist`))
}

// keys are outside the layout.
func keys() (out []Case) {
	for _, k := range []struct{ key, words string }{
		{"", `unknown kind ""`}, {"/", `unknown kind ""`}, {"vip/sip-1", `unknown kind "vip"`}, {"VIPS/sip-1", `unknown kind "VIPS"`}, {"/vips/sip-1", `unknown kind ""`},
		{"vips", "expected 1 names"}, {"vips/", "a name of 1 to 63"}, {"vips//", "expected 1 names"}, {"vips/sip-1/", "expected 1 names"}, {"vips/sip-1/x", "expected 1 names"}, {"vips//sip-1", "expected 1 names"},
		{"vips/SIP-1", "a name of 1 to 63"}, {"vips/sip_1", "a name of 1 to 63"}, {"vips/sip-1 ", "a name of 1 to 63"}, {"vips/ sip-1", "a name of 1 to 63"}, {"vips/sip-1\n", "a name of 1 to 63"},
		{"vips/sip-1\x00", "a name of 1 to 63"}, {"vips/..", "a name of 1 to 63"}, {"vips/\xff", "a name of 1 to 63"}, {"vips/\u202e", "a name of 1 to 63"}, {"vips/\x1b[2J", "a name of 1 to 63"},
		{"vips/" + strings.Repeat("a", 64), "a name of 1 to 63"}, {"vips/" + strings.Repeat("a", 100000), "a name of 1 to 63"}, {strings.Repeat("x", 100000), "unknown kind"}, {strings.Repeat("/", 1000), "unknown kind"},
		{"settings/x", "expected 0 names"}, {"settings/", "expected 0 names"}, {"ladder/x", "expected 0 names"}, {"pools/sbc/dc1-sbc1", "expected 1 names"}, {"backends/sbc", "expected 2 names"},
		{"backends/dc1-sbc1", "expected 2 names"}, {"claims/sip-1", "expected 2 names"}, {"owners/sip-1", "expected 2 names"}, {"target_state/dc1/sip-1", "expected 1 names"}, {"targets/sip-1", "unknown kind"},
		{"epoch/x", "expected 0 names"}, {"%2e%2e/settings", "unknown kind"}, {"status/dc1-lvs-a", "unknown kind"}, {"\u0443ips/sip-1", "unknown kind"},
	} {
		// A value that would be good under the right key must not be taken.
		out = append(out, bad(fmt.Sprintf("key %.60q of %d bytes", k.key, len(k.key)), k.key, `{}`, k.words))
	}
	return out
}
