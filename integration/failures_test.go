package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/medway-lb/medway/integration/drill"
	"github.com/medway-lb/medway/integration/lab"
)

// leaseTTL is that of the lab's agents.
const leaseTTL = 15 * time.Second

// TestLabFailures: while calls are held, what owns the VIP fails in one way after
// another, and comes back. Another node of the site takes over each time, and gives the
// VIP back to the preferred one, which has to know the calls first where it has booted.
// No call is lost, and all the time the routers' best route is the rightful node's.
func TestLabFailures(t *testing.T) {
	var recorder *drill.Recorder
	l := upAs(t, func(o *lab.Options) {
		topo := lab.Default().WithLVS(2)
		// A host that dies in silence is gone for its router after a hold time: the agents' default.
		o.Topology, o.HoldTime = &topo, 9*time.Second
	}, func(_ context.Context, l *lab.Lab) error {
		recorder = drill.StartRecorder(t.Context(), l)
		return nil
	})
	preferred := rests(t, l, "dc1")
	amend(t, l, `"ownership":{"preference":["`+preferred+`"],"preempt":true}`)
	kinds, err := drill.ParseTraffic([]string{"tcp", "udp6"})
	if err != nil {
		t.Fatal(err)
	}
	const each = 10
	calls, err := drill.Hold(t.Context(), l, kinds, each, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer calls.Kill()

	for _, fault := range []struct {
		name   string
		strike func(node string) error
		mend   func(node string) error
	}{
		{
			"the owner's host loses its power",
			func(node string) error { return l.PowerOff(t.Context(), node) },
			l.PowerOn,
		},
		{
			"the owner's agent is killed",
			func(node string) error { return l.StopAgent(t.Context(), node, syscall.SIGKILL) },
			l.StartAgent,
		},
		{
			"the owner's agent is frozen for three lease times",
			func(node string) error { return l.Signal(node, "agent", syscall.SIGSTOP) },
			func(node string) error { return l.Signal(node, "agent", syscall.SIGCONT) },
		},
		{
			"the owner is cut from etcd only",
			func(node string) error { return l.CutEtcd(t.Context(), node) },
			func(node string) error { return l.MendEtcd(t.Context(), node) },
		},
	} {
		old, struck := rests(t, l, "dc1"), time.Now()
		t.Logf("%s: %s", fault.name, old)
		if err := fault.strike(old); err != nil {
			t.Fatal(err)
		}
		next := ""
		wait(t, "another owner", func() error {
			var err error
			next, err = ownerNow(t, l, "dc1")
			switch {
			case err != nil:
				return err
			case next == "" || next == old:
				return fmt.Errorf("the owner is %q", next)
			}
			if m := medOf(t, l, next); m > 100 {
				return fmt.Errorf("%s owns the VIP and announces %d", next, m)
			}
			return nil
		})
		t.Logf("after %.1f s %s owns the VIP and announces %d", time.Since(struck).Seconds(), next, medOf(t, l, next))
		alive(t, calls, fault.name)
		if strings.Contains(fault.name, "frozen") {
			wait(t, "three lease times", func() error {
				if time.Since(struck) < 3*leaseTTL {
					return errors.New("they are not over")
				}
				return nil
			})
		}
		if err := fault.mend(old); err != nil {
			t.Fatal(err)
		}
		mended := time.Now()
		wait(t, "the preferred node owns the VIP again", func() error {
			now, err := ownerNow(t, l, "dc1")
			if err == nil && now != preferred {
				err = fmt.Errorf("the owner is %q", now)
			}
			return err
		})
		t.Logf("%.1f s after it was mended %s owns the VIP", time.Since(mended).Seconds(), rests(t, l, "dc1"))
		alive(t, calls, fault.name+", mended")
	}

	record, verdict := judged(t, calls, recorder, 2*each)
	if verdict.Seen < 9 {
		t.Errorf("routers saw %d rightful nodes, expected the first and two for each failure", verdict.Seen)
	}
	if !slices.ContainsFunc(record.Changes, func(c lab.Change) bool {
		return strings.Contains(c.Put["/medway/v1/alive/"+preferred], `"cold":true`)
	}) {
		t.Errorf("%s has booted, and was never cold", preferred)
	}
}

// judged ends the calls, none of which may be lost, and demands that routers saw no
// promise broken.
func judged(t *testing.T, calls *drill.Held, recorder *drill.Recorder, established int) (drill.Record, drill.Verdict) {
	t.Helper()
	end, err := calls.End(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if end.Lost() || end.Established != established {
		t.Errorf("at the end: %s", end)
	}
	record, err := recorder.Stop()
	if err != nil {
		t.Fatal(err)
	}
	verdict := record.Promises(lab.VIPName)
	t.Log(verdict)
	for _, broken := range verdict.Broken {
		t.Error(broken)
	}
	return record, verdict
}

// wait waits for a condition, with a deadline that no passing run comes near.
func wait(t *testing.T, what string, try func() error) {
	t.Helper()
	if err := drill.Until(t.Context(), 3*time.Minute, try); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// ownerNow is the node that owns the VIP in a site, by etcd; "" is none.
func ownerNow(t *testing.T, l *lab.Lab, site string) (string, error) {
	t.Helper()
	text, found, err := l.Get(t.Context(), lab.Witness, "/medway/v1/owners/"+site+"/"+lab.VIPName)
	if err != nil || !found {
		return "", err
	}
	var o struct{ Node string }
	err = json.Unmarshal([]byte(text), &o)
	return o.Node, err
}

// medOf is what a site's edge router hears from one of its LVS hosts, the higher one of
// both addresses' MEDs; 1<<32 stands for a route that is missing.
func medOf(t *testing.T, l *lab.Lab, node string) int {
	t.Helper()
	n, _ := l.Topology().Node(node)
	routes, err := l.Routes(n.Site + "-edge")
	if err != nil {
		t.Fatal(err)
	}
	found, highest := 0, 0
	for _, r := range routes {
		if r.Session == node {
			found++
			highest = max(highest, r.MED)
		}
	}
	if found < 2 {
		return 1 << 32
	}
	return highest
}

// rests waits until the owner in the target site announces what an active one does, and
// all other nodes more; it returns the owner.
func rests(t *testing.T, l *lab.Lab, site string) (active string) {
	t.Helper()
	wait(t, "at rest", func() (err error) {
		if active, err = ownerNow(t, l, site); err == nil && active == "" {
			err = fmt.Errorf("no node owns the VIP in %s", site)
		}
		if err != nil {
			return err
		}
		for _, n := range l.Topology().Role(lab.RoleLVS) {
			switch m := medOf(t, l, n.Name); {
			case n.Name == active && m != 100:
				return fmt.Errorf("%s owns the VIP and announces %d, expected 100", n.Name, m)
			case n.Name != active && (m <= 100 || m == 1<<32):
				return fmt.Errorf("%s announces %d, expected a standby's or a backup's", n.Name, m)
			}
		}
		return nil
	})
	return active
}

// alive asks every call.
func alive(t *testing.T, calls *drill.Held, when string) {
	t.Helper()
	asked := time.Now()
	s, err := calls.Ask(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: %s", when, s)
	if s.Lost() {
		t.Fatalf("%s: %s\n%s", when, s, calls.Trouble(asked))
	}
}
