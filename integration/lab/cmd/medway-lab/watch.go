package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/medway-lb/medway/integration/drill"
	"github.com/medway-lb/medway/integration/lab"
)

func callsCommand(dir *string) *cobra.Command {
	var n int
	var traffic []string
	var out string
	cmd := &cobra.Command{
		Use:   "calls",
		Short: "Hold calls through the VIP, and tell on request how they stand",
		Long: `Hold calls through the VIP. A line says when all are established; then each word on
standard input is answered by a line:
  ask   wait until every call has had an answer, or can have none any more, and count
  new   make ten short calls, and tell which backends took them
  end   let every call say BYE, count those that were answered, and end
Exit status 1 if a call was lost. gap is the longest time without an answer since the
last count, for a client that asks ten times a second.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			kinds, err := drill.ParseTraffic(traffic)
			if err != nil {
				return err
			}
			l, err := lab.Open(*dir)
			if err != nil {
				return err
			}
			return hold(cmd.Context(), l, kinds, n, out, cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.IntVarP(&n, "calls", "n", 20, "calls to hold, of each kind")
	f.StringSliceVar(&traffic, "traffic", []string{"tcp"}, "kinds of calls: tcp, tcp6, udp, udp6, or such as udp@clients2")
	f.StringVar(&out, "out", "/run/medway-calls", "`directory` for SIPp's files")
	return cmd
}

var errLost = errors.New("calls were lost")

func hold(ctx context.Context, l *lab.Lab, kinds []drill.Traffic, n int, out string, in io.Reader, w io.Writer) error {
	calls, err := drill.Hold(ctx, l, kinds, n, out)
	if err != nil {
		return err
	}
	defer calls.Kill()
	fmt.Fprintf(w, "established=%d\n", n*len(kinds))
	lost := false
	words := bufio.NewScanner(in)
	words.Split(bufio.ScanWords)
	for words.Scan() {
		var s fmt.Stringer
		switch words.Text() {
		case "ask":
			var state drill.State
			asked := time.Now()
			state, err = calls.Ask(ctx)
			s, lost = state, lost || state.Lost()
			if state.Lost() {
				fmt.Fprint(os.Stderr, calls.Trouble(asked))
			}
		case "new":
			went, err := drill.NewCalls(ctx, l, 10, out+"/new")
			if err != nil {
				fmt.Fprintf(w, "error: %v\n", err)
				continue
			}
			fmt.Fprintln(w, went)
			continue
		case "end":
			var state drill.State
			state, err = calls.End(ctx)
			if err == nil {
				fmt.Fprintln(w, state)
				if lost || state.Lost() {
					err = errLost
				}
			}
			return err
		default:
			err = fmt.Errorf("%q: expected ask, new or end", words.Text())
		}
		if err != nil {
			return err
		}
		fmt.Fprintln(w, s)
	}
	return errors.Join(words.Err(), errors.New("standard input ended without the word end"))
}

func promisesCommand(dir *string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "promises",
		Short: "Tell by routers' logs and etcd's history whether the switchover protocol kept its promises",
	}
	cmd.AddCommand(&cobra.Command{
		Use:   "record FILE",
		Short: "Write down etcd's history until interrupted, one change a line; run it in the background",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := lab.Open(*dir)
			if err != nil {
				return err
			}
			return record(cmd.Context(), l, args[0])
		},
	}, &cobra.Command{
		Use:   "check FILE",
		Short: "Judge what happened while FILE was recorded",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := lab.Open(*dir)
			if err != nil {
				return err
			}
			return check(l, args[0], cmd.OutOrStdout())
		},
	})
	return cmd
}

func record(ctx context.Context, l *lab.Lab, file string) error {
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	defer out.Close()
	var failed error
	to := json.NewEncoder(out)
	err = l.FollowEtcd(ctx, lab.Witness, func(c lab.Change) { failed = errors.Join(failed, to.Encode(c)) })
	return errors.Join(err, failed)
}

var (
	errBroken  = errors.New("a promise was broken")
	errNothing = errors.New("no router saw what a rightful node announced: there is nothing to judge")
)

func check(l *lab.Lab, file string, w io.Writer) error {
	in, err := os.Open(file)
	if err != nil {
		return err
	}
	defer in.Close()
	r := drill.Record{Topology: l.Topology()}
	for from := json.NewDecoder(in); from.More(); {
		var c lab.Change
		if err := from.Decode(&c); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		r.Changes = append(r.Changes, c)
	}
	if len(r.Changes) == 0 {
		return fmt.Errorf("%s: nothing was recorded", file)
	}
	if r.Routes, err = drill.ReadRoutes(l); err != nil {
		return err
	}
	// Routes of before the record began are what routers held then, and are needed; what
	// providers lacked then is nobody's fault.
	began := r.Changes[0].At
	v := r.Since(began).Promises(lab.VIPName)
	fmt.Fprintf(w, "%s, since %s\n", v, began.Format(time.TimeOnly))
	for _, line := range v.Broken {
		fmt.Fprintln(w, "  "+line)
	}
	if v.Seen == 0 {
		return errNothing
	}
	if len(v.Broken) > 0 {
		return errBroken
	}
	return nil
}
