package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/medway-lb/medway/integration/drill"
	"github.com/medway-lb/medway/integration/lab"
)

func demoCommand(dir *string) *cobra.Command {
	var opts lab.Options
	var drillOpts drill.Options
	var keep bool
	var traffic []string
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Hold calls through the VIP, switch it to the other site and back, and tell what happens",
		Long: `Build the lab, hold calls through the VIP, switch it to the other site and back,
and tell what happens. Exit status 0 only if no established call was lost and
new calls went to the new site. A lab that was built with up is left alone: the
demo refuses to take its place.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if drillOpts.Traffic, err = drill.ParseTraffic(traffic); err != nil {
				return err
			}
			opts.Dir, opts.Progress, opts.Transient = *dir, cmd.OutOrStdout(), !keep
			if err := lab.Vacant(opts); err != nil {
				return fmt.Errorf("%w: end it first (make lab-down, or %s down), or give the demo a --dir and --prefix of its own", err, cmd.Root().Name())
			}
			drillOpts.Story = cmd.OutOrStdout()
			return demo(cmd.Context(), opts, drillOpts, keep, cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.StringVar(&drillOpts.Dir, "out", "demo-out", "`directory` for the report, the picture and the capture")
	f.IntVar(&drillOpts.Calls, "calls", 60, "calls to hold, of each kind")
	f.StringSliceVar(&traffic, "traffic", []string{"tcp"}, "kinds of calls: tcp, tcp6, udp, udp6, or such as udp@clients2")
	f.IntVar(&drillOpts.Rounds, "rounds", 1, "how often to switch there and back")
	f.DurationVar(&opts.WANDelay, "wan-delay", 5*time.Millisecond, "one-way delay between the sites")
	f.StringVar(&opts.BinDir, "bin", "", "directory of the project's binaries (default: this program's own)")
	f.StringVar(&drillOpts.Sabotage, "sabotage", "", "take something away first, so that calls must be lost: "+drill.SabotageNames())
	f.StringVar(&opts.Prefix, "prefix", "mw-", prefixHelp)
	f.BoolVar(&keep, "keep", false, "leave the lab running")
	return cmd
}

var errDemo = errors.New("the demo did not show what it must")

func demo(ctx context.Context, opts lab.Options, drillOpts drill.Options, keep bool, out io.Writer) (err error) {
	l, err := lab.Up(ctx, opts)
	if err != nil {
		return err
	}
	if !keep {
		defer func() { err = errors.Join(err, l.Down()) }()
	}
	fmt.Fprintln(out)
	report, err := drill.Run(ctx, l, drillOpts)
	if err != nil {
		return err
	}
	sites := []string{}
	for _, s := range l.Topology().Sites {
		sites = append(sites, s.Name)
	}
	var picture strings.Builder
	if err := report.Picture(&picture, sites); err != nil {
		return err
	}
	summary := report.Summary()
	for name, text := range map[string]string{"switchover.svg": picture.String(), "report.txt": summary} {
		if err := os.WriteFile(filepath.Join(drillOpts.Dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "\n%s", summary)
	if len(report.Faults()) > 0 {
		return errDemo
	}
	return nil
}
