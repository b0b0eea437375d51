package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/medway-lb/medway/agent"
	"github.com/medway-lb/medway/agent/internal/local"
)

// exitNotRunning is the exit code where no agent runs (as of `systemctl status`).
const exitNotRunning = 3

// socket is how a command finds the running agent.
type socket struct {
	config, path string
	timeout      time.Duration
}

func (s *socket) flags(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringVarP(&s.config, "config", "c", "/etc/medway/agent.yaml", "the agent's `file`, which says where its socket is")
	cmd.Flags().StringVar(&s.path, "socket", "", "the agent's socket, whatever the file says")
	cmd.Flags().DurationVar(&s.timeout, "timeout", 10*time.Second, "how long to wait for the agent")
	return cmd
}

func (s *socket) client() (*local.Client, error) {
	path := s.path
	if path == "" {
		var err error
		if path, err = agent.SocketPath(s.config); err != nil {
			return nil, fmt.Errorf("%w (--socket names the agent's socket where there is no file)", err)
		}
	}
	return local.NewClient(path), nil
}

// do runs f with a client.
func (s *socket) do(ctx context.Context, f func(context.Context, *local.Client) error) error {
	c, err := s.client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	return f(ctx, c)
}

// complete offers the VIPs of the running agent that pick accepts.
func (s *socket) complete(pick func(st local.Status, vip string) bool) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, prefix string) (names []string, _ cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		_ = s.do(cmd.Context(), func(ctx context.Context, c *local.Client) error {
			st, err := c.Status(ctx)
			for _, vip := range st.VIPs {
				if strings.HasPrefix(vip, prefix) && pick(st, vip) {
					names = append(names, vip)
				}
			}
			return err
		})
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

func status() *cobra.Command {
	s, output := &socket{}, ""
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what the agent on this host does, without etcd",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "text" && output != "json" {
				return fmt.Errorf("flag --output: value %q: expected text or json", output)
			}
			return s.do(cmd.Context(), func(ctx context.Context, c *local.Client) error {
				st, err := c.Status(ctx)
				if err != nil {
					return err
				}
				if output == "json" {
					return writeJSON(cmd.OutOrStdout(), st)
				}
				return st.Print(cmd.OutOrStdout(), time.Now())
			})
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	completeWith(cmd, "output", "text", "json")
	return s.flags(cmd)
}

func writeJSON(out io.Writer, v any) error {
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func withdraw() *cobra.Command {
	s, order := &socket{}, local.Order{}
	cmd := &cobra.Command{
		Use:   "withdraw VIP",
		Short: "Take a VIP's routes back on this node, without etcd, until resume",
		Long: `Take a VIP's routes back on this node until "medway-agent resume": also over a
restart of the agent, and without etcd. The kernel's part stays, so calls go on
as long as packets arrive.

The routes are announced at the last resort with the community of graceful
shutdown (RFC 8326) for the settle delay, so that routers move first, and then
not at all. The command returns when they are gone. The node gives up the VIP's
ownership in its site, and does not campaign for it.

Withdrawing on every node of a VIP takes the VIP out of service.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			order.VIP = args[0]
			return s.do(cmd.Context(), func(ctx context.Context, c *local.Client) error {
				done, err := c.Withdraw(ctx, order)
				if done != "" {
					fmt.Fprintln(cmd.OutOrStdout(), done)
				}
				if err != nil {
					return err
				}
				err = c.AwaitWithdrawn(ctx, order.VIP)
				if errors.Is(err, context.DeadlineExceeded) {
					return fmt.Errorf("%s: its routes are still announced after %s (--timeout): see medway-agent status", order.VIP, s.timeout)
				}
				if err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s: no route is announced\n", order.VIP)
				return nil
			})
		},
		ValidArgsFunction: s.complete(func(local.Status, string) bool { return true }),
	}
	cmd.Flags().BoolVar(&order.Now, "now", false, "take the routes back at once, without the farewell")
	cmd.Flags().StringVar(&order.Reason, "reason", "", "why, for those who read the status")
	return s.flags(cmd)
}

func resume() *cobra.Command {
	s := &socket{}
	return s.flags(&cobra.Command{
		Use:   "resume VIP",
		Short: "End a withdrawal",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.do(cmd.Context(), func(ctx context.Context, c *local.Client) error {
				return told(cmd.OutOrStdout())(c.Resume(ctx, args[0]))
			})
		},
		ValidArgsFunction: s.complete(func(st local.Status, vip string) bool { return st.IsWithdrawn(vip) }),
	})
}

func accept() *cobra.Command {
	s := &socket{}
	return s.flags(&cobra.Command{
		Use:   "accept",
		Short: "Take etcd's store as it is, after it was emptied or replaced",
		Long: `An agent that finds an etcd that is not the continuation of what it knew (its
revision went back, or it is another cluster), and does not find its own node in
it, moves nothing, and goes on with what it knew: acting on an emptied store would
take everything down. (One that was restored from a backup needs no word: nothing
moves until every node has joined its new epoch.) Look at what etcd holds now ("medwayctl status", "etcdctl get --prefix /medway/v1/"); this
command then has it taken, whatever it holds.

To go back to the right etcd instead, restart the agent on it.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.do(cmd.Context(), func(ctx context.Context, c *local.Client) error {
				return told(cmd.OutOrStdout())(c.Accept(ctx))
			})
		},
	})
}

// told prints what was done, also where that was not all.
func told(out io.Writer) func(done string, err error) error {
	return func(done string, err error) error {
		if done != "" {
			fmt.Fprintln(out, done)
		}
		return err
	}
}
