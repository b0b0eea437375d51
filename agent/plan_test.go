package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/medway-lb/medway/agent/internal/firewall"
	"github.com/medway-lb/medway/agent/internal/ipvs"
	"github.com/medway-lb/medway/agent/internal/link"
	"github.com/medway-lb/medway/agent/internal/sysctl"
	"github.com/medway-lb/medway/pkg/intent"
	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/reconcile"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"
)

// fakeHost is a kernel in memory, with the tables of a small host.
type fakeHost struct {
	links *link.Fake
	rules *firewall.Fake
	ipvs  *ipvs.Kernel
	proc  *sysctl.Fake
}

func newFakeHost() fakeHost {
	k, _ := ipvs.NewFake()
	const key = "net.ipv4.vs.sync_threshold"
	return fakeHost{link.NewFake(), firewall.NewFake(plan.IPv4), k, sysctl.NewFake(map[plan.Sysctl]string{key: "3 50"}, []plan.Sysctl{key})}
}

func (f fakeHost) steps(h plan.Host) []reconcile.Step {
	return []reconcile.Step{
		reconcile.Bind(f.links.Links(h.Links), h.Links, nil),
		reconcile.Bind(f.proc, h.Sysctls, func(plan.Sysctl) bool { return false }),
		reconcile.Bind(f.rules.Chains(h.Chains), h.Chains, nil),
		reconcile.Bind(f.links.Addresses(), h.Addresses, nil),
		reconcile.Bind(f.ipvs.Services(), h.Services, nil),
		reconcile.Bind(f.ipvs.Destinations(), h.Destinations, nil),
	}
}

func smallHost() plan.Host {
	vip := netip.MustParseAddr("203.0.113.10")
	service := plan.ServiceKey{Protocol: plan.TCP, Addr: vip, Port: 5060}
	return plan.Host{
		Links:     map[plan.LinkName]plan.Link{plan.VIPLink: {Kind: plan.Dummy}},
		Sysctls:   map[plan.Sysctl]string{"net.ipv4.vs.sync_threshold": "0 0"},
		Chains:    map[plan.Chain]plan.Rules{{Family: plan.IPv4, Table: "filter", Name: "MEDWAY-INPUT"}: "-d 203.0.113.10/32 -p tcp -m tcp --dport 5060 -j RETURN\n-d 203.0.113.10/32 -j DROP"},
		Addresses: map[plan.Address]struct{}{{Link: plan.VIPLink, Prefix: netip.PrefixFrom(vip, 32)}: {}},
		Services:  map[plan.ServiceKey]plan.Service{service: {Scheduler: "sed"}},
		Destinations: map[plan.DestinationKey]plan.Destination{
			{Service: service, Addr: netip.MustParseAddr("10.1.0.21"), Port: 5060}: {Weight: 50000, Upper: 25000, Lower: 20000},
		},
	}
}

func route(med uint32) []plan.Announcement {
	return []plan.Announcement{{Prefix: netip.MustParsePrefix("203.0.113.10/32"), MED: med, Communities: []uint32{65001<<16 | 500}, Prepend: 2}}
}

func text(t *testing.T, p *Preview, colour bool) string {
	t.Helper()
	var out bytes.Buffer
	if err := p.Text(&out, colour); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestPlanText(t *testing.T) {
	f := newFakeHost()
	there, err := reconcile.Preview(t.Context(), f.steps(smallHost())...)
	if err != nil {
		t.Fatal(err)
	}
	p := &Preview{
		Source: FromEtcd, Revision: 42, edits: withRoutes(there, announcementEdits(route(500), nil)),
		Faults: []state.Fault{{Key: "/medway/v1/vips/sip-2", Reason: "unexpected EOF"}, {Key: "/medway/v1/vips/sip-3", Reason: "no backend", Notice: true}},
	}
	if d := cmp.Diff(`# etcd at revision 42
! not in force, the last good value stays: /medway/v1/vips/sip-2: unexpected EOF
# /medway/v1/vips/sip-3: no backend

# links
+ ip link add medway0 type dummy
+ ip link set medway0 up

# sysctls
~ sysctl -w net.ipv4.vs.sync_threshold="0 0"   # was "3 50"

# chains
+ iptables -t filter -N MEDWAY-INPUT
+ iptables -t filter -A MEDWAY-INPUT -d 203.0.113.10/32 -p tcp -m tcp --dport 5060 -j RETURN
+ iptables -t filter -A MEDWAY-INPUT -d 203.0.113.10/32 -j DROP

# addresses
+ ip addr add 203.0.113.10/32 dev medway0

# services
+ ipvsadm -A -t 203.0.113.10:5060 -s sed

# destinations
+ ipvsadm -a -t 203.0.113.10:5060 -r 10.1.0.21:5060 -i -w 50000 -x 25000 -y 20000

# BGP, to every neighbour (by the running agent)
+ route 203.0.113.10/32 med 500 community 65001:500 prepend 2

Plan: 6 to add, 1 to change, 0 to remove.
`, text(t, p, false)); d != "" {
		t.Errorf("there -, is +:\n%s", d)
	}

	// Routes go before what they lead to.
	if err := reconcile.Run(t.Context(), f.steps(smallHost())...).Err(); err != nil {
		t.Fatal(err)
	}
	back, err := reconcile.Preview(t.Context(), f.steps(plan.Host{Chains: map[plan.Chain]plan.Rules{{Family: plan.IPv4, Table: "filter", Name: "MEDWAY-INPUT"}: "-d 203.0.113.10/32 -j DROP"}})...)
	if err != nil {
		t.Fatal(err)
	}
	p = &Preview{Source: FromDisk, Saved: time.Now().Add(-time.Hour), Revision: 41, Unreachable: errors.New("no route to host"),
		edits: withRoutes(back, announcementEdits(nil, route(500)))}
	head, rest, _ := strings.Cut(text(t, p, false), "\n")
	if !strings.HasPrefix(head, "# the snapshot on disk, saved ") || !strings.HasSuffix(head, "(1h0m0s ago), at revision 41: no route to host") {
		t.Error(head)
	}
	if d := cmp.Diff(`
# chains
- iptables -t filter -D MEDWAY-INPUT -d 203.0.113.10/32 -p tcp -m tcp --dport 5060 -j RETURN

# BGP, to every neighbour (by the running agent)
- route 203.0.113.10/32 med 500 community 65001:500 prepend 2

# destinations
- ipvsadm -d -t 203.0.113.10:5060 -r 10.1.0.21:5060

# services
- ipvsadm -D -t 203.0.113.10:5060

# addresses
- ip addr del 203.0.113.10/32 dev medway0

# links
- ip link del medway0

Plan: 0 to add, 1 to change, 5 to remove.
`, rest); d != "" {
		t.Errorf("back -, is +:\n%s", d)
	}

	p = &Preview{Source: FromEtcd, edits: announcementEdits(route(500), route(100))}
	coloured := text(t, p, true)
	if want := "\x1b[33m~ route 203.0.113.10/32 med 500 community 65001:500 prepend 2   # was \"med 100 community 65001:500 prepend 2\"\x1b[0m\n"; !strings.Contains(coloured, want) {
		t.Errorf("%q lacks %q", coloured, want)
	}
	if got := text(t, &Preview{Source: FromEtcd}, false); !strings.Contains(got, "No changes") {
		t.Error(got)
	}
}

// Programs rest on this form.
func TestPlanJSON(t *testing.T) {
	p := &Preview{
		Source: FromEtcd, Revision: 42, edits: withRoutes([]reconcile.Edit{{Op: reconcile.Update, Key: "sysctl x", Text: reconcile.Text{
			Table: "sysctl", Old: "3 50", New: "0 0", Commands: reconcile.Commands(reconcile.Update, `sysctl -w x="0 0"`),
		}}}, announcementEdits(route(500), nil)),
		Faults: []state.Fault{{Key: "/medway/v1/vips/sip-2", Reason: "unexpected <EOF>"}},
	}
	var out bytes.Buffer
	if err := p.JSON(&out); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(`{
  "source": "etcd",
  "revision": 42,
  "faults": [
    {
      "key": "/medway/v1/vips/sip-2",
      "reason": "unexpected <EOF>",
      "notice": false
    }
  ],
  "changes": [
    {
      "table": "sysctl",
      "op": "update",
      "key": "sysctl x",
      "old": "3 50",
      "new": "0 0",
      "commands": [
        "sysctl -w x=\"0 0\""
      ]
    },
    {
      "table": "announcement",
      "op": "create",
      "key": "route 203.0.113.10/32",
      "old": "",
      "new": "med 500 community 65001:500 prepend 2",
      "commands": []
    }
  ]
}
`, out.String()); d != "" {
		t.Error(d)
	}
	out.Reset()
	if err := (&Preview{Source: FromDisk, Saved: time.Unix(0, 0), Unreachable: errors.New("why"), NotTaken: errors.New("how")}).JSON(&out); err != nil {
		t.Fatal(err)
	}
	var empty map[string]any
	if err := json.Unmarshal(out.Bytes(), &empty); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(map[string]any{
		"source": "disk", "saved": "1970-01-01T00:00:00Z", "reason": "why", "not_taken": "how", "revision": 0.0, "faults": []any{}, "changes": []any{},
	}, empty); d != "" {
		t.Error(d)
	}
}

// A running agent keeps its MEDs: a look at one host moves nothing. A VIP that
// is new to it, and all of an agent that does not run, get the place of a start.
func TestPlannedAnnouncements(t *testing.T) {
	cache := state.NewCache()
	for key, value := range stored {
		cache.Put(state.Prefix+key, []byte(value), 5, 0)
	}
	s, self := cache.Snapshot(), planConfig(t).self()
	vip1, vip2 := netip.MustParsePrefix("203.0.113.10/32"), netip.MustParsePrefix("203.0.113.11/32")
	meds := func(have ...plan.Announcement) map[netip.Prefix]uint32 {
		out := map[netip.Prefix]uint32{}
		for _, a := range announcements(s, self, have, nil) {
			out[a.Prefix] = a.MED
		}
		return out
	}
	// sip-1's target is this site; sip-2 has none.
	start := map[netip.Prefix]uint32{vip1: s.Ladder.Standby, netip.MustParsePrefix("2001:db8:10::10/128"): s.Ladder.Standby, vip2: s.Ladder.Backup + s.Ladder.SiteStep/2}
	if d := cmp.Diff(start, meds(), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
		t.Error(d)
	}
	now := meds(plan.Announcement{Prefix: vip1, MED: 100})
	if now[vip1] != 100 || now[vip2] != start[vip2] {
		t.Errorf("beside an agent that announces 100: %v", now)
	}
}

func TestPlanReadsEtcdOrTheDisk(t *testing.T) {
	etcd := newServer(t)
	c := planConfig(t)
	c.Etcd.Endpoints = []string{"http://" + etcd.client}
	put := func(key, value string) {
		t.Helper()
		if _, _, err := etcd.open(t).Commit(t.Context(), nil, []store.Put{{Key: state.Prefix + key, Value: []byte(value)}}, nil); err != nil {
			t.Fatal(err)
		}
	}
	put("pools/sbc", stored["pools/sbc"])
	put("vips/sip-1", `{"addresses":["203.0.1`)
	save(t, c, "vips/sip-2")
	cache, p, err := c.stored(t.Context(), "")
	if err != nil || p.Source != FromEtcd || p.Revision == 0 {
		t.Fatalf("%+v, %v", p, err)
	}
	// The last good value stays in force; what is on the disk only is gone.
	s := cache.Snapshot()
	if len(s.VIPs["sip-1"].Services) != 2 || len(s.Backends) != 0 || !strings.Contains(fmt.Sprint(s.Faults), "not JSON") {
		t.Errorf("snapshot %+v", s)
	}
	// The disk is of another store: an agent would take nothing down by this one.
	if p.NotTaken == nil || !strings.Contains(p.NotTaken.Error(), "cluster") {
		t.Errorf("not taken: %v", p.NotTaken)
	}
	if got := text(t, p, false); !strings.Contains(got, `none of this happens until "medway-agent accept"`) {
		t.Error(got)
	}
	all, err := etcd.open(t).Whole(t.Context(), state.Prefix)
	if err != nil {
		t.Fatal(err)
	}
	own := c
	own.StateDir = t.TempDir()
	saved := store.Snapshot{Node: c.Node, Cluster: all.Cluster, Revision: all.Revision - 1}
	if err := store.SaveSnapshot(filepath.Join(own.StateDir, "snapshot"), saved); err != nil {
		t.Fatal(err)
	}
	if _, p, err := own.stored(t.Context(), ""); err != nil || p.NotTaken != nil {
		t.Errorf("its own store: %+v, %v", p, err)
	}
	if _, p, err = c.stored(t.Context(), FromDisk); err != nil || p.Source != FromDisk || p.Unreachable != nil || time.Since(p.Saved) > time.Hour {
		t.Errorf("from the disk: %+v, %v", p, err)
	}

	// Files lie over what is stored, and what apply would refuse is refused.
	objects := func(text string) []intent.Object {
		t.Helper()
		o, err := intent.Read([]string{"-"}, strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	const backend = "kind: Backend\npool: %s\nname: b\nsite: dc1\naddress: 10.1.0.29\n"
	if err := p.with(cache, objects(fmt.Sprintf(backend, "nowhere")), nil); err == nil || !strings.Contains(err.Error(), "stdin:1:1: Backend nowhere/b") {
		t.Errorf("a backend of no pool: %v", err)
	}
	if err := p.with(cache, objects(fmt.Sprintf(backend, "sbc")), nil); err != nil || len(cache.Snapshot().Backends) != 1 || !strings.Contains(p.source(), "and the files given (1 objects)") {
		t.Errorf("with a backend: %v, %v, %s", err, cache.Snapshot().Backends, p.source())
	}

	etcd.kill()
	short, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, _, err := c.stored(short, FromEtcd); err == nil || !strings.Contains(err.Error(), "etcd can't be reached") {
		t.Errorf("from an etcd that is gone: %v", err)
	}
	if _, p, err = c.stored(short, ""); err != nil || p.Source != FromDisk || p.Unreachable == nil || p.Revision != 7 {
		t.Errorf("without etcd: %+v, %v", p, err)
	}
	c.StateDir = filepath.Join(c.StateDir, "none")
	if _, _, err = c.stored(short, ""); err == nil || !strings.Contains(err.Error(), "no such file") || !strings.Contains(err.Error(), "etcd can't be reached") {
		t.Errorf("with neither: %v", err)
	}
}
