// Command medway-lab builds the lab network on this machine and gives access to its
// nodes. Where the kernel has no IPVS: scripts/with-kernel.sh bin/medway-lab up.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/medway-lb/medway/integration/lab"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := command().ExecuteContext(ctx)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		stop()
		os.Exit(exit.ExitCode()) //nolint:gocritic // stop has been called
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "medway-lab:", err)
		stop()
		os.Exit(1) //nolint:gocritic // stop has been called
	}
}

func command() *cobra.Command {
	var dir string
	root := &cobra.Command{
		Use:           "medway-lab",
		Short:         "Two data centres, their routers and their phones, in network namespaces",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.PersistentFlags().StringVar(&dir, "dir", lab.DefaultDir, "run directory")
	root.AddCommand(upCommand(&dir), downCommand(&dir), statusCommand(&dir), shellCommand(&dir), execCommand(&dir), demoCommand(&dir), callsCommand(&dir), promisesCommand(&dir), consoleCommand(&dir))
	root.AddCommand(faultCommands(&dir)...)
	return root
}

func upCommand(dir *string) *cobra.Command {
	var opts lab.Options
	var lvs int
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Build the lab, unless one is up",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			topo := lab.Default().WithLVS(lvs)
			opts.Dir, opts.Topology, opts.Progress = *dir, &topo, cmd.OutOrStdout()
			if err := lab.Vacant(opts); err != nil {
				return fmt.Errorf("%w: end it first (make lab-down, or %s down)", err, cmd.Root().Name())
			}
			_, err := lab.Up(cmd.Context(), opts)
			return err
		},
	}
	f := cmd.Flags()
	f.DurationVar(&opts.WANDelay, "wan-delay", 0, "one-way delay between the sites, such as 5ms")
	f.IntVar(&lvs, "lvs", 2, "LVS hosts in each site")
	f.DurationVar(&opts.HoldTime, "hold-time", 9*time.Second, "of the agents' BGP sessions; longer where an emulated processor stalls")
	f.StringVar(&opts.Prefix, "prefix", "mw-", prefixHelp)
	f.StringVar(&opts.BinDir, "bin", "", "directory of the project's binaries (default: this program's own)")
	f.DurationVar(&opts.BFD, "bfd", 0, "interval of BFD between the edges and the LVS hosts, such as 150ms; 1s on an emulated processor")
	f.StringVar(&opts.Target, "target", "", "site that takes the traffic first (default: the first)")
	f.BoolVar(&opts.NoAgents, "no-agents", false, "leave out agents and intent")
	f.BoolVar(&opts.RoutingOnly, "routing-only", false, "leave out all that needs IPVS: backends, agents, intent")
	f.DurationVar(&opts.Timeout, "timeout", 0, "for each wait (default 2m)")
	return cmd
}

const prefixHelp = "begins the names of the namespaces; another lab has another"

func downCommand(dir *string) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "End the lab's processes, remove its namespaces and its run directory",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if l, err := lab.Open(*dir); err == nil {
				return l.Down()
			}
			return lab.Clean(lab.Options{Dir: *dir})
		},
	}
}

func statusCommand(dir *string) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Daemons, BGP sessions and the routes of the VIPs",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := lab.Open(*dir)
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
			err = l.WriteStatus(w)
			return errors.Join(err, w.Flush())
		},
	}
}

// shellCommand replaces this process by a shell, or a command, on the node.
func shellCommand(dir *string) *cobra.Command {
	var user string
	cmd := &cobra.Command{
		Use:   "shell NODE [CMD...]",
		Short: "A shell, or one command, on a node, at this terminal",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			interactive := len(args) == 1
			if interactive {
				// Without a person's start-up files: they may take minutes on an emulated processor.
				args = append(args, "bash", "--norc", "--noprofile")
			}
			c, err := nodeCommand(cmd.Context(), *dir, user, args)
			if err != nil {
				return err
			}
			l, err := lab.Open(*dir)
			if err != nil {
				return err
			}
			if interactive {
				fmt.Print(l.Hint(args[0]))
			}
			return syscall.Exec(c.Path, c.Args, c.Environ())
		},
	}
	cmd.Flags().SetInterspersed(false)
	asFlag(cmd, &user)
	return cmd
}

// execCommand runs a command on the node as a child, and ends with its exit code.
func execCommand(dir *string) *cobra.Command {
	var user string
	cmd := &cobra.Command{
		Use:   "exec NODE CMD...",
		Short: "Run a command on a node and pass on its exit code",
		Args:  cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := nodeCommand(cmd.Context(), *dir, user, args)
			if err != nil {
				return err
			}
			c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
			return c.Run()
		},
	}
	cmd.Flags().SetInterspersed(false)
	asFlag(cmd, &user)
	return cmd
}

func asFlag(cmd *cobra.Command, user *string) {
	cmd.Flags().StringVar(user, "as", lab.Operator, "etcd's `user` whose certificate etcdctl and medwayctl show: "+
		strings.Join([]string{lab.Operator, lab.Viewer, lab.Root}, ", ")+" or an LVS host")
}

func nodeCommand(ctx context.Context, dir, user string, args []string) (*exec.Cmd, error) {
	l, err := lab.Open(dir)
	if err != nil {
		return nil, err
	}
	if _, ok := l.Topology().Node(args[0]); !ok {
		return nil, fmt.Errorf("no node %s; there are:%s", args[0], nodeNames(l))
	}
	if cert, _ := l.Certificate(user); !exists(cert) {
		return nil, fmt.Errorf("flag --as: value %q: there is no %s", user, cert)
	}
	c := l.Command(ctx, args[0], args[1:]...)
	c.Env = append(c.Env, l.EtcdEnvironment(user)...)
	return c, c.Err
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

func nodeNames(l *lab.Lab) string {
	var names string
	for _, n := range l.Topology().Nodes() {
		names += " " + n.Name
	}
	return names
}
