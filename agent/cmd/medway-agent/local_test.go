package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/medway-lb/medway/agent/internal/local"
)

// node stands in for a running agent with the VIPs sip-1, which can be withdrawn,
// sip-2, which is, and sip-3, whose route does not go.
type node struct{}

func (node) Status(context.Context) (local.Status, error) {
	return local.Status{
		Node: []byte(`{"node":"dc1-lvs-a","site":"dc1"}`), VIPs: []string{"sip-1", "sip-2"},
		Snapshot: local.Snapshot{Source: local.FromEtcd}, Withdrawn: []local.Withdrawal{{VIP: "sip-2"}},
		Routes: []local.Route{{VIP: "sip-3"}},
	}, nil
}

func (node) Withdraw(o local.Order) (string, error) {
	if !strings.HasPrefix(o.VIP, "sip") {
		return "", errors.New("no such VIP")
	}
	return strings.Trim(strings.Join([]string{o.VIP, "withdrawn", o.Reason}, " "), " "), nil
}

func (node) Resume(vip string) (string, error) { return vip + ": resumed", nil }
func (node) Accept() (string, error)           { return "taken", nil }

// started returns the agent's file, which says where a running one listens.
func started(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	l, err := local.Listen(filepath.Join(dir, "agent.sock"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- local.Serve(ctx, l, node{}) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	file := filepath.Join(dir, "agent.yaml")
	if err := os.WriteFile(file, []byte("state_dir: "+dir+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func execute(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out strings.Builder
	cmd := command()
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

func TestCommandsOnTheSocket(t *testing.T) {
	file := started(t)
	for _, test := range []struct {
		args      []string
		out, fail string
	}{
		{[]string{"status"}, "dc1-lvs-a", ""},
		{[]string{"status", "-o", "json"}, `"source": "etcd"`, ""},
		{[]string{"status", "-o", "yaml"}, "", `flag --output: value "yaml": expected text or json`},
		{[]string{"withdraw", "sip-1", "--reason", "upgrade"}, "sip-1 withdrawn upgrade\nsip-1: no route is announced\n", ""},
		{[]string{"withdraw", "sip-3", "--timeout", "300ms"}, "sip-3 withdrawn\n", "sip-3: its routes are still announced after 300ms (--timeout)"},
		{[]string{"withdraw", "web"}, "", "no such VIP"},
		{[]string{"withdraw"}, "", "accepts 1 arg"},
		{[]string{"resume", "sip-2"}, "sip-2: resumed\n", ""},
		{[]string{"accept"}, "taken\n", ""},
		{[]string{"__complete", "withdraw", "s"}, "sip-1\nsip-2\n", ""},
		{[]string{"__complete", "resume", ""}, "sip-2\n", ""},
	} {
		args := append([]string{}, test.args...)
		if args[0] == "__complete" {
			args = append(args[:2:2], "--config", file, args[2])
		} else {
			args = append(args, "--config", file)
		}
		out, err := execute(t, args...)
		switch {
		case test.fail == "" && err != nil, test.fail != "" && (err == nil || !strings.Contains(err.Error(), test.fail)):
			t.Errorf("%q: %v, expected %q", test.args, err, test.fail)
		case !strings.Contains(out, test.out):
			t.Errorf("%q: %q, expected %q", test.args, out, test.out)
		case strings.Contains(test.out, "sip-2\n") && test.args[1] == "resume" && strings.Contains(out, "sip-1"):
			t.Errorf("%q: offers what is not withdrawn: %q", test.args, out)
		}
	}
}

// TestFlagsAreCompleted with what they may be, not with files.
func TestFlagsAreCompleted(t *testing.T) {
	for _, test := range [][]string{
		{"run", "--log-level", "debug\ninfo\nwarn\nerror\n:4\n"}, {"run", "--log-format", "console\njson\n:4\n"},
		{"plan", "--output", "text\njson\n:4\n"}, {"plan", "--from", "etcd\ndisk\n:4\n"}, {"status", "--output", "text\njson\n:4\n"},
	} {
		if out, err := execute(t, "__complete", test[0], test[1], ""); err != nil || !strings.HasPrefix(out, test[2]) {
			t.Errorf("%q: %q, %v", test[:2], out, err)
		}
	}
}

func TestNoAgentRuns(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	for _, args := range [][]string{{"status"}, {"withdraw", "v"}, {"resume", "v"}, {"accept"}} {
		if _, err := execute(t, append(args, "--socket", path)...); !errors.Is(err, local.ErrNotRunning) {
			t.Errorf("%q: %v", args, err)
		}
	}
	if _, err := execute(t, "status", "--config", path); err == nil || !strings.Contains(err.Error(), "--socket") {
		t.Errorf("%v", err)
	}
}
