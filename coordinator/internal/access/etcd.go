package access

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"
)

// Setup brings etcd's users and roles to what medway needs, and enables authentication.
type Setup struct {
	// Config is that of a client with the role root.
	Config store.Config
	// Named are those to have beside those that were set up before.
	Named People
	// Prune removes those who are not named.
	Prune bool
	// DryRun changes nothing.
	DryRun bool
}

// Result is what a setup has changed, or would change.
type Result struct {
	Changes []store.AccessChange
	Notes   []string
	Made    bool
}

// Run looks, and changes what differs. Where it ends early the result has the changes
// that were made until then; it is nil where nothing could be read.
func (s Setup) Run(ctx context.Context) (*Result, error) {
	client, err := store.Open(s.Config)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	have, err := client.Access(ctx)
	if errors.Is(err, store.ErrDenied) {
		return nil, fmt.Errorf("%w: only root may set up etcd: give --cert and --key of root, or of a user with the role root", err)
	}
	if err != nil {
		return nil, err
	}
	all := s.Named
	if !s.Prune {
		if all, err = s.Named.remember(have); err != nil {
			return nil, err
		}
	}
	r := &Result{Changes: changes(have, all.Access(), s.Prune, s.Config.User())}
	if r.Notes, err = s.check(ctx, client, have, all); err != nil || s.DryRun {
		return r, err
	}
	r.Made = true
	for n, change := range r.Changes {
		if change.Verb == store.EnableAuth {
			err = enable(ctx, s.Config, client)
		} else {
			err = client.ChangeAccess(ctx, change)
		}
		if err != nil {
			err = fmt.Errorf("%d of %d changes were made (run it again for the rest): %w", n, len(r.Changes), err)
			r.Changes = r.Changes[:n]
			return r, err
		}
	}
	return r, nil
}

// check refuses what would lock somebody out.
func (s Setup) check(ctx context.Context, client *store.Client, have store.Access, all People) (notes []string, err error) {
	if err := mayAdminister(s.Config.User(), have); err != nil {
		return nil, err
	}
	return s.agents(ctx, client, have, all)
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
func (s Setup) agents(ctx context.Context, client *store.Client, have store.Access, all People) (notes []string, err error) {
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
	if len(lost) > 0 && (!have.Enabled || s.Prune) {
		return notes, fmt.Errorf("nothing was changed: agents are at work that would lose etcd: add %s", strings.Join(lost, " "))
	}
	return notes, nil
}

// enable makes etcd ask everybody, and takes that back where one of its servers
// does not know this client by its certificate: that server was not started
// with --client-cert-auth, and nothing tells before.
func enable(ctx context.Context, config store.Config, client *store.Client) error {
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
