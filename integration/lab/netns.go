package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// netnsDir is where `ip netns` keeps its names, so that `ip netns exec mw-clients`
// works from any shell.
const netnsDir = "/run/netns"

// Namespace is the name of a node's network namespace.
func (l *Lab) Namespace(node string) string { return l.opts.Prefix + node }

// Command prepares a program to run on a node. It has no parent-death signal, which
// in Go would follow a thread and not this process; nsenter replaces itself by the
// program, so the pid is the program's own. Its environment is that of a shell there.
func (l *Lab) Command(ctx context.Context, node string, args ...string) *exec.Cmd {
	argv := append([]string{"--net=" + filepath.Join(netnsDir, l.Namespace(node)), "--"}, args...)
	cmd := exec.CommandContext(ctx, "nsenter", argv...)
	cmd.Env = append(os.Environ(), l.Environment(node)...)
	return cmd
}

// Output runs a program on a node and returns what it printed; an error carries it too.
func (l *Lab) Output(ctx context.Context, node string, args ...string) (string, error) {
	return l.OutputAs(ctx, Operator, node, args...)
}

// OutputAs is Output for programs that speak to etcd, as one of its users.
func (l *Lab) OutputAs(ctx context.Context, user, node string, args ...string) (string, error) {
	var out []byte
	err := l.Inside(node, func() (err error) {
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		cmd.Env = append(append(os.Environ(), l.Environment(node)...), l.EtcdEnvironment(user)...)
		out, err = cmd.CombinedOutput()
		return err
	})
	if err != nil {
		return string(out), fmt.Errorf("%s: %s: %w: %s", node, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

// Dial opens a connection from a node, for clients that live in this process.
func (l *Lab) Dial(ctx context.Context, node, network, addr string) (net.Conn, error) {
	var conn net.Conn
	err := l.Inside(node, func() (err error) {
		// An address without a name is dialled on the calling thread.
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

// Inside calls fn on a thread that is in the node's namespace. Sockets that fn opens
// and programs that it starts belong to the node. fn must not hand work to other goroutines.
func (l *Lab) Inside(node string, fn func() error) error {
	return insideNamespace(l.Namespace(node), fn)
}

func insideNamespace(name string, fn func() error) error {
	ns, err := netns.GetFromName(name)
	if err != nil {
		return fmt.Errorf("namespace %s: %w", name, err)
	}
	defer ns.Close()
	return onOwnThread(func() error {
		if err := netns.Set(ns); err != nil {
			return fmt.Errorf("enter namespace %s: %w", name, err)
		}
		return fn()
	})
}

// onOwnThread calls fn on a thread that may change its namespace. If the way back
// fails, the thread is thrown away rather than given to another goroutine.
func onOwnThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := netns.Get()
		if err != nil {
			done <- err
			return
		}
		defer home.Close()
		err = fn()
		if netns.Set(home) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

func (l *Lab) createNamespaces() error {
	for _, n := range l.topo.Nodes() {
		if err := l.createNamespace(n.Name); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) createNamespace(node string) error {
	name := l.Namespace(node)
	err := onOwnThread(func() error {
		ns, err := netns.NewNamed(name)
		if err != nil {
			return err
		}
		return ns.Close()
	})
	if err != nil {
		return fmt.Errorf("create namespace %s (are you root?): %w", name, err)
	}
	return nil
}

// namespaces lists the namespaces whose name has the prefix, by name.
func namespaces(prefix string) ([]string, error) {
	entries, err := os.ReadDir(netnsDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			names = append(names, e.Name())
		}
	}
	return names, err
}

// namespaceInodes tells which namespace a process is in (/proc/PID/ns/net).
func namespaceInodes(names []string) map[uint64]string {
	inodes := map[uint64]string{}
	for _, name := range names {
		var st unix.Stat_t
		if unix.Stat(filepath.Join(netnsDir, name), &st) == nil {
			inodes[st.Ino] = name
		}
	}
	return inodes
}

// deleteNamespace removes a namespace. Its veths are deleted first: the kernel
// destroys a namespace in the background, and a following Up would meet the remains.
func deleteNamespace(name string) error {
	if ns, err := netns.GetFromName(name); err == nil {
		if h, err := netlink.NewHandleAt(ns); err == nil {
			links, _ := h.LinkList()
			for _, link := range links {
				if link.Type() == "veth" {
					_ = h.LinkDel(link)
				}
			}
			h.Close()
		}
		ns.Close()
	}
	return netns.DeleteNamed(name)
}
