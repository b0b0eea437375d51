package main

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/medway-lb/medway/integration/lab"
)

// faultCommands do to the lab what must not hurt a call.
func faultCommands(dir *string) []*cobra.Command {
	return []*cobra.Command{
		killCommand(dir), startCommand(dir), powerCommand(dir),
		cableCommand(dir, "cut", "Unplug the cable between two nodes, or cut a node from etcd only", cut),
		cableCommand(dir, "mend", "Undo cut", mend),
	}
}

func killCommand(dir *string) *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "kill NODE",
		Short: "Send a signal to what a node is there for: its agent, etcd, bird or sbc",
		Long: `Send a signal to the daemon that a node is there for: agent, etcd, bird or sbc.
With TERM and KILL wait until it has ended. STOP freezes it, CONT lets it go on.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := lab.Open(*dir)
			if err != nil {
				return err
			}
			daemon, err := l.DaemonOf(args[0])
			if err != nil {
				return err
			}
			sig := unix.SignalNum("SIG" + strings.TrimPrefix(strings.ToUpper(name), "SIG"))
			switch sig {
			case 0:
				return fmt.Errorf("flag --signal: value %q: expected a signal's name, such as KILL", name)
			case syscall.SIGTERM, syscall.SIGKILL:
				ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
				defer cancel()
				return l.Stop(ctx, args[0], daemon, sig)
			}
			return l.Signal(args[0], daemon, sig)
		},
	}
	cmd.Flags().StringVarP(&name, "signal", "s", "TERM", "`name` of the signal")
	return cmd
}

func startCommand(dir *string) *cobra.Command {
	return &cobra.Command{
		Use:   "start NODE",
		Short: "Start what a node is there for, after a kill",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			l, err := lab.Open(*dir)
			if err != nil {
				return err
			}
			return l.Restart(args[0])
		},
	}
}

func powerCommand(dir *string) *cobra.Command {
	return &cobra.Command{
		Use:   "power off|on NODE",
		Short: "Take the power from a host of a site, without a goodbye or a lost carrier; or boot it",
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := lab.Open(*dir)
			if err != nil {
				return err
			}
			switch args[0] {
			case "off":
				return l.PowerOff(cmd.Context(), args[1])
			case "on":
				return l.PowerOn(args[1])
			}
			return fmt.Errorf("power %q: expected off or on", args[0])
		},
	}
}

// cableCommand is cut or mend.
func cableCommand(dir *string, name, short string, do func(ctx context.Context, l *lab.Lab, a, b string, silent bool) error) *cobra.Command {
	var silent bool
	cmd := &cobra.Command{
		Use:   name + " NODE NODE|etcd",
		Short: short,
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := lab.Open(*dir)
			if err != nil {
				return err
			}
			return do(cmd.Context(), l, args[0], args[1], silent)
		},
	}
	cmd.Flags().BoolVar(&silent, "silent", false, "the carrier stays: packets are dropped, and nobody is told")
	return cmd
}

// allEtcd stands for every member, in place of a node.
const allEtcd = "etcd"

func cut(ctx context.Context, l *lab.Lab, a, b string, silent bool) error {
	switch {
	case b == allEtcd:
		return l.CutEtcd(ctx, a)
	case silent:
		return l.Blackhole(ctx, a, b)
	}
	return l.Cut(a, b)
}

func mend(ctx context.Context, l *lab.Lab, a, b string, silent bool) error {
	switch {
	case b == allEtcd:
		return l.MendEtcd(ctx, a)
	case silent:
		return l.Unblackhole(ctx, a, b)
	}
	return l.Mend(a, b)
}
