package store

import (
	"errors"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// A user with rights on one prefix can follow it, also after its token has
// become invalid (a server forgets its simple tokens when it restarts).
func TestUserWithRightsOnOnePrefix(t *testing.T) {
	t.Parallel()
	cl := newCluster(t, 1)
	enableAuth(t, open(t, Config{Endpoints: cl.endpoints()}).etcd)
	c := open(t, Config{Endpoints: cl.endpoints(), Username: "agent", Password: "secret", ProbeInterval: quick})
	m := follow(t, c, "/mine/")
	m.untilRevision(put(t, c, "/mine/a", "1"))
	untilFresh(t, c, time.Now())

	if _, _, err := c.Commit(deadline(t), nil, []Put{{Key: "/theirs/a"}}, nil); !errors.Is(err, ErrRefused) {
		t.Errorf("write without the right: %v", err)
	}
	if _, _, err := c.Commit(deadline(t), []Guard{{Key: "/theirs/a"}}, []Put{{Key: "/mine/a"}}, nil); !errors.Is(err, ErrRefused) {
		t.Errorf("guard without the right to read: %v", err)
	}
	l, err := c.Grant(deadline(t), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	cl.kill(0)
	cl.start(t, 0)
	if err := l.Renew(deadline(t)); err != nil {
		t.Errorf("renew with an old token: %v", err)
	}
	m.untilRevision(put(t, c, "/mine/b", "1"))
	untilFresh(t, c, time.Now())
	m.same(c)
}

func enableAuth(t *testing.T, etcd *clientv3.Client) {
	t.Helper()
	ctx := deadline(t)
	_, e1 := etcd.UserAdd(ctx, "root", "root")
	_, e2 := etcd.UserGrantRole(ctx, "root", "root")
	_, e3 := etcd.RoleAdd(ctx, "agent")
	_, e4 := etcd.RoleGrantPermission(ctx, "agent", "/mine/", clientv3.GetPrefixRangeEnd("/mine/"),
		clientv3.PermissionType(clientv3.PermReadWrite))
	_, e5 := etcd.UserAdd(ctx, "agent", "secret")
	_, e6 := etcd.UserGrantRole(ctx, "agent", "agent")
	_, e7 := etcd.AuthEnable(ctx)
	if err := errors.Join(e1, e2, e3, e4, e5, e6, e7); err != nil {
		t.Fatal(err)
	}
}
