package plan

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/medway-lb/medway/pkg/state"
)

func addresses(list ...string) (out []netip.Addr) {
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func prefixList(list ...string) (out []netip.Prefix) {
	for _, p := range list {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func oneVIP(v state.VIP) *state.Snapshot {
	return &state.Snapshot{Ladder: state.DefaultLadder(), VIPs: map[string]state.VIP{"v": v}}
}

func expectRoutes(t *testing.T, got []Announcement, want ...Announcement) {
	t.Helper()
	same := cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
	if diff := cmp.Diff(want, got, same, cmpopts.EquateEmpty()); diff != "" {
		t.Error(diff)
	}
}

func TestAnnouncementsAreHostRoutesUnlessPrefixesAreSet(t *testing.T) {
	v := state.VIP{Addresses: addresses("203.0.113.10", "2001:db8::10")}
	v.Announcement.Communities = []uint32{7}
	expectRoutes(t, Announcements(oneVIP(v), "v", Decision{MED: 100}),
		Announcement{Prefix: netip.MustParsePrefix("203.0.113.10/32"), MED: 100, Communities: []uint32{7}},
		Announcement{Prefix: netip.MustParsePrefix("2001:db8::10/128"), MED: 100, Communities: []uint32{7}})

	v.Announcement.Prefixes = prefixList("203.0.113.0/24", "2001:db8::/48")
	expectRoutes(t, Announcements(oneVIP(v), "v", Decision{MED: 100}),
		Announcement{Prefix: netip.MustParsePrefix("203.0.113.0/24"), MED: 100, Communities: []uint32{7}},
		Announcement{Prefix: netip.MustParsePrefix("2001:db8::/48"), MED: 100, Communities: []uint32{7}})
	expectRoutes(t, Announcements(oneVIP(v), "other", Decision{MED: 100}))
}

// TestAPrefixIsAnnouncedWhileItHoldsAnAddressInForce: addresses are left out of
// a VIP for faults, such as another VIP that had them first.
func TestAPrefixIsAnnouncedWhileItHoldsAnAddressInForce(t *testing.T) {
	v := state.VIP{Addresses: addresses("203.0.113.10")} // .11 and 2001:db8::10 are left out
	v.Announcement.Prefixes = prefixList("203.0.113.0/24", "2001:db8::/48")
	expectRoutes(t, Announcements(oneVIP(v), "v", Decision{MED: 100}),
		Announcement{Prefix: netip.MustParsePrefix("203.0.113.0/24"), MED: 100})
	v.Addresses = nil
	expectRoutes(t, Announcements(oneVIP(v), "v", Decision{MED: 100}))
}

func TestAnnouncementsBearWhatTheirRungHas(t *testing.T) {
	v := state.VIP{Addresses: addresses("203.0.113.10")}
	v.Announcement.Communities = []uint32{5, 9}
	v.Announcement.Routes = map[state.Rung]state.Route{
		state.RungActive:     {Communities: []uint32{1, 9}},
		state.RungStandby:    {Communities: []uint32{2}, Prepend: 1},
		state.RungLastResort: {Communities: []uint32{3}, Prepend: 4},
	}
	for med, want := range map[state.MED]Announcement{
		0:   {Communities: []uint32{1, 5, 9}}, // force is unset, and nothing better is set
		99:  {Communities: []uint32{1, 5, 9}},
		100: {Communities: []uint32{1, 5, 9}},
		101: {Communities: []uint32{1, 5, 9}}, // unconfirmed is unset: as active
		109: {Communities: []uint32{1, 5, 9}},
		110: {Communities: []uint32{2, 5, 9}, Prepend: 1},
		499: {Communities: []uint32{2, 5, 9}, Prepend: 1},
		531: {Communities: []uint32{2, 5, 9}, Prepend: 1}, // backup is unset: as standby
		900: {Communities: []uint32{3, 5, 9}, Prepend: 4},
		908: {Communities: []uint32{3, 5, 9}, Prepend: 4},
	} {
		want.Prefix, want.MED = netip.MustParsePrefix("203.0.113.10/32"), uint32(med)
		expectRoutes(t, Announcements(oneVIP(v), "v", Decision{MED: med}), want)
	}
}

// TestWhatIsSetForWorseRolesIsNotForBetterOnes: an operator who sets the backup
// alone wants it told from the active one.
func TestWhatIsSetForWorseRolesIsNotForBetterOnes(t *testing.T) {
	v := state.VIP{Addresses: addresses("203.0.113.10")}
	v.Announcement.Routes = map[state.Rung]state.Route{state.RungBackup: {Prepend: 3}}
	for med, prepend := range map[state.MED]int{50: 0, 100: 0, 110: 0, 500: 3, 900: 3} {
		expectRoutes(t, Announcements(oneVIP(v), "v", Decision{MED: med}),
			Announcement{Prefix: netip.MustParsePrefix("203.0.113.10/32"), MED: uint32(med), Prepend: prepend})
	}
}

// TestEveryRoleHasItsRung: where a role has the MED that the ladder gives it,
// the rung is the role's.
func TestEveryRoleHasItsRung(t *testing.T) {
	own := state.Ladder{Force: 1000, Step: 10, Active: 2000, Unconfirmed: 2001, Standby: 2010, Backup: 3000, SiteStep: 20, LastResort: 4000}
	for name, ladder := range map[string]*state.Ladder{"that of all": nil, "the VIP's own": &own} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(map[string]int{"dc1": 2, "dc2": 2})
			v := w.etcd.VIPs["v"]
			v.Announcement.Ladder = ladder
			w.etcd.VIPs["v"] = v
			w.setTarget("dc1")
			seen := map[Role]bool{}
			check := func(d Decision) {
				seen[d.Role] = true
				want := map[Role]state.Rung{
					ForceActive: state.RungForce, Active: state.RungActive, Unconfirmed: state.RungUnconfirmed,
					ActiveStandby: state.RungStandby, BackupOwner: state.RungBackup, BackupStandby: state.RungBackup,
					LastResort: state.RungLastResort, Leaving: state.RungActive,
				}[d.Role]
				if rung := rungOf(LadderOf(w.etcd, "v"), d.MED); rung != want {
					t.Errorf("%s, MED %s is on rung %s, expected %s", d.Role, d.MED, rung, want)
				}
			}
			for _, name := range w.names {
				w.start(name)
				w.campaign(name)
			}
			for range 20 {
				for _, name := range w.names {
					check(w.decide(name))
					w.commit(name)
				}
			}
			w.setTarget("dc2")
			check(w.decide("dc1-0")) // leaving
			_ = w.decide("dc2-0")
			w.commit("dc2-0")
			check(w.decide("dc2-0")) // force
			check(w.decide("dc2-1", unable))
			if len(seen) != 8 {
				t.Errorf("not every role was seen: %v", seen)
			}
		})
	}
}

// TestNoWorseMEDIsPreferredByPath: where a transit ignores MED, the length of
// the path takes its place, and must never contradict it.
func TestNoWorseMEDIsPreferredByPath(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := state.VIP{Addresses: addresses("203.0.113.10")}
		v.Announcement.Routes = map[state.Rung]state.Route{}
		least := 0
		for _, rung := range state.Rungs {
			if rapid.Bool().Draw(t, "set") {
				least = rapid.IntRange(least, 32).Draw(t, "prepend")
				v.Announcement.Routes[rung] = state.Route{Prepend: least}
			}
		}
		low := rapid.Int64Range(0, 1000).Draw(t, "low")
		high := rapid.Int64Range(low, 1000).Draw(t, "high")
		better := Announcements(oneVIP(v), "v", Decision{MED: state.MED(low)})
		worse := Announcements(oneVIP(v), "v", Decision{MED: state.MED(high)})
		if better[0].Prepend > worse[0].Prepend {
			t.Fatalf("MED %d has %d prepends, MED %d has %d", low, better[0].Prepend, high, worse[0].Prepend)
		}
	})
}

func TestFarewellIsTheLastResortWithGracefulShutdown(t *testing.T) {
	w := newWorld(map[string]int{"dc1": 1, "dc2": 1})
	v := w.etcd.VIPs["v"]
	v.Addresses = addresses("203.0.113.10")
	v.Announcement.Communities = []uint32{7}
	v.Announcement.Routes = map[state.Rung]state.Route{
		state.RungActive:     {Communities: []uint32{1}},
		state.RungLastResort: {Communities: []uint32{2, gracefulShutdown}, Prepend: 3},
	}
	w.etcd.VIPs["v"] = v
	want := Announcement{
		Prefix: netip.MustParsePrefix("203.0.113.10/32"), MED: 901, Prepend: 3, Communities: []uint32{2, 7, gracefulShutdown},
	}
	self := Self{Name: "dc2-0", Site: "dc2", Group: "g"}
	expectRoutes(t, Farewell(w.etcd, self, "v"), want)
	own := state.DefaultLadder()
	own.LastResort = 2000
	v.Announcement.Ladder = &own
	w.etcd.VIPs["v"] = v
	want.MED = 2001
	expectRoutes(t, Farewell(w.etcd, self, "v"), want)
	if !slices.Equal(v.Announcement.Communities, []uint32{7}) {
		t.Error("the snapshot was changed")
	}
}
