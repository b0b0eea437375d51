package store

import (
	"context"
	"fmt"
	"slices"

	"go.etcd.io/etcd/api/v3/authpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// RootUser is the user, and the role, that etcd itself gives all rights.
const RootUser = "root"

// Range is what a permission is for: one key, or with an End all keys from Key
// up to and without End.
type Range struct{ Key, End string }

// KeyRange is one key.
func KeyRange(key string) Range { return Range{Key: key} }

// PrefixRange is all keys that begin with prefix, which ends in "/".
func PrefixRange(prefix string) Range {
	return Range{Key: prefix, End: clientv3.GetPrefixRangeEnd(prefix)}
}

// String is a key, a prefix followed by "*", or a range.
func (r Range) String() string {
	switch {
	case r.End == "":
		return r.Key
	case r.End == clientv3.GetPrefixRangeEnd(r.Key):
		return r.Key + "*"
	}
	return fmt.Sprintf("[%q, %q)", r.Key, r.End)
}

// Rights are what is allowed on a range.
type Rights struct{ Read, Write bool }

// String is in etcdctl's words.
func (r Rights) String() string {
	switch {
	case r.Read && r.Write:
		return "readwrite"
	case r.Write:
		return "write"
	}
	return "read"
}

func (r Rights) permission() clientv3.PermissionType {
	switch {
	case r.Read && r.Write:
		return clientv3.PermissionType(clientv3.PermReadWrite)
	case r.Write:
		return clientv3.PermissionType(clientv3.PermWrite)
	}
	return clientv3.PermissionType(clientv3.PermRead)
}

// Access is who may do what in etcd.
type Access struct {
	Enabled bool
	// Roles by name. The role root is not among them: it has all rights anyway.
	Roles map[string]map[Range]Rights
	// Users by name, with the names of their roles, sorted.
	Users map[string][]string
}

// Access reads it. With authentication enabled that is for the role root.
func (c *Client) Access(ctx context.Context) (Access, error) {
	etcd, err := c.conn(ctx)
	if err != nil {
		return Access{}, err
	}
	a := Access{Roles: map[string]map[Range]Rights{}, Users: map[string][]string{}}
	status, err := etcd.AuthStatus(ctx)
	if err != nil {
		return a, c.classify("read whether authentication is enabled", err)
	}
	a.Enabled = status.Enabled
	roles, err := etcd.RoleList(ctx)
	if err != nil {
		return a, c.classify("list the roles", err)
	}
	for _, name := range roles.Roles {
		if name == RootUser {
			continue
		}
		role, err := etcd.RoleGet(ctx, name)
		if err != nil {
			return a, c.classify("read role "+name, err)
		}
		a.Roles[name] = map[Range]Rights{}
		for _, p := range role.Perm {
			a.Roles[name][Range{string(p.Key), string(p.RangeEnd)}] = Rights{
				Read: p.PermType != authpb.WRITE, Write: p.PermType != authpb.READ,
			}
		}
	}
	users, err := etcd.UserList(ctx)
	if err != nil {
		return a, c.classify("list the users", err)
	}
	for _, name := range users.Users {
		user, err := etcd.UserGet(ctx, name)
		if err != nil {
			return a, c.classify("read user "+name, err)
		}
		a.Users[name] = slices.Sorted(slices.Values(user.Roles))
	}
	return a, nil
}

// AccessVerb is a kind of change of [Access].
type AccessVerb string

// The kinds of changes, and what each needs beside User or Role.
const (
	AddUser     AccessVerb = "add user" // without a Password only a certificate can prove it
	DeleteUser  AccessVerb = "delete user"
	AddRole     AccessVerb = "add role"
	DeleteRole  AccessVerb = "delete role"           // takes it from all users
	GrantRights AccessVerb = "grant"                 // Role, Range, Rights: in place of those on the very same range
	RevokeRange AccessVerb = "revoke"                // Role, Range
	GiveRole    AccessVerb = "grant role"            // User, Role
	TakeRole    AccessVerb = "revoke role"           // User, Role
	EnableAuth  AccessVerb = "enable authentication" // needs the user root with the role root
	DisableAuth AccessVerb = "disable authentication"
)

// AccessChange is one change of [Access].
type AccessChange struct {
	Verb       AccessVerb
	User, Role string
	Range      Range
	Rights     Rights
	Password   string
}

// String is a line for a person, with + for more and - for less.
func (c AccessChange) String() string {
	switch c.Verb {
	case AddUser:
		return "+ user " + c.User
	case DeleteUser:
		return "- user " + c.User
	case AddRole:
		return "+ role " + c.Role
	case DeleteRole:
		return "- role " + c.Role
	case GrantRights:
		return fmt.Sprintf("+ role %s: %s %s", c.Role, c.Rights, c.Range)
	case RevokeRange:
		return fmt.Sprintf("- role %s: %s %s", c.Role, c.Rights, c.Range)
	case GiveRole:
		return fmt.Sprintf("+ user %s: role %s", c.User, c.Role)
	case TakeRole:
		return fmt.Sprintf("- user %s: role %s", c.User, c.Role)
	}
	return "+ " + string(c.Verb)
}

// ChangeAccess makes one change.
func (c *Client) ChangeAccess(ctx context.Context, change AccessChange) error {
	etcd, err := c.conn(ctx)
	if err != nil {
		return err
	}
	user, role, r := change.User, change.Role, change.Range
	switch change.Verb {
	case AddUser:
		_, err = etcd.UserAddWithOptions(ctx, user, change.Password, &clientv3.UserAddOptions{NoPassword: change.Password == ""})
	case DeleteUser:
		_, err = etcd.UserDelete(ctx, user)
	case AddRole:
		_, err = etcd.RoleAdd(ctx, role)
	case DeleteRole:
		_, err = etcd.RoleDelete(ctx, role)
	case GrantRights:
		_, err = etcd.RoleGrantPermission(ctx, role, r.Key, r.End, change.Rights.permission())
	case RevokeRange:
		_, err = etcd.RoleRevokePermission(ctx, role, r.Key, r.End)
	case GiveRole:
		_, err = etcd.UserGrantRole(ctx, user, role)
	case TakeRole:
		_, err = etcd.UserRevokeRole(ctx, user, role)
	case EnableAuth:
		_, err = etcd.AuthEnable(ctx)
	case DisableAuth:
		_, err = etcd.AuthDisable(ctx)
	default:
		return fmt.Errorf("store: change of access: unknown verb %q", change.Verb)
	}
	if err != nil {
		return c.classify(change.String(), err)
	}
	return nil
}
