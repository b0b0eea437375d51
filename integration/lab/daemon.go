package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A Daemon is a program that the lab runs on a node. Its record is a file, so that
// another process can stop it, and so that an interrupted run can be cleaned up.
type Daemon struct {
	Node string   `json:"node"`
	Name string   `json:"name"`
	Args []string `json:"args"`
	Log  string   `json:"log"`
	PID  int      `json:"pid"`
	// StartTime is the process's own (clock ticks since boot). With BootID it tells the
	// process from a stranger that was given the same pid later.
	StartTime uint64 `json:"start_time"`
	BootID    string `json:"boot_id"`
}

// Start runs a program on a node in the background, with its output in the log file
// <run dir>/<node>/<name>.log, which a restart continues. One daemon of a name runs on a node.
func (l *Lab) Start(node, name string, args ...string) (*Daemon, error) {
	return l.start(node, name, nil, args...)
}

// start is Start with additions to the environment.
func (l *Lab) start(node, name string, env []string, args ...string) (*Daemon, error) {
	if d, err := l.Daemon(node, name); err == nil && d.Alive() {
		return nil, fmt.Errorf("%s on %s runs already (pid %d)", name, node, d.PID)
	}
	d := &Daemon{Node: node, Name: name, Args: args, Log: l.path(node, name+".log"), BootID: bootID()}
	if err := os.MkdirAll(filepath.Dir(d.Log), 0o755); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(d.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()

	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = l.path(node)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), env...)
	// A session of its own: an interrupt at the terminal is for us, not for the lab.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	// A child starts in the namespace of the thread that forks it.
	if err := l.Inside(node, cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s on %s: %w", name, node, err)
	}
	d.PID = cmd.Process.Pid
	d.StartTime, _, err = processStat(d.PID)
	if err == nil {
		err = l.record(d)
	}
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return nil, fmt.Errorf("record %s on %s: %w", name, node, err)
	}
	go func() { _ = cmd.Wait() }() // so that it leaves no zombie while we live
	return d, nil
}

// Daemon finds the record of a daemon that was started, in this process or another.
func (l *Lab) Daemon(node, name string) (*Daemon, error) {
	return readDaemon(l.recordFile(node, name))
}

// Daemons lists the records of all daemons that were started and not stopped.
func (l *Lab) Daemons() ([]*Daemon, error) {
	files, err := filepath.Glob(filepath.Join(l.opts.Dir, "daemons", "*.json"))
	if err != nil {
		return nil, err
	}
	var all []*Daemon
	for _, f := range files {
		d, err := readDaemon(f)
		if err != nil {
			return nil, err
		}
		all = append(all, d)
	}
	return all, nil
}

// Signal sends a signal to a daemon and doesn't wait (SIGSTOP, SIGCONT, SIGHUP).
func (l *Lab) Signal(node, name string, sig syscall.Signal) error {
	d, err := l.Daemon(node, name)
	if err != nil {
		return err
	}
	return d.signal(sig)
}

// Stop sends SIGTERM or SIGKILL, waits until the process has gone, and removes its
// record. One that has gone already is no error.
func (l *Lab) Stop(ctx context.Context, node, name string, sig syscall.Signal) error {
	d, err := l.Daemon(node, name)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := d.signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	if err := d.wait(ctx); err != nil {
		return fmt.Errorf("%s on %s (pid %d) is still there after %s: %w", name, node, d.PID, sig, err)
	}
	return os.Remove(l.recordFile(node, name))
}

// daemonOf is the daemon that a node is there for.
func daemonOf(n Node) string {
	switch n.Role {
	case RoleLVS:
		return "agent"
	case RoleSBC:
		return "sbc"
	case RoleEtcd:
		return "etcd"
	case RoleEdge, RoleTransit:
		return "bird"
	}
	return ""
}

// DaemonOf is the name of the daemon that a node is there for: "agent", "sbc", "etcd" or
// "bird". Clients have none, which is an error.
func (l *Lab) DaemonOf(node string) (string, error) {
	n, ok := l.topo.Node(node)
	if !ok {
		return "", fmt.Errorf("no node %s", node)
	}
	name := daemonOf(n)
	if name == "" {
		return "", fmt.Errorf("%s runs no daemon", node)
	}
	return name, nil
}

// Restart starts the daemon that a node is there for, which has been stopped.
func (l *Lab) Restart(node string) error {
	name, err := l.DaemonOf(node)
	if err != nil {
		return err
	}
	switch name {
	case "agent":
		return l.StartAgent(node)
	case "sbc":
		return l.StartBackend(node)
	case "etcd":
		return l.StartEtcd(node)
	}
	return l.StartRouter(node)
}

// Alive tells whether the very process that was started still runs.
func (d *Daemon) Alive() bool {
	started, state, err := processStat(d.PID)
	return err == nil && state != "Z" && started == d.StartTime && d.BootID == bootID()
}

// Tail is the end of the daemon's log, for error messages.
func (d *Daemon) Tail(lines int) string { return tail(d.Log, lines) }

// signal goes through a pidfd: the process is identified first, then signalled, and
// the pid can't pass to another in between.
func (d *Daemon) signal(sig syscall.Signal) error {
	p, err := os.FindProcess(d.PID)
	if err != nil {
		return err
	}
	defer func() { _ = p.Release() }()
	if !d.Alive() {
		return os.ErrProcessDone
	}
	return p.Signal(sig)
}

func (d *Daemon) wait(ctx context.Context) error {
	return until(ctx, 5*time.Millisecond, func() error {
		if d.Alive() {
			return errors.New("runs")
		}
		return nil
	})
}

func (l *Lab) recordFile(node, name string) string {
	return filepath.Join(l.opts.Dir, "daemons", node+"."+name+".json")
}

func (l *Lab) record(d *Daemon) error {
	return writeJSON(l.recordFile(d.Node, d.Name), d)
}

func readDaemon(file string) (*Daemon, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	d := &Daemon{}
	if err := json.Unmarshal(data, d); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return d, nil
}

func writeJSON(file string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	tmp := file + ".tmp"
	if err := os.WriteFile(tmp, append(data, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, file)
}

// processStat reads a process's start time and state. The program's name, in
// parentheses, may hold anything: count fields from the last one.
func processStat(pid int) (started uint64, state string, err error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, "", err
	}
	_, rest, _ := strings.Cut(string(data[strings.LastIndexByte(string(data), ')')+1:]), " ")
	fields := strings.Fields(rest)
	if len(fields) < 20 {
		return 0, "", fmt.Errorf("/proc/%d/stat: %q", pid, data)
	}
	started, err = strconv.ParseUint(fields[19], 10, 64)
	return started, fields[0], err
}

func bootID() string {
	data, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(data))
}

// until calls check until it has no error; if the context ends first, the error is
// what check said last.
func until(ctx context.Context, every time.Duration, check func() error) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (%w)", err, context.Cause(ctx))
		case <-tick.C:
		}
	}
}

func tail(file string, lines int) string {
	data, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
