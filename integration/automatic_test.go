package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/medway-lb/medway/integration/drill"
	"github.com/medway-lb/medway/integration/lab"
)

// TestLabAutomaticSwitchover: a scan of dc2 is no traffic that came there. Then all LVS
// hosts of dc1 die under calls. The routers lead the calls to dc2, which makes that
// official: once. When dc1 is back and dc2's hosts
// die, the lock stands in the way of a second switch until a person removes it. No
// call is lost.
func TestLabAutomaticSwitchover(t *testing.T) {
	var recorder *drill.Recorder
	l := upAs(t, func(o *lab.Options) { o.HoldTime = 9 * time.Second }, func(_ context.Context, l *lab.Lab) error {
		recorder = drill.StartRecorder(t.Context(), l)
		return nil
	})
	// Few packets are enough: the calls say something every second.
	amend(t, l, `"automatic_switchover":{"enabled":true,"share":"60%","packets_per_second":5,"for":"4s","settle":"6s"}`)
	kinds, err := drill.ParseTraffic([]string{"tcp", "udp6"})
	if err != nil {
		t.Fatal(err)
	}
	calls, err := drill.Hold(t.Context(), l, kinds, 10, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer calls.Kill()

	off := func(node string) error { return l.PowerOff(t.Context(), node) }
	rests(t, l, "dc1")
	scan(t, l, owner(t, l, "dc2"))
	if n := switches(t, l); n != 0 {
		t.Fatalf("%d automatic switchovers by a scan", n)
	}

	power(t, l, "dc1", off)
	wait(t, "dc2 makes itself the target", func() error { return targetIs(t, l, "dc2") })
	lock, found, err := l.Get(t.Context(), lab.Witness, "/medway/v1/locks/"+lab.VIPName)
	if err != nil || !found || !strings.Contains(lock, `"from":"dc1","to":"dc2"`) {
		t.Errorf("lock %q, %v", lock, err)
	}
	alive(t, calls, "dc1's hosts are dead")
	if n := switches(t, l); n != 1 {
		t.Errorf("%d automatic switchovers in the history", n)
	}

	power(t, l, "dc1", l.PowerOn)
	rests(t, l, "dc2")
	for _, node := range lvsOf(l, "dc1") {
		wait(t, node+" knows the calls", func() error {
			text, found, err := l.Get(t.Context(), lab.Witness, "/medway/v1/alive/"+node)
			if err == nil && (!found || strings.Contains(text, `"cold":true`)) {
				err = fmt.Errorf("its sign of life is %q", text)
			}
			return err
		})
	}
	alive(t, calls, "dc1 is back")

	power(t, l, "dc2", off)
	wait(t, "the traffic has come to dc1, by what its owner says", func() error {
		node, err := ownerNow(t, l, "dc1")
		if err != nil || node == "" {
			return errors.Join(err, errors.New("nobody owns the VIP in dc1"))
		}
		return carries(t, l, node, 5)
	})
	alive(t, calls, "dc2's hosts are dead")
	wait(t, "dc2's hosts are dead for etcd, too", func() error {
		for _, node := range lvsOf(l, "dc2") {
			if _, found, err := l.Get(t.Context(), lab.Witness, "/medway/v1/alive/"+node); err != nil || found {
				return fmt.Errorf("%s: its sign of life is there: %t, %w", node, found, err)
			}
		}
		return nil
	})
	locked := time.Now()
	wait(t, "twice the time that it would take", func() error {
		if time.Since(locked) < 20*time.Second {
			return errors.New("it is not over")
		}
		return nil
	})
	if err := targetIs(t, l, "dc2"); err != nil {
		t.Errorf("locked, but switched: %v", err)
	}
	run(t, l, lab.Witness, filepath.Join(l.BinDir(), "medwayctl")+" --command-timeout 30s unlock "+lab.VIPName)
	wait(t, "unlocked, dc1 makes itself the target", func() error { return targetIs(t, l, "dc1") })
	if n := switches(t, l); n != 2 {
		t.Errorf("%d automatic switchovers in the history, expected 2", n)
	}
	power(t, l, "dc2", l.PowerOn)
	rests(t, l, "dc1")

	judged(t, calls, recorder, 20)
}

// scan sends SYN packets to the VIP by way of a host, from its site's router, for longer
// than a switchover takes, at several times the rate of all calls. What comes back is
// never answered.
func scan(t *testing.T, l *lab.Lab, host string) {
	t.Helper()
	const (
		scanners = 10
		patience = 100 * time.Millisecond // less than until TCP repeats a SYN
		enough   = 1500
	)
	node, _ := l.Topology().Node(host)
	edge := node.Site + "-edge"
	for _, command := range []string{
		"ip route add " + lab.VIP.String() + " via " + node.Addr.String() + " table 99",
		"ip rule add iif lo to " + lab.VIP.String() + " lookup 99",
		"iptables -A INPUT -p tcp --sport 5060 --tcp-flags SYN,ACK SYN,ACK -j DROP",
	} {
		run(t, l, edge, command)
	}
	ctx, stop := context.WithCancel(t.Context())
	var done sync.WaitGroup
	for range scanners {
		done.Go(func() {
			for ctx.Err() == nil {
				syn, cancel := context.WithTimeout(ctx, patience)
				if conn, err := l.Dial(syn, edge, "tcp4", net.JoinHostPort(lab.VIP.String(), "5060")); err == nil {
					conn.Close()
				}
				cancel()
			}
		})
	}
	before := scheduled(t, l, host)
	wait(t, "the scan has been long enough", func() error {
		if seen := scheduled(t, l, host) - before; seen < enough {
			return fmt.Errorf("%s has scheduled %d connections", host, seen)
		}
		return nil
	})
	t.Logf("%s scheduled %d connections of the scan", host, scheduled(t, l, host)-before)
	stop()
	done.Wait()
	run(t, l, edge, "ip rule del iif lo to "+lab.VIP.String()+" lookup 99")
}

// scheduled counts the VIP's TCP connections since the host's start, as ipvsadm shows it.
func scheduled(t *testing.T, l *lab.Lab, host string) int {
	t.Helper()
	out := run(t, l, host, "ipvsadm -L -n --stats --exact -t "+net.JoinHostPort(lab.VIP.String(), "5060"))
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) > 2 && f[0] == "TCP" {
			n, err := strconv.Atoi(f[2])
			if err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			return n
		}
	}
	t.Fatalf("no service: %s", out)
	return 0
}

// amend gives the lab's VIP one more field.
func amend(t *testing.T, l *lab.Lab, field string) {
	t.Helper()
	key := "/medway/v1/vips/" + lab.VIPName
	text, found, err := l.Get(t.Context(), lab.Witness, key)
	if err != nil || !found {
		t.Fatalf("%s: %t, %v", key, found, err)
	}
	value := strings.TrimSuffix(strings.TrimSpace(text), "}") + "," + field + "}"
	if err := l.Put(t.Context(), lab.Witness, key, value); err != nil {
		t.Fatal(err)
	}
}

func lvsOf(l *lab.Lab, site string) (names []string) {
	for _, n := range l.Topology().Role(lab.RoleLVS) {
		if n.Site == site {
			names = append(names, n.Name)
		}
	}
	return names
}

func power(t *testing.T, l *lab.Lab, site string, what func(node string) error) {
	t.Helper()
	for _, node := range lvsOf(l, site) {
		if err := what(node); err != nil {
			t.Fatal(err)
		}
	}
}

func targetIs(t *testing.T, l *lab.Lab, site string) error {
	t.Helper()
	text, _, err := l.Get(t.Context(), lab.Witness, "/medway/v1/target_state/"+lab.VIPName)
	if err == nil && strings.TrimSpace(text) != site {
		err = fmt.Errorf("the target is %q", text)
	}
	return err
}

// carries says by an error that a node does not carry so many packets a second.
func carries(t *testing.T, l *lab.Lab, node string, rate uint64) error {
	t.Helper()
	text, _, err := l.Get(t.Context(), lab.Witness, "/medway/status/"+node)
	if err != nil {
		return err
	}
	var status struct {
		VIPs []struct {
			VIP  string `json:"vip"`
			Rate uint64 `json:"packets_per_second,string"`
		} `json:"vips"`
	}
	if err := json.Unmarshal([]byte(text), &status); err != nil {
		return err
	}
	for _, v := range status.VIPs {
		if v.VIP == lab.VIPName && v.Rate >= rate {
			return nil
		}
	}
	return fmt.Errorf("%s says %+v", node, status.VIPs)
}

// switches counts the automatic switchovers in the history.
func switches(t *testing.T, l *lab.Lab) int {
	t.Helper()
	out := run(t, l, lab.Witness, filepath.Join(l.BinDir(), "medwayctl")+" --command-timeout 30s history "+lab.VIPName)
	return strings.Count(out, "automatic switchover")
}
