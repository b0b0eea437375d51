// Command medwayctl is the operator's tool: it loads intent, shows state, moves
// traffic, takes nodes out of service, and sets up etcd's certificates, users and
// roles.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		if !errors.Is(err, errDiffers) {
			fmt.Fprintln(os.Stderr, "medwayctl:", err)
		}
		os.Exit(exitCode(err))
	}
}

// exitCode is the same for all commands; docs/operations.md tells it.
func exitCode(err error) int {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errDiffers):
		return 2
	case errors.Is(err, errNotYet):
		return 3
	}
	return 1
}

// version is that of this build, as of medway-agent.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "unknown" // built without version control
}

func command() *cobra.Command {
	var c connection
	root := &cobra.Command{
		Use:           "medwayctl",
		Short:         "See what medway's nodes do, move traffic, and set up etcd",
		Version:       version(),
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
	for _, cmd := range []*cobra.Command{
		apply(&c), status(&c), initEtcd(&c), node(&c), switchVIP(&c), unlock(&c), pause(&c), resume(&c), forget(&c), history(&c),
	} {
		c.wrap(cmd)
		root.AddCommand(cmd)
	}
	root.AddCommand(certs())
	return root
}

// wrap makes a command, and those below it, tell what is wrong with the connection.
func (c *connection) wrap(cmd *cobra.Command) {
	for _, sub := range cmd.Commands() {
		c.wrap(sub)
	}
	if run := cmd.RunE; run != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			c.warn(cmd.ErrOrStderr())
			return c.explain(cmd.Context(), run(cmd, args))
		}
	}
}

// exactlyOne refuses any other number of arguments than one.
func exactlyOne(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 {
			return fmt.Errorf("%d arguments: expected one, %s: %s", len(args), what, cmd.UseLine())
		}
		return nil
	}
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
