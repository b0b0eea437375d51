package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/medway-lb/medway/integration/sbc/idle"
)

func idleCommand() *cobra.Command {
	cfg := idle.Config{}
	var stdin bool
	cmd := &cobra.Command{
		Use:   "idle host:port",
		Short: "Hold idle TCP connections with RFC 5626 keepalives; a JSON line tells how they fared",
		Long: "Opens the connections, asks each for the backend's name, prints {\"ready\":N}, then pings each of them\n" +
			"until SIGTERM, SIGINT or, with --stdin, a line or the end of standard input. Then it asks for the names\n" +
			"again and prints the result. The exit status is 1 if a connection was lost or moved.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg.Addr = args[0]
			ctx, cancel := context.WithCancel(cmd.Context())
			defer cancel()
			if stdin {
				go func() {
					_, _ = bufio.NewReader(cmd.InOrStdin()).ReadString('\n') // the end of input counts as a line
					cancel()
				}()
			}
			return runIdle(ctx, cfg, os.Stdout)
		},
	}
	f := cmd.Flags()
	f.IntVarP(&cfg.Connections, "connections", "n", 50, "TCP connections to hold")
	f.DurationVar(&cfg.Every, "every", 20*time.Second, "time between keepalives on one connection")
	f.DurationVar(&cfg.Timeout, "timeout", 10*time.Second, "time for a connect, a pong or an answer")
	f.BoolVar(&stdin, "stdin", false, "end on a line of standard input too")
	return cmd
}

func runIdle(ctx context.Context, cfg idle.Config, out io.Writer) error {
	cfg.Ready = func(n int) { _ = json.NewEncoder(out).Encode(map[string]int{"ready": n}) }
	res, err := idle.Run(ctx, cfg)
	if err != nil {
		return err
	}
	if err := json.NewEncoder(out).Encode(res); err != nil {
		return err
	}
	return res.Err()
}
