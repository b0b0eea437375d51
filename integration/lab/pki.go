package lab

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/medway-lb/medway/pkg/pki"
	"github.com/medway-lb/medway/pkg/store"
)

// The people of the lab, as etcd's users. Each LVS host is one, too.
const (
	Root     = store.RootUser
	Operator = "operator"
	Viewer   = "viewer"
	// Coordinator is the user of coordinators, whoever asks them.
	Coordinator = "coordinator"
)

// certificatesValid is longer than any lab lives, and than before their end coordinators warn.
const certificatesValid = 90 * 24 * time.Hour

// makeCertificates makes an authority, and certificates of etcd's members, of
// the LVS hosts and of people, with the code of `medwayctl certs`.
func (l *Lab) makeCertificates() error {
	authority, _, err := pki.Open(l.path("pki"))
	if err != nil {
		return err
	}
	for _, n := range l.topo.Role(RoleEtcd) {
		if err := authority.Server(n.Name, []string{n.Addr.String()}, certificatesValid); err != nil {
			return err
		}
		if err := authority.Coordinator(coordinatorName(n.Name), []string{n.Addr.String(), "127.0.0.1"}, certificatesValid); err != nil {
			return err
		}
	}
	for _, user := range append(l.nodeNames(RoleLVS), Root, Operator, Viewer, Coordinator) {
		if err := authority.Client(user, certificatesValid); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) nodeNames(role Role) []string {
	var names []string
	for _, n := range l.topo.Role(role) {
		names = append(names, n.Name)
	}
	return names
}

// CA is the file with the certificate of the authority that signed all others.
func (l *Lab) CA() string { return l.path("pki", "ca.pem") }

// Certificate is the files of an LVS host's or a person's certificate and key.
func (l *Lab) Certificate(user string) (cert, key string) {
	return l.path("pki", user+".pem"), l.path("pki", user+".key")
}

// EtcdEnvironment makes etcdctl and medwayctl a user's, straight on etcd: coordinators
// run only where somebody has started them.
func (l *Lab) EtcdEnvironment(user string) []string {
	cert, key := l.Certificate(user)
	return []string{"MEDWAYCTL_ETCD=1", "ETCDCTL_CACERT=" + l.CA(), "ETCDCTL_CERT=" + cert, "ETCDCTL_KEY=" + key}
}

// InitEtcd gives everybody their rights, and no more, by medwayctl init-etcd.
func (l *Lab) InitEtcd(ctx context.Context) error {
	bin, err := l.bin("medwayctl")
	if err != nil {
		return err
	}
	args := []string{bin, "init-etcd", "--operator", Operator, "--operator", Coordinator, "--viewer", Viewer, "--command-timeout", "30s"}
	for _, n := range l.topo.Role(RoleLVS) {
		args = append(args, "--node", n.Name+"="+n.Site)
	}
	_, err = l.OutputAs(ctx, Root, Witness, args...)
	return err
}

// member is a client of the etcd member on a node, from there, as the operator.
func (l *Lab) member(node string) (*store.Client, error) {
	cert, key := l.Certificate(Operator)
	config, err := store.TLS(l.CA(), cert, key)
	if err != nil {
		return nil, fmt.Errorf("certificate of %s: %w", Operator, err)
	}
	return store.Open(store.Config{
		Endpoints: []string{"https://127.0.0.1:2379"}, TLS: config,
		Dial: func(ctx context.Context, address string) (net.Conn, error) { return l.Dial(ctx, node, "tcp", address) },
	})
}
