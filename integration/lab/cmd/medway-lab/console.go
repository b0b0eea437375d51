package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"github.com/medway-lb/medway/integration/lab"
)

// consolePort is where the console is on this machine.
const consolePort = "9443"

func consoleCommand(dir *string) *cobra.Command {
	return &cobra.Command{
		Use:   "console",
		Short: "Start two coordinators, and open the console of whichever lives to this machine's browsers",
		Long: `Start a coordinator in each data centre, grant the role of an admin, print the token, and
pass connections to 127.0.0.1:` + consolePort + ` on to a coordinator that lives, until interrupted. The
coordinators stay until the lab ends. Kill one: the console goes on with the other.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := lab.Open(*dir)
			if err != nil {
				return err
			}
			servers := l.EtcdNodes()[:2]
			for _, node := range servers {
				if d, err := l.Daemon(node, "coordinator"); err == nil && d.Alive() {
					continue
				}
				if err := l.StartCoordinator(node); err != nil {
					return err
				}
			}
			token, err := l.Grant(cmd.Context(), "you", "admin")
			if err != nil {
				return err
			}
			listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", consolePort))
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "The console:  https://127.0.0.1:%s/  (of the lab's own authority, %s: browsers warn)\n"+
				"log in with:  %s\nCtrl-C closes it.\n", consolePort, l.CA(), token)
			return pass(cmd.Context(), l, listener, servers)
		},
	}
}

// pass gives each connection to the first coordinator that takes it.
func pass(ctx context.Context, l *lab.Lab, listener net.Listener, servers []string) error {
	var open sync.WaitGroup
	defer open.Wait()
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() })
	defer stop()
	for {
		client, err := listener.Accept()
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		}
		open.Go(func() {
			defer func() { _ = client.Close() }()
			for _, node := range servers {
				server, err := l.Dial(ctx, lab.Witness, "tcp", strings.TrimPrefix(l.CoordinatorURL(node), "https://"))
				if err != nil {
					continue
				}
				both(ctx, client, server)
				return
			}
		})
	}
}

// both copies both ways until one end closes, or ctx ends.
func both(ctx context.Context, a, b net.Conn) {
	ctx, done := context.WithCancel(ctx)
	defer done()
	stop := context.AfterFunc(ctx, func() { _ = errors.Join(a.Close(), b.Close()) })
	defer stop()
	var copying sync.WaitGroup
	for _, way := range [][2]net.Conn{{a, b}, {b, a}} {
		copying.Go(func() {
			defer done()
			_, _ = io.Copy(way[0], way[1]) // its end is the connection's
		})
	}
	copying.Wait()
}
