package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/medway-lb/medway/integration/drill"
	"github.com/medway-lb/medway/integration/lab"
)

// TestLabRestart: the agent of the VIP's owner is restarted 20 times in a row,
// replaced by another build and back, and killed, under calls and under a stream of
// packets. Nothing is lost, and nobody else comes to own the VIP. After that the
// calls are switched to the other site and back.
func TestLabRestart(t *testing.T) {
	l := up(t)
	report, err := drill.Run(t.Context(), l, drill.Options{
		Calls: 20, Dir: t.TempDir(), Story: t.Output(),
		Before: func(ctx context.Context) error { return restarts(ctx, t, l) },
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, fault := range report.Faults() {
		t.Error(fault)
	}
	if n := report.Established(); n != 20 {
		t.Errorf("%d calls were established, expected 20", n)
	}
}

func restarts(ctx context.Context, t *testing.T, l *lab.Lab) error {
	if err := drill.ServeStreams(ctx, l); err != nil {
		return err
	}
	node, err := ownerOf(ctx, l)
	if err != nil {
		return err
	}
	perSecond := 1000
	if os.Getenv("MEDWAY_VM") != "" {
		perSecond = 100 // an emulated processor drops a part of 1,000, restarts or not
	}
	stream, err := drill.StartStream(ctx, l, perSecond)
	if err != nil {
		return err
	}
	began := time.Now()
	agent, other := filepath.Join(l.BinDir(), "medway-agent"), filepath.Join(l.BinDir(), "medway-agent-other")
	err = func() error {
		for range 20 {
			if err := again(ctx, l, node, syscall.SIGTERM, agent); err != nil {
				return err
			}
		}
		was := versionOf(ctx, l, node)
		for _, build := range []string{other, agent} {
			if err := again(ctx, l, node, syscall.SIGTERM, build); err != nil {
				return err
			}
			err := drill.Until(ctx, settleTime, func() error {
				if now := versionOf(ctx, l, node); (now == was) != (build == agent) || now == "" {
					return fmt.Errorf("%s has version %q, before %q", node, now, was)
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		return again(ctx, l, node, syscall.SIGKILL, agent)
	}()
	count := stream.End()
	took := time.Since(began)
	t.Logf("23 restarts of %s in %s: %d packets sent, %d lost, in gaps of %v", node, took.Round(time.Second), count.Sent, count.Lost, count.Gaps)
	if err != nil {
		return err
	}
	if count.Lost > 0 || count.Failed != nil {
		t.Errorf("%d of %d packets were lost, in gaps of %v (%v)", count.Lost, count.Sent, count.Gaps, count.Failed)
	}
	if least := int(took.Seconds()) * perSecond * 9 / 10; count.Sent < least {
		t.Errorf("%d packets were sent, expected %d at least", count.Sent, least)
	}
	after, err := ownerOf(ctx, l)
	if err == nil && after != node {
		t.Errorf("the owner was %s, and is %s", node, after)
	}
	return err
}

// again ends the agent of the VIP's owner and starts one, and waits until the routers
// have it as before: from the new one, for graceful restart and the lease keep what the
// old one left.
func again(ctx context.Context, l *lab.Lab, node string, sig syscall.Signal, program string) error {
	if err := l.StopAgent(ctx, node, sig); err != nil {
		return err
	}
	site, _, _ := strings.Cut(node, "-")
	following, stop := context.WithCancel(ctx)
	defer stop()
	events, err := l.FollowRoutes(following, site+"-edge")
	if err != nil {
		return err
	}
	if _, err := l.Start(node, "agent", program, "run", "--config", l.AgentConfig(node)); err != nil {
		return err
	}
	announced := false
	return drill.Until(ctx, settleTime, func() error {
		if announced = announced || brings(events, node, 100); !announced {
			return fmt.Errorf("%s has not announced 100 since its start", node)
		}
		alive, _, err := l.Get(ctx, lab.Witness, "/medway/v1/alive/"+node)
		if err != nil {
			return err
		}
		routes, err := l.Routes(site + "-edge")
		if err != nil {
			return err
		}
		for _, r := range routes {
			if r.Session == node && r.MED == 100 && r.Best && strings.Contains(alive, "bgp_sessions") {
				return nil
			}
		}
		return fmt.Errorf("%s is not active again: %v; %s", node, routes, alive)
	})
}

// brings says whether a node's route with a MED is among the events that are there by now.
func brings(events <-chan lab.RouteEvent, node string, med int) bool {
	for {
		select {
		case e, open := <-events:
			if !open {
				return false
			}
			if e.Kind == lab.RouteReceived && e.Session == node && e.MED == med {
				return true
			}
		default:
			return false
		}
	}
}

// ownerOf is the node that owns the VIP in the target site.
func ownerOf(ctx context.Context, l *lab.Lab) (string, error) {
	text, _, err := l.Get(ctx, lab.Witness, "/medway/v1/owners/dc1/"+lab.VIPName)
	if err != nil {
		return "", err
	}
	var owner struct{ Node string }
	if err := json.Unmarshal([]byte(text), &owner); err != nil || owner.Node == "" {
		return "", fmt.Errorf("owner of %s in dc1: value %q: %w", lab.VIPName, text, err)
	}
	return owner.Node, nil
}

// versionOf is the build that a node publishes, "" for none.
func versionOf(ctx context.Context, l *lab.Lab, node string) string {
	text, _, err := l.Get(ctx, lab.Witness, "/medway/v1/nodes/"+node)
	var n struct{ Version string }
	if err != nil || json.Unmarshal([]byte(text), &n) != nil {
		return ""
	}
	return n.Version
}
