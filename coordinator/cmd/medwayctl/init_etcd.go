package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"
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
  viewer    reads /medway/

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
			named, err := parsePeople(nodes, operators, viewers)
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

func (i *initializer) run(ctx context.Context, named people) error {
	config, err := i.config()
	if err != nil {
		return err
	}
	client, err := store.Open(config)
	if err != nil {
		return err
	}
	defer client.Close()
	have, err := client.Access(ctx)
	if errors.Is(err, store.ErrDenied) {
		return fmt.Errorf("%w: only root may set up etcd: give --cert and --key of root, or of a user with the role root", err)
	}
	if err != nil {
		return err
	}
	all := named
	if !i.prune {
		if all, err = named.remember(have); err != nil {
			return err
		}
	}
	list := changes(have, all.access(), i.prune, config.User())
	notes, err := i.check(ctx, client, have, all, config.User())
	if err != nil || i.dryRun {
		err = errors.Join(err, i.tell(list, notes, false))
		if err == nil && len(list) > 0 {
			err = errDiffers
		}
		return err
	}
	for n, change := range list {
		if change.Verb == store.EnableAuth {
			err = i.enable(ctx, config, client)
		} else {
			err = client.ChangeAccess(ctx, change)
		}
		if err != nil {
			err = fmt.Errorf("%d of %d changes were made (run it again for the rest): %w", n, len(list), err)
			return errors.Join(err, i.tell(list[:n], notes, true))
		}
	}
	return i.tell(list, notes, true)
}

// check refuses what would lock somebody out.
func (i *initializer) check(ctx context.Context, client *store.Client, have store.Access, all people, user string) (notes []string, err error) {
	if err := mayAdminister(user, have); err != nil {
		return nil, err
	}
	return i.agents(ctx, client, have, all)
}

// mayAdminister refuses what would lock its own user out.
func mayAdminister(user string, have store.Access) error {
	switch {
	case user == "":
		return errors.New("nothing was changed: this client shows no certificate with a common name, " +
			"so it could not administer etcd any more: give --cert and --key of root (medwayctl certs --client root makes them)")
	case user != store.RootUser && !slices.Contains(have.Users[user], store.RootUser):
		return fmt.Errorf("nothing was changed: this client's certificate is of user %q, which has not the role root, "+
			"so it could not administer etcd any more: give --cert and --key of root (medwayctl certs --client root makes them), "+
			"or give it the role: etcdctl user add %[1]s --no-password; etcdctl user grant-role %[1]s root", user)
	}
	return nil
}

// agents compares the users with what nodes say of themselves: it refuses to
// lock one out that is at work. A node's word on its site grants it nothing.
func (i *initializer) agents(ctx context.Context, client *store.Client, have store.Access, all people) (notes []string, err error) {
	entries, _, err := client.List(ctx, state.Prefix)
	if err != nil {
		return nil, err
	}
	cache, alive := state.NewCache(), map[string]bool{}
	for _, e := range entries {
		cache.Put(e.Key, e.Value, e.ModRevision, e.Lease)
		if k, err := state.ParseKey(e.Key); err == nil && k.Kind == state.KindAlive && e.Lease != 0 {
			alive[k.A] = true // whatever the value
		}
	}
	registered := cache.Snapshot().Nodes
	var lost []string
	for _, node := range slices.Sorted(maps.Keys(alive)) {
		if _, known := all.nodes[node]; !known {
			lost = append(lost, fmt.Sprintf("--node %s=%s", node, cmp.Or(registered[node].Site, "SITE")))
		}
	}
	for _, node := range slices.Sorted(maps.Keys(registered)) {
		site := registered[node].Site
		switch wanted, known := all.nodes[node]; {
		case known && wanted != site:
			notes = append(notes, fmt.Sprintf("node %s may work in site %s, but says that it is in %s", node, wanted, site))
		case !known && !alive[node]:
			notes = append(notes, fmt.Sprintf("node %s was here and is nobody's user: --node %s=%s would make it one", node, node, site))
		}
	}
	if len(lost) > 0 && (!have.Enabled || i.prune) {
		return notes, fmt.Errorf("nothing was changed: agents are at work that would lose etcd: add %s", strings.Join(lost, " "))
	}
	return notes, nil
}

// enable makes etcd ask everybody, and takes that back where one of its servers
// does not know this client by its certificate: that server was not started
// with --client-cert-auth, and nothing tells before.
func (i *initializer) enable(ctx context.Context, config store.Config, client *store.Client) error {
	if err := store.Reach(ctx, config); err != nil {
		return fmt.Errorf("authentication is not enabled: all servers must be there for that: %w", err)
	}
	password := rand.Text()
	if err := client.ChangeAccess(ctx, store.AccessChange{Verb: store.AddUser, User: rescuer, Password: password}); err != nil {
		return err
	}
	for _, change := range []store.AccessChange{{Verb: store.GiveRole, User: rescuer, Role: store.RootUser}, {Verb: store.EnableAuth}} {
		if err := client.ChangeAccess(ctx, change); err != nil {
			// It may have been done all the same, unseen and unchecked.
			return errors.Join(err, disable(config, password))
		}
	}
	var wrong []error
	for _, endpoint := range config.Endpoints {
		if err := knows(ctx, config, endpoint); err != nil {
			wrong = append(wrong, fmt.Errorf("%s does not know this client by its certificate; was it started with --client-cert-auth? %w", endpoint, err))
		}
	}
	if wrong != nil {
		return errors.Join(append(wrong, disable(config, password))...)
	}
	return client.ChangeAccess(ctx, store.AccessChange{Verb: store.DeleteUser, User: rescuer})
}

// knows asks one server for something: it answers to nobody whom it does not
// know. The key matters not, as root may read any.
func knows(ctx context.Context, config store.Config, endpoint string) error {
	config.Endpoints = []string{endpoint}
	client, err := store.Open(config)
	if err != nil {
		return err
	}
	defer client.Close()
	_, _, err = client.Get(ctx, state.Prefix)
	return err
}

// disable takes enabling back. It has time of its own: the rest may have used up all.
func disable(config store.Config, password string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	config.Username, config.Password = rescuer, password
	client, err := store.Open(config)
	if err != nil {
		return err
	}
	defer client.Close()
	err = client.ChangeAccess(ctx, store.AccessChange{Verb: store.DisableAuth})
	if err == nil {
		err = client.ChangeAccess(ctx, store.AccessChange{Verb: store.DeleteUser, User: rescuer})
	}
	if err != nil {
		return fmt.Errorf("authentication could not be disabled again: try etcdctl --user %s auth disable, with the password %s: %w", rescuer, password, err)
	}
	return errors.New("authentication was disabled again")
}

func (i *initializer) tell(list []store.AccessChange, notes []string, made bool) error {
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
		for _, c := range list {
			line := change{Verb: string(c.Verb), User: c.User, Role: c.Role, Key: c.Range.Key, End: c.Range.End}
			if line.Key != "" {
				line.Rights = c.Rights.String()
			}
			all = append(all, line)
		}
		text, err := json.MarshalIndent(map[string]any{"changes": all, "notes": append([]string{}, notes...), "made": made}, "", "  ")
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(i.out, "%s\n", text)
		return err
	}
	for _, c := range list {
		fmt.Fprintln(i.out, c)
	}
	for _, note := range notes {
		fmt.Fprintln(i.out, "note:", note)
	}
	switch {
	case len(list) == 0:
		fmt.Fprintln(i.out, "nothing to change")
	case made:
		fmt.Fprintf(i.out, "%d changes made\n", len(list))
	default:
		fmt.Fprintf(i.out, "%d changes, none made\n", len(list))
	}
	return nil
}
