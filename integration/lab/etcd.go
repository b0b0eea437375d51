package lab

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Raft's timing. etcd's own defaults (100 ms, 1 s) lose leaders when an emulated CPU
// stalls for a second. With these a stall of 3 s is tolerated, a lost leader is replaced
// in 3 to 6 s, and the shortest lease that etcd grants is 4.5 s (1.5 elections), well
// below the lab's lease_ttl of 10 s.
const (
	etcdHeartbeat = 300 * time.Millisecond
	etcdElection  = 3 * time.Second
)

// etcdEnv saves the CPU time of three mostly idle servers: one running thread wakes no
// others for nothing, and there is memory enough to collect garbage seldom.
var etcdEnv = []string{"GOMAXPROCS=1", "GOGC=400"}

// EtcdNodes lists the nodes that run an etcd member.
func (l *Lab) EtcdNodes() []string {
	var names []string
	for _, n := range l.topo.Role(RoleEtcd) {
		names = append(names, n.Name)
	}
	return names
}

// Endpoints lists the etcd members as clients on the lab's nodes reach them.
func (l *Lab) Endpoints() []string {
	var urls []string
	for _, n := range l.topo.Role(RoleEtcd) {
		urls = append(urls, "http://"+net.JoinHostPort(n.Addr.String(), "2379"))
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
		cluster = append(cluster, fmt.Sprintf("%s=http://%s:2380", m.Name, m.Addr))
	}
	client, peer := fmt.Sprintf("http://%s:2379", n.Addr), fmt.Sprintf("http://%s:2380", n.Addr)
	data := l.path("etcd", node)
	if err := os.MkdirAll(data, 0o700); err != nil {
		return err
	}
	_, err = l.start(node, "etcd", etcdEnv, bin,
		"--name="+node, "--data-dir="+data,
		// Loopback too, so that a plain `etcdctl` works on the member's node.
		"--listen-client-urls="+client+",http://127.0.0.1:2379", "--advertise-client-urls="+client,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer,
		"--initial-cluster="+strings.Join(cluster, ","), "--initial-cluster-state=new", "--initial-cluster-token=medway-lab",
		fmt.Sprintf("--heartbeat-interval=%d", etcdHeartbeat.Milliseconds()),
		fmt.Sprintf("--election-timeout=%d", etcdElection.Milliseconds()),
		"--unsafe-no-fsync", "--log-level=warn")
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

// EtcdHealthy asks a member, from its own node, whether it has a leader and commits.
func (l *Lab) EtcdHealthy(ctx context.Context, node string) error {
	body, err := l.etcdCall(ctx, node, http.MethodGet, "/health", nil)
	if err == nil && !bytes.Contains(body, []byte(`"health":"true"`)) {
		err = fmt.Errorf("%s", body)
	}
	return err
}

// Put writes a key, like `etcdctl put` on the node but without a process start.
func (l *Lab) Put(ctx context.Context, node, key, value string) error {
	b64 := base64.StdEncoding.EncodeToString
	_, err := l.etcdCall(ctx, node, http.MethodPost, "/v3/kv/put",
		map[string]string{"key": b64([]byte(key)), "value": b64([]byte(value))})
	return err
}

// Get reads a key; it tells whether the key exists.
func (l *Lab) Get(ctx context.Context, node, key string) (value string, found bool, err error) {
	body, err := l.etcdCall(ctx, node, http.MethodPost, "/v3/kv/range",
		map[string]string{"key": base64.StdEncoding.EncodeToString([]byte(key))})
	if err != nil {
		return "", false, err
	}
	var reply struct {
		KVs []struct {
			Value []byte `json:"value"`
		} `json:"kvs"`
	}
	if err := json.Unmarshal(body, &reply); err != nil {
		return "", false, err
	}
	if len(reply.KVs) == 0 {
		return "", false, nil
	}
	return string(reply.KVs[0].Value), true, nil
}

// etcdCall uses the JSON gateway of the member that runs on the node.
func (l *Lab) etcdCall(ctx context.Context, node, method, path string, request any) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var in bytes.Buffer
	if request != nil {
		if err := json.NewEncoder(&in).Encode(request); err != nil {
			return nil, err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://127.0.0.1:2379"+path, &in)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		return l.Dial(ctx, node, network, addr)
	}}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, bytes.TrimSpace(body))
	}
	return body, err
}
