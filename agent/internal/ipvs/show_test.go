package ipvs

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/reconcile"
)

// What is shown is, but for the program's name, what the kernel is then asked for.
func TestShowIsWhatIsDone(t *testing.T) {
	other := example()
	other.Services[sipTCP] = plan.Service{Scheduler: "rr"}
	other.Destinations[local] = plan.Destination{Weight: 1}
	delete(other.Destinations, remote)
	delete(other.Services, sipUDP6)
	delete(other.Destinations, local6)
	delete(other.Daemons, plan.Backup)
	other.Daemons[plan.Master] = plan.SyncDaemon{Interface: "sync01", ID: 2, MaxLen: 1400, Group: group4, Port: 8848, TTL: 1}
	other.Timeouts = map[plan.TimeoutName]time.Duration{plan.TimeoutUDP: time.Minute}

	k, fake := NewFake()
	for _, want := range []plan.Host{example(), other, example(), {}} {
		var done, shown []string
		fake.Fail = func(command string) error {
			done = append(done, "ipvsadm "+command)
			return nil
		}
		report := run(k, want)
		if report.Err() != nil {
			t.Fatal(report.Err())
		}
		for _, e := range report.Done {
			for _, c := range e.Commands {
				shown = append(shown, c.Line)
			}
		}
		if d := cmp.Diff(done, shown); d != "" || len(done) == 0 {
			t.Errorf("done -, shown +:\n%s", d)
		}
	}
}

func TestShowSaysWhatWas(t *testing.T) {
	destination := DestinationTable{}.Show(reconcile.Change[plan.DestinationKey, plan.Destination]{
		Op: reconcile.Update, Key: local, Old: plan.Destination{Weight: 2}, New: plan.Destination{Weight: 50000, Upper: 25000, Lower: 20000},
	})
	if d := cmp.Diff(reconcile.Text{Table: "destination", Old: "-i -w 2", New: "-i -w 50000 -x 25000 -y 20000", Commands: reconcile.Commands(
		reconcile.Update, "ipvsadm -e -t 203.0.113.10:5060 -r 10.1.0.21:5060 -i -w 50000 -x 25000 -y 20000")}, destination); d != "" {
		t.Error(d)
	}
	strange := DestinationTable{}.Show(reconcile.Change[plan.DestinationKey, plan.Destination]{
		Op: reconcile.Update, Key: local, Old: plan.Destination{Lower: math.MaxUint32}, New: plan.Destination{Weight: 2},
	})
	if strange.Old != "not a plain ipip tunnel" {
		t.Errorf("one of another mode was %q", strange.Old)
	}
	service := ServiceTable{}.Show(reconcile.Change[plan.ServiceKey, plan.Service]{
		Op: reconcile.Update, Key: sipTCP, Old: plan.Service{Scheduler: "rr flags=0x4"}, New: sed,
	})
	if !strings.Contains(service.Old, "flags=0x4") {
		t.Errorf("one with a strange option was %q", service.Old)
	}
}

// What Apply would refuse has no command.
func TestShowOfNonsense(t *testing.T) {
	text := ServiceTable{}.Show(reconcile.Change[plan.ServiceKey, plan.Service]{Op: reconcile.Create, Key: sipTCP})
	if len(text.Commands) > 0 {
		t.Errorf("a service without a scheduler: %q", text.Commands)
	}
}

func TestReaderChangesNothing(t *testing.T) {
	k := &Kernel{conn: reader{}}
	for name, err := range map[string]error{
		"service":     apply(k.Services(), reconcile.Create, sipTCP, sed),
		"destination": apply(k.Destinations(), reconcile.Create, local, plan.Destination{Weight: 1}),
		"daemon":      apply(k.Daemons(), reconcile.Create, plan.Master, example().Daemons[plan.Master]),
		"timeout":     apply(k.Timeouts(), reconcile.Update, plan.TimeoutTCP, time.Hour),
	} {
		if err == nil || !strings.Contains(err.Error(), "for reading only") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
