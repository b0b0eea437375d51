package agent

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/medway-lb/medway/agent/internal/ipvs"
	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/reconcile"
)

func destination(service, backend byte) plan.DestinationKey {
	return plan.DestinationKey{
		Service: plan.ServiceKey{Protocol: plan.TCP, Addr: netip.AddrFrom4([4]byte{203, 0, 113, service}), Port: 5060},
		Addr:    netip.AddrFrom4([4]byte{10, 1, 0, backend}), Port: 5060,
	}
}

// twoServices is a plan of two services with two backends each.
func twoServices() plan.Host {
	h := plan.Host{Services: map[plan.ServiceKey]plan.Service{}, Destinations: map[plan.DestinationKey]plan.Destination{}}
	for _, service := range []byte{1, 2} {
		for _, backend := range []byte{1, 2} {
			k := destination(service, backend)
			h.Services[k.Service] = plan.Service{Scheduler: "sed"}
			h.Destinations[k] = plan.Destination{Weight: 100}
		}
	}
	return h
}

// loaded is a kernel that holds twoServices.
func loaded(t *testing.T) (*dataplane, *ipvs.Fake) {
	t.Helper()
	k, fake := ipvs.NewFake()
	h := twoServices()
	report := reconcile.Run(t.Context(), reconcile.Bind(k.Services(), h.Services, nil), reconcile.Bind(k.Destinations(), h.Destinations, nil))
	if report.Err() != nil {
		t.Fatal(report.Err())
	}
	d := &dataplane{ipvs: k}
	d.remember(h, time.Now(), report)
	return d, fake
}

// set does what somebody else does by hand.
func set(t *testing.T, d *dataplane, k plan.DestinationKey, op reconcile.Op, weight uint16) {
	t.Helper()
	err := d.ipvs.Destinations().Apply(t.Context(), reconcile.Change[plan.DestinationKey, plan.Destination]{
		Op: op, Key: k, New: plan.Destination{Weight: weight},
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestOneWeightReadsAndMendsItsServiceAlone(t *testing.T) {
	d, fake := loaded(t)
	set(t, d, destination(1, 9), reconcile.Create, 1)
	set(t, d, destination(2, 9), reconcile.Create, 1)
	h := twoServices()
	h.Destinations[destination(1, 1)] = plan.Destination{Weight: 7}
	delete(h.Destinations, destination(1, 2))
	report, ok := d.applyDestinations(t.Context(), h)
	if !ok || report.Err() != nil || len(report.Done) != 3 {
		t.Fatalf("%v: %+v", ok, report)
	}
	table := fake.String()
	for line, want := range map[string]bool{
		"-a -t 203.0.113.1:5060 -r 10.1.0.1:5060 -i -w 7": true,
		"-a -t 203.0.113.1:5060 -r 10.1.0.2:5060":         false,
		"-a -t 203.0.113.1:5060 -r 10.1.0.9:5060":         false, // drift of the service concerned
		"-a -t 203.0.113.2:5060 -r 10.1.0.9:5060":         true,  // that of others waits for the whole
	} {
		if strings.Contains(table, line) != want {
			t.Errorf("%q: expected %v in\n%s", line, want, table)
		}
	}
	// The next change begins from this one.
	if report, ok := d.applyDestinations(t.Context(), twoServices()); !ok || len(report.Done) != 2 {
		t.Errorf("%v: %+v", ok, report)
	}
}

func TestTheWholeIsReadWhereADestinationIsNotAll(t *testing.T) {
	changed := func() plan.Host {
		h := twoServices()
		h.Destinations[destination(1, 1)] = plan.Destination{Weight: 7}
		return h
	}
	for name, prepare := range map[string]func(*dataplane, *plan.Host){
		"control":   func(*dataplane, *plan.Host) {},
		"first run": func(d *dataplane, _ *plan.Host) { d.known = nil },
		"the last run failed": func(d *dataplane, _ *plan.Host) {
			d.remember(twoServices(), time.Now(), reconcile.Report{Failed: []error{errors.New("busy")}})
		},
		"long since the last": func(d *dataplane, _ *plan.Host) { d.known.at = time.Now().Add(-wholeEvery - time.Second) },
		"the same plan":       func(_ *dataplane, h *plan.Host) { *h = twoServices() },
		"a service changes too": func(_ *dataplane, h *plan.Host) {
			h.Services[destination(1, 1).Service] = plan.Service{Scheduler: "wlc"}
		},
		"an address changes too":  func(_ *dataplane, h *plan.Host) { h.Addresses = map[plan.Address]struct{}{{Link: "medway0"}: {}} },
		"a parameter changes too": func(_ *dataplane, h *plan.Host) { h.Sysctls = map[plan.Sysctl]string{"net.ipv4.vs.sync_ports": "1"} },
	} {
		t.Run(name, func(t *testing.T) {
			d, fake := loaded(t)
			before, h := fake.String(), changed()
			prepare(d, &h)
			_, ok := d.applyDestinations(t.Context(), h)
			if control := name == "control"; ok != control || (fake.String() == before) == control {
				t.Errorf("applied %v:\n%s", ok, fake)
			}
		})
	}
}

func TestAServiceThatIsGoneMakesTheNextRunLookAtTheWhole(t *testing.T) {
	d, _ := loaded(t)
	h := twoServices()
	k := destination(1, 1)
	if err := d.ipvs.Services().Apply(t.Context(), reconcile.Change[plan.ServiceKey, plan.Service]{Op: reconcile.Delete, Key: k.Service}); err != nil {
		t.Fatal(err)
	}
	h.Destinations[k] = plan.Destination{Weight: 7}
	if report, ok := d.applyDestinations(t.Context(), h); !ok || report.Err() == nil {
		t.Errorf("%v: %+v, expected a failure", ok, report)
	}
	if _, ok := d.applyDestinations(t.Context(), twoServices()); ok {
		t.Error("the kernel is not as planned: all of it has to be read")
	}
}
