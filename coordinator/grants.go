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
	if err := p.check(); err != nil {
		return "", err
	}
	now := time.Now()
	g := auth.Grant{Role: auth.Role(p.Role), VIPs: slices.Clone(p.VIPs), By: "medway-coordinator grant", Since: now.UTC()}
	if u, err := user.Current(); err == nil {
		g.By = u.Username
	}
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
	return token, c.write(ctx, []store.Put{{Key: state.GrantPrefix + p.Name, Value: value}}, nil)
}

// Revoke deletes a grant.
func Revoke(ctx context.Context, c Config, name string) error {
	if err := (Permission{Name: name}).check(); err != nil {
		return err
	}
	return c.write(ctx, nil, []string{state.GrantPrefix + name})
}

// write writes to etcd. A grant that is deleted must be there.
func (c Config) write(ctx context.Context, puts []store.Put, deletes []string) error {
	etcd, err := c.Etcd.store()
	if err != nil {
		return err
	}
	client, err := store.Open(etcd)
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, grantTime)
	defer cancel()
	for _, key := range deletes {
		if _, found, err := client.Get(ctx, key); err != nil {
			return err
		} else if !found {
			return fmt.Errorf("there is no grant for %s", state.Quote(strings.TrimPrefix(key, state.GrantPrefix)))
		}
	}
	_, _, err = client.Commit(ctx, nil, puts, deletes)
	if err != nil && !errors.Is(err, store.ErrRefused) {
		return fmt.Errorf("it is not known whether this was written: %w", err)
	}
	return err
}

// CheckFiles opens the files that the configuration names.
func (c Config) CheckFiles() error {
	_, err := c.Etcd.store()
	_, tlsErr := c.TLS.server()
	return errors.Join(err, tlsErr)
}
