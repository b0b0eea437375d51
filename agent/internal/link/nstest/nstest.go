// Package nstest gives a test a network namespace of its own on the real
// kernel, and the operator's tools inside it.
package nstest

import (
	"flag"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/vishvananda/netns"
)

// Need is something that a test wants of the kernel: a command that succeeds
// in a fresh namespace only where the kernel has it.
type Need struct {
	Name  string
	Probe string
}

// What medway's tests need beyond any kernel.
var (
	Dummy = Need{"dummy", "ip link add mw-need type dummy && ip link del mw-need"}
	IPIP  = Need{"ipip", "ip link add mw-need type ipip local 192.0.2.1 remote 192.0.2.2 ttl 64 && ip link del mw-need"}
	// IP6Tnl is the type of tunnels over IPv6.
	IP6Tnl = Need{"ip6tnl", "ip link add mw-need type ip6tnl mode ipip6 local 2001:db8::1 remote 2001:db8::2 && ip link del mw-need"}
	IPVS   = Need{"ip_vs", "modprobe ip_vs 2>/dev/null; test -e /proc/sys/net/ipv4/vs/sync_version"}
	TEE    = Need{"xt_TEE", "iptables -t mangle -A POSTROUTING -o lo -j TEE --gateway 192.0.2.1 && iptables -t mangle -F POSTROUTING"}
)

// Enter moves the test, locked to its thread, into a new network namespace
// until it ends. Where that can't be it skips, loudly; it fails instead when
// MEDWAY_REQUIRE_KERNEL=1, so that no one takes a skipped run for a passed one.
func Enter(t *testing.T, needs ...Need) {
	t.Helper()
	if os.Geteuid() != 0 {
		skip(t, "SKIPPED: needs root")
	}
	// A namespace belongs to a thread (setns(2)).
	runtime.LockOSThread()
	old, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	ns, err := netns.New()
	if err != nil {
		t.Fatalf("new network namespace: %v", err)
	}
	t.Cleanup(func() {
		defer func() { _, _ = ns.Close(), old.Close() }()
		if err := netns.Set(old); err != nil {
			// The thread stays locked and so ends with the goroutine.
			t.Errorf("back to the first namespace: %v", err)
			return
		}
		runtime.UnlockOSThread()
	})
	Run(t, "ip", "link", "set", "lo", "up")
	for _, n := range needs {
		if out, err := exec.Command("sh", "-c", n.Probe).CombinedOutput(); err != nil {
			skip(t, "SKIPPED: needs a kernel with "+n.Name+": "+strings.TrimSpace(string(out)))
		}
	}
}

// Inside calls f in a namespace that has a name (ip-netns(8)), on a thread of its
// own. The sockets that f opens stay there.
func Inside(namespace string, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and the thread ends with the goroutine
		ns, err := netns.GetFromName(namespace)
		if err == nil {
			defer func() { _ = ns.Close() }()
			err = netns.Set(ns)
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

func skip(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("MEDWAY_REQUIRE_KERNEL") == "1" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// TB is what Run needs of a test; *rapid.T has it too.
type TB interface {
	Helper()
	Fatalf(format string, args ...any)
}

// Run runs an operator's tool in the test's namespace and returns its output.
func Run(t TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Steps sets how many states rapid.Check tries in this test, unless
// -rapid.checks was given: a step on the real kernel takes up to a second in an
// emulated machine, and each starts where the last one ended.
func Steps(t *testing.T, n int) {
	t.Helper()
	f := flag.Lookup("rapid.checks")
	if f == nil || f.Value.String() != f.DefValue {
		return
	}
	if err := f.Value.Set(strconv.Itoa(n)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Value.Set(f.DefValue) })
}
