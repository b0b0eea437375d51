package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/medway-lb/medway/integration/drill"
	"github.com/medway-lb/medway/integration/lab"
)

// TestLabOperations: what medwayctl waits for is what routers see, on real agents:
// a switchover that is watched, a node that is drained and comes back, and one that
// died and is forgotten.
func TestLabOperations(t *testing.T) {
	l := up(t)
	ctl := func(args ...string) (string, error) {
		t.Helper()
		out, err := l.Output(t.Context(), lab.Witness, append([]string{filepath.Join(l.BinDir(), "medwayctl"), "--command-timeout", "30s"}, args...)...)
		t.Logf("medwayctl %s\n%s", strings.Join(args, " "), out)
		return out, err
	}
	good := func(args ...string) string {
		t.Helper()
		out, err := ctl(args...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	until := func(what string, try func() error) {
		t.Helper()
		if err := drill.Until(t.Context(), 3*time.Minute, try); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	// heard says whether a node's router has a route from it.
	heard := func(site, node string) bool {
		t.Helper()
		routes, err := l.Routes(site + "-edge")
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range routes {
			if strings.HasPrefix(r.Session, node) {
				return true
			}
		}
		return false
	}

	out := good("switch", lab.VIPName, "--from", "dc1", "--to", "dc2", "--watch", "--timeout", "3m")
	const first = "dc1-lvs-a"
	second := owner(t, good("status", "-o", "json"), "dc2")
	if !strings.Contains(out, second+" force active 50") && !strings.Contains(out, second+" active 100") {
		t.Errorf("%s is not told of", second)
	}
	until("routers", func() error {
		if m1, m2 := med(t, l, "dc1"), med(t, l, "dc2"); m1 <= 100 || m2 > 100 {
			return fmt.Errorf("MEDs are %d and %d, expected the target's to be 100 at most, and alone in that", m1, m2)
		}
		return nil
	})

	if !heard("dc1", first) {
		t.Fatal("there is no route that could go")
	}
	out = good("node", "drain", first, "--reason", "new kernel", "--wait", "--timeout", "3m")
	if !strings.HasSuffix(strings.TrimSpace(out), first+" announces nothing") {
		t.Errorf("it has not waited")
	}
	until("a drained node's route", func() error {
		if heard("dc1", first) {
			return errors.New("its router has one yet")
		}
		return nil
	})
	if out = good("node", "list"); !strings.Contains(out, "drained") {
		t.Errorf("the drain is not shown")
	}
	good("node", "undrain", first)
	until("a route of the node that is back", func() error {
		if !heard("dc1", first) {
			return errors.New("its router has none")
		}
		return nil
	})

	// Who lives is not forgotten; who died at 100 keeps the others below.
	if _, err := ctl("forget", second, "--reason", "test", "--yes"); err == nil {
		t.Error("a living node was forgotten")
	}
	until("the MED of rest", func() error {
		if m := med(t, l, "dc2"); m != 100 {
			return fmt.Errorf("dc2 announces %d", m)
		}
		return nil
	})
	if err := l.StopAgent(t.Context(), second, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := l.Cut(second, "dc2-edge"); err != nil {
		t.Fatal(err)
	}
	until("a dead node's lease and route", func() error {
		if s := status(t, l); !strings.Contains(s, "silent") {
			return fmt.Errorf("%s is not called silent", second)
		}
		if heard("dc2", second) {
			return fmt.Errorf("dc2-edge has a route of %s yet", second)
		}
		return nil
	})
	good("switch", lab.VIPName, "--to", "dc1", "--watch", "--timeout", "3m")
	until("force", func() error {
		if m := med(t, l, "dc1"); m >= 100 {
			return fmt.Errorf("dc1 announces %d while a dead node's claim is 100", m)
		}
		return nil
	})
	good("forget", second, "--reason", "test", "--yes", "--routers-keep", "5s")
	until("the MED of rest after a node was forgotten", func() error {
		if m := med(t, l, "dc1"); m != 100 {
			return fmt.Errorf("dc1 announces %d", m)
		}
		return nil
	})
	out = good("history", lab.VIPName)
	for _, what := range []string{"switch ", "drain " + first, "undrain " + first, "forget " + second} {
		if !strings.Contains(out, what) {
			t.Errorf("%q is not in the history", what)
		}
	}
}

// owner is who answers for the lab's VIP in a site, by the tool's word.
func owner(t *testing.T, status, site string) string {
	t.Helper()
	var document struct {
		VIPs []struct {
			VIP    string
			Owners map[string]string
		}
	}
	if err := json.Unmarshal([]byte(status), &document); err != nil {
		t.Fatal(err)
	}
	for _, v := range document.VIPs {
		if v.VIP == lab.VIPName && v.Owners[site] != "" {
			return v.Owners[site]
		}
	}
	t.Fatalf("nobody owns %s in %s", lab.VIPName, site)
	return ""
}
