// Command medwayctl is the operator's tool: it loads intent and shows state.
package main

import (
	"context"
	"crypto/tls"
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
	root.AddCommand(apply(&c), status(&c), initEtcd(&c), certs())
	for _, cmd := range root.Commands() {
		if run := cmd.RunE; run != nil {
			cmd.RunE = func(cmd *cobra.Command, args []string) error { return c.explain(cmd.Context(), run(cmd, args)) }
		}
	}
	return root
}

// completionTime is how long a shell may wait for what etcd has to offer it.
const completionTime = 2 * time.Second

// completeWith offers a flag's values to the shell.
func completeWith(cmd *cobra.Command, flag string, values ...string) {
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
}

func endpointsFromEnvironment() []string {
	if text := os.Getenv("ETCDCTL_ENDPOINTS"); text != "" {
		return strings.Split(text, ",")
	}
	return []string{"https://127.0.0.1:2379"}
}

func (c *connection) open() (*store.Client, error) {
	config, err := c.config()
	if err != nil {
		return nil, err
	}
	return store.Open(config)
}

func (c *connection) config() (store.Config, error) {
	config := store.Config{Endpoints: c.endpoints, DialTimeout: c.timeout}
	for _, endpoint := range c.endpoints {
		if !strings.HasPrefix(endpoint, "https://") && !c.insecure {
			return config, fmt.Errorf("flag --endpoints: value %q: expected https://, or --insecure beside it", endpoint)
		}
	}
	if c.insecure {
		return config, nil
	}
	var err error
	config.TLS, err = c.tls()
	return config, err
}

func (c *connection) tls() (*tls.Config, error) {
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	var err error
	if c.ca != "" {
		if t.RootCAs, err = store.CertPool(c.ca); err != nil {
			return nil, fmt.Errorf("flag --cacert: %w", err)
		}
	}
	if c.cert != "" || c.key != "" {
		if t.GetClientCertificate, err = store.ClientCertificate(c.cert, c.key); err != nil {
			return nil, fmt.Errorf("flags --cert and --key: %w", err)
		}
	}
	return t, nil
}

// explain adds to an error that is one of the connection what is wrong with it.
func (c *connection) explain(ctx context.Context, err error) error {
	if !store.Disconnected(err) || ctx.Err() != nil {
		return err
	}
	config, bad := c.config()
	if bad != nil {
		return err
	}
	return errors.Join(err, store.Reach(ctx, config))
}
