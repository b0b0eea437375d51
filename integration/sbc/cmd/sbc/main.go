// Command sbc is the lab's SIP backend, and with "sbc idle" a client that holds idle connections.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/emiago/sipgo/sip"
	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/medway-lb/medway/integration/sbc"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "sbc:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	var cfg sbc.Config
	var listen, transports []string
	cmd := &cobra.Command{
		Use:   "sbc",
		Short: "SIP backend: SIGUSR1 drains it, SIGTERM stops it",
		Args:  cobra.NoArgs, SilenceUsage: true, SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, addr := range listen {
				for _, t := range transports {
					cfg.Listen = append(cfg.Listen, sbc.Listen{Transport: t, Addr: addr})
				}
			}
			return serve(cmd.Context(), cfg)
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.Name, "name", "sbc", "name of this backend, sent in the Server header")
	f.StringArrayVar(&listen, "listen", nil, "host:port to answer on (repeatable)")
	f.StringArrayVar(&transports, "transport", []string{"tcp"}, "tcp or udp, for every --listen (repeatable)")
	f.StringVar(&cfg.Status, "status", "", "host:port or unix socket path that serves the status as JSON over HTTP")
	cmd.AddCommand(idleCommand())
	return cmd
}

func serve(ctx context.Context, cfg sbc.Config) error {
	sip.SetDefaultLogger(slog.New(slog.DiscardHandler))
	log, err := zap.NewProduction()
	if err != nil {
		return err
	}
	defer func() { _ = log.Sync() }() // stderr may be a pipe, which cannot be synced
	cfg.Log = log

	// Before the sockets: whoever sees the backend answer may signal it.
	drain := make(chan os.Signal, 1)
	signal.Notify(drain, syscall.SIGUSR1)
	defer signal.Stop(drain)
	s, err := sbc.New(cfg)
	if err != nil {
		return err
	}
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case <-drain:
				s.Drain()
			case <-done:
				return
			}
		}
	}()
	return s.Run(ctx)
}
