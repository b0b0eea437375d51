package access

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/medway-lb/medway/pkg/store"
)

func lines(list []store.AccessChange) []string {
	var out []string
	for _, c := range list {
		out = append(out, c.String())
	}
	return out
}

// apply does to an Access what etcd would do.
func applyChanges(t *testing.T, a store.Access, list []store.AccessChange) store.Access {
	t.Helper()
	out := store.Access{Enabled: a.Enabled, Roles: map[string]map[store.Range]store.Rights{}, Users: map[string][]string{}}
	for name, rights := range a.Roles {
		out.Roles[name] = maps.Clone(rights)
	}
	for name, roles := range a.Users {
		out.Users[name] = slices.Clone(roles)
	}
	for _, c := range list {
		switch c.Verb {
		case store.AddUser:
			out.Users[c.User] = nil
		case store.DeleteUser:
			delete(out.Users, c.User)
		case store.AddRole:
			out.Roles[c.Role] = map[store.Range]store.Rights{}
		case store.DeleteRole:
			delete(out.Roles, c.Role)
			for user, roles := range out.Users {
				out.Users[user] = slices.DeleteFunc(roles, func(r string) bool { return r == c.Role })
			}
		case store.GrantRights:
			out.Roles[c.Role][c.Range] = c.Rights
		case store.RevokeRange:
			delete(out.Roles[c.Role], c.Range)
		case store.GiveRole:
			out.Users[c.User] = slices.Sorted(slices.Values(append(out.Users[c.User], c.Role)))
		case store.TakeRole:
			out.Users[c.User] = slices.DeleteFunc(out.Users[c.User], func(r string) bool { return r == c.Role })
		case store.EnableAuth:
			out.Enabled = true
		default:
			t.Fatalf("change %v", c)
		}
	}
	return out
}

var team = People{nodes: map[string]string{"n1": "dc1"}, operators: []string{"alice"}, viewers: []string{"grafana"}}

func TestChangesFromNothing(t *testing.T) {
	want := []string{
		"+ role medway-node-n1",
		"+ role medway-node-n1: write /medway/history/*",
		"+ role medway-node-n1: read /medway/status/*",
		"+ role medway-node-n1: write /medway/status/n1",
		"+ role medway-node-n1: read /medway/v1/*",
		"+ role medway-node-n1: write /medway/v1/alive/n1",
		"+ role medway-node-n1: write /medway/v1/claims/n1/*",
		"+ role medway-node-n1: write /medway/v1/epoch",
		"+ role medway-node-n1: write /medway/v1/joined/n1",
		"+ role medway-node-n1: write /medway/v1/locks/*",
		"+ role medway-node-n1: write /medway/v1/nodes/n1",
		"+ role medway-node-n1: write /medway/v1/owners/dc1/*",
		"+ role medway-node-n1: write /medway/v1/target_state/*",
		"+ role medway-operator",
		"+ role medway-operator: readwrite /medway/*",
		"+ role medway-viewer",
		"+ role medway-viewer: read /medway/evacuations/*", "+ role medway-viewer: read /medway/history/*", "+ role medway-viewer: read /medway/status/*",
		"+ role medway-viewer: read /medway/switchovers/*", "+ role medway-viewer: read /medway/v1/*",
		"+ user alice", "+ user alice: role medway-operator",
		"+ user grafana", "+ user grafana: role medway-viewer",
		"+ user n1", "+ user n1: role medway-node-n1",
		"+ user root", "+ user root: role root",
		"+ enable authentication",
	}
	list := changes(store.Access{}, team.Access(), false, "root")
	if diff := cmp.Diff(want, lines(list)); diff != "" {
		t.Error(diff)
	}
	have := applyChanges(t, store.Access{}, list)
	if diff := cmp.Diff(team.Access(), have); diff != "" {
		t.Error(diff)
	}
	// Nobody is named the second time: all are remembered, and nothing is to do.
	all, err := People{}.remember(have)
	if err != nil {
		t.Fatal(err)
	}
	if list := changes(have, all.Access(), false, "root"); len(list) != 0 {
		t.Errorf("the second time: %q", lines(list))
	}
}

// What is too much goes after what is missing has come; what is not medway's stays.
func TestChangesOfWhatDiffers(t *testing.T) {
	for _, test := range []struct {
		name  string
		spoil func(*store.Access)
		named People
		prune bool
		want  []string
	}{
		{"a right too many", func(a *store.Access) {
			a.Roles["medway-node-n1"][store.PrefixRange("/medway/v1/claims/")] = store.Rights{Write: true}
		}, People{}, false, []string{"- role medway-node-n1: write /medway/v1/claims/*"}},
		{"a key made a prefix", func(a *store.Access) {
			delete(a.Roles["medway-node-n1"], store.KeyRange("/medway/v1/nodes/n1"))
			a.Roles["medway-node-n1"][store.PrefixRange("/medway/v1/nodes/n1")] = store.Rights{Write: true}
		}, People{}, false, []string{"+ role medway-node-n1: write /medway/v1/nodes/n1", "- role medway-node-n1: write /medway/v1/nodes/n1*"}},
		{"everything from here on", func(a *store.Access) {
			a.Roles["medway-viewer"][store.Range{Key: "/a", End: "\x00"}] = store.Rights{Read: true}
		}, People{}, false, []string{`- role medway-viewer: read ["/a", "\x00")`}},
		{"reading became writing", func(a *store.Access) {
			a.Roles["medway-viewer"][store.PrefixRange("/medway/")] = store.Rights{Read: true, Write: true}
		}, People{}, false, []string{"- role medway-viewer: readwrite /medway/*"}},
		{"a node with a role of its own and root's", func(a *store.Access) {
			a.Users["n1"] = []string{"medway-node-n1", "root"}
		}, People{}, false, []string{"- user n1: role root"}},
		{"an operator who is root too, and others' users and roles", func(a *store.Access) {
			a.Users["alice"] = []string{"medway-operator", "root"}
			a.Users["shop"], a.Roles["shop"] = []string{"shop"}, map[store.Range]store.Rights{store.PrefixRange("/shop/"): {Read: true}}
		}, People{}, false, nil},
		{"a node moves", func(*store.Access) {}, People{nodes: map[string]string{"n1": "dc2"}}, false, []string{
			"+ role medway-node-n1: write /medway/v1/owners/dc2/*", "- role medway-node-n1: write /medway/v1/owners/dc1/*",
		}},
		{"a viewer becomes an operator", func(*store.Access) {}, People{operators: []string{"grafana"}}, false, []string{
			"+ user grafana: role medway-operator", "- user grafana: role medway-viewer",
		}},
		{"a node's user is deleted, for its key is lost", func(a *store.Access) { delete(a.Users, "n1") }, People{}, false, nil},
		{"a node's role is taken from it", func(a *store.Access) { a.Users["n1"] = nil }, People{}, false, nil},
		{"a node's user is deleted, and is named again", func(a *store.Access) { delete(a.Users, "n1") }, People{nodes: map[string]string{"n1": "dc1"}}, false, []string{
			"+ user n1", "+ user n1: role medway-node-n1",
		}},
		{"what a killed run left", func(a *store.Access) { a.Users[rescuer] = []string{"root"} }, People{}, false, []string{"- user " + rescuer}},
		{"prune", func(a *store.Access) {
			a.Users["alice"] = []string{"medway-operator", "shop"}
			a.Users["shop"], a.Roles["shop"] = []string{"shop"}, nil
		}, People{viewers: []string{"grafana"}}, true, []string{
			"- user alice: role medway-operator", "- user n1", "- role medway-node-n1",
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			have := applyChanges(t, store.Access{}, changes(store.Access{}, team.Access(), false, "root"))
			test.spoil(&have)
			named, err := test.named, error(nil)
			if !test.prune {
				if named, err = named.remember(have); err != nil {
					t.Fatal(err)
				}
			}
			list := changes(have, named.Access(), test.prune, "root")
			if diff := cmp.Diff(test.want, lines(list)); diff != "" {
				t.Error(diff)
			}
			after := applyChanges(t, have, list)
			if !test.prune {
				if named, err = test.named.remember(after); err != nil {
					t.Fatal(err)
				}
			}
			if list := changes(after, named.Access(), test.prune, "root"); len(list) != 0 {
				t.Errorf("the second time: %q", lines(list))
			}
		})
	}
}

// allowed is etcd's rule: a key is allowed by the ranges that hold it.
func allowed(rights map[store.Range]store.Rights, key string, write bool) bool {
	for r, what := range rights {
		if (write && what.Write || !write && what.Read) && (key == r.Key || r.End != "" && key >= r.Key && key < r.End) {
			return true
		}
	}
	return false
}

// Names that begin like a node's or a site's open nothing.
func TestNodeRightsHaveNoNeighbours(t *testing.T) {
	rights := nodeRights("dc1-lvs-a", "dc1")
	for _, key := range []string{
		"nodes/dc1-lvs-a", "alive/dc1-lvs-a", "claims/dc1-lvs-a/sip-1", "owners/dc1/sip-1",
		"joined/dc1-lvs-a", "epoch", "target_state/sip-1", "locks/sip-1",
	} {
		if !allowed(rights, "/medway/v1/"+key, true) {
			t.Errorf("may not write %s", key)
		}
	}
	for _, key := range []string{
		"nodes/dc1-lvs-ab", "nodes/dc1-lvs-a/x", "nodes/dc1-lvs-", "alive/dc1-lvs-ab", "alive/dc1-lvs-a/x",
		"claims/dc1-lvs-ab/sip-1", "claims/dc1-lvs-a-b/sip-1", "claims/dc1-lvs-a", "claims/dc1-lvs-a0", "claims/dc2-lvs-a/sip-1",
		"owners/dc1", "owners/dc10/sip-1", "owners/dc1-b/sip-1", "owners/dc10", "owners/dc2/sip-1",
		"vips/sip-1", "pools/sbc", "backends/sbc/b1", "drains/sbc/b1", "settings", "ladder", "joined/dc1-lvs-ab", "epoch/x", "node_drains/dc1-lvs-a", "pauses/sip-1", "pause",
	} {
		if allowed(rights, "/medway/v1/"+key, true) {
			t.Errorf("may write %s", key)
		}
	}
	for _, key := range []string{"/medway/", "/", "a", "/medway/v2/nodes/dc1-lvs-a"} {
		if allowed(rights, key, true) || allowed(rights, key, false) {
			t.Errorf("may reach %s", key)
		}
	}
	if allowed(rights, "/medway/status/dc1-lvs-ab", true) || allowed(rights, "/medway/history/sip-1/1", false) {
		t.Error("writes another node's status, or reads history")
	}
	if !allowed(rights, "/medway/v1/vips/sip-1", false) || !allowed(rights, "/medway/status/dc1-lvs-ab", false) {
		t.Error("does not read /medway/v1/ and /medway/status/")
	}
}

func TestRememberNeedsASite(t *testing.T) {
	for _, keys := range [][]string{nil, {"dc1", "dc2"}, {"DC1"}} {
		rights := map[store.Range]store.Rights{store.KeyRange("/medway/v1/owners/dc1/"): {Write: true}}
		for _, site := range keys {
			rights[store.PrefixRange("/medway/v1/owners/"+site+"/")] = store.Rights{Write: true}
		}
		have := store.Access{
			Roles: map[string]map[store.Range]store.Rights{"medway-node-n1": rights},
			Users: map[string][]string{"n1": {"medway-node-n1"}},
		}
		if _, err := (People{}).remember(have); err == nil || !strings.Contains(err.Error(), "--node n1=SITE") {
			t.Errorf("sites %v: %v", keys, err)
		}
		if _, err := team.remember(have); err != nil {
			t.Errorf("sites %v, and named: %v", keys, err)
		}
	}
}

func TestPeopleAreChecked(t *testing.T) {
	for _, test := range []struct {
		nodes, operators, viewers []string
		want                      string
	}{
		{nodes: []string{"n1"}, want: `flag --node: value "n1": expected NAME=SITE`},
		{nodes: []string{"N1=dc1"}, want: `flag --node: value "N1=dc1": name "N1"`},
		{nodes: []string{"n1="}, want: `name ""`},
		{nodes: []string{"n1=dc1/"}, want: `name "dc1/"`},
		{nodes: []string{"root=dc1"}, want: "root is etcd's administrator"},
		{nodes: []string{"n1=dc1", "n1=dc2"}, want: "it is in --node already"},
		{nodes: []string{"n1=dc1"}, viewers: []string{"n1"}, want: `flag --viewer: value "n1": it is in --node already`},
		{operators: []string{"root"}, want: "flag --operator"},
		{operators: []string{rescuer}, want: "it is init-etcd's own"},
		{operators: []string{""}, want: "flag --operator"},
		{operators: []string{" alice"}, want: "flag --operator"},
		{viewers: []string{"a,b"}, want: "flag --viewer"},
		{viewers: []string{"../a"}, want: "flag --viewer"},
		{viewers: []string{"a\nb"}, want: "flag --viewer"},
		{viewers: []string{strings.Repeat("x", 65)}, want: "flag --viewer"},
	} {
		if _, err := ParsePeople(test.nodes, test.operators, test.viewers); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v: error %v, expected it to contain %q", fmt.Sprint(test), err, test.want)
		}
	}
	if _, err := ParsePeople([]string{"n1=dc1"}, []string{"alice@example.com"}, []string{"Bob Miller"}); err != nil {
		t.Error(err)
	}
}
