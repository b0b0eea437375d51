package sipp_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/emiago/sipgo/sip"
	"go.uber.org/goleak"

	"github.com/medway-lb/medway/integration/sbc"
	"github.com/medway-lb/medway/integration/sbc/sipp"
)

func TestMain(m *testing.M) {
	sip.SetDefaultLogger(slog.New(slog.DiscardHandler))
	goleak.VerifyTestMain(m)
}

// play runs SIPp; meddle is called once every call has been answered in its dialogue, and the calls end after it.
func play(t *testing.T, v *vip, run sipp.Run, meddle func(t *testing.T, dir string)) (sipp.Calls, sipp.Stats, int) {
	t.Helper()
	bin, err := exec.LookPath("sipp")
	if err != nil {
		t.Skip("SKIPPED: sipp is not installed (Debian package sip-tester; `make test` installs it)")
	}
	dir := t.TempDir()
	if err := sipp.Prepare(dir); err != nil {
		t.Fatal(err)
	}
	run.Calls, run.Rate, run.Timeout = calls, 200, time.Minute
	if v != nil {
		run.Target = v.Addr().String()
	}
	run.Pause = 100 * time.Millisecond
	if run.Answer == 0 {
		run.Answer = 20 * time.Second
	}
	args, err := run.Args()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, args...)
	cmd.Dir = dir
	cmd.Stdout = io.Discard
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	if meddle != nil {
		wait(t, "every call is up", func() bool { return answered(t, dir) == calls })
		meddle(t, dir)
		if err := sipp.End(dir); err != nil {
			t.Fatal(err)
		}
	}
	var exit *exec.ExitError
	if err := <-done; err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	stats, err := sipp.ReadStats(dir)
	if err != nil {
		t.Fatal(err)
	}
	return summary(t, dir, time.Now()), stats, cmd.ProcessState.ExitCode()
}

func summary(t *testing.T, dir string, since time.Time) sipp.Calls {
	t.Helper()
	events, err := sipp.ReadLog(dir)
	if err != nil {
		t.Fatal(err)
	}
	return sipp.Summarize(events, since)
}

// answered counts the calls with an answer in their dialogue.
func answered(t *testing.T, dir string) int {
	t.Helper()
	events, err := sipp.ReadLog(dir)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, e := range events {
		if e.What == "alive" {
			seen[e.CallID] = true
		}
	}
	return len(seen)
}

func wait(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("never: %s", what)
		case <-tick.C:
		}
	}
}

func TestCallsGoOnUntilTold(t *testing.T) {
	v, backends := newVIP(t)
	got, stats, code := play(t, v, sipp.Run{Scenario: sipp.Call}, func(t *testing.T, dir string) {
		if c := summary(t, dir, time.Time{}); c.Up[names[0]] != calls/2 || c.Up[names[1]] != calls/2 {
			t.Errorf("during the run: %+v", c)
		}
	})
	if code != 0 || stats.Successful != calls || stats.Failed != 0 {
		t.Errorf("exit status %d, %+v", code, stats)
	}
	if got.Down[names[0]] != calls/2 || got.Down[names[1]] != calls/2 || got.Silent != 0 || got.Strayed != 0 {
		t.Errorf("%+v", got)
	}
	for _, b := range backends {
		if st := b.Status(); st.Ended != calls/2 || st.Lost != 0 || st.Unknown != 0 || st.Accepted != calls/2 {
			t.Errorf("%s: %+v", b.Addrs()[0], st)
		}
	}
}

func TestClosedConnectionsFail(t *testing.T) {
	v, backends := newVIP(t)
	got, stats, code := play(t, v, sipp.Run{Scenario: sipp.Call}, func(t *testing.T, dir string) {
		v.cut(names[0], false)
		wait(t, "half of the calls fail", func() bool {
			s, err := sipp.ReadStats(dir)
			return err == nil && s.Failed == calls/2 && s.Current == calls/2
		})
	})
	if code != 1 || stats.Failed != calls/2 || stats.Successful != calls/2 || stats.Why["FailedTcpClosed"] != calls/2 {
		t.Errorf("exit status %d, %+v", code, stats)
	}
	if got.Silent != calls/2 || got.Down[names[1]] != calls/2 {
		t.Errorf("%+v", got)
	}
	noNewConnections(t, backends)
}

func noNewConnections(t *testing.T, backends []*sbc.Server) {
	t.Helper()
	for _, b := range backends {
		if st := b.Status(); st.Accepted != calls/2 {
			t.Errorf("%s: %d connections, want %d: SIPp opened new ones", b.Addrs()[0], st.Accepted, calls/2)
		}
	}
}

// A call that another backend answers goes on, for SIPp counts it as failed only when it ends; the log tells at once.
func TestAnswerFromAnotherBackendFails(t *testing.T) {
	v, _ := newVIP(t)
	got, stats, code := play(t, v, sipp.Run{Scenario: sipp.Call}, func(t *testing.T, dir string) {
		v.set(func() { v.forge = true })
		wait(t, "half of the calls stray", func() bool { return summary(t, dir, time.Time{}).Strayed == calls/2 })
	})
	if code != 1 || stats.Failed != calls/2 || stats.Successful != calls/2 || stats.Why["FailedRegexpDoesntMatch"] != calls/2 {
		t.Errorf("exit status %d, %+v", code, stats)
	}
	if got.Strayed != calls/2 {
		t.Errorf("%+v", got)
	}
}

// SIPp does not survive a reset: at least it is loud, and does not connect anew.
func TestResetEndsSIPp(t *testing.T) {
	v, backends := newVIP(t)
	got, _, code := play(t, v, sipp.Run{Scenario: sipp.Call}, func(t *testing.T, dir string) {
		v.cut(names[0], true)
		wait(t, "the backends have lost every call", func() bool {
			return backends[0].Status().Lost == calls/2 && backends[1].Status().Lost == calls/2
		})
	})
	if code != 255 || got.Silent != calls {
		t.Errorf("exit status %d, %+v", code, got)
	}
	noNewConnections(t, backends)
}

func TestSilenceFails(t *testing.T) {
	v, _ := newVIP(t)
	_, stats, code := play(t, v, sipp.Run{Scenario: sipp.Call, Answer: 10 * time.Second}, func(t *testing.T, dir string) {
		v.set(func() { v.hold = true })
		wait(t, "every call fails", func() bool {
			s, err := sipp.ReadStats(dir)
			return err == nil && s.Failed == calls
		})
	})
	if code != 1 || stats.Why["FailedTimeoutOnRecv"] != calls {
		t.Errorf("exit status %d, %+v", code, stats)
	}
}

func TestShortScenarios(t *testing.T) {
	for _, s := range []sipp.Scenario{sipp.NewCalls, sipp.Register} {
		t.Run(string(s), func(t *testing.T) {
			v, backends := newVIP(t)
			got, stats, code := play(t, v, sipp.Run{Scenario: s}, nil)
			if code != 0 || stats.Successful != calls || got.Down[names[0]] != calls/2 || got.Down[names[1]] != calls/2 {
				t.Errorf("exit status %d, %+v, %+v", code, stats, got)
			}
			for _, b := range backends {
				b.Drain()
			}
			_, stats, code = play(t, v, sipp.Run{Scenario: s}, nil)
			if code != 1 || stats.Failed != calls || stats.Why["FailedUnexpectedMessage"] != calls {
				t.Errorf("draining: exit status %d, %+v", code, stats)
			}
		})
	}
}

// Over UDP, and over IPv6: a request that is lost, or its answer, is sent again.
func TestUDP(t *testing.T) {
	for _, ip := range []string{"127.0.0.1", "::1"} {
		t.Run(ip, func(t *testing.T) {
			b, err := sbc.New(sbc.Config{Name: "udp", Listen: []sbc.Listen{{Transport: "udp", Addr: net.JoinHostPort(ip, "0")}}})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan error, 1)
			go func() { done <- b.Run(ctx) }()
			t.Cleanup(func() {
				cancel()
				if err := <-done; err != nil {
					t.Errorf("Run: %v", err)
				}
			})
			wire := newLossy(t, b.Addrs()[0])
			run := sipp.Run{Scenario: sipp.Call, UDP: true, Target: wire.LocalAddr().String(), Answer: 20 * time.Second}
			if _, err := run.Args(); err == nil {
				t.Error("UDP without a local address was accepted")
			}
			run.Local = ip
			got, stats, code := play(t, nil, run, func(*testing.T, string) {})
			if code != 0 || stats.Successful != calls || got.Down["udp"] != calls || got.Strayed != 0 {
				t.Errorf("exit status %d, %+v, %+v", code, stats, got)
			}
			if wire.lost < calls/2 {
				t.Errorf("only %d packets of %d calls were lost", wire.lost, calls)
			}
		})
	}
}

func TestReadLogRefusesWhatItDoesNotKnow(t *testing.T) {
	dir := t.TempDir()
	good := "2026-01-02\t03:04:05.000000\t1767323045.000000 1-2@192.0.2.1 up a a\n"
	for text, want := range map[string]int{"": 0, good: 1, good + good[:30]: 1, good + "what\n": -1, strings.Replace(good, "17673", "x", 1): -1} {
		if err := os.WriteFile(filepath.Join(dir, sipp.LogFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		events, err := sipp.ReadLog(dir)
		if (err != nil) != (want < 0) || (err == nil && len(events) != want) {
			t.Errorf("%q: %d events, %v", text, len(events), err)
		}
	}
}
