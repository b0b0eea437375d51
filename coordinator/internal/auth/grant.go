// Package auth says who somebody is and what they may do. It decides, and holds
// nothing: grants and sessions are kept in etcd by who uses it.
package auth

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// Role is what somebody is trusted with.
type Role string

// The roles. Each of the first three may do what the one before it may.
const (
	// Viewer reads everything but grants.
	Viewer Role = "viewer"
	// Operator moves traffic: switchovers, drains, pauses, locks.
	Operator Role = "operator"
	// Admin changes what there is: VIPs, pools, backends, and grants.
	Admin Role = "admin"
	// Backend registers itself, and does nothing else.
	Backend Role = "backend"
)

var rank = map[Role]int{Viewer: 1, Operator: 2, Admin: 3}

// Grant is what one name is allowed, and how it is recognised: by a certificate of
// the CA with that common name, or by a token. It is stored as JSON.
type Grant struct {
	Role Role `json:"role"`
	// VIPs are those that it is for; none is all. Reading is not limited by it.
	VIPs []string `json:"vips,omitempty"`
	// TokenSHA256 is the hash of the token's secret, in hexadecimal digits; "" where
	// there is no token. A secret of 256 random bits can't be guessed, so a fast hash
	// does: slow ones are for what people make up.
	TokenSHA256 string `json:"token_sha256,omitempty"`
	// Expires ends the grant, if it is set.
	Expires *time.Time `json:"expires,omitempty"`
	// By and Since say who gave it, when.
	By    string    `json:"by"`
	Since time.Time `json:"since"`
}

// DecodeGrant reads a stored grant. What can't be read grants nothing.
func DecodeGrant(value []byte) (Grant, error) {
	var g Grant
	if err := decode(value, &g); err != nil {
		return Grant{}, fmt.Errorf("grant: %w", err)
	}
	return g, g.Check()
}

// decode reads one JSON object, with no other fields than there are.
func decode(value []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(value))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("expected one JSON object")
	}
	return nil
}

// Check says what is wrong with a grant.
func (g Grant) Check() error {
	if rank[g.Role] == 0 && g.Role != Backend {
		return fmt.Errorf("grant: role %q: expected viewer, operator, admin or backend", g.Role)
	}
	if g.TokenSHA256 != "" {
		if raw, err := hex.DecodeString(g.TokenSHA256); err != nil || len(raw) != sha256.Size {
			return fmt.Errorf("grant: token_sha256: expected %d hexadecimal digits", 2*sha256.Size)
		}
	}
	if slices.Contains(g.VIPs, "") {
		return errors.New(`grant: vips: "": expected names`)
	}
	return nil
}

// String is what it allows, on one line, without the token's hash.
func (g Grant) String() string {
	text := string(g.Role)
	if len(g.VIPs) > 0 {
		text += " of " + strings.Join(g.VIPs, ", ")
	}
	if g.Expires != nil {
		text += " until " + g.Expires.UTC().Format(time.RFC3339)
	}
	if g.TokenSHA256 != "" {
		text += ", with a token"
	}
	return text
}

// Identity is somebody who was recognised.
type Identity struct {
	Name string
	// Address is that which the request came from.
	Address string
	Grant
}

// As gives a name its grant, if that is in force.
func As(name string, g Grant, now time.Time) (Identity, error) {
	if err := g.Check(); err != nil {
		return Identity{}, err
	}
	if g.Expires != nil && !now.Before(*g.Expires) {
		return Identity{}, fmt.Errorf("the grant of %s has ended at %s", name, g.Expires.UTC().Format(time.RFC3339))
	}
	return Identity{Name: name, Grant: g}, nil
}

// DeniedError says what somebody lacks.
type DeniedError struct {
	Name string
	Need Role
	// VIP is that which the grant is not for, "" where the role is too low.
	VIP string
}

func (e *DeniedError) Error() string {
	if e.VIP != "" {
		return fmt.Sprintf("%s has no grant for VIP %s", e.Name, e.VIP)
	}
	return fmt.Sprintf("%s is not allowed to do this: it takes the role %s", e.Name, e.Need)
}

// May returns a *DeniedError unless somebody has a role, for a VIP. "" as the VIP is
// what concerns all VIPs, which only a grant without limits allows.
func (i Identity) May(need Role, vip string) error {
	enough := rank[need] > 0 && rank[i.Role] >= rank[need] || need == Backend && i.Role == Backend
	switch {
	case !enough:
		return &DeniedError{Name: i.Name, Need: need}
	case need == Viewer || len(i.VIPs) == 0 || slices.Contains(i.VIPs, vip):
		return nil
	case vip == "":
		return &DeniedError{Name: i.Name, Need: need, VIP: "(all)"}
	}
	return &DeniedError{Name: i.Name, Need: need, VIP: vip}
}

// tokenPrefix lets people, and programs that look for leaked secrets, see what it is.
const tokenPrefix = "medway_"

// NewToken makes a token for a name, and the hash to store. The token is
// "medway_<name>_<secret>".
func NewToken(name string) (token, sha string) {
	secret := strings.ToLower(rand.Text() + rand.Text()) // 130 bits each
	return tokenPrefix + name + "_" + secret, hash(secret)
}

// TokenName is the name that a token is of. It proves nothing.
func TokenName(token string) (name string, ok bool) {
	name, _, ok = splitToken(token)
	return name, ok
}

// Verify tells whether a token is the one of a grant.
func (g Grant) Verify(token string) bool {
	_, secret, ok := splitToken(token)
	return ok && subtle.ConstantTimeCompare([]byte(hash(secret)), []byte(strings.ToLower(g.TokenSHA256))) == 1
}

func splitToken(token string) (name, secret string, ok bool) {
	rest, ok := strings.CutPrefix(token, tokenPrefix)
	at := strings.LastIndexByte(rest, '_')
	if !ok || at <= 0 || at == len(rest)-1 {
		return "", "", false
	}
	return rest[:at], rest[at+1:], true
}

func hash(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}
