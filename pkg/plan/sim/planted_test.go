package sim

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// mutation is one place of the decision code, and what stands there instead in a
// build for these tests. The new text holds one or more planted("fault"): with
// none of them it means the same as the old.
type mutation struct{ file, old, new string }

// mutations leave out each guard of each rule. Each old text is in its file
// exactly once, so that none is forgotten when the code changes.
var mutations = []mutation{
	// R1: places above the line.
	{"plan/ladder.go", `state.MED(l.Standby + v.rank)`, `state.MED(l.Standby + v.rank*unless("r1-rank"))`},
	{"plan/ladder.go", `state.MED(l.Backup + l.SiteStep*v.siteRank + v.rank)`, `state.MED(l.Backup + l.SiteStep*v.siteRank*unless("r1-site-rank") + v.rank)`},
	{"plan/announce.go", `return m.Announcing && m.Announced <= v.line && (m.W`, `return !planted("r1-unclaimed-on-a-new-ladder") && m.Announcing && m.Announced <= v.line && (m.W`},

	// R2: claim first, then announce.
	{"plan/announce.go", `if lowers && !v.confirmed(*m, want) {`, `if lowers && !planted("r2-claim-first") && !v.confirmed(*m, want) {`},
	{"plan/announce.go", `if v.Sessions == 0 {`, `if v.Sessions == 0 && !planted("r2-session") {`},
	{
		"plan/announce.go", `return c.Valid && c.MED <= want && c.TargetRevision == v.target.Revision && c.OwnerRevision == v.owner.Revision`,
		`return c.Valid && (planted("r2-confirmed-med") || c.MED <= want) && (planted("r2-confirmed-target") || c.TargetRevision == v.target.Revision) &&
			(planted("r2-confirmed-owner") || c.OwnerRevision == v.owner.Revision)`,
	},
	{"plan/announce.go", `MED: lower(v.claim.MED, want),`, `MED: either("r2-min-of-claim-and-med", want, lower(v.claim.MED, want)),`},
	{"plan/announce.go", `m.Confirmed = Confirmation{} // the way back`, `m.Confirmed = either("r2-way-back", m.Confirmed, Confirmation{}) // the way back`},
	{
		"plan/announce.go", "case m.Pending || !in.Fresh:\n			d.Claim = nil",
		"case m.Pending && !planted(\"r2-one-outstanding\") || !in.Fresh && !planted(\"r7-no-claims\"):\n			d.Claim = nil",
	},
	{"plan/claim.go", "if m.Pending || !v.Fresh {\n		return nil\n	}\n	floor :=", "if m.Pending && !planted(\"r2-one-outstanding\") || !v.Fresh && !planted(\"r7-no-claims\") {\n		return nil\n	}\n	floor :="},
	{"plan/announce.go", `if !d.Claim.Lowering {`, `if !d.Claim.Lowering && !planted("r2-confirmed-though-raised") {`},

	// R3: raise, see it on the wire, then claim.
	{"plan/claim.go", "if m.flushedSince.IsZero() {\n		d.wake(v.Now.Add(flushPoll))\n		return nil\n	}\n	if end :=", "if m.flushedSince.IsZero() && !planted(\"r3-flushed\") {\n		d.wake(v.Now.Add(flushPoll))\n		return nil\n	}\n	if end :="},
	{"plan/claim.go", "v.Now.Before(end) {\n		d.wake(end)\n		return nil\n	}\n	return &ClaimWrite{MED: floor, ClaimRevision: v.claim.Revision}", "v.Now.Before(end) && !planted(\"r3-settle-delay\") && !planted(\"r3-flushed\") {\n		d.wake(end)\n		return nil\n	}\n	return &ClaimWrite{MED: floor, ClaimRevision: v.claim.Revision}"},
	{"plan/announce.go", `case m.Announcing != announces || announces && m.Announced != d.MED || !in.Flushed:`, `case !planted("r3-flushed-since") && (m.Announcing != announces || announces && m.Announced != d.MED) || !in.Flushed && !planted("r3-flushed-of-sessions"):`},

	// R4: the rightful node, and what it announces.
	{
		"plan/ladder.go", `return v.owns && v.hasTarget && v.target.Site == v.Self.Site && v.CanServe`,
		`return (v.owns || planted("r4-owner")) && v.hasTarget && (v.target.Site == v.Self.Site || planted("r4-target")) && (v.CanServe || planted("r4-can-serve"))`,
	},
	{
		"plan/ladder.go", `v.owns = v.leased && v.owner.Node == in.Self.Name && v.owner.Lease == in.Lease`,
		`v.owns = (v.leased || planted("r4-owner-without-lease") && v.owner.Node != "") && (v.owner.Node == in.Self.Name || planted("r4-owner-by-name")) &&
			(v.owner.Lease == in.Lease || planted("r4-owner-by-lease") || planted("r4-owner-without-lease"))`,
	},
	{"plan/ladder.go", `(v.lowest == state.NoMED || claim.MED < v.lowest)`, `(v.lowest == state.NoMED || claim.MED < v.lowest || planted("r4-below-every-claim"))`},
	{"plan/announce.go", `return min(force, below), why, time.Time{}`, `return either("r4-force", v.line, min(force, below)), why, time.Time{}`},
	{"plan/announce.go", `if current != state.NoMED && current < v.lowest {`, `if current != state.NoMED && (current < v.lowest || planted("r4-stays-undercut")) {`},

	// R5: normalise.
	{"plan/announce.go", `int64(current) < int64(v.meds.Force)/2 || !v.Now.Before(end) {`, `(int64(current) < int64(v.meds.Force)/2 || !v.Now.Before(end) || planted("r5-quiet-time")) && !planted("r5-normalise") {`},
	{"plan/announce.go", "	m.quietSince = time.Time{}\n	why :=", "	m.quietSince = either(\"r5-quiet-anew\", m.quietSince, time.Time{})\n	why :="},

	// R6: make before break.
	{"plan/announce.go", `if stays {`, `if stays && !planted("r6-stays") {`},
	{
		"plan/announce.go", `covered := ok && owner.Node != v.Self.Name && claim.Revision != 0 && !claim.Bad && claim.MED != state.NoMED && claim.MED <= m.Announced`,
		`covered := (ok || planted("r6-owner") && owner.Node != "") && (owner.Node != v.Self.Name || planted("r6-own-claim")) && (claim.Revision != 0 && !claim.Bad || planted("r6-known-claim")) &&
			(claim.MED != state.NoMED || planted("r6-claim-below")) && (claim.MED <= m.Announced || planted("r6-claim-not-above"))`,
	},
	{"plan/announce.go", "	if !covered {\n		m.coveredSince = time.Time{}", "	if !covered {\n		m.coveredSince = either(\"r6-covered-anew\", m.coveredSince, time.Time{})"},
	{"plan/announce.go", "v.Now.Before(end) {\n		wait.Reason = fmt.Sprintf(\"lets routers", "v.Now.Before(end) && !planted(\"r6-settle-delay\") {\n		wait.Reason = fmt.Sprintf(\"lets routers"},
	{"plan/announce.go", "if !v.hasTarget {\n		m.coveredSince = time.Time{}", "if !v.hasTarget {\n		m.coveredSince = either(\"r6-no-target-anew\", m.coveredSince, time.Time{})"},

	// R7: etcd can't be reached.
	{"plan/announce.go", "if m.Announcing && !v.Fresh {\n			return v.frozen(*m)", "if m.Announcing && !v.Fresh && !planted(\"r7-nothing-moves\") {\n			return v.frozen(*m)"},
	{"plan/announce.go", "	if !v.Fresh {\n		if m.Announcing {\n			return v.frozen(*m)", "	if !v.Fresh && !planted(\"r7-rightful-moves\") {\n		if m.Announcing {\n			return v.frozen(*m)"},
	{"plan/announce.go", "	if !v.Fresh {\n		// What was seen", "	if !v.Fresh && !planted(\"r7-waits-anew\") {\n		// What was seen"},

	// R9: eligibility, candidacy, cold nodes, drains.
	{"plan/ladder.go", `v.CanServe = in.CanServe && !in.Cold`, `v.CanServe = (in.CanServe || planted("r9-can-serve")) && (!in.Cold || planted("r9-cold"))`},
	{
		"plan/candidacy.go", `return v.CanServe && v.Sessions > 0 && v.Lease != 0 && v.Withdraw == nil && !v.drained`,
		`return (v.CanServe || planted("r9-fit-serves")) && (v.Sessions > 0 || planted("r9-fit-session")) && (v.Lease != 0 || planted("r9-fit-lease")) &&
			v.Withdraw == nil && (!v.drained || planted("r9-fit-drained"))`,
	},
	{"plan/candidacy.go", `case mine || v.leased || !v.fit():`, `case mine || v.leased && !planted("r9-never-overwritten") || !v.fit():`},
	{"plan/candidacy.go", `if v.Lease == 0 || !replaced {`, `if (v.Lease == 0 || !replaced && !planted("r9-resigns-to-nobody")) && !planted("r9-resigns") {`},
	{"plan/candidacy.go", `if end := m.unfitSince.Add(v.Hold); !v.drained &&`, `if end := m.unfitSince.Add(v.Hold); !planted("r9-unfit-for-a-hold-time") && !v.drained &&`},
	{"plan/candidacy.go", "if end := m.outrankedSince.Add(v.Hold); v.Now.Before(end) {", "if end := m.outrankedSince.Add(v.Hold); v.Now.Before(end) && !planted(\"r9-outranked-for-a-hold-time\") {"},
	{
		"plan/candidacy.go", `return alive && !a.Cold && a.BGPSessions > 0 && !drained && !slices.Contains(a.Unable, vip)`,
		`return alive && (!a.Cold || planted("r9-able-cold")) && (a.BGPSessions > 0 || planted("r9-able-session")) && (!drained || planted("r9-able-drained")) &&
			(planted("r9-able-unable") || !slices.Contains(a.Unable, vip))`,
	},
	{"plan/candidacy.go", `if !v.drained || m.Announcing && m.Announced <= v.line {`, `if !v.drained || m.Announcing && m.Announced <= v.line && !planted("r9-drained-at-the-line") {`},
	{"plan/candidacy.go", "m.silent = v.mayFallSilent()", `m.silent = v.mayFallSilent() || planted("r9-silent-alone")`},
	{"plan/candidacy.go", "if v.Fresh {\n\t\tm.silent", "if v.Fresh || planted(\"r7-drained\") {\n\t\tm.silent"},
	{"plan/warmth.go", "len(warm) == 0 &&", `len(warm) == 0 && !planted("r9-warm-peer-just-gone") &&`},
	{
		"plan/warmth.go", "	if !fresh {\n		return true,", "	if !fresh && !planted(\"r9-warm-without-etcd\") {\n		return true,",
	},
	{"plan/warmth.go", `counts == nil {`, `counts == nil && !planted("r9-parity-unknown") {`},
	{"plan/warmth.go", `if a, alive := s.Alive[p.name]; alive && !a.Cold {`, `if a, alive := s.Alive[p.name]; (alive || planted("r9-warm-and-dead")) && (!a.Cold || planted("r9-cold-is-no-warm-peer")) {`},

	// The hand-over of an agent that stops.
	{
		"plan/handover.go", `if !in.Fresh || v.unsettled() != "" || rightful && (v.lowest != state.NoMED || v.badClaim != "") {`,
		`if !in.Fresh && !planted("handover-fresh") || v.unsettled() != "" && !planted("handover-unsettled") ||
			rightful && (v.lowest != state.NoMED && !planted("handover-above-a-claim") || v.badClaim != "" && !planted("handover-bad-claim")) {`,
	},
	{"plan/handover.go", `n == in.Self.Name || !Able(in.Snapshot, n, vip)`, `n == in.Self.Name || !Able(in.Snapshot, n, vip) && !planted("handover-able")`},
	{"plan/handover.go", `if to == "" {`, `if to == "" && !planted("handover-to-nobody") {`},
	{"plan/withdraw.go", `Resign: !v.Withdraw.KeepOwnership &&`, `Resign: (!v.Withdraw.KeepOwnership || planted("handover-resigns")) &&`},
	{"plan/withdraw.go", `owned := !v.Withdraw.KeepOwnership &&`, `owned := (!v.Withdraw.KeepOwnership || planted("handover-never-done")) &&`},
	{"plan/withdraw.go", `v.Now.Before(end) {
		d.Role, d.MED, d.Farewell`, `v.Now.Before(end) && !planted("handover-no-farewell") {
		d.Role, d.MED, d.Farewell`},
	{"plan/withdraw.go", "if m.flushedSince.IsZero() {", "if m.flushedSince.IsZero() && !planted(\"handover-done-unflushed\") {"},
	{"plan/withdraw.go", "if v.Now.Before(end) {\n		d.wake(end)\n		return\n	}\n	owned", "if v.Now.Before(end) && !planted(\"handover-done-unsettled\") && !planted(\"handover-done-unflushed\") {\n		d.wake(end)\n		return\n	}\n	owned"},
	{"plan/withdraw.go", `d.Done = v.Fresh && v.claim.MED == state.NoMED &&`, `d.Done = v.Fresh && (v.claim.MED == state.NoMED || planted("handover-done-claimed")) &&`},

	// R10: automatic switchover.
	{
		"plan/automatic.go", `if !policy.Enabled || locked || paused || !v.Fresh || !v.owns || !v.fit() || !v.hasTarget || v.target.Site == v.Self.Site ||`,
		`if !policy.Enabled || locked && !planted("r10-lock") || paused && !planted("r10-pause") || !v.Fresh && !planted("r10-fresh") || !v.owns && !planted("r10-owner") ||
			!v.fit() && !planted("r10-fit") || !v.hasTarget || v.target.Site == v.Self.Site && !planted("r10-backup-site") ||`,
	},
	{"plan/automatic.go", `v.serving() || !v.arriving(policy) {`, `v.serving() && !planted("r10-serves-on") || !v.arriving(policy) && !planted("r10-traffic") {`},
	{"plan/automatic.go", "if end := m.settlingSince.Add(policy.Settle); v.Now.Before(end) {", "if end := m.settlingSince.Add(policy.Settle); v.Now.Before(end) && !planted(\"r10-settling-time\") {"},
	{"plan/automatic.go", "if end := m.arrivingSince.Add(policy.For); v.Now.Before(end) {", "if end := m.arrivingSince.Add(policy.For); v.Now.Before(end) && !planted(\"r10-for-the-time\") {"},
	{
		"plan/automatic.go", `m.settledTarget != v.target.Revision || m.wasLocked && !locked || m.wasPaused && !paused {`,
		`m.settledTarget != v.target.Revision && !planted("r10-settles-after-a-target") || m.wasLocked && !locked && !planted("r10-settles-after-a-lock") ||
			m.wasPaused && !paused && !planted("r10-settles-after-a-pause") {`,
	},
	{"plan/automatic.go", `return mine >= policy.Floor && mine*100 >= all*float64(policy.Share)`, `return mine >= policy.Floor && (mine*100 >= all*float64(policy.Share) || planted("r10-share"))`},
	{"plan/automatic.go", `alive && !known {`, `alive && !known && !planted("r10-rates-unknown") {`},

	// R13: a store that was restored. That a claim covers what is announced matters
	// where somebody has put another, and what people put is excused here; and a joined
	// says by its word of which epoch it is.
	{"plan/restore.go", `case v.Restored:`, `case v.Restored && !planted("r13-found"):`},
	{"plan/restore.go", `if len(waits) == 0 {`, `if len(waits) == 0 || planted("r13-joined") {`},
	{"plan/restore.go", `return v.Withdraw != nil && floor == state.NoMED && gone`, `return v.Withdraw != nil && floor == state.NoMED && (gone || planted("r13-no-claim-and-gone"))`},
	{
		"plan/restore.go", `return covers && !v.claim.Malformed && v.claim.Revision > v.Snapshot.Epoch.Revision`,
		`return covers && !v.claim.Malformed && (v.claim.Revision > v.Snapshot.Epoch.Revision || planted("r13-written-since"))`,
	},
	{
		"plan/restore.go", "	if m.flushedSince.IsZero() {\n		d.wake(v.Now.Add(flushPoll))\n		return nil\n	}\n	if end := m.flushedSince.Add(v.Snapshot.Settings.Settle); v.Now.Before(end) {",
		"	if m.flushedSince.IsZero() && !planted(\"r13-flushed\") {\n		d.wake(v.Now.Add(flushPoll))\n		return nil\n	}\n	if end := m.flushedSince.Add(v.Snapshot.Settings.Settle); v.Now.Before(end) && !planted(\"r13-settled\") && !planted(\"r13-flushed\") {",
	},
	{"plan/restore.go", `return &ClaimWrite{MED: v.floor(d.MED), ClaimRevision: v.claim.Revision}`, `return &ClaimWrite{MED: either("r13-claims-what-it-announces", state.NoMED, v.floor(d.MED)), ClaimRevision: v.claim.Revision}`},
	{"plan/restore.go", `!v.leased && (d.Holds || d.MED != state.NoMED && d.MED <= v.line)) {`, `!v.leased && (d.Holds || planted("r13-ownership-stays") || d.MED != state.NoMED && d.MED <= v.line)) {`},
	{"plan/restore.go", `n := max(epochNumber(found.Epoch), epochNumber(s.Epoch.Word)) + 1`, `n := either("r13-epoch-newer-than-known", 0, max(epochNumber(found.Epoch), epochNumber(s.Epoch.Word))) + 1`},
	{"plan/restore.go", `held := s.WithOrders(h.before)`, `held := s.WithOrders(either("r13-intent-is-held", s, h.before))`},
	{"plan/restore.go", `if found.Over(s) && allJoined(s, self) && allJoined(held, self) {`, `if found.Over(s) && (allJoined(s, self) && allJoined(held, self) || planted("r13-held-until-all-have-joined")) {`},
	{"state/cache.go", "		e.latest.revision, e.good.revision = 0, 0\n", "		if !planted(\"r13-revisions-of-the-old-store\") {\n			e.latest.revision, e.good.revision = 0, 0\n		}\n"},

	// R12: faults in keys.
	{"plan/ladder.go", `case claim.Bad:`, `case claim.Bad && !planted("r12-bad-claim"):`},
	{"plan/claim.go", `if m.WrittenRevision != 0 && v.claim.Revision != m.WrittenRevision &&`, `if !planted("r12-own-claim-mended") && m.WrittenRevision != 0 && v.claim.Revision != m.WrittenRevision &&`},
	{"state/cache.go", `Target{Site: site, Revision: e.good.revision}`, `Target{Site: site, Revision: either("r12-target-with-its-revision", e.modRevision, e.good.revision)}`},
	{"state/cache.go", `if med, ok := e.good.value.(MED); ok {`, `if med, ok := e.good.value.(MED); ok && !(planted("r12-last-good-claim") && e.fault != "") {`},
}

// glueFaults leave out guards of the code around the decisions, which the
// simulator has in its own.
var glueFaults = []glue{
	glueClaimUnguarded, glueTargetUnguarded, glueOwnerUnguarded, glueCampaignUnguarded,
	glueSwitchTarget, glueSwitchOwner, glueSwitchLock, glueSwitchPause,
	glueAlwaysFlushed, glueDownIsFlushed, glueSessionsUncompared, glueAlwaysFresh, glueLateAnswer,
	glueStopsUnheard, glueStopsUnsaid, glueForgetEarly, glueForgetUnwatched, glueForgetClaim, glueForgetAlive,
	glueRestoreUnseen, glueMemoryOfOldStore, glueSavesWhileHeld, glueJoinsEarly, glueUsurperIgnored,
}

// helper is the file that the build for these tests has in each package besides.
const helper = `package %s

import "os"

var plantedFault = os.Getenv("MEDWAY_PLANTED_FAULT")

func planted(name string) bool { return plantedFault == name }

func unless(name string) uint32 {
	if planted(name) {
		return 0
	}
	return 1
}

func either[T any](name string, wrong, right T) T {
	if planted(name) {
		return wrong
	}
	return right
}
`

var plants = regexp.MustCompile(`(?:planted|unless|either)\("([a-z0-9-]+)"`)

// TestPlantedFaults: the simulator finds what each guard is for, once it is left out.
func TestPlantedFaults(t *testing.T) {
	if *glueFlag != "" || *seedFlag != 0 || os.Getenv("MEDWAY_PLANTED_FAULT") != "" {
		t.Skip("one fault is planted")
	}
	dir := t.TempDir()
	overlay, faults := plant(t, dir)
	binary := filepath.Join(dir, "sim.test")
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-overlay", overlay, "-o", binary, ".")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	run := func(fault string, g glue) (line string, failed bool) {
		cmd := exec.CommandContext(t.Context(), binary, "-test.run=^TestSchedules$", "-sim.brief", fmt.Sprintf("-sim.schedules=%d", *plantedFlag), "-sim.glue="+string(g))
		cmd.Env = append(os.Environ(), "MEDWAY_PLANTED_FAULT="+fault)
		out, err := cmd.CombinedOutput()
		for line := range strings.Lines(string(out)) {
			if _, why, ok := strings.Cut(line, "sim_test.go:"); ok {
				return strings.TrimSpace(why), err != nil
			}
		}
		return string(out), err != nil
	}
	if line, failed := run("", ""); failed {
		t.Fatalf("with no fault planted: %s", line)
	}
	caught, total, start := 0, 0, time.Now()
	only := regexp.MustCompile(*faultFlag)
	check := func(fault string, g glue) {
		name := fault + string(g)
		if !only.MatchString(name) {
			return
		}
		total++
		switch line, failed := run(fault, g); {
		case !failed:
			t.Errorf("%s SURVIVED %d schedules", name, *plantedFlag)
		case !promise.MatchString(line):
			t.Errorf("%s fails, but by no promise: %s", name, line)
		default:
			caught++
			t.Logf("%-34s %s", name, line)
		}
	}
	for _, fault := range faults {
		check(fault, "")
	}
	for _, g := range glueFaults {
		check("", g)
	}
	t.Logf("%d of %d planted faults caught in %s", caught, total, time.Since(start).Round(time.Second))
}

// promise is how a promise that is broken begins to be reported.
var promise = regexp.MustCompile(`^\d+: [RS]\d+: `)

// plant writes the sources with all mutations, and returns the overlay that
// puts them in the place of the shipped ones, and the faults' names.
func plant(t *testing.T, dir string) (overlay string, faults []string) {
	t.Helper()
	pkg, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	texts := map[string]string{}
	for _, m := range mutations {
		path := filepath.Join(pkg, m.file)
		if texts[path] == "" {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			texts[path] = string(text)
		}
		if n := strings.Count(texts[path], m.old); n != 1 {
			t.Errorf("%s: %q is there %d times, expected once: bring the table up to date", m.file, m.old, n)
		}
		texts[path] = strings.Replace(texts[path], m.old, m.new, 1)
		for _, found := range plants.FindAllStringSubmatch(m.new, -1) {
			if !slices.Contains(faults, found[1]) {
				faults = append(faults, found[1])
			}
		}
	}
	for _, name := range []string{"plan", "state"} {
		texts[filepath.Join(pkg, name, "planted.go")] = fmt.Sprintf(helper, name)
	}
	replace := map[string]string{}
	for path, text := range texts {
		file := filepath.Join(dir, fmt.Sprintf("%d-%s", len(replace), filepath.Base(path)))
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		replace[path] = file
	}
	text, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	overlay = filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlay, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return overlay, faults
}
