package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/medway-lb/medway/coordinator/internal/access"
)

func initEtcd(c *connection) *cobra.Command {
	var nodes, operators, viewers []string
	i := initializer{connection: c}
	cmd := &cobra.Command{
		Use:   "init-etcd",
		Short: "Set up etcd's users and roles, and make it ask everybody who they are",
		Long: `Bring etcd's users and roles to what medway needs, and enable authentication. A user
is the common name of a client's certificate; there are no passwords. Run it with the
certificate of root, which etcd gives all rights (see certs).

  node      reads /medway/v1/ and /medway/status/; writes its own nodes/NODE, alive/NODE,
            joined/NODE, claims/NODE/ and /medway/status/NODE, owners/SITE/ of its site,
            and for automatic switchovers and restores target_state/, locks/, epoch and
            /medway/history/; nothing else
  operator  reads and writes /medway/
  viewer    reads /medway/v1/, status/, history/, switchovers/ and evacuations/

Only what differs is changed, what a role may do beyond this is revoked, and nodes and
people who were set up before need not be named again: they are brought in line, too.
Users and roles that are not medway's stay as they are. All is checked first: that root
is not locked out, that no agent at work is, and that every server takes the
certificate's name.

If all else fails: etcdctl auth disable, with root's certificate, lets everybody with
any certificate in.

Exit status: 0 done, or with --dry-run nothing to do; 1 an error; 2 with --dry-run:
something would be changed.`,
		Example: `  medwayctl init-etcd --node dc1-lvs-a=dc1 --node dc2-lvs-a=dc2 --operator alice --viewer grafana --dry-run
  medwayctl init-etcd --node dc2-lvs-b=dc2      # one node more`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if i.output != "text" && i.output != "json" {
				return fmt.Errorf("flag --output: value %q: expected text or json", i.output)
			}
			named, err := access.ParsePeople(nodes, operators, viewers)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), 6*c.timeout) // it is many requests
			defer cancel()
			i.out = cmd.OutOrStdout()
			return i.run(ctx, named)
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&nodes, "node", nil, "`NAME=SITE` of an LVS host (may be repeated)")
	f.StringArrayVar(&operators, "operator", nil, "`NAME` of a user who may change everything of medway's (may be repeated)")
	f.StringArrayVar(&viewers, "viewer", nil, "`NAME` of a user who may read (may be repeated)")
	f.BoolVar(&i.prune, "prune", false, "remove nodes and people who are not named")
	f.BoolVar(&i.dryRun, "dry-run", false, "show what would change and change nothing")
	f.StringVarP(&i.output, "output", "o", "text", "text or json")
	completeWith(cmd, "output", "text", "json")
	for _, name := range []string{"node", "operator", "viewer"} {
		completeWith(cmd, name) // with no files
	}
	return cmd
}

// initializer is one run of init-etcd.
type initializer struct {
	*connection
	prune, dryRun bool
	output        string
	out           io.Writer
}

func (i *initializer) run(ctx context.Context, named access.People) error {
	config, err := i.config()
	if err != nil {
		return err
	}
	r, err := access.Setup{Config: config, Named: named, Prune: i.prune, DryRun: i.dryRun}.Run(ctx)
	if r == nil {
		return err
	}
	err = errors.Join(err, i.tell(r))
	if err == nil && i.dryRun && len(r.Changes) > 0 {
		err = errDiffers
	}
	return err
}

func (i *initializer) tell(r *access.Result) error {
	if i.output == "json" {
		type change struct {
			Verb   string `json:"verb"`
			User   string `json:"user,omitempty"`
			Role   string `json:"role,omitempty"`
			Rights string `json:"rights,omitempty"`
			Key    string `json:"key,omitempty"`
			End    string `json:"range_end,omitempty"`
		}
		all := []change{}
		for _, c := range r.Changes {
			line := change{Verb: string(c.Verb), User: c.User, Role: c.Role, Key: c.Range.Key, End: c.Range.End}
			if line.Key != "" {
				line.Rights = c.Rights.String()
			}
			all = append(all, line)
		}
		text, err := json.MarshalIndent(map[string]any{"changes": all, "notes": append([]string{}, r.Notes...), "made": r.Made}, "", "  ")
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(i.out, "%s\n", text)
		return err
	}
	for _, c := range r.Changes {
		fmt.Fprintln(i.out, c)
	}
	for _, note := range r.Notes {
		fmt.Fprintln(i.out, "note:", note)
	}
	switch {
	case len(r.Changes) == 0:
		fmt.Fprintln(i.out, "nothing to change")
	case r.Made:
		fmt.Fprintf(i.out, "%d changes made\n", len(r.Changes))
	default:
		fmt.Fprintf(i.out, "%d changes, none made\n", len(r.Changes))
	}
	return nil
}
