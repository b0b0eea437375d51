package drill

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/medway-lb/medway/integration/lab"
	"github.com/medway-lb/medway/integration/sbc/sipp"
)

// steps are those of both addresses, which come together.
func steps(pairs ...any) []Step {
	var out []Step
	for i := 0; i < len(pairs); i += 2 {
		for _, vip := range vips {
			site := pairs[i].(string)
			out = append(out, Step{After: time.Duration(i) * 100 * time.Millisecond, VIP: vip, Site: site, Node: site + "-lvs-a", MED: pairs[i+1].(int)})
		}
	}
	return out
}

func TestDisorder(t *testing.T) {
	for _, test := range []struct {
		name  string
		steps []Step
		want  string // "" is good order
	}{
		{"as PROTOCOL has it", steps("dc2", 50, "dc1", 500, "dc2", 100), ""},
		{"unconfirmed first", steps("dc2", 103, "dc2", 50, "dc1", 500, "dc2", 100), ""},
		{"the new site's standby first", steps("dc2", 113, "dc2", 50, "dc1", 500, "dc2", 100), ""},
		{"any backup value", steps("dc2", 50, "dc1", 522, "dc2", 100), ""},
		{"the old value again", steps("dc1", 100, "dc2", 50, "dc1", 500, "dc2", 100), ""},
		{"nothing happened", nil, "the steps were []"},
		{"break before make", steps("dc1", 500, "dc2", 50, "dc2", 100), "dc1 was at 500 when dc2 forced 50"},
		{"the old site raised itself a little first", steps("dc1", 101, "dc2", 50, "dc1", 500, "dc2", 100), "dc1 was at 101 when dc2 forced 50"},
		{"the old site never left", steps("dc2", 50, "dc2", 100), "expected dc2 50, dc1 at least 500, dc2 100"},
		{"the new site was never normal", steps("dc2", 50, "dc1", 500), "expected dc2 50, dc1 at least 500, dc2 100"},
		{"normal before the old site left", steps("dc2", 50, "dc2", 100, "dc1", 500), "expected dc2 50"},
		{"without force", steps("dc2", 100, "dc1", 500), "expected dc2 50"},
		{"the wrong site forces", steps("dc1", 50, "dc2", 500, "dc1", 100), "expected dc2 50"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := Switch{From: "dc1", To: "dc2", Steps: test.steps}.disorder(lab.VIP6)
			if test.want == "" && got != "" || !strings.Contains(got, test.want) {
				t.Errorf("got %q, expected %q", got, test.want)
			}
		})
	}
}

// good is the report of a drill in which nothing went wrong.
func good() Report {
	put := time.Unix(1700000010, 0)
	s := Switch{
		From: "dc1", To: "dc2", Put: put, Owners: map[string]string{"dc1": "dc1-lvs-a", "dc2": "dc2-lvs-a"}, Best: map[string]time.Time{"transit": put.Add(300 * time.Millisecond)}, Normal: put.Add(4 * time.Second),
		Steps: steps("dc2", 50, "dc1", 500, "dc2", 100),
		Calls: []SwitchCalls{{
			Alive: Count{Alive: map[string]int{"dc1-sbc1": 2}}, NewCalls: map[string]int{"dc2-sbc1": 4, "dc2-sbc2": 6},
		}},
	}
	entries := map[string]int{"dc1-lvs-a": 2, "dc1-lvs-b": 2, "dc2-lvs-a": 2, "dc2-lvs-b": 2}
	r := Report{
		Kinds:    []Kind{{Established: 2, Entries: entries, Final: s.Calls[0].Alive, Stats: sipp.Stats{Created: 2, Successful: 2}}},
		Switches: []Switch{s},
		Streams:  []Stream{{Client: client, SYNs: 1, Packets: 9}, {Client: "198.51.100.10.40002", SYNs: 1, Packets: 5, Repeats: 3}},
		Started:  put.Add(-10 * time.Second),
	}
	for i, host := range []string{"dc1-lvs-a", "dc1-lvs-b", "dc2-lvs-a", "dc2-lvs-b"} {
		r.Before = append(r.Before, Step{VIP: lab.VIP, Site: host[:3], Node: host, MED: []int{100, 111, 522, 533}[i]})
	}
	for _, step := range s.steps(lab.VIP) {
		r.Routes = append(r.Routes, lab.RouteEvent{
			Kind: lab.RouteReceived, Time: put.Add(step.After), Router: step.Site + "-edge", Session: step.Node, MED: step.MED,
			Prefix: netip.PrefixFrom(lab.VIP, 32),
		})
	}
	return r
}

func TestFaults(t *testing.T) {
	if faults := good().Faults(); faults != nil {
		t.Fatalf("a good drill has faults: %q", faults)
	}
	for name, test := range map[string]struct {
		harm func(*Report)
		want string
	}{
		"a lost call": {func(r *Report) { r.Kinds[0].Stats.Successful = 1 }, "1 of 2 established calls were lost, SIPp counts 0 failed"},
		"a failed call": {
			func(r *Report) {
				r.Kinds[0].Stats.Failed, r.Kinds[0].Stats.Why = 1, map[string]int{"FailedTcpClosed": 1}
			},
			"SIPp counts 1 failed map[FailedTcpClosed:1]",
		},
		"more successes than calls":  {func(r *Report) { r.Kinds[0].Stats.Successful = 3 }, "-1 of 2 established calls were lost"},
		"a strayed call":             {func(r *Report) { r.Kinds[0].Final.Strayed = 1 }, "1 calls got an answer from another backend"},
		"a reset":                    {func(r *Report) { r.Resets = 3 }, "3 TCP resets"},
		"connections not in IPVS":    {func(r *Report) { r.Kinds[0].Entries["dc2-lvs-b"] = 1 }, "1 entries in dc2-lvs-b's connection table for 2 calls"},
		"tables that nobody read":    {func(r *Report) { r.Kinds[0].Entries = nil }, "no connection table was looked at"},
		"a new call to the old site": {func(r *Report) { r.Switches[0].Calls[0].NewCalls["dc1-sbc1"] = 1 }, "after the switch to dc2, 1 new calls went to dc1-sbc1"},
		"a new call to a namesake":   {func(r *Report) { r.Switches[0].Calls[0].NewCalls = map[string]int{"dc22-sbc1": 1} }, "1 new calls went to dc22-sbc1"},
		"no new calls":               {func(r *Report) { r.Switches[0].Calls[0].NewCalls = nil }, "no new call succeeded"},
		"disorder":                   {func(r *Report) { r.Switches[0].Steps = steps("dc2", 50) }, "switch to dc2: 203.0.113.10: the steps were [dc2-lvs-a 50"},
		"one address stays": {
			func(r *Report) { r.Switches[0].Steps = r.Switches[0].steps(lab.VIP) }, "switch to dc2: 2001:db8:10::10: the steps were []",
		},
		"a provider that did not follow": {
			func(r *Report) { r.Switches[0].Best["transit2"] = time.Time{} }, "switch to dc2: transit2's best path never led there",
		},
		"a lost call of one kind of two": {
			func(r *Report) {
				r.Kinds = append(r.Kinds, r.Kinds[0])
				r.Kinds[1].Traffic = Traffic{UDP: true, IPv6: true, From: lab.Clients2}
				r.Kinds[1].Stats.Successful = 1
			}, "udp6@clients2: 1 of 2 established calls were lost",
		},
		"a hole on the wire":  {func(r *Report) { r.Streams[1].Gaps = 1 }, "on the wire: 198.51.100.10.40002"},
		"a reset on the wire": {func(r *Report) { r.Streams[1].Resets = 1 }, "on the wire: 198.51.100.10.40002"},
		"a second connection": {func(r *Report) { r.Streams[0].SYNs = 2 }, "on the wire: " + client},
	} {
		t.Run(name, func(t *testing.T) {
			r := good()
			test.harm(&r)
			faults := r.Faults()
			if len(faults) == 2 && name == "disorder" {
				faults = faults[:1] // of both addresses
			}
			if len(faults) != 1 || !strings.Contains(faults[0], test.want) {
				t.Errorf("faults %q, expected one with %q", faults, test.want)
			}
			if s := r.Summary(); !strings.Contains(s, "FAILED:") || !strings.Contains(s, test.want) || strings.Contains(s, "No established call was lost") {
				t.Errorf("the summary hides %q:\n%s", test.want, s)
			}
		})
	}
}

func TestSummary(t *testing.T) {
	got := good().Summary()
	for _, want := range []string{
		"from put to the transit's new best path   0.30 s", "usual MED 4.00 s",
		"dc1 (owner dc1-lvs-a) -> dc2 (owner dc2-lvs-a)", "dc1-lvs-a 2, dc1-lvs-b 2, dc2-lvs-a 2, dc2-lvs-b 2",
		"[dc2-lvs-a 50 (0.00 s) dc1-lvs-a 500 (0.20 s) dc2-lvs-a 100 (0.40 s)]", "new calls                                 dc2-sbc1 4, dc2-sbc2 6",
		"2 TCP connections, 2 of them one 4-tuple each", "for example " + client, "No established call was lost",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in\n%s", want, got)
		}
	}
	if s := (Report{}).Summary(); s == "" {
		t.Error("nothing to say of an empty report")
	}
}

func TestParseTraffic(t *testing.T) {
	kinds := []string{"tcp", "tcp6", "udp", "udp6", "tcp@clients2", "udp6@clients2"}
	got, err := ParseTraffic(kinds)
	if err != nil || len(got) != len(kinds) {
		t.Fatal(got, err)
	}
	for i, traffic := range got {
		if traffic.String() != kinds[i] || traffic.UDP != strings.HasPrefix(kinds[i], "udp") || traffic.From == "" {
			t.Errorf("%s became %+v", kinds[i], traffic)
		}
	}
	for _, bad := range []string{"", "sctp", "tcp4", "6", "@clients2"} {
		if got, err := ParseTraffic([]string{bad}); err == nil {
			t.Errorf("%q was accepted: %+v", bad, got)
		}
	}
}

func TestCount(t *testing.T) {
	c := Count{Alive: map[string]int{"dc2-sbc1": 1, "dc1-sbc1": 2}}
	if got, want := c.String(), "3 alive (dc1-sbc1 2, dc2-sbc1 1)"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
