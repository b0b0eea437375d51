package state

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// The prefixes of the layout. Agents watch Prefix; the others are read by
// people and coordinators only, so that nodes are not flooded with each
// other's news.
const (
	Prefix           = "/medway/v1/"
	StatusPrefix     = "/medway/status/"
	HistoryPrefix    = "/medway/history/"
	SwitchoverPrefix = "/medway/switchovers/"
	EvacuationPrefix = "/medway/evacuations/"
	GrantPrefix      = "/medway/grants/"
	SessionPrefix    = "/medway/sessions/"
)

// Kind is the first element of a key below Prefix.
type Kind string

// The kinds of keys, and how many names follow each.
const (
	KindSettings Kind = "settings"
	KindLadder   Kind = "ladder"
	KindVIP      Kind = "vips"
	KindPool     Kind = "pools"
	KindBackend  Kind = "backends"
	KindTarget   Kind = "target_state"
	KindLock     Kind = "locks"
	KindNode     Kind = "nodes"
	KindAlive    Kind = "alive"
	KindOwner    Kind = "owners"
	KindClaim    Kind = "claims"
	KindEpoch    Kind = "epoch"
	KindJoined   Kind = "joined"
	KindDrain    Kind = "node_drains"
	KindPause    Kind = "pauses"
	KindPauseAll Kind = "pause"

	KindBackendDrain Kind = "drains"
)

var names = map[Kind]int{
	KindSettings: 0, KindLadder: 0, KindVIP: 1, KindPool: 1, KindBackend: 2,
	KindTarget: 1, KindLock: 1, KindNode: 1, KindAlive: 1, KindOwner: 2, KindClaim: 2,
	KindEpoch: 0, KindJoined: 1, KindDrain: 1, KindPause: 1, KindPauseAll: 0, KindBackendDrain: 2,
}

// Key is a key of the layout in its parts: A and B are the names that follow
// the kind, for example pool and backend.
type Key struct {
	Kind Kind
	A, B string
}

// String is the key as etcd holds it.
func (k Key) String() string {
	s := Prefix + string(k.Kind)
	for _, name := range []string{k.A, k.B} {
		if name != "" {
			s += "/" + name
		}
	}
	return s
}

const nameForm = "a name of 1 to 63 of a-z, 0-9 and '-', not beginning or ending with '-'"

var validName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// CheckName says whether a name may be used in a key: a label in the form of
// RFC 1123, in lower case.
func CheckName(name string) error {
	if !validName.MatchString(name) {
		return errors.New("name " + Quote(name) + ": expected " + nameForm)
	}
	return nil
}

// ParseKey splits a key below Prefix into its parts.
func ParseKey(key string) (Key, error) {
	wrong := func(format string, args ...any) (Key, error) {
		return Key{}, errors.New(shorten(fmt.Sprintf("key %s: %s", Quote(key), fmt.Sprintf(format, args...)), maxErrorText))
	}
	rest, ok := strings.CutPrefix(key, Prefix)
	if !ok {
		return wrong("expected a key below %s", Prefix)
	}
	parts := strings.Split(rest, "/")
	kind := Kind(parts[0])
	n, ok := names[kind]
	if !ok {
		return wrong("unknown kind %s: expected one of %s", Quote(parts[0]), kinds())
	}
	if len(parts)-1 != n {
		return wrong("expected %d names after %q, found %d", n, kind, len(parts)-1)
	}
	for _, name := range parts[1:] {
		if err := CheckName(name); err != nil {
			return wrong("%v", err)
		}
	}
	k := Key{Kind: kind}
	if n > 0 {
		k.A = parts[1]
	}
	if n > 1 {
		k.B = parts[2]
	}
	return k, nil
}

func kinds() string {
	var out []string
	for kind := range names {
		out = append(out, string(kind))
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}
