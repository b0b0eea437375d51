package coordinator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/user"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/medway-lb/medway/coordinator/internal/auth"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// grantTime bounds the write of a grant.
const grantTime = 5 * time.Second

// Permission is what a name is to be allowed.
type Permission struct {
	Name, Role string
	VIPs       []string
	// Token makes a token for it.
	Token bool
	// Valid is for how long; 0: no end.
	Valid time.Duration
}

func (p Permission) check() error {
	bad := func(r rune) bool { return !unicode.IsPrint(r) || unicode.IsSpace(r) || strings.ContainsRune("/\\", r) }
	if p.Name == "" || len(p.Name) > 64 || strings.ContainsFunc(p.Name, bad) {
		return fmt.Errorf("name %s: expected 1 to 64 printable characters without spaces, '/' and '\\'", state.Quote(p.Name))
	}
	if p.Valid < 0 {
		return fmt.Errorf("valid for %s: expected 0s or more", p.Valid)
	}
	for _, vip := range p.VIPs {
		if err := state.CheckName(vip); err != nil {
			return fmt.Errorf("VIPs: %w", err)
		}
	}
	return nil
}

// Allow writes a grant to etcd, in place of one that there is, and returns the token,
// which is kept nowhere; "" where none was wanted.
func Allow(ctx context.Context, c Config, p Permission) (token string, err error) {
	return c.allow(ctx, p, func(bool) error { return nil })
}

// errGranted says that a name has a grant already.
var errGranted = errors.New("there is a grant already")

// allowNew is [Allow] of a name that has no grant, else it returns errGranted.
func allowNew(ctx context.Context, c Config, p Permission) (token string, err error) {
	return c.allow(ctx, p, func(there bool) error {
		if there {
			return errGranted
		}
		return nil
	})
}

func (c Config) allow(ctx context.Context, p Permission, unless func(there bool) error) (token string, err error) {
	if err := p.check(); err != nil {
		return "", err
	}
	now := time.Now()
	g := auth.Grant{Role: auth.Role(p.Role), VIPs: slices.Clone(p.VIPs), By: whoami(), Since: now.UTC()}
	if p.Valid > 0 {
		end := now.Add(p.Valid).UTC()
		g.Expires = &end
	}
	if p.Token {
		token, g.TokenSHA256 = auth.NewToken(p.Name)
	}
	if err := g.Check(); err != nil {
		return "", err
	}
	value, err := json.Marshal(g)
	if err != nil {
		return "", err
	}
	return token, c.writeGrant(ctx, p.Name, value, g.String(), unless)
}

// Revoke deletes a grant.
func Revoke(ctx context.Context, c Config, name string) error {
	if err := (Permission{Name: name}).check(); err != nil {
		return err
	}
	return c.writeGrant(ctx, name, nil, "", func(there bool) error {
		if !there {
			return fmt.Errorf("there is no grant for %s", state.Quote(name))
		}
		return nil
	})
}

// whoami is this user, for the history.
func whoami() string {
	u, err := user.Current()
	if err != nil {
		return "medway-coordinator grant"
	}
	return state.Line(u.Username)
}

// writeGrant writes a grant, or with nil deletes it, if the one that is there allows
// it, and tells the history.
func (c Config) writeGrant(ctx context.Context, name string, value []byte, words string, unless func(there bool) error) error {
	client, err := c.open()
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, grantTime)
	defer cancel()
	key := state.GrantPrefix + name
	was, there, err := client.Get(ctx, key)
	if err != nil {
		return err
	}
	if err := unless(there); err != nil {
		return err
	}
	event := &medwayv1.Event{What: "revoke " + name, By: whoami()}
	var puts []store.Put
	var deletes []string
	if value == nil {
		deletes = append(deletes, key)
	} else {
		event.What = "grant " + name + ": " + words
		puts = append(puts, store.Put{Key: key, Value: value})
	}
	eventKey, eventValue := state.EncodeEvent("", time.Now(), event)
	puts = append(puts, store.Put{Key: eventKey, Value: eventValue})
	committed, _, err := client.Commit(ctx, []store.Guard{{Key: key, ModRevision: was.ModRevision}, {Key: eventKey}}, puts, deletes)
	switch {
	case err != nil && !errors.Is(err, store.ErrRefused):
		return fmt.Errorf("it is not known whether this was written: %w", err)
	case err == nil && !committed:
		return fmt.Errorf("nothing was written: somebody else changed the grant of %s at the same time", state.Quote(name))
	}
	return err
}

// granted tells whether a name has a grant.
func (c Config) granted(ctx context.Context, name string) (there bool, err error) {
	client, err := c.open()
	if err != nil {
		return false, err
	}
	defer client.Close()
	_, there, err = client.Get(ctx, state.GrantPrefix+name)
	return there, err
}

func (c Config) open() (*store.Client, error) {
	etcd, err := c.Etcd.store()
	if err != nil {
		return nil, err
	}
	return store.Open(etcd)
}

// CheckFiles opens the files that the configuration names.
func (c Config) CheckFiles() error {
	_, err := c.Etcd.store()
	_, tlsErr := c.TLS.server()
	return errors.Join(err, tlsErr)
}
