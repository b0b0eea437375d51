package ipvs

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/medway-lb/medway/pkg/plan"
)

// inNamespace opens IPVS in a fresh network namespace. The test's goroutine
// stays locked to its thread, so that commands run in that namespace too; the
// thread ends with the goroutine, and the namespace with both.
func inNamespace(t *testing.T) *Kernel {
	t.Helper()
	unable := t.Skipf
	if os.Getenv("MEDWAY_REQUIRE_KERNEL") == "1" {
		unable = t.Fatalf
	}
	if os.Geteuid() != 0 {
		unable("SKIPPED: needs a kernel with IPVS: not root")
	}
	runtime.LockOSThread()
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	k, err := New()
	if err != nil {
		unable("SKIPPED: needs a kernel with IPVS: %v", err)
	}
	t.Cleanup(k.Close)
	// Without it an IPv6 address is unusable for a second or two.
	for _, conf := range []string{"all", "default"} {
		sh(t, "sysctl -qw net.ipv6.conf."+conf+".accept_dad=0")
	}
	sh(t, "ip link set lo up")
	sh(t, "ip link add sync01 type veth peer name sync01p")
	for _, link := range []string{"sync01", "sync01p"} {
		sh(t, "ip link set "+link+" up")
	}
	sh(t, "ip addr add 10.99.0.1/24 dev sync01")
	sh(t, "ip addr add 10.98.0.1/24 dev sync01p")
	return k
}

// sh runs a command in the namespace of the calling thread: a child is cloned
// from the thread that starts it.
func sh(t *testing.T, command string) string {
	t.Helper()
	words := strings.Fields(command)
	out, err := exec.Command(words[0], words[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return string(out)
}

func rules(t *testing.T) string   { return sh(t, "ipvsadm -Sn") }
func daemons(t *testing.T) string { return sh(t, "ipvsadm -ln --daemon") }

// sorted makes listings comparable whatever their order; every line of
// `ipvsadm -Sn` names its object in full.
func sorted(listing string) string {
	lines := strings.SplitAfter(listing, "\n")
	slices.Sort(lines)
	return strings.Join(lines, "")
}

// thresholds are the upper and lower thresholds as ipvsadm sees them, one line
// a destination.
func thresholds(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	of := ""
	for line := range strings.Lines(sh(t, "ipvsadm -ln --thresholds")) {
		switch f := strings.Fields(line); f[0] {
		case "TCP", "UDP":
			of = strings.ToLower(f[0]) + " " + f[1]
		case "FWM":
			of = ""
		case "->":
			if of != "" {
				fmt.Fprintln(&b, "service", of, "->", f[1], f[2], f[3])
			}
		}
	}
	return sorted(b.String())
}

func wantedThresholds(h plan.Host) string {
	var b strings.Builder
	for k, v := range h.Destinations {
		fmt.Fprintln(&b, k, v.Upper, v.Lower)
	}
	return sorted(b.String())
}

func same(t *testing.T, what, want, got string) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

// waitForStats waits out the kernel's estimator, which adds up the counters.
func waitForStats(t *testing.T, k *Kernel, want []ServiceStats) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		got, err := k.Stats(ctx)
		diff := cmp.Diff(want, got, cmpopts.EquateComparable(plan.ServiceKey{}, plan.DestinationKey{}))
		if err == nil && diff == "" {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%v\n%s", err, diff)
		}
	}
}

// send sends UDP packets of 4 bytes from one socket of the calling thread's
// namespace.
func send(t *testing.T, to netip.AddrPort, packets int) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for range packets {
		err := unix.Sendto(fd, []byte("ping"), 0, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
		if err != nil {
			t.Fatal(err)
		}
	}
}
