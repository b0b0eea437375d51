package bgp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"go.uber.org/zap"

	"github.com/medway-lb/medway/pkg/plan"
)

// GoBGP dials on goroutines of its own, so that a whole process has to be in
// the namespace: this test binary again, told what to do over its standard
// input, one JSON request a line, one JSON answer a line.

const helperEnv = "MEDWAY_BGP_TEST_SPEAKER"

type request struct {
	New        *Config
	Op         string // "new", "set", "start", "stop", "sessions"
	Set        []plan.Announcement
	Restarting bool
	Graceful   bool
}

type answer struct {
	Err      string
	Sessions []Session
	// Routes is how many routes GoBGP holds, whoever they are from.
	Routes int
}

func TestMain(m *testing.M) {
	if os.Getenv(helperEnv) != "" {
		if err := serveHelper(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func serveHelper(in io.Reader, out io.Writer) error {
	log, err := zap.NewDevelopment(zap.AddStacktrace(zap.PanicLevel))
	if err != nil {
		return err
	}
	var s *Speaker
	dec, enc := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var r request
		if err := dec.Decode(&r); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		var a answer
		var err error
		switch r.Op {
		case "new":
			s, err = New(*r.New, log)
		case "set":
			err = s.Set(ctx, r.Set)
		case "start":
			err = s.Start(ctx, r.Restarting)
		case "stop":
			err = s.Stop(ctx, r.Graceful)
		case "sessions":
			a.Sessions = s.Sessions()
			a.Routes, err = countRoutes(s)
		}
		cancel()
		if err != nil {
			a.Err = err.Error()
		}
		if err := enc.Encode(a); err != nil {
			return err
		}
	}
}

// speaker is a Speaker in a process of its own in a namespace.
type speaker struct {
	t   testing.TB
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// newSpeaker makes the process and in it the Speaker; nothing is sent yet.
func newSpeaker(t testing.TB, ns string, cfg Config) *speaker {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("ip", "netns", "exec", ns, exe)
	cmd.Env = append(os.Environ(), helperEnv+"=1")
	cmd.Stderr = lineLogger{t, "speaker"}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s := &speaker{t: t, cmd: cmd, in: in, out: bufio.NewReader(out)}
	t.Cleanup(s.kill)
	s.do(request{Op: "new", New: &cfg})
	return s
}

func (s *speaker) kill() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
}

func (s *speaker) do(r request) answer {
	s.t.Helper()
	if err := json.NewEncoder(s.in).Encode(r); err != nil {
		s.t.Fatalf("speaker: %s: %v", r.Op, err)
	}
	line, err := s.out.ReadBytes('\n')
	if err != nil {
		s.t.Fatalf("speaker: %s: %v", r.Op, err)
	}
	var a answer
	if err := json.Unmarshal(line, &a); err != nil {
		s.t.Fatalf("speaker: %s: %v: %s", r.Op, err, line)
	}
	if a.Err != "" {
		s.t.Fatalf("speaker: %s: %s", r.Op, a.Err)
	}
	return a
}

func (s *speaker) set(set ...plan.Announcement) { s.t.Helper(); s.do(request{Op: "set", Set: set}) }
func (s *speaker) start(restarting bool) {
	s.t.Helper()
	s.do(request{Op: "start", Restarting: restarting})
}
func (s *speaker) stop(graceful bool)  { s.t.Helper(); s.do(request{Op: "stop", Graceful: graceful}) }
func (s *speaker) sessions() []Session { s.t.Helper(); return s.do(request{Op: "sessions"}).Sessions }

// flushed tells whether all sessions are established and flushed.
func (s *speaker) flushed() bool {
	s.t.Helper()
	for _, n := range s.sessions() {
		if !n.Established || n.Pending {
			return false
		}
	}
	return true
}

// many are n routes with one MED.
func many(n int, med uint32) []plan.Announcement {
	var out []plan.Announcement
	for i := range n {
		a := netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})
		out = append(out, plan.Announcement{Prefix: netip.PrefixFrom(a, 32), MED: med})
	}
	return out
}

type lineLogger struct {
	t    testing.TB
	name string
}

func (l lineLogger) Write(b []byte) (int, error) {
	if !l.t.Failed() {
		l.t.Logf("%s: %s", l.name, bytes.TrimSpace(b))
	}
	return len(b), nil
}

// eventually polls until cond holds, and returns how long that took.
func eventually(t testing.TB, limit time.Duration, what string, cond func() bool) time.Duration {
	t.Helper()
	begin := time.Now()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		if time.Since(begin) > limit {
			t.Fatalf("not within %v: %s", limit, what)
		}
		<-tick.C
	}
	return time.Since(begin)
}

// holds checks that cond stays true for a while.
func holds(t testing.TB, d time.Duration, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for begin := time.Now(); time.Since(begin) < d; <-tick.C {
		if !cond() {
			t.Fatalf("after %v it no longer holds: %s", time.Since(begin), what)
		}
	}
}

// countRoutes returns how many routes GoBGP holds in its table.
func countRoutes(s *Speaker) (int, error) {
	n := 0
	if s.server == nil {
		return 0, nil
	}
	for _, f := range s.cfg.families() {
		err := s.server.ListPath(apiutil.ListPathRequest{TableType: api.TableType_TABLE_TYPE_GLOBAL, Family: f},
			func(_ bgp.NLRI, paths []*apiutil.Path) { n += len(paths) })
		if err != nil {
			return 0, err
		}
	}
	return n, nil
}
