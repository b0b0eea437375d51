// Command medway-bench measures medway. Run it through `make bench`.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/medway-lb/medway/integration/bench"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "medway-bench:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:           "medway-bench",
		Short:         "How fast medway is, beside what it rests on and what it replaces",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	var out string
	o := bench.Options{Progress: os.Stderr}
	flags := root.PersistentFlags()
	flags.StringVar(&out, "out", ".cache/out/bench", "`folder` of the results")
	flags.StringVar(&o.Bin, "bin", "", "`folder` of the programs (default: this one's)")
	flags.StringVar(&o.Dir, "dir", "", "`folder` for data and logs, in memory (default: one in /dev/shm, removed at the end)")
	flags.IntVar(&o.Flips, "flips", 200, "switches of one VIP")
	flags.IntVar(&o.Rounds, "rounds", 7, "switches of all VIPs at once")
	flags.IntVar(&o.VIPs, "vips", 1000, "how many VIPs all are, 2 to 9999")
	flags.IntVar(&o.Loads, "loads", 3, "times that the kernel's table is loaded by each program")
	flags.IntVar(&o.Changes, "changes", 5, "times that a weight is changed and changed back after each load")
	flags.IntVar(&o.Deaths, "deaths", 15, "times that a host dies")
	flags.DurationVar(&o.Load, "load", 10*time.Minute, "how long to watch BFD with all processors busy")
	flags.DurationVar(&o.Rest, "rest", time.Minute, "how long to watch an agent at rest")
	part := func(name, short string, measure func(context.Context, bench.Options) (*bench.Report, error)) *cobra.Command {
		return &cobra.Command{Use: name, Short: short, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			return run(cmd.Context(), o, out, name, measure)
		}}
	}
	root.AddCommand(
		part("native", "From put to UPDATE, and an agent at rest, in the network namespace that this is started in", bench.Native),
		part("kernel", "Loading and changing IPVS, in the network namespace that this is started in", bench.Kernel),
		part("failover", "A host that dies, as a client sees it, beside VRRP; this namespace is the client's", bench.Failover),
		part("load", "BFD with all processors busy, in namespaces beside this one", bench.Load),
		&cobra.Command{Use: "report", Short: "Put the parts together and print them", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			return bench.Join(out, cmd.OutOrStdout())
		}},
		&cobra.Command{Use: "gobgp", Hidden: true, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			return bench.GoBGP(cmd.Context(), os.Stdin)
		}},
		&cobra.Command{Use: "echo", Hidden: true, Args: cobra.MinimumNArgs(2), RunE: func(cmd *cobra.Command, args []string) error {
			return bench.Echo(cmd.Context(), args[0], args[1:])
		}},
	)
	return root
}

// run measures one part and saves what there is, also where it failed half way.
func run(ctx context.Context, o bench.Options, out, name string, measure func(context.Context, bench.Options) (*bench.Report, error)) error {
	if o.Dir == "" {
		dir, err := os.MkdirTemp("/dev/shm", "medway-bench")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		o.Dir = dir
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if o.Bin == "" {
		o.Bin = filepath.Dir(self)
	}
	report, err := measure(ctx, o)
	if err != nil {
		report.Missing = append(report.Missing, err.Error())
	}
	if saved := report.Save(out, name); saved != nil {
		return saved
	}
	return err
}
