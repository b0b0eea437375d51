package ipvs

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	moby "github.com/moby/ipvs"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/reconcile"
)

func TestExample(t *testing.T) {
	k, f := NewFake()
	settle(t, k, example())
	if d := cmp.Diff(exampleRules, f.String()); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(exampleDaemons, f.DaemonsString()); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(exampleTimeouts, f.TimeoutsString()); d != "" {
		t.Error(d)
	}
}

func TestRandomWalkConverges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k, f := NewFake()
		for _, want := range rapid.SliceOfN(genHost(), 1, 5).Draw(t, "hosts") {
			settle(t, k, want)
			// The walk must not matter, only where it ends.
			direct, fresh := NewFake()
			settle(t, direct, want)
			if d := cmp.Diff(fresh.String(), f.String()); d != "" {
				t.Fatal(d)
			}
			if d := cmp.Diff(fresh.DaemonsString(), f.DaemonsString()); d != "" {
				t.Fatal(d)
			}
		}
	})
}

// recorder makes f write its commands down.
func recorder(f *Fake) *[]string {
	var commands []string
	f.Fail = func(command string) error {
		commands = append(commands, command)
		return nil
	}
	return &commands
}

func TestUpdatesEditInPlace(t *testing.T) {
	k, f := NewFake()
	settle(t, k, example())
	commands := recorder(f)
	want := example()
	want.Services[sipTCP] = plan.Service{Scheduler: "wlc"}
	want.Destinations[local] = plan.Destination{Weight: 0}
	want.Daemons[plan.Master] = plan.SyncDaemon{Interface: "sync01", ID: 2, MaxLen: 1452, Group: group4, Port: 8848, TTL: 1}
	settle(t, k, want)
	expect := []string{
		"-E -t 203.0.113.10:5060 -s wlc",
		"-e -t 203.0.113.10:5060 -r 10.1.0.21:5060 -i -w 0",
		"--stop-daemon master",
		"--start-daemon master --mcast-interface sync01 --syncid 2 --sync-maxlen 1452 --mcast-group 224.0.0.81 --mcast-port 8848 --mcast-ttl 1",
	}
	if d := cmp.Diff(expect, *commands); d != "" {
		t.Error(d)
	}
}

// What medway never sets must read as a difference, and one edit must mend it.
func TestForeignOptionsAreMended(t *testing.T) {
	k, f := NewFake()
	settle(t, k, example())
	s := f.table[0]
	for name, spoil := range map[string]func(){
		"masquerading":       func() { s.dests[0].ConnectionFlags = moby.ConnectionFlagMasq },
		"direct routing":     func() { s.dests[0].ConnectionFlags = moby.ConnectionFlagDirectRoute },
		"gue tunnel":         func() { s.dests[0].tunType = 1 },
		"weight of 17 bits":  func() { s.dests[0].Weight = 1<<16 + 50000 },
		"one packet":         func() { s.Flags |= 0x4 },
		"netmask":            func() { s.Netmask = 0x00ffffff },
		"persistence engine": func() { s.PEName = "sip" },
		"persistence of 0":   func() { s.Timeout = 0 },
		"another engine":     func() { f.table[1].PEName = "other" },
		"no engine":          func() { f.table[1].PEName = "" },
		"no one packet":      func() { f.table[1].Flags = flagPersistent },
	} {
		spoil()
		before := k.Changes()
		settle(t, k, example())
		if n := k.Changes() - before; n != 1 {
			t.Errorf("%s: mended with %d changes, want 1", name, n)
		}
		if d := cmp.Diff(exampleRules, f.String()); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
	before := k.Changes()
	s.Flags |= flagHashed
	settle(t, k, example())
	if k.Changes() != before {
		t.Error("the kernel's own flag HASHED was taken for a difference")
	}
}

func TestFirewallMarkServicesAreLeftAlone(t *testing.T) {
	k, f := NewFake()
	mark := &moby.Service{FWMark: 101, AddressFamily: unix.AF_INET, SchedName: "rr", Netmask: ^uint32(0)}
	if err := f.setService(add, mark); err != nil {
		t.Fatal(err)
	}
	settle(t, k, plan.Host{})
	if got := f.String(); got != "-A -f 101 -s rr\n" {
		t.Error(got)
	}
}

// testApplyIsIdempotent runs on the fake and on the kernel.
func testApplyIsIdempotent(t *testing.T, k *Kernel, rules func() string) {
	t.Helper()
	steps := []struct {
		name string
		do   func(op reconcile.Op) error
	}{
		{"service", func(op reconcile.Op) error { return apply(k.Services(), op, sipTCP, sed) }},
		{"destination", func(op reconcile.Op) error {
			return apply(k.Destinations(), op, local, plan.Destination{Weight: 50000})
		}},
		{"daemon", func(op reconcile.Op) error {
			return apply(k.Daemons(), op, plan.Master, example().Daemons[plan.Master])
		}},
	}
	both := func(op reconcile.Op) {
		for _, s := range steps {
			for range 2 {
				if err := s.do(op); err != nil {
					t.Errorf("%s %s: %v", op, s.name, err)
				}
			}
		}
	}
	const there = "-A -t 203.0.113.10:5060 -s sed\n-a -t 203.0.113.10:5060 -r 10.1.0.21:5060 -i -w 50000 --tun-type ipip\n"
	for _, op := range []reconcile.Op{reconcile.Delete, reconcile.Create, reconcile.Delete, reconcile.Update, reconcile.Delete} {
		both(op)
		want := there
		if op == reconcile.Delete {
			want = ""
		}
		if d := cmp.Diff(want, rules()); d != "" {
			t.Errorf("after %s: %s", op, d)
		}
	}
}

func TestApplyIsIdempotent(t *testing.T) {
	k, f := NewFake()
	testApplyIsIdempotent(t, k, f.String)
}

func TestErrorsNameTheObject(t *testing.T) {
	k, f := NewFake()
	daemon := example().Daemons[plan.Master]
	short := daemon
	short.MaxLen = 1000
	noGroup := daemon
	noGroup.Group = local.Addr
	fail := func(errno error) { f.Fail = func(string) error { return errno } }
	for _, c := range []struct {
		kernel error
		do     func() error
		want   string
	}{
		{nil, func() error { return apply(k.Destinations(), reconcile.Create, local, plan.Destination{Weight: 1}) },
			"add destination tcp 203.0.113.10:5060 -> 10.1.0.21:5060: no such service"},
		{nil, func() error { return apply(k.Destinations(), reconcile.Create, local, plan.Destination{Lower: 1}) },
			"edit destination tcp 203.0.113.10:5060 -> 10.1.0.21:5060: lower threshold 1 is above the upper 0"},
		{nil, func() error {
			return apply(k.Destinations(), reconcile.Create, local, plan.Destination{Upper: 1 << 31})
		}, "upper threshold 2147483648 is above 2147483647"},
		{nil, func() error {
			return apply(k.Destinations(), reconcile.Create, plan.DestinationKey{Service: sipTCP, Addr: local6.Addr, Port: 1}, plan.Destination{})
		}, "not of the service's address family"},
		{unix.ENOENT, func() error { return apply(k.Services(), reconcile.Create, sipTCP, plan.Service{Scheduler: "nil"}) },
			`add service tcp 203.0.113.10:5060: the kernel has no scheduler "nil" (module ip_vs_nil)`},
		{unix.ENOENT, func() error {
			return apply(k.Services(), reconcile.Create, sipUDP6, plan.Service{Scheduler: "sed", Persistence: time.Minute, Engine: "nil"})
		}, `add service udp [2001:db8::10]:5060: the kernel has no scheduler "sed" (module ip_vs_sed), or no persistence engine "nil" (module ip_vs_pe_nil)`},
		{nil, func() error {
			return apply(k.Services(), reconcile.Create, sipUDP6, plan.Service{Scheduler: "sed", Engine: "sip"})
		}, `edit service udp [2001:db8::10]:5060: persistence engine "sip" without persistence has no effect`},
		{nil, func() error {
			return apply(k.Services(), reconcile.Create, sipTCP, plan.Service{Scheduler: "sed", OnePacket: true})
		}, "edit service tcp 203.0.113.10:5060: one-packet scheduling is for udp"},
		{unix.EPERM, func() error { return apply(k.Services(), reconcile.Delete, sipTCP, sed) },
			"delete service tcp 203.0.113.10:5060: operation not permitted"},
		{unix.ENODEV, func() error { return apply(k.Daemons(), reconcile.Create, plan.Master, daemon) },
			"add sync daemon master: there is no interface sync01"},
		{nil, func() error { return apply(k.Daemons(), reconcile.Create, plan.Backup, short) },
			"add sync daemon backup: maxlen 1000 of a backup is below 1024"},
		{nil, func() error { return apply(k.Daemons(), reconcile.Create, plan.Backup, noGroup) },
			`add sync daemon backup: group "10.1.0.21" is no multicast address`},
		{nil, func() error { return apply(k.Timeouts(), reconcile.Update, plan.TimeoutTCP, 1500*time.Millisecond) },
			"edit timeout tcp: value 1.5s is not a number of whole seconds"},
		{nil, func() error { return apply(k.Services(), reconcile.Create, sipTCP, plan.Service{}) }, `scheduler ""`},
	} {
		fail(c.kernel)
		err := c.do()
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v\nwant %s", err, c.want)
		}
		if c.kernel != nil && !errors.Is(err, c.kernel) {
			t.Errorf("%v does not wrap %v", err, c.kernel)
		}
	}
}

func TestOneFailureDoesNotStopTheRest(t *testing.T) {
	k, f := NewFake()
	f.Fail = func(command string) error {
		if strings.Contains(command, "-r 10.1.0.21:") {
			return unix.ENOMEM
		}
		return nil
	}
	if r := run(k, example()); len(r.Failed) != 1 || len(r.Done) != 7 {
		t.Errorf("done %v, failed %v", r.Done, r.Failed)
	}
	f.Fail = nil
	settle(t, k, example())
	if d := cmp.Diff(exampleRules, f.String()); d != "" {
		t.Error(d)
	}
}

func TestCancelledContextChangesNothing(t *testing.T) {
	k, f := NewFake()
	commands := recorder(f)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	err := k.Services().Apply(ctx, reconcile.Change[plan.ServiceKey, plan.Service]{Op: reconcile.Create, Key: sipTCP, New: sed})
	if !errors.Is(err, context.Canceled) || len(*commands) != 0 || k.Changes() != 0 {
		t.Errorf("%v, %v", err, *commands)
	}
	if _, err := k.Stats(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestStats(t *testing.T) {
	k, f := NewFake()
	settle(t, k, example())
	big := Counters{Connections: 1 << 40, InPackets: 1 << 41, InBytes: 1 << 42}
	f.table[0].counters = big
	f.table[0].dests[0].counters = big
	f.table[0].dests[0].ActiveConnections = 7
	f.table[0].dests[0].InactiveConnections = 8
	got, err := k.Stats(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	want := []ServiceStats{
		{Key: sipTCP, Counters: big, Destinations: []DestinationStats{
			{Key: local, Weight: 50000, ActiveConns: 7, InactConns: 8, Counters: big},
			{Key: remote, Weight: 2},
		}},
		{Key: sipUDP6, Destinations: []DestinationStats{{Key: local6, Weight: 65535}}},
	}
	if !slices.EqualFunc(got, want, func(a, b ServiceStats) bool {
		return a.Key == b.Key && a.Counters == b.Counters && slices.Equal(a.Destinations, b.Destinations)
	}) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
}
