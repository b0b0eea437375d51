package ipvs

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/reconcile"
)

func TestKernelExample(t *testing.T) {
	k := inNamespace(t)
	settle(t, k, example())
	same(t, "ipvsadm -Sn", exampleRules, rules(t))
	same(t, "--thresholds", wantedThresholds(example()), thresholds(t))
	same(t, "--daemon", exampleDaemons, daemons(t))
	same(t, "--timeout", exampleTimeouts, sh(t, "ipvsadm -ln --timeout"))

	settle(t, k, plan.Host{})
	same(t, "ipvsadm -Sn", "", rules(t))
	same(t, "--daemon", "", daemons(t))
	same(t, "--timeout", exampleTimeouts, sh(t, "ipvsadm -ln --timeout"))
}

// The fake must be a faithful one: after each step of a random walk, ipvsadm
// says of the kernel what the fake says of itself.
func TestKernelRandomWalk(t *testing.T) {
	k := inNamespace(t)
	model, fake := NewFake()
	for seed := range 15 {
		want := genHost().Example(seed)
		settle(t, k, want)
		settle(t, model, want)
		same(t, "ipvsadm -Sn", sorted(fake.String()), sorted(rules(t)))
		same(t, "--thresholds", wantedThresholds(want), thresholds(t))
		same(t, "--daemon", fake.DaemonsString(), daemons(t))
		same(t, "--timeout", fake.TimeoutsString(), sh(t, "ipvsadm -ln --timeout"))
		if t.Failed() {
			t.Fatalf("at step %d", seed)
		}
	}
}

func TestKernelApplyIsIdempotent(t *testing.T) {
	k := inNamespace(t)
	testApplyIsIdempotent(t, k, func() string { return rules(t) })
}

// What an operator made with other options is mended in place; what medway
// never owns is left alone.
func TestKernelMendsForeignOptions(t *testing.T) {
	k := inNamespace(t)
	want := example()
	want.Daemons = nil
	settle(t, k, want)
	const mark = "-A -f 101 -s rr\n-a -f 101 -r 10.1.0.21:0 -i -w 1 --tun-type ipip\n"
	threshold := thresholds(t)
	sh(t, "ipvsadm -A -f 101 -s rr")
	sh(t, "ipvsadm -a -f 101 -r 10.1.0.21 -i -w 1")
	for _, spoil := range []string{
		"ipvsadm -e -t 203.0.113.10:5060 -r 10.1.0.21:5060 -m -w 50000",
		"ipvsadm -e -t 203.0.113.10:5060 -r 10.1.0.21:5060 -g -w 50000",
		"ipvsadm -e -t 203.0.113.10:5060 -r 10.1.0.21:5060 -i --tun-type gre -w 50000",
		"ipvsadm -e -t 203.0.113.10:5060 -r 10.1.0.21:5060 -i --tun-type gue --tun-port 6080 -w 50000",
		"ipvsadm -e -t 203.0.113.10:5060 -r 10.1.0.21:5060 -i -w 115536", // 50000 in its lower 16 bits
		"ipvsadm -e -t 203.0.113.10:5060 -r 10.2.0.21:5060 -i -w 2",
		"ipvsadm -E -t 203.0.113.10:5060 -s sed -p 300 -M 255.255.255.0",
		"ipvsadm -E -t 203.0.113.10:5060 -s rr -p 300",
		"ipvsadm -E -u [2001:db8::10]:5060 -s sed -p 60 --pe sip",
		"ipvsadm -E -u [2001:db8::10]:5060 -s sed -p 60 -o",
		"ipvsadm -E -u [2001:db8::10]:5060 -s sed -p 60 --pe sip -o -M 64",
		"ipvsadm -E -u [2001:db8::10]:5060 -s sed",
	} {
		sh(t, spoil)
		if rules(t) == exampleRules+mark && thresholds(t) == threshold {
			t.Errorf("no effect: %s", spoil)
		}
		before := k.Changes()
		settle(t, k, want)
		if n := k.Changes() - before; n != 1 {
			t.Errorf("%s: mended with %d changes, want 1", spoil, n)
		}
		same(t, spoil, exampleRules+mark, rules(t))
		same(t, spoil, threshold, wantedThresholds(want))
	}
}

func TestKernelDaemons(t *testing.T) {
	k := inNamespace(t)
	d := plan.SyncDaemon{Interface: "sync01", ID: 255, MaxLen: 1024, Group: group4, Port: 1, TTL: 255}
	want := plan.Host{Daemons: map[plan.SyncRole]plan.SyncDaemon{plan.Master: d, plan.Backup: d}}
	settle(t, k, want)
	const tail = "mcast=sync01, syncid=255, maxlen=1024, group=224.0.0.81, port=1, ttl=255)\n"
	same(t, "--daemon", "master sync daemon ("+tail+"backup sync daemon ("+tail, daemons(t))

	d.Group, d.Port, d.TTL, d.ID = netip.MustParseAddr("ff05::81"), 8849, 64, 0
	want.Daemons[plan.Master] = d
	settle(t, k, want)
	same(t, "--daemon", "master sync daemon (mcast=sync01, syncid=0, maxlen=1024, group=ff05::81, port=8849, ttl=64)\n"+
		"backup sync daemon ("+tail, daemons(t))

	d.Group, d.MaxLen = group4, 1 // a master may have a short maxlen
	want.Daemons[plan.Master] = d
	settle(t, k, want)
	sh(t, "ipvsadm --stop-daemon master")
	sh(t, "ipvsadm --start-daemon master --mcast-interface sync01")
	settle(t, k, want)
	same(t, "--daemon", "master sync daemon (mcast=sync01, syncid=0, maxlen=1, group=224.0.0.81, port=8849, ttl=64)\n"+
		"backup sync daemon ("+tail, daemons(t))
}

// Daemons whose device was deleted look well and hear nothing: they are started
// anew on the device that has its name now.
func TestKernelDaemonsOutliveTheirDevice(t *testing.T) {
	k := inNamespace(t)
	want := plan.Host{Daemons: example().Daemons}
	for _, group := range []netip.Addr{group4, netip.MustParseAddr("ff02::81")} {
		for role, d := range want.Daemons {
			d.Group = group
			want.Daemons[role] = d
		}
		settle(t, k, want)
		printed := daemons(t)
		sh(t, "ip link del sync01")
		sh(t, "ip link add sync01 type veth peer name sync01p")
		for _, link := range []string{"sync01", "sync01p"} {
			sh(t, "ip link set "+link+" up")
		}
		sh(t, "ip addr add 10.99.0.1/24 dev sync01")
		same(t, "--daemon", printed, daemons(t))
		if groups := sh(t, "ip maddr show dev sync01"); strings.Contains(groups, group.String()+"\n") {
			t.Fatalf("the new device is in the group: this test shows nothing\n%s", groups)
		}
		before := k.Changes()
		settle(t, k, want)
		if n := k.Changes() - before; n != 4 {
			t.Errorf("%d changes, want two stops and two starts", n)
		}
		same(t, "--daemon", printed, daemons(t))
		if groups := sh(t, "ip maddr show dev sync01"); !strings.Contains(groups, group.String()+"\n") {
			t.Errorf("the backup did not join %s:\n%s", group, groups)
		}
	}
}

// A daemon that is stopped before its thread has run gets no netlink answer.
func TestKernelStopsYoungDaemons(t *testing.T) {
	k := inNamespace(t)
	for range 20 {
		for _, op := range []reconcile.Op{reconcile.Create, reconcile.Update, reconcile.Delete} {
			if err := apply(k.Daemons(), op, plan.Master, example().Daemons[plan.Master]); err != nil {
				t.Fatal(op, err)
			}
		}
		same(t, "--daemon", "", daemons(t))
	}
}

func TestKernelErrors(t *testing.T) {
	k := inNamespace(t)
	daemon := example().Daemons[plan.Master]
	absent := daemon
	absent.Interface = "absent0"
	sh(t, "ip link add bare type dummy")
	bare := daemon
	bare.Interface, bare.Group = "bare", group6
	mixed := plan.ServiceKey{Protocol: plan.TCP, Addr: sipTCP.Addr, Port: 9999}
	mixedFamilies := func() error {
		sh(t, "ipvsadm -A -t 203.0.113.10:9999")
		sh(t, "ipvsadm -a -t 203.0.113.10:9999 -r [2001:db8:1::21]:9999 -i")
		defer func() {
			if err := apply(k.Services(), reconcile.Delete, mixed, plan.Service{}); err != nil {
				t.Error(err)
			}
		}()
		return apply(k.Daemons(), reconcile.Create, plan.Master, daemon)
	}
	for _, c := range []struct {
		err  error
		want string
	}{
		{apply(k.Destinations(), reconcile.Create, local, plan.Destination{Weight: 1}),
			"add destination tcp 203.0.113.10:5060 -> 10.1.0.21:5060: no such service"},
		{apply(k.Services(), reconcile.Create, sipTCP, plan.Service{Scheduler: "nil"}),
			`add service tcp 203.0.113.10:5060: the kernel has no scheduler "nil"`},
		{apply(k.Daemons(), reconcile.Create, plan.Master, absent),
			"add sync daemon master: there is no interface absent0"},
		{apply(k.Daemons(), reconcile.Create, plan.Backup, absent),
			"add sync daemon backup: there is no interface absent0"},
		{apply(k.Daemons(), reconcile.Create, plan.Master, bare),
			"add sync daemon master: interface bare is down or has no usable address"},
		{mixedFamilies(), "while any service has a destination of the other address family"},
	} {
		if c.err == nil || !strings.Contains(c.err.Error(), c.want) {
			t.Errorf("got %v\nwant %s", c.err, c.want)
		}
	}
	same(t, "ipvsadm -Sn", "", rules(t))
	same(t, "--daemon", "", daemons(t))
}

// Edits keep connections and counters, which a delete and add would not.
func TestKernelEditsKeepConnections(t *testing.T) {
	k := inNamespace(t)
	key := plan.ServiceKey{Protocol: plan.UDP, Addr: sipTCP.Addr, Port: 5060}
	server := plan.DestinationKey{Service: key, Addr: netip.MustParseAddr("10.99.0.21"), Port: 5060}
	want := plan.Host{
		Services:     map[plan.ServiceKey]plan.Service{key: sed},
		Destinations: map[plan.DestinationKey]plan.Destination{server: {Weight: 50000}},
	}
	settle(t, k, want)
	sh(t, "ip addr add 203.0.113.10/32 dev lo")
	send(t, netip.AddrPortFrom(key.Addr, key.Port), 3)

	for _, v := range []plan.Destination{{Weight: 0}, {Weight: 2, Upper: 10, Lower: 5}} {
		want.Destinations[server] = v
		settle(t, k, want)
	}
	want.Services[key] = plan.Service{Scheduler: "wlc"}
	settle(t, k, want)
	same(t, "ipvsadm -Sn", "-A -u 203.0.113.10:5060 -s wlc\n-a -u 203.0.113.10:5060 -r 10.99.0.21:5060 -i -w 2 --tun-type ipip\n", rules(t))
	same(t, "--thresholds", wantedThresholds(want), thresholds(t))
	if table := sh(t, "ipvsadm -lnc"); strings.Count(table, "10.99.0.21:5060") != 1 {
		t.Errorf("the connection is gone:\n%s", table)
	}

	// 3 packets of 20 bytes IPv4, 8 bytes UDP, 4 bytes of ours.
	c := Counters{Connections: 1, InPackets: 3, InBytes: 96}
	stats := []ServiceStats{{Key: key, Counters: c, Destinations: []DestinationStats{
		{Key: server, Weight: 2, InactConns: 1, Counters: c}}}}
	waitForStats(t, k, stats)
	printed := sh(t, "ipvsadm -ln --stats --exact")
	if !strings.Contains(strings.Join(strings.Fields(printed), " "), "UDP 203.0.113.10:5060 1 3 0 96 0") {
		t.Errorf("ipvsadm counts otherwise:\n%s", printed)
	}
}

// A set that needs several netlink messages is read whole.
func TestKernelManyObjects(t *testing.T) {
	k := inNamespace(t)
	want := plan.Host{Services: map[plan.ServiceKey]plan.Service{}, Destinations: map[plan.DestinationKey]plan.Destination{}}
	for port := uint16(20000); port < 20300; port++ {
		want.Services[plan.ServiceKey{Protocol: plan.UDP, Addr: sipTCP.Addr, Port: port}] = sed
	}
	want.Services[sipTCP] = sed
	server := local
	for range 300 {
		want.Destinations[server] = plan.Destination{Weight: 50000}
		server.Addr = server.Addr.Next()
	}
	settle(t, k, want)
	printed := rules(t)
	if a, d := strings.Count(printed, "-A "), strings.Count(printed, "-a "); a != 301 || d != 300 {
		t.Errorf("%d services and %d destinations", a, d)
	}
}

// Engine and one-packet scheduling can be switched in place, on and off: the
// service and its destinations stay.
func TestKernelSwitchesEngineAndOnePacket(t *testing.T) {
	k := inNamespace(t)
	want := plan.Host{
		Services:     map[plan.ServiceKey]plan.Service{},
		Destinations: map[plan.DestinationKey]plan.Destination{local6: {Weight: 1}},
	}
	for _, v := range []struct {
		plan.Service
		printed string
	}{
		{plan.Service{Scheduler: "sed"}, "-s sed"},
		{plan.Service{Scheduler: "sed", OnePacket: true}, "-s sed -o"},
		{plan.Service{Scheduler: "sed", Persistence: time.Minute, Engine: "sip", OnePacket: true}, "-s sed -p 60 --pe sip -o"},
		{plan.Service{Scheduler: "sed", Persistence: time.Minute, Engine: "sip"}, "-s sed -p 60 --pe sip"},
		{plan.Service{Scheduler: "sed", Persistence: time.Minute}, "-s sed -p 60"},
		{plan.Service{Scheduler: "sed"}, "-s sed"},
	} {
		before := k.Changes()
		want.Services[sipUDP6] = v.Service
		settle(t, k, want)
		if n := k.Changes() - before; before != 0 && n != 1 {
			t.Errorf("%s: %d changes, want 1", v.printed, n)
		}
		same(t, v.printed, "-A -u [2001:db8::10]:5060 "+v.printed+
			"\n-a -u [2001:db8::10]:5060 -r [2001:db8:1::21]:5060 -i -w 1 --tun-type ipip\n", rules(t))
	}
}

// A scheduler, an engine or a threshold that the kernel does not take is said
// with the service's name, and everything else is made.
func TestKernelGoesOnWithoutWhatItCannotMake(t *testing.T) {
	k := inNamespace(t)
	want := example()
	noScheduler, noEngine := sipTCP, sipUDP6
	noScheduler.Port, noEngine.Port = 5070, 5070
	tooMany := local
	tooMany.Port = 5071
	want.Services[noScheduler] = plan.Service{Scheduler: "nil"}
	want.Services[noEngine] = plan.Service{Scheduler: "sed", Persistence: time.Minute, Engine: "nil"}
	want.Destinations[tooMany] = plan.Destination{Weight: 1, Upper: 1 << 31}
	r := run(k, want)
	if len(r.Failed) != 3 {
		t.Errorf("failed: %v", r.Failed)
	}
	for _, part := range []string{
		`add service tcp 203.0.113.10:5070: the kernel has no scheduler "nil" (module ip_vs_nil)`,
		`add service udp [2001:db8::10]:5070: the kernel has no scheduler "sed" (module ip_vs_sed), or no persistence engine "nil" (module ip_vs_pe_nil)`,
		"destination tcp 203.0.113.10:5060 -> 10.1.0.21:5071: upper threshold 2147483648 is above 2147483647",
	} {
		if r.Err() == nil || !strings.Contains(r.Err().Error(), part) {
			t.Errorf("not said: %s\n%v", part, r.Err())
		}
	}
	same(t, "ipvsadm -Sn", exampleRules, rules(t))
	same(t, "--daemon", exampleDaemons, daemons(t))
}
