package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/medway-lb/medway/integration/drill"
	"github.com/medway-lb/medway/integration/lab"
)

// TestLabRefusedWrite: a node that etcd does not let claim moves nothing, says
// which key it may not write, and goes on by itself when it may again.
func TestLabRefusedWrite(t *testing.T) {
	l := up(t)
	node := owner(t, l, "dc2")
	claims := "/medway/v1/claims/" + node + "/"
	if out, err := etcdctl(t, l, lab.Root, lab.Witness, "--command-timeout", "30s", "role", "revoke-permission", "medway-node-"+node, "--prefix", claims); err != nil {
		t.Fatal(err, out)
	}
	if err := l.SetTarget(t.Context(), lab.VIPName, "dc2"); err != nil {
		t.Fatal(err)
	}
	eventually := func(what string, try func() error) {
		t.Helper()
		if err := drill.Until(t.Context(), 2*time.Minute, try); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	eventually("status", func() error {
		if s, want := status(t, l), fmt.Sprintf("does not let user %q write %ssip-1", node, claims); !strings.Contains(s, want) {
			return fmt.Errorf("status does not say %q:\n%s", want, s)
		}
		return nil
	})
	if m1, m2 := med(t, l, "dc1"), med(t, l, "dc2"); m1 != 100 || m2 <= 100 {
		t.Errorf("MEDs are %d and %d, expected 100 and more", m1, m2)
	}
	if err := l.InitEtcd(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually("switch", func() error { return onLadder(t.Context(), l, "dc2") })
	eventually("the fault goes", func() error {
		if s := status(t, l); strings.Contains(s, "does not let") {
			return fmt.Errorf("status still says:\n%s", s)
		}
		return nil
	})
}
