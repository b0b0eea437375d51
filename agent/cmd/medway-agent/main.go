// Command medway-agent runs one LVS node.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/medway-lb/medway/agent"
	"github.com/medway-lb/medway/agent/internal/local"
	"github.com/medway-lb/medway/pkg/daemon"
)

func main() {
	// SIGHUP is not taken: a terminal that goes away should not stop a node that was started from it by mistake.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := command().ExecuteContext(ctx)
	stop()
	if errors.Is(err, errChanges) {
		os.Exit(2)
	}
	if errors.Is(err, local.ErrNotRunning) {
		fmt.Fprintln(os.Stderr, "medway-agent:", err)
		os.Exit(exitNotRunning)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "medway-agent:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:           "medway-agent",
		Short:         "The agent of a medway LVS host",
		Version:       daemon.Version(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(run(), planned(), status(), withdraw(), resume(), accept())
	return root
}

func run() *cobra.Command {
	var config, level, format string
	var check bool
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Follow etcd, keep the kernel as planned, announce the VIPs",
		Long: `Run the agent in the foreground until SIGTERM or SIGINT. What other nodes
announce is handed over to them then, and the kernel keeps its state: a stop and
a start under calls loses none.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := agent.LoadConfig(config)
			if err != nil {
				return err
			}
			if check {
				if err := c.CheckFiles(); err != nil {
					return fmt.Errorf("%s: %w", config, err)
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s is good\n", config)
				return nil
			}
			log, err := daemon.Logger(level, format)
			if err != nil {
				return err
			}
			a, err := agent.New(c, log)
			if err != nil {
				return err
			}
			defer a.Close()
			go notify(cmd.Context(), a.Ready())
			return a.Run(cmd.Context())
		},
	}
	configFlag(cmd, &config)
	cmd.Flags().BoolVar(&check, "check", false, "check the file and those that it names, and exit")
	cmd.Flags().StringVar(&level, "log-level", "info", "debug, info, warn or error")
	cmd.Flags().StringVar(&format, "log-format", "console", "console or json")
	completeWith(cmd, "log-level", "debug", "info", "warn", "error")
	completeWith(cmd, "log-format", "console", "json")
	return cmd
}

func configFlag(cmd *cobra.Command, config *string) {
	cmd.Flags().StringVarP(config, "config", "c", "/etc/medway/agent.yaml", "the agent's `file`")
}

// completeWith offers a flag's values to the shell.
func completeWith(cmd *cobra.Command, flag string, values ...string) {
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
}
