package lab

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
)

// coordinatorPort is where coordinators serve.
const coordinatorPort = 9443

// coordinatorName is that of the certificate with which a coordinator serves.
func coordinatorName(node string) string { return "coordinator-" + node }

// StartCoordinator starts a coordinator on a node that has an etcd member.
func (l *Lab) StartCoordinator(node string) error {
	bin, err := l.bin("medway-coordinator")
	if err != nil {
		return err
	}
	if err := l.writeCoordinatorConfig(node); err != nil {
		return err
	}
	_, err = l.Start(node, "coordinator", bin, "run", "-c", l.coordinatorConfig(node))
	return err
}

// StopCoordinator ends one.
func (l *Lab) StopCoordinator(ctx context.Context, node string, sig syscall.Signal) error {
	return l.Stop(ctx, node, "coordinator", sig)
}

// CoordinatorURL is where the coordinator on a node serves.
func (l *Lab) CoordinatorURL(node string) string {
	n, _ := l.topo.Node(node)
	return fmt.Sprintf("https://%s:%d", n.Addr, coordinatorPort)
}

func (l *Lab) coordinatorConfig(node string) string { return l.path(node, "coordinator.yaml") }

func (l *Lab) writeCoordinatorConfig(node string) error {
	serverCert, serverKey := l.Certificate(coordinatorName(node))
	cert, key := l.Certificate(Coordinator)
	var b bytes.Buffer
	err := templates.ExecuteTemplate(&b, "coordinator.yaml", struct {
		Node, ServerCert, ServerKey, CA, Cert, Key string
		Port                                       int
		Endpoints                                  []string
	}{node, serverCert, serverKey, l.CA(), cert, key, coordinatorPort, l.Endpoints()})
	if err != nil {
		return err
	}
	return os.WriteFile(l.coordinatorConfig(node), b.Bytes(), 0o644)
}

// Grant allows somebody to use the API, and returns the token.
func (l *Lab) Grant(ctx context.Context, name, role string) (token string, err error) {
	bin, err := l.bin("medway-coordinator")
	if err != nil {
		return "", err
	}
	if err := l.writeCoordinatorConfig(Witness); err != nil {
		return "", err
	}
	out, err := l.Output(ctx, Witness, bin, "grant", name, "--role", role, "--token", "-c", l.coordinatorConfig(Witness))
	return strings.TrimSpace(out), err
}
