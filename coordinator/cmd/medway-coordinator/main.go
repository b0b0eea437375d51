// Command medway-coordinator is a management server: the API, and planned switchovers.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/medway-lb/medway/coordinator"
	"github.com/medway-lb/medway/pkg/daemon"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "medway-coordinator:", err)
		os.Exit(exitCode(err))
	}
}

// exitCode tells what could not be done from what is left for a person to do.
func exitCode(err error) int {
	if errors.Is(err, coordinator.ErrLeft) {
		return 2
	}
	return 1
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:           "medway-coordinator",
		Short:         "The management server: the API, and planned switchovers",
		Version:       daemon.Version(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	var config string
	root.PersistentFlags().StringVarP(&config, "config", "c", "/etc/medway/coordinator.yaml", "the coordinator's `file`")
	root.AddCommand(run(&config), setup(&config), grant(&config), revoke(&config))
	return root
}

func run(config *string) *cobra.Command {
	var level, format string
	var check bool
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Serve the API, and carry on switchovers",
		Long: `Run the coordinator in the foreground until SIGTERM or SIGINT. What it was at is
carried on by another one, or by the next one here.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := coordinator.LoadConfig(*config)
			if err != nil {
				return err
			}
			if check {
				if err := c.CheckFiles(); err != nil {
					return fmt.Errorf("%s: %w", *config, err)
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s is good\n", *config)
				return nil
			}
			log, err := daemon.Logger(level, format)
			if err != nil {
				return err
			}
			server, err := coordinator.New(c, log)
			if err != nil {
				return err
			}
			defer server.Close()
			return server.Run(cmd.Context())
		},
	}
	cmd.Flags().BoolVar(&check, "check", false, "check the file and those that it names, and exit")
	cmd.Flags().StringVar(&level, "log-level", "info", "debug, info, warn or error")
	cmd.Flags().StringVar(&format, "log-format", "console", "console or json")
	completeWith(cmd, "log-level", "debug", "info", "warn", "error")
	completeWith(cmd, "log-format", "console", "json")
	return cmd
}

func setup(config *string) *cobra.Command {
	var s coordinator.Setup
	cmd := &cobra.Command{
		Use:   "init --endpoints URLS --admin NAME",
		Short: "Make all that a first coordinator needs, where it is not there yet",
		Long: `Make a certificate authority, certificates of the coordinator, of etcd's members
(--server), of LVS hosts (--node) and of the users root, coordinator and the first admin;
the coordinator's file; then etcd's users and roles, with authentication enabled (as
medwayctl init-etcd does); and the first admin's grant, whose token is the last line, once.

Nothing is overwritten, and all is checked before anything is made: run it again at any
time, it keeps what is there and makes what is missing. Where etcd can't be reached, as
before its members have the certificates made here, it makes the files and says what is
left to do. Take ca.key and root.key away afterwards: whoever has one can be anyone.

Exit status: 0 done, or shown with --dry-run; 1 an error; 2 something is left to do.`,
		Example: `  medway-coordinator init --endpoints https://10.3.0.5:2379 --server etcd1=10.3.0.5 \
    --coordinator coordinator-1=10.3.0.5,medway.example.com --admin alice --group medway`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s.Path = *config
			return coordinator.Init(cmd.Context(), s, cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.StringVar(&s.Dir, "dir", "/etc/medway/pki", "`directory` of certificates and keys")
	f.StringSliceVar(&s.Endpoints, "endpoints", nil, "etcd's `URLs`, separated by commas")
	f.StringVar(&s.Coordinator, "coordinator", "coordinator-1=localhost", "`NAME=HOST[,HOST...]` of this server: all by which people reach it")
	f.StringArrayVar(&s.Servers, "server", nil, "`NAME=HOST[,HOST...]` of an etcd member (may be repeated)")
	f.StringArrayVar(&s.Nodes, "node", nil, "`NAME=SITE` of an LVS host (may be repeated)")
	f.StringVar(&s.Admin, "admin", "", "`NAME` of the first admin")
	f.StringVar(&s.Group, "group", "", "`group` that may read the coordinator's keys; without it root alone")
	f.IntVar(&s.Days, "days", 365, "how long new certificates are valid")
	f.BoolVar(&s.DryRun, "dry-run", false, "show what would be made and make nothing")
	for _, name := range []string{"endpoints", "coordinator", "server", "node", "admin", "days"} {
		completeWith(cmd, name) // with no files
	}
	_ = cmd.MarkFlagDirname("dir")
	_ = cmd.MarkFlagRequired("endpoints")
	_ = cmd.MarkFlagRequired("admin")
	return cmd
}

func grant(config *string) *cobra.Command {
	var role string
	var vips []string
	var token bool
	var valid time.Duration
	cmd := &cobra.Command{
		Use:   "grant NAME --role ROLE",
		Short: "Allow somebody to use the API",
		Long: `Write to etcd what a name is allowed, in place of what it was allowed before. Who it is
shows a certificate of the authority in tls.client_ca with that common name, or with
--token the token that is printed here, once: etcd has its hash alone.

Roles: viewer reads everything; operator switches, drains, pauses and unlocks; admin
writes intent too, and forgets nodes; backend registers itself.`,
		Example: `  medway-coordinator grant alice --role admin --token
  medway-coordinator grant night-shift --role operator --vips sip-1,sip-2 --valid 720h --token`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := coordinator.LoadConfig(*config)
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("vips") && len(vips) == 0 {
				return errors.New("flag --vips: expected at least one VIP; without the flag the grant is for all")
			}
			secret, err := coordinator.Allow(cmd.Context(), c, coordinator.Permission{Name: args[0], Role: role, VIPs: vips, Token: token, Valid: valid})
			if err == nil && secret != "" {
				fmt.Fprintln(cmd.OutOrStdout(), secret)
			}
			return err
		},
	}
	cmd.Flags().StringVar(&role, "role", "", "viewer, operator, admin or backend")
	cmd.Flags().StringSliceVar(&vips, "vips", nil, "only for these VIPs; reading is not limited")
	cmd.Flags().BoolVar(&token, "token", false, "make a token and print it")
	cmd.Flags().DurationVar(&valid, "valid", 0, "for how long; 0s: no end")
	_ = cmd.MarkFlagRequired("role")
	completeWith(cmd, "role", "viewer", "operator", "admin", "backend")
	return cmd
}

func revoke(config *string) *cobra.Command {
	return &cobra.Command{
		Use:   "revoke NAME",
		Short: "Allow somebody nothing any more, at once",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := coordinator.LoadConfig(*config)
			if err != nil {
				return err
			}
			return coordinator.Revoke(cmd.Context(), c, args[0])
		},
	}
}

// completeWith offers a flag's values to the shell.
func completeWith(cmd *cobra.Command, flag string, values ...string) {
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
}
