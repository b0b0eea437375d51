package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/medway-lb/medway/agent"
)

// errChanges says with the exit code that there is something to change.
var errChanges = errors.New("there are changes")

func planned() *cobra.Command {
	var config, from, output string
	var files []string
	cmd := &cobra.Command{
		Use:   "plan",
		Short: "Show what the agent would change on this host now",
		Long: `Show what the agent would change on this host if it looked now, as a diff in the
terms of ip, iptables, sysctl, ipvsadm and BGP: + adds, ~ changes, - removes.
It only reads, and needs CAP_NET_ADMIN for that; it works whether the agent runs
or not.

What follows the mark can be pasted into a shell. All commands at once:
  medway-agent plan -o json | jq -r '.changes[].commands[]'
Routes are announced by the running agent: there is no command for them.

The exit code is 0 if nothing would change, 2 if there are changes, 1 on an error.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch from {
			case "", agent.FromEtcd, agent.FromDisk:
			default:
				return fmt.Errorf("flag --from: value %q: expected etcd or disk", from)
			}
			if output != "text" && output != "json" {
				return fmt.Errorf("flag --output: value %q: expected text or json", output)
			}
			c, err := agent.LoadConfig(config)
			if err != nil {
				return err
			}
			p, err := agent.Plan(cmd.Context(), c, from, files, cmd.InOrStdin())
			if err != nil {
				return err
			}
			if output == "json" {
				err = p.JSON(cmd.OutOrStdout())
			} else {
				err = p.Text(cmd.OutOrStdout(), colour())
			}
			if err == nil && p.Changes() {
				err = errChanges
			}
			return err
		},
	}
	configFlag(cmd, &config)
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "as if this `file` or directory (- is standard input) had been applied, as by medwayctl apply; may be repeated")
	cmd.Flags().StringVar(&from, "from", "", "read the intent from this `source`, etcd or disk; default: etcd, or the snapshot on disk where etcd can't be reached")
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	completeWith(cmd, "output", "text", "json")
	completeWith(cmd, "from", agent.FromEtcd, agent.FromDisk)
	return cmd
}

// colour says whether standard output is a terminal that wants colours
// (no-color.org).
func colour() bool {
	_, err := unix.IoctlGetTermios(int(os.Stdout.Fd()), unix.TCGETS)
	return err == nil && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}
