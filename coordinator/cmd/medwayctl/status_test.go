package main

import (
	"bytes"
	"encoding/json"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/medway-lb/medway/coordinator/internal/operation"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store/etcdtest"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// twoNodes are two nodes: one lives; the other is silent, without a session, and
// has said what is wrong with it.
func twoNodes() (*state.Snapshot, []*medwayv1.Status) {
	s := &state.Snapshot{
		VIPs:    map[string]state.VIP{"sip-1": {Automatic: state.Automatic{Enabled: true}, Groups: map[string]string{"dc1": "g", "dc2": "g"}}, "sip-2": {}},
		Targets: map[string]state.Target{"sip-1": {Site: "dc1"}},
		Alive:   map[string]state.Alive{"n1": {}},
		Owners:  map[state.OwnerKey]state.Owner{{Site: "dc1", VIP: "sip-1"}: {Node: "n1", Lease: 1}, {Site: "dc2", VIP: "sip-1"}: {Node: "n2"}},
		Faults:  []state.Fault{{Key: "/medway/v1/pools/sbc", Reason: "empty value"}},
	}
	up := &medwayv1.Session{Neighbor: "10.1.0.1", Established: true}
	down := &medwayv1.Session{Neighbor: "10.1.0.2", Since: "2024-11-22T16:00:00Z", Error: "hold timer expired"}
	return s, []*medwayv1.Status{
		{
			Node: "n1", Site: "dc1", Updated: "2024-11-22T16:59:00Z", Sessions: []*medwayv1.Session{up, up},
			Vips: []*medwayv1.VIPStatus{
				{Vip: "sip-2", Role: "backup standby", Claim: "none", Reason: "target is dc2"},
				{Vip: "sip-1", Target: "dc1", Role: "active", Med: proto.Uint32(0), Claim: "0", Reason: "owner in the target site", ActiveConnections: 1234, PacketsPerSecond: proto.Uint64(900), InactiveConnections: 5},
				{Vip: "gone", Role: "active", Reason: "not in the plan any more"},
			},
			// Every node reports the same faults of keys; they are shown once.
			Faults: []*medwayv1.Fault{{Subject: "/medway/v1/pools/sbc", Reason: "empty value"}},
		},
		{
			Node: "n2", Site: "dc2", Updated: "2024-11-22T16:58:29.6Z", Sessions: []*medwayv1.Session{up, down},
			Vips:   []*medwayv1.VIPStatus{{Vip: "sip-1", Target: "dc1", Role: "backup", Med: proto.Uint32(521), Reason: "target is dc1"}},
			Faults: []*medwayv1.Fault{{Subject: "kernel", Reason: "create link mw-n1: busy"}},
		},
		{Node: "n3", Site: "dc2"},
	}
}

var now = time.Date(2024, 11, 22, 17, 0, 0, 0, time.UTC)

func TestTable(t *testing.T) {
	const head = "VIP    TARGET  AUTO  SITE  NODE  OWNER  ROLE            MED    CLAIM  ACTIVE  INACT  PPS  BGP    NODE STATE\n"
	const faults = `
Faults
  /medway/v1/pools/sbc: empty value
  n2: kernel: create link mw-n1: busy
  n2: BGP session with 10.1.0.2 is down since 2024-11-22T16:00:00Z: hold timer expired
`
	for _, test := range []struct {
		name string
		only []string
		want string
	}{
		{"all", nil, head + `gone   -       -     dc1   n1    -      active          -      -      0       0      -    2/2    alive
sip-1  dc1     on    dc1   n1    yes    active          0      0      1234    5      900  2/2    alive
sip-1  dc1     on    dc2   n2    -      (backup)        (521)  -      (0)     (0)    -    (1/2)  silent, last word 1m30s ago
sip-2  -       off   dc1   n1    -      backup standby  -      none   0       0      -    2/2    alive

Why
  gone on n1: not in the plan any more
  sip-1 on n1: owner in the target site
  sip-1 on n2, when last heard of: target is dc1
  sip-2 on n1: target is dc2
` + faults},
		{"one", []string{"sip-2"}, strings.NewReplacer("MED  ", "MED", "BGP  ", "BGP").Replace(head) + `sip-2  -       off   dc1   n1    -      backup standby  -    none   0       0      -    2/2  alive

Why
  sip-2 on n1: target is dc2
` + faults},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, nodes := twoNodes()
			var out bytes.Buffer
			if err := writeTable(&out, of(s, nodes), test.only, now); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, out.String()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestStatusTellsOfNodesAndLocks that a person should know of.
func TestStatusTellsOfNodesAndLocks(t *testing.T) {
	s, nodes := twoNodes()
	s.Locks = map[string]state.Lock{
		"sip-1": {Since: now, Reason: "packets in dc2", From: "dc1", To: "dc2", By: "n2"}, "sip-2": {Malformed: true},
	}
	s.Nodes = map[string]state.Node{"n1": {Schema: 2, Version: "v2"}, "n2": {Schema: 1}}
	s.Faults = append(s.Faults, state.Fault{Key: "/medway/v1/vips/sip-1", Reason: "no node", Notice: true})
	nodes[0].FromDisk = "2024-11-22T12:00:00Z"
	nodes[1].Drift = &medwayv1.Drift{Mended: 3, At: "2024-11-22T13:00:00Z", Last: []string{"add service tcp 203.0.113.10:5060", "older"}}
	var out bytes.Buffer
	if err := writeTable(&out, of(s, nodes), nil, now); err != nil {
		t.Fatal(err)
	}
	_, got, _ := strings.Cut(out.String(), "target is dc2\n")
	want := `
Locks (nothing is switched automatically until medwayctl unlock VIP)
  sip-1: since 2024-11-22T17:00:00Z, dc1 to dc2, by n2: packets in dc2
  sip-2: locked; why can't be read

Nodes
  n1 knows schema 2 (version v2)
  n2 knows schema 1 (version -)
  n1 acts on its snapshot on disk, saved 2024-11-22T12:00:00Z
  n2 put right 3 changes that somebody else made, the last at 2024-11-22T13:00:00Z: add service tcp 203.0.113.10:5060

Faults
  /medway/v1/pools/sbc: empty value
  n2: kernel: create link mw-n1: busy
  n2: BGP session with 10.1.0.2 is down since 2024-11-22T16:00:00Z: hold timer expired

Notices
  /medway/v1/vips/sip-1: no node
`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestStatusTellsWhatKeepsTrafficWhereItIs: pauses, drains, cold nodes, and who is
// missing after a restore of etcd.
func TestStatusTellsWhatKeepsTrafficWhereItIs(t *testing.T) {
	s, nodes := twoNodes()
	s.Faults = nil
	s.Nodes = map[string]state.Node{"n1": {Schema: 3}, "n2": {Schema: 3}, "n3": {Schema: 3}}
	s.Alive["n1"] = state.Alive{Since: now, Cold: true}
	s.Epoch, s.Joined = state.Epoch{Word: "heron", Revision: 9}, map[string]string{"n1": "heron", "n2": "crane"}
	s.Drains = map[string]state.Order{"n2": {Since: now, By: "alice", Reason: "new kernel"}}
	s.Pauses = map[string]state.Order{"": {Since: now, By: "bob"}, "sip-1": {Malformed: true}, "sip-2": {Since: now}}
	var out bytes.Buffer
	if err := writeTable(&out, of(s, nodes[:2]), []string{"sip-1"}, now); err != nil {
		t.Fatal(err)
	}
	want := `VIP    TARGET  AUTO    SITE  NODE  OWNER  ROLE      MED    CLAIM  ACTIVE  INACT  PPS  BGP    NODE STATE
sip-1  dc1     paused  dc1   n1    yes    active    0      0      1234    5      900  2/2    alive, cold
sip-1  dc1     paused  dc2   n2    -      (backup)  (521)  -      (0)     (0)    -    (1/2)  silent, last word 1m30s ago, drained

Why
  sip-1 on n1: owner in the target site
  sip-1 on n2, when last heard of: target is dc1

Nothing moves for VIPs of these nodes: they have not joined the epoch, which is new after a restore of etcd
  n2: is in epoch crane, not in heron; it is silent: start its agent, or medwayctl forget n2
  n3: is in epoch -, not in heron; it is silent: start its agent, or medwayctl forget n3

Paused (nothing is switched automatically until medwayctl resume)
  all VIPs: since 2024-11-22T17:00:00Z, by bob
  sip-1: why can't be read

Drained (announces nothing until medwayctl node undrain NODE)
  n2: since 2024-11-22T17:00:00Z, by alice: new kernel

Cold (connections were lost: stands back until it has caught up)
  n1: its agent runs since 2024-11-22T17:00:00Z
`
	got, _, _ := strings.Cut(out.String(), "\nFaults\n")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	out.Reset()
	if err := writeJSON(&out, s, nodes, nil); err != nil {
		t.Fatal(err)
	}
	var d document
	if err := json.Unmarshal(out.Bytes(), &d); err != nil {
		t.Fatal(err)
	}
	vip := d.VIPs[1]
	d.VIPs, d.Nodes, d.Faults = nil, nil, nil
	if diff := cmp.Diff(document{
		Alive: []string{"n1"}, Cold: []string{"n1"}, Drains: map[string]*orderDocument{"n2": {&now, "alice", "new kernel"}},
		Pause: &orderDocument{&now, "bob", ""}, Epoch: "heron", NotJoined: []string{"n2", "n3"}, Notices: []faultDocument{},
		Switchovers: map[string]json.RawMessage{}, Evacuations: map[string]json.RawMessage{},
	}, d); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(vipDocument{VIP: "sip-1", Target: "dc1", Automatic: "paused", Owners: map[string]string{"dc1": "n1"}, Pause: &orderDocument{}}, vip); diff != "" {
		t.Error(diff)
	}
}

// TestAutomatic: whether a VIP may switch by itself, on one word.
func TestAutomatic(t *testing.T) {
	order := map[string]state.Order{"sip-1": {}}
	for want, s := range map[string]*state.Snapshot{
		"-":      {},
		"off":    {VIPs: map[string]state.VIP{"sip-1": {}}, Pauses: order, Locks: map[string]state.Lock{"sip-1": {}}},
		"on":     {VIPs: map[string]state.VIP{"sip-1": {Automatic: state.Automatic{Enabled: true}}}, Pauses: map[string]state.Order{"sip-2": {}}},
		"locked": {VIPs: map[string]state.VIP{"sip-1": {Automatic: state.Automatic{Enabled: true}}}, Pauses: order, Locks: map[string]state.Lock{"sip-1": {}}},
		"paused": {VIPs: map[string]state.VIP{"sip-1": {Automatic: state.Automatic{Enabled: true}}}, Pauses: map[string]state.Order{"": {}}},
	} {
		if got := automatic(s, "sip-1"); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// TestFaultsThatOnlyNodesSee: what is refused by who knows an older schema, or
// has a last good value, decodes here.
func TestFaultsThatOnlyNodesSee(t *testing.T) {
	s, nodes := twoNodes()
	s.Faults = append(s.Faults, state.Fault{Key: "/medway/v1/vips/sip-1", Reason: "no node", Notice: true})
	unknown := &medwayv1.Fault{Subject: "/medway/v1/vips/sip-1", Reason: "field x: unknown in schema 1"}
	nodes[0].Faults = append(nodes[0].Faults, unknown, &medwayv1.Fault{Subject: "/medway/v1/vips/sip-1", Reason: "no node"})
	nodes[1].Faults = []*medwayv1.Fault{unknown} // its last word may be old
	want := []string{
		"/medway/v1/pools/sbc: empty value",
		"n1: /medway/v1/vips/sip-1: field x: unknown in schema 1",
		"n2: BGP session with 10.1.0.2 is down since 2024-11-22T16:00:00Z: hold timer expired",
	}
	if diff := cmp.Diff(want, faults(s, nodes)); diff != "" {
		t.Error(diff)
	}
}

// TestHostileTextDoesNotReachTheTerminal, wherever it is.
func TestHostileTextDoesNotReachTheTerminal(t *testing.T) {
	const bad = "\x1b[2J\u202e\u200f\a\u009b\nline\ttab"
	s := &state.Snapshot{VIPs: map[string]state.VIP{"sip-1": {}}, Faults: []state.Fault{{Key: bad, Reason: bad}}, Locks: map[string]state.Lock{"sip-1": {Reason: bad, By: bad}}}
	s.Drains, s.Pauses = map[string]state.Order{bad: {Reason: bad, By: bad}}, map[string]state.Order{bad: {Reason: bad, By: bad}}
	s.Epoch, s.Joined, s.Nodes = state.Epoch{Word: bad, Revision: 1}, map[string]string{bad: bad + "x"}, map[string]state.Node{bad: {Site: bad}}
	s.Alive = map[string]state.Alive{bad: {Cold: true}}
	nodes := []*medwayv1.Status{{
		Node: bad, Site: bad, Updated: bad, Version: bad, FromDisk: bad, Drift: &medwayv1.Drift{Mended: 1, At: bad, Last: []string{bad}},
		Vips:     []*medwayv1.VIPStatus{{Vip: bad, Role: bad, Claim: bad, Target: bad, Reason: bad}, {Vip: "sip-1", Role: bad}},
		Sessions: []*medwayv1.Session{{Neighbor: bad, Since: bad, Error: bad}}, Faults: []*medwayv1.Fault{{Subject: bad, Reason: bad}},
	}}
	var out bytes.Buffer
	if err := writeTable(&out, of(s, nodes), nil, now); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out.String()) {
		if line = strings.TrimSuffix(line, "\n"); state.Line(line) != line || strings.HasPrefix(line, "line") {
			t.Errorf("%q", line)
		}
	}
	out.Reset()
	if err := writeJSON(&out, s, nodes, nil); err != nil {
		t.Fatal(err)
	}
	var got struct{ Nodes []struct{ Node string } }
	if err := json.Unmarshal(out.Bytes(), &got); err != nil || strings.ToValidUTF8(got.Nodes[0].Node, "") != strings.ToValidUTF8(bad, "") {
		t.Errorf("%q, %v", got, err)
	}
}

func TestTableOfNothing(t *testing.T) {
	var out bytes.Buffer
	if err := writeTable(&out, of(&state.Snapshot{}, nil), nil, now); err != nil {
		t.Fatal(err)
	}
	if want := "VIP  TARGET  AUTO  SITE  NODE  OWNER  ROLE  MED  CLAIM  ACTIVE  INACT  PPS  BGP  NODE STATE\n"; out.String() != want {
		t.Errorf("got %q", out.String())
	}
}

func TestNodeState(t *testing.T) {
	alive := &state.Snapshot{Alive: map[string]state.Alive{"n1": {}}}
	for _, test := range []struct {
		snapshot      *state.Snapshot
		updated, want string
	}{
		{alive, "2020-01-01T00:00:00Z", "alive"},
		{&state.Snapshot{}, "2024-11-22T16:59:55Z", "silent, last word 5s ago"},
		{&state.Snapshot{}, "", "silent"},
		{&state.Snapshot{}, "yesterday", "silent"},
	} {
		if got := nodeState(test.snapshot, &medwayv1.Status{Node: "n1", Updated: test.updated}, now); got != test.want {
			t.Errorf("%q: got %q, want %q", test.updated, got, test.want)
		}
	}
}

func TestJSONIsWhatTheNodesSay(t *testing.T) {
	s, nodes := twoNodes()
	for _, list := range [][]*medwayv1.Status{nodes, nil} {
		var out bytes.Buffer
		if err := writeJSON(&out, s, list, nil); err != nil {
			t.Fatal(err)
		}
		var got struct{ Nodes []json.RawMessage }
		if err := json.Unmarshal(out.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		if len(got.Nodes) != len(list) {
			t.Fatalf("%d nodes, expected %d", len(got.Nodes), len(list))
		}
		for i, raw := range got.Nodes {
			if s, err := state.DecodeStatus(raw); err != nil || !proto.Equal(s, list[i]) {
				t.Errorf("node %d: %v, %v, expected %v", i, s, err, list[i])
			}
		}
	}
}

// TestJSONSaysAllThatTheTableDoes: faults of keys, locks, who lives; and of the
// VIPs those that were asked for.
func TestJSONSaysAllThatTheTableDoes(t *testing.T) {
	s, nodes := twoNodes()
	s.Revision = 7
	s.Locks = map[string]state.Lock{"sip-1": {Since: now, Reason: "packets in dc2", From: "dc1", To: "dc2", By: "n2"}, "sip-2": {Malformed: true}}
	s.Faults = append(s.Faults, state.Fault{Key: "/medway/v1/vips/sip-1", Reason: "no node", Notice: true})
	for _, test := range []struct {
		only, vips []string
	}{
		{nil, []string{"gone -", "sip-1 dc1 2024-11-22T17:00:00Z dc1 dc2 n2 packets in dc2", "sip-2 locked"}},
		{[]string{"sip-2"}, []string{"sip-2 locked"}},
	} {
		var out bytes.Buffer
		if err := writeJSON(&out, s, nodes, test.only); err != nil {
			t.Fatal(err)
		}
		var d document
		if err := json.Unmarshal(out.Bytes(), &d); err != nil {
			t.Fatal(err)
		}
		var vips []string
		for _, v := range d.VIPs {
			text := v.VIP + " " + v.Target
			switch l := v.Lock; {
			case l == nil:
				text += "-"
			case l.Since == nil:
				text += "locked"
			default:
				text += " " + strings.Join([]string{l.Since.Format(time.RFC3339), l.From, l.To, l.By, l.Reason}, " ")
			}
			vips = append(vips, text)
		}
		if diff := cmp.Diff(test.vips, vips); diff != "" {
			t.Error(diff)
		}
		want := document{
			Revision: 7, VIPs: d.VIPs, Alive: []string{"n1"}, Cold: []string{}, Drains: map[string]*orderDocument{}, NotJoined: []string{}, Nodes: d.Nodes,
			Faults:      []faultDocument{{"/medway/v1/pools/sbc", "empty value"}},
			Notices:     []faultDocument{{"/medway/v1/vips/sip-1", "no node"}},
			Switchovers: map[string]json.RawMessage{}, Evacuations: map[string]json.RawMessage{},
		}
		if diff := cmp.Diff(want, d); diff != "" {
			t.Error(diff)
		}
		if got := strings.Contains(out.String(), `"active standby"`) || strings.Contains(out.String(), `"owner in the target site"`); got != (test.only == nil) {
			t.Errorf("of %v it shows what nodes say of sip-1: %v", test.only, got)
		}
	}
	var out bytes.Buffer
	if err := writeJSON(&out, &state.Snapshot{}, nil, nil); err != nil || strings.Contains(out.String(), "null") {
		t.Errorf("of nothing: %v %s", err, &out)
	}
}

// TestStatusTellsOfEtcd: a member that is down, and certificates that end soon.
func TestStatusTellsOfEtcd(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	if out, err := run(t, "certs", "--dir", dir, "--server", "etcd1=127.0.0.1", "--client", "alice", "--days", "10"); err != nil {
		t.Fatal(err, out)
	}
	file := func(name string) string { return filepath.Join(dir, name) }
	url, _ := etcdtest.Start(t, "https", "--cert-file", file("etcd1.pem"), "--key-file", file("etcd1.key"), "--trusted-ca-file", file("ca.pem"), "--client-cert-auth")
	flags := []string{"--cacert", file("ca.pem"), "--cert", file("alice.pem"), "--key", file("alice.key"), "--command-timeout", "20s"}
	if out, err := run(t, append(flags, "status", "--endpoints", url)...); err != nil { // waits for etcd
		t.Fatal(err, out)
	}
	out, err := run(t, append(flags, "status", "--endpoints", url+",https://127.0.0.1:1")...)
	until := time.Now().UTC().Add(10 * 24 * time.Hour).Format("2006-01-02")
	for _, want := range []string{
		"Faults\n  etcd: https://127.0.0.1:1: can't connect: connect: connection refused\n",
		"\nNotices\n  etcd: the certificate of user \"alice\" is valid until " + until,
		"\n  etcd: " + url + ": its certificate is valid until " + until,
	} {
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("%v: %q is not in\n%s", err, want, out)
		}
	}
}

// TestVIPWithoutANode: what was stored is shown before an agent runs, and says
// what is missing.
func TestVIPWithoutANode(t *testing.T) {
	s := &state.Snapshot{
		VIPs:    map[string]state.VIP{"sip-1": {Groups: map[string]string{"dc2": "g2", "dc1": "g1"}}},
		Targets: map[string]state.Target{"sip-1": {Site: "dc1"}},
	}
	var out bytes.Buffer
	if err := writeTable(&out, of(s, nil), nil, now); err != nil {
		t.Fatal(err)
	}
	want := `VIP    TARGET  AUTO  SITE  NODE  OWNER  ROLE  MED  CLAIM  ACTIVE  INACT  PPS  BGP  NODE STATE
sip-1  dc1     off   -     -     -      -     -    -      -       -      -    -    no node

Why
  sip-1: no agent of its groups has reported yet: g1 in dc1, g2 in dc2
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
}

// TestElsewhere: a target that is not carried out is told, whoever withdrew or died.
func TestElsewhere(t *testing.T) {
	s, nodes := twoNodes()
	if got := operation.Elsewhere(s, nodes); got != nil {
		t.Errorf("served where it should be: %v", got)
	}
	s.Targets["sip-1"] = state.Target{Site: "dc2"} // whose node is silent
	want := []state.Fault{{
		Key: "/medway/v1/target_state/sip-1", Notice: true, Reason: "no living node of dc2 announces it: the traffic goes to n1, MED 0, once routers have dropped the routes of dc2",
	}}
	if diff := cmp.Diff(want, operation.Elsewhere(s, nodes)); diff != "" {
		t.Error(diff)
	}
	s.Alive["n2"] = state.Alive{}
	if got := operation.Elsewhere(s, nodes); got != nil {
		t.Errorf("served again: %v", got)
	}
	nodes[1].Vips[0].Med = nil // withdrawn
	if diff := cmp.Diff(want, operation.Elsewhere(s, nodes)); diff != "" {
		t.Error(diff)
	}
}

// of is a picture of what is stored and said, without planned switchovers.
func of(s *state.Snapshot, nodes []*medwayv1.Status) *picture {
	return &picture{Contents: &operation.Contents{Snapshot: s, Said: nodes}}
}

func writeJSON(out io.Writer, s *state.Snapshot, nodes []*medwayv1.Status, only []string) error {
	f := form("json")
	return f.write(out, documentOf(of(s, nodes), only), nil)
}
