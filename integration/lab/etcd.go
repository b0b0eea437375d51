package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/medway-lb/medway/pkg/pki"
	"github.com/medway-lb/medway/pkg/store"
)

// Raft's timing. etcd's own defaults (100 ms, 1 s) lose leaders when an emulated CPU
// stalls for a second. With these a stall of 3 s is tolerated, a lost leader is replaced
// in 3 to 6 s, and the shortest lease that etcd grants is 4.5 s (1.5 elections), well
// below the lab's lease_ttl of 15 s.
const (
	etcdHeartbeat = 300 * time.Millisecond
	etcdElection  = 3 * time.Second
)

// etcdEnv saves the CPU time of three mostly idle servers: one running thread wakes no
// others for nothing, and there is memory enough to collect garbage seldom.
var etcdEnv = []string{"GOMAXPROCS=1", "GOGC=400"}

// EtcdNodes lists the nodes that run an etcd member.
func (l *Lab) EtcdNodes() []string { return l.nodeNames(RoleEtcd) }

// Endpoints lists the etcd members as clients on the lab's nodes reach them.
func (l *Lab) Endpoints() []string {
	var urls []string
	for _, n := range l.topo.Role(RoleEtcd) {
		urls = append(urls, "https://"+net.JoinHostPort(n.Addr.String(), "2379"))
	}
	return urls
}

// mountEtcdData puts the members' data on a ramfs. etcd reserves 64 MiB for each log
// file: a tmpfs allocates and clears them all, three seconds a member on an emulated CPU,
// while ramfs refuses to reserve, and etcd then makes the file sparse. Without the mount
// all works, only slower.
func (l *Lab) mountEtcdData() {
	dir := l.path("etcd")
	if os.MkdirAll(dir, 0o700) == nil {
		_ = unix.Mount("medway-lab-etcd", dir, "ramfs", 0, "mode=0700")
	}
}

func (l *Lab) unmountEtcdData() {
	// An error says that nothing is mounted there; if something still is, removing the
	// run directory fails and says so.
	_ = unix.Unmount(l.path("etcd"), unix.MNT_DETACH)
}

// StartEtcd starts the etcd member of a node, anew or with the data it has.
func (l *Lab) StartEtcd(node string) error {
	n, ok := l.topo.Node(node)
	if !ok {
		return fmt.Errorf("no node %s", node)
	}
	bin, err := l.bin("etcd")
	if err != nil {
		return err
	}
	var cluster []string
	for _, m := range l.topo.Role(RoleEtcd) {
		cluster = append(cluster, fmt.Sprintf("%s=https://%s:2380", m.Name, m.Addr))
	}
	client, peer := fmt.Sprintf("https://%s:2379", n.Addr), fmt.Sprintf("https://%s:2380", n.Addr)
	data := l.path("etcd", node)
	if err := os.MkdirAll(data, 0o700); err != nil {
		return err
	}
	cert, key := l.Certificate(node)
	_, err = l.start(node, "etcd", etcdEnv, bin,
		"--name="+node, "--data-dir="+data,
		// Loopback too, so that a plain `etcdctl` works on the member's node.
		"--listen-client-urls="+client+",https://127.0.0.1:2379", "--advertise-client-urls="+client,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer,
		"--initial-cluster="+strings.Join(cluster, ","), "--initial-cluster-state=new", "--initial-cluster-token=medway-lab",
		"--cert-file="+cert, "--key-file="+key, "--trusted-ca-file="+l.CA(), "--client-cert-auth",
		"--peer-cert-file="+cert, "--peer-key-file="+key, "--peer-trusted-ca-file="+l.CA(), "--peer-client-cert-auth",
		"--peer-cert-allowed-hostname="+pki.PeerName,
		fmt.Sprintf("--heartbeat-interval=%d", etcdHeartbeat.Milliseconds()),
		fmt.Sprintf("--election-timeout=%d", etcdElection.Milliseconds()),
		"--unsafe-no-fsync", "--bcrypt-cost=4", "--log-level=warn")
	return err
}

// StopEtcd ends the etcd member of a node; its data stay.
func (l *Lab) StopEtcd(ctx context.Context, node string, sig syscall.Signal) error {
	return l.Stop(ctx, node, "etcd", sig)
}

// waitEtcd waits until every member serves linearizable reads.
func (l *Lab) waitEtcd(ctx context.Context) error {
	for _, node := range l.EtcdNodes() {
		err := until(ctx, 200*time.Millisecond, func() error {
			if d, err := l.Daemon(node, "etcd"); err != nil || !d.Alive() {
				return errors.New("etcd has ended")
			}
			// A try of its own: one that hangs would hide why.
			ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
			defer cancel()
			return l.EtcdHealthy(ctx, node)
		})
		if err != nil {
			return fmt.Errorf("etcd on %s: %w\n%s", node, err, indent(tail(l.path(node, "etcd.log"), 10)))
		}
	}
	return nil
}

// EtcdHealthy asks a member, from its own node, for a linearizable read: whether
// it has a leader, and takes the operator for one.
func (l *Lab) EtcdHealthy(ctx context.Context, node string) error {
	_, _, err := l.Get(ctx, node, "/medway/v1/")
	return err
}

// Put writes a key, like `etcdctl put` on the node but without a process start.
func (l *Lab) Put(ctx context.Context, node, key, value string) error {
	client, err := l.member(node)
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	_, _, err = client.Commit(ctx, nil, []store.Put{{Key: key, Value: []byte(value)}}, nil)
	return err
}

// Get reads a key; it tells whether the key exists.
func (l *Lab) Get(ctx context.Context, node, key string) (value string, found bool, err error) {
	client, err := l.member(node)
	if err != nil {
		return "", false, err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	e, found, err := client.Get(ctx, key)
	return string(e.Value), found, err
}
