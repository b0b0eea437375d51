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
	"strconv"
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

const exitCodes = `  0  done; of switch and evacuate without --watch: begun; with --dry-run: nothing to do
  1  an error: nothing was written, or the message says what was, or that it is not known
  2  with --dry-run: something would be written
  3  it is ordered and stays in force, and --wait or --watch has not seen its end
     (--timeout, or interrupted)
  4  refused: a preflight is not passed, nothing was written
  5  a switchover or an evacuation that was followed has ended otherwise than it was
     ordered: it failed and went back, or was cancelled
`

// exitCode is the same for all commands, and on both ways.
func exitCode(err error) int {
	var refused *refusedError
	var ended *endedError
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errDiffers):
		return 2
	case errors.Is(err, errNotYet):
		return 3
	case errors.As(err, &refused):
		return 4
	case errors.As(err, &ended):
		return 5
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
	var t tool
	root := &cobra.Command{
		Use:   "medwayctl",
		Short: "See what medway's nodes do, move traffic, and set up etcd",
		Long: `See what medway's nodes do, move traffic, and set up etcd.

A coordinator is asked (--server), who has done for you what your token or certificate
allows. When no coordinator lives, --etcd does it straight on etcd: all but preflight,
evacuate, cancel and the stream of changes. init-etcd and certs take neither.`,
		Version:       version(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	f := root.PersistentFlags()
	t.api.insecure = &t.insecure
	t.api.register(f)
	straight, _ := strconv.ParseBool(os.Getenv("MEDWAYCTL_ETCD"))
	f.BoolVar(&t.etcd, "etcd", straight, "break glass: ask no coordinator, work straight on etcd (MEDWAYCTL_ETCD=1)")
	f.StringSliceVar(&t.endpoints, "endpoints", endpointsFromEnvironment(), "etcd's `URLs`, separated by commas (ETCDCTL_ENDPOINTS)")
	f.StringVar(&t.ca, "cacert", os.Getenv("ETCDCTL_CACERT"), "`file` with the CA that signed etcd's certificates (ETCDCTL_CACERT)")
	f.StringVar(&t.cert, "cert", os.Getenv("ETCDCTL_CERT"), "`file` with your certificate (MEDWAYCTL_CERT; for etcd ETCDCTL_CERT)")
	f.StringVar(&t.key, "key", os.Getenv("ETCDCTL_KEY"), "`file` with your key (MEDWAYCTL_KEY; for etcd ETCDCTL_KEY)")
	f.BoolVar(&t.insecure, "insecure", os.Getenv("MEDWAYCTL_INSECURE") == "true", "allow http://, without TLS (MEDWAYCTL_INSECURE=true)")
	f.DurationVar(&t.timeout, "command-timeout", 5*time.Second, "how long to wait for etcd; a coordinator has 10s more, since it waits for etcd itself")
	for _, cmd := range []*cobra.Command{
		apply(&t), show(&t), status(&t), node(&t), backend(&t), preflight(&t), switchVIP(&t), evacuate(&t), cancelMove(&t), watch(&t),
		unlock(&t), pause(&t), resume(&t), forget(&t), history(&t),
	} {
		t.wrap(cmd)
		root.AddCommand(cmd)
	}
	admin := initEtcd(&t.connection)
	t.connection.wrap(admin)
	root.AddCommand(admin, certs(), &cobra.Command{Use: "exit-codes", Short: "What the exit status says", Long: "The exit status of every command:\n\n" + exitCodes})
	return root
}

// wrap makes a command, and those below it, end what it has opened.
func (t *tool) wrap(cmd *cobra.Command) {
	for _, sub := range cmd.Commands() {
		t.wrap(sub)
	}
	run := cmd.RunE
	if run == nil {
		return
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		defer t.close()
		if t.etcd {
			return t.run(cmd, args, run)
		}
		for _, flag := range []string{"endpoints", "cacert"} {
			if cmd.Flag(flag).Changed {
				return fmt.Errorf("flag --%s: it is etcd's: expected --etcd beside it", flag)
			}
		}
		if s, err := t.api.settings(); err == nil {
			warnOf(s.Key, cmd.ErrOrStderr())
		}
		return run(cmd, args)
	}
}

// wrap makes a command tell what is wrong with the connection to etcd.
func (c *connection) wrap(cmd *cobra.Command) {
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error { return c.run(cmd, args, run) }
}

func (c *connection) run(cmd *cobra.Command, args []string, run func(*cobra.Command, []string) error) error {
	warnOf(c.key, cmd.ErrOrStderr())
	return c.explain(cmd.Context(), run(cmd, args))
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

// completionTime is how long a shell may wait for names.
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
