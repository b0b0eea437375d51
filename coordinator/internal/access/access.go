// Package access sets up who may do what in etcd: certificates, users and roles. It is
// the one home of `medwayctl certs`, `medwayctl init-etcd` and `medway-coordinator init`.
package access

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"

	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"
)

// The roles in etcd that are medway's; each node has one of its own.
const (
	viewerRole     = "medway-viewer"
	operatorRole   = "medway-operator"
	nodeRolePrefix = "medway-node-"

	// everything is all that medway stores.
	everything = "/medway/"

	// rescuer is a user with a password that is there while authentication is
	// being enabled, to disable it again if certificates don't work.
	rescuer = "medway-init-etcd"
)

func nodeRole(node string) string { return nodeRolePrefix + node }

// ours tells whether a role is one that only init-etcd makes and changes.
func ours(role string) bool {
	return role == viewerRole || role == operatorRole || strings.HasPrefix(role, nodeRolePrefix)
}

// nodeRights are what a node's agent may do: read the intent and what other
// nodes say, and write what is its own, in its own site, and what an automatic
// switchover and a restore of etcd need.
func nodeRights(node, site string) map[store.Range]store.Rights {
	write := store.Rights{Write: true}
	one := func(kind state.Kind) store.Range { return store.KeyRange(state.Key{Kind: kind, A: node}.String()) }
	return map[store.Range]store.Rights{
		store.PrefixRange(state.Prefix): {Read: true},
		one(state.KindNode):             write,
		one(state.KindAlive):            write,
		store.PrefixRange(state.Key{Kind: state.KindClaim, A: node}.String() + "/"): write,
		store.PrefixRange(state.Key{Kind: state.KindOwner, A: site}.String() + "/"): write,
		one(state.KindJoined): write,
		store.KeyRange(state.Key{Kind: state.KindEpoch}.String()):           write,
		store.PrefixRange(state.Key{Kind: state.KindTarget}.String() + "/"): write,
		store.PrefixRange(state.Key{Kind: state.KindLock}.String() + "/"):   write,
		store.PrefixRange(state.HistoryPrefix):                              write,
		// Connections and packets of other nodes are in their statuses.
		store.PrefixRange(state.StatusPrefix):     {Read: true},
		store.KeyRange(state.StatusPrefix + node): write,
	}
}

// siteOf reads back from a node's role for which site it was made; "" if that
// is not clear.
func siteOf(rights map[store.Range]store.Rights) string {
	var sites []string
	for r := range rights {
		rest, ok := strings.CutPrefix(r.Key, state.Prefix+string(state.KindOwner)+"/")
		site := strings.TrimSuffix(rest, "/")
		if ok && r == store.PrefixRange(r.Key) && state.CheckName(site) == nil {
			sites = append(sites, site)
		}
	}
	if len(sites) != 1 {
		return ""
	}
	return sites[0]
}

// People are the users of medway's roles: nodes by name with their sites.
type People struct {
	nodes              map[string]string
	operators, viewers []string
}

// CheckUser says whether a name can be a certificate's common name, a user's
// and a file's.
func CheckUser(name string) error {
	bad := func(r rune) bool { return !unicode.IsPrint(r) || strings.ContainsRune("/\\,=", r) }
	if name == "" || len(name) > 64 || strings.TrimSpace(name) != name || strings.HasPrefix(name, ".") || strings.ContainsFunc(name, bad) {
		return fmt.Errorf("value %.80q: expected 1 to 64 printable characters, not beginning with '.', without '/', '\\', ',' and '='", name)
	}
	return nil
}

// ParsePeople checks the flags' values.
func ParsePeople(nodes, operators, viewers []string) (People, error) {
	p := People{nodes: map[string]string{}, operators: operators, viewers: viewers}
	taken := map[string]string{}
	take := func(flag, name string) error {
		if name == store.RootUser {
			return fmt.Errorf("flag %s: value %q: expected another name: root is etcd's administrator, and is always there", flag, name)
		}
		if name == rescuer {
			return fmt.Errorf("flag %s: value %q: expected another name: it is init-etcd's own, and goes again", flag, name)
		}
		if other, twice := taken[name]; twice {
			return fmt.Errorf("flag %s: value %q: it is in %s already, and a user is one thing", flag, name, other)
		}
		taken[name] = flag
		return nil
	}
	for _, text := range nodes {
		node, site, ok := strings.Cut(text, "=")
		if !ok {
			return p, fmt.Errorf("flag --node: value %q: expected NAME=SITE", text)
		}
		for _, name := range []string{node, site} {
			if err := state.CheckName(name); err != nil {
				return p, fmt.Errorf("flag --node: value %q: %w", text, err)
			}
		}
		if err := take("--node", node); err != nil {
			return p, err
		}
		p.nodes[node] = site
	}
	for flag, names := range map[string][]string{"--operator": operators, "--viewer": viewers} {
		for _, name := range names {
			if err := CheckUser(name); err != nil {
				return p, fmt.Errorf("flag %s: %w", flag, err)
			}
			if err := take(flag, name); err != nil {
				return p, err
			}
		}
	}
	return p, nil
}

// remember adds those that have medway's roles already and were not named. A
// role alone is nobody: a user who was deleted, or whose role was taken, has lost
// a key or left, and must not come back by himself.
func (p People) remember(have store.Access) (People, error) {
	all := People{map[string]string{}, slices.Clone(p.operators), slices.Clone(p.viewers)}
	maps.Copy(all.nodes, p.nodes)
	named := func(user string) bool {
		_, node := p.nodes[user]
		return node || slices.Contains(p.operators, user) || slices.Contains(p.viewers, user)
	}
	for _, role := range slices.Sorted(maps.Keys(have.Roles)) {
		node, ok := strings.CutPrefix(role, nodeRolePrefix)
		if !ok || named(node) || !slices.Contains(have.Users[node], role) {
			continue
		}
		if all.nodes[node] = siteOf(have.Roles[role]); all.nodes[node] == "" || state.CheckName(node) != nil {
			return all, fmt.Errorf("role %s: it does not tell the node's site: name it with --node %s=SITE, or delete the role with etcdctl", role, node)
		}
	}
	for _, user := range slices.Sorted(maps.Keys(have.Users)) {
		_, node := all.nodes[user]
		switch roles := have.Users[user]; {
		case named(user) || node:
		case slices.Contains(roles, operatorRole):
			all.operators = append(all.operators, user)
		case slices.Contains(roles, viewerRole):
			all.viewers = append(all.viewers, user)
		}
	}
	return all, nil
}

// Access is what etcd should hold for them.
func (p People) Access() store.Access {
	want := store.Access{
		Enabled: true,
		Roles: map[string]map[store.Range]store.Rights{
			operatorRole: {store.PrefixRange(everything): {Read: true, Write: true}},
			viewerRole:   {},
		},
		Users: map[string][]string{store.RootUser: {store.RootUser}},
	}
	for _, prefix := range []string{state.Prefix, state.StatusPrefix, state.HistoryPrefix, state.SwitchoverPrefix, state.EvacuationPrefix} {
		want.Roles[viewerRole][store.PrefixRange(prefix)] = store.Rights{Read: true} // grants and sessions are nobody's to read
	}
	for node, site := range p.nodes {
		want.Roles[nodeRole(node)] = nodeRights(node, site)
		want.Users[node] = []string{nodeRole(node)}
	}
	for _, user := range p.operators {
		want.Users[user] = []string{operatorRole}
	}
	for _, user := range p.viewers {
		want.Users[user] = []string{viewerRole}
	}
	return want
}

// changes lead from have to want: more before less, so that an agent at work
// never lacks a right that it is to keep. What is not medway's stays, but for
// foreign roles of nodes, whose only role is their own. With prune medway's
// users and roles that are not wanted go too; self never does.
func changes(have, want store.Access, prune bool, self string) []store.AccessChange {
	var more, less []store.AccessChange
	for _, role := range slices.Sorted(maps.Keys(want.Roles)) {
		if _, ok := have.Roles[role]; !ok {
			more = append(more, store.AccessChange{Verb: store.AddRole, Role: role})
		}
		m, l := rightsChanges(role, have.Roles[role], want.Roles[role])
		more, less = append(more, m...), append(less, l...)
	}
	for _, user := range slices.Sorted(maps.Keys(want.Users)) {
		roles, ok := have.Users[user]
		if !ok {
			more = append(more, store.AccessChange{Verb: store.AddUser, User: user})
		}
		for _, role := range want.Users[user] {
			if !slices.Contains(roles, role) {
				more = append(more, store.AccessChange{Verb: store.GiveRole, User: user, Role: role})
			}
		}
		_, isNode := want.Roles[nodeRole(user)]
		for _, role := range roles {
			if (ours(role) || isNode) && !slices.Contains(want.Users[user], role) {
				less = append(less, store.AccessChange{Verb: store.TakeRole, User: user, Role: role})
			}
		}
	}
	if prune {
		less = append(less, pruning(have, want, self)...)
	}
	if _, left := have.Users[rescuer]; left { // by a run that was killed
		less = append(less, store.AccessChange{Verb: store.DeleteUser, User: rescuer})
	}
	if !have.Enabled {
		less = append(less, store.AccessChange{Verb: store.EnableAuth})
	}
	return append(more, less...)
}

func rightsChanges(role string, have, want map[store.Range]store.Rights) (more, less []store.AccessChange) {
	byKey := func(a, b store.Range) int { return strings.Compare(a.Key+"\x00"+a.End, b.Key+"\x00"+b.End) }
	for _, r := range slices.SortedFunc(maps.Keys(want), byKey) {
		if have[r] != want[r] {
			more = append(more, store.AccessChange{Verb: store.GrantRights, Role: role, Range: r, Rights: want[r]})
		}
	}
	for _, r := range slices.SortedFunc(maps.Keys(have), byKey) {
		if _, ok := want[r]; !ok {
			less = append(less, store.AccessChange{Verb: store.RevokeRange, Role: role, Range: r, Rights: have[r]})
		}
	}
	return more, less
}

// pruning removes medway's users and roles that are not wanted.
func pruning(have, want store.Access, self string) []store.AccessChange {
	var out []store.AccessChange
	for _, user := range slices.Sorted(maps.Keys(have.Users)) {
		if _, wanted := want.Users[user]; wanted {
			continue
		}
		others := slices.DeleteFunc(slices.Clone(have.Users[user]), ours)
		switch {
		case len(others) == len(have.Users[user]):
			// Not one of medway's.
		case len(others) == 0 && user != self:
			out = append(out, store.AccessChange{Verb: store.DeleteUser, User: user})
		default:
			for _, role := range slices.DeleteFunc(slices.Clone(have.Users[user]), func(r string) bool { return !ours(r) }) {
				out = append(out, store.AccessChange{Verb: store.TakeRole, User: user, Role: role})
			}
		}
	}
	for _, role := range slices.Sorted(maps.Keys(have.Roles)) {
		if _, wanted := want.Roles[role]; !wanted && ours(role) {
			out = append(out, store.AccessChange{Verb: store.DeleteRole, Role: role})
		}
	}
	return out
}
