// Command medwayctl is the operator's tool: it loads intent and shows state.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/medway-lb/medway/pkg/store"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		if errors.Is(err, errDiffers) {
			os.Exit(2)
		}
		fmt.Fprintln(os.Stderr, "medwayctl:", err)
		os.Exit(1)
	}
}

// connection is how to reach etcd; its flags bear etcdctl's names.
type connection struct {
	endpoints     []string
	ca, cert, key string
	insecure      bool
	timeout       time.Duration
}

func command() *cobra.Command {
	var c connection
	root := &cobra.Command{
		Use:           "medwayctl",
		Short:         "Load medway's configuration and see what its nodes do",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	f := root.PersistentFlags()
	f.StringSliceVar(&c.endpoints, "endpoints", endpointsFromEnvironment(), "etcd's `URLs`, separated by commas (ETCDCTL_ENDPOINTS)")
	f.StringVar(&c.ca, "cacert", os.Getenv("ETCDCTL_CACERT"), "`file` with the CA that signed etcd's certificates (ETCDCTL_CACERT)")
	f.StringVar(&c.cert, "cert", os.Getenv("ETCDCTL_CERT"), "`file` with the client's certificate (ETCDCTL_CERT)")
	f.StringVar(&c.key, "key", os.Getenv("ETCDCTL_KEY"), "`file` with the client's key (ETCDCTL_KEY)")
	f.BoolVar(&c.insecure, "insecure", os.Getenv("MEDWAYCTL_INSECURE") == "true", "allow http:// endpoints, without TLS (MEDWAYCTL_INSECURE=true)")
	f.DurationVar(&c.timeout, "command-timeout", 5*time.Second, "how long to wait for etcd")
	root.AddCommand(apply(&c), status(&c))
	return root
}

func endpointsFromEnvironment() []string {
	if text := os.Getenv("ETCDCTL_ENDPOINTS"); text != "" {
		return strings.Split(text, ",")
	}
	return []string{"https://127.0.0.1:2379"}
}

func (c *connection) open() (*store.Client, error) {
	config := store.Config{Endpoints: c.endpoints, DialTimeout: c.timeout}
	for _, endpoint := range c.endpoints {
		if !strings.HasPrefix(endpoint, "https://") && !c.insecure {
			return nil, fmt.Errorf("flag --endpoints: value %q: expected https://, or --insecure beside it", endpoint)
		}
	}
	if !c.insecure {
		t, err := c.tls()
		if err != nil {
			return nil, err
		}
		config.TLS = t
	}
	return store.Open(config)
}

func (c *connection) tls() (*tls.Config, error) {
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.ca != "" {
		pem, err := os.ReadFile(c.ca)
		if err != nil {
			return nil, fmt.Errorf("flag --cacert: %w", err)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("flag --cacert: value %q: expected a file with PEM certificates", c.ca)
		}
	}
	if c.cert != "" || c.key != "" {
		pair, err := tls.LoadX509KeyPair(c.cert, c.key)
		if err != nil {
			return nil, fmt.Errorf("flags --cert and --key: %w", err)
		}
		t.Certificates = []tls.Certificate{pair}
	}
	return t, nil
}
