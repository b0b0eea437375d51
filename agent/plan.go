package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/medway-lb/medway/agent/internal/local"
	"github.com/medway-lb/medway/pkg/intent"
	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/reconcile"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"
)

// Where Plan takes the intent from; "" is etcd, or the disk where etcd can't be
// reached.
const (
	FromEtcd = "etcd"
	FromDisk = "disk"
)

// Preview is what an agent would change on a host.
type Preview struct {
	// Source is FromEtcd or FromDisk.
	Source   string
	Revision int64
	// Saved is when the snapshot on disk was saved; zero for etcd.
	Saved time.Time
	// Objects is how many objects from files were put over it.
	Objects int
	// Unreachable is why it is not etcd though it should be.
	Unreachable error
	// NotTaken is why an agent that starts would not act on what etcd holds before
	// a person accepts it; nil: it would.
	NotTaken error
	// Faults are the keys that are wrong, each with the reason.
	Faults []state.Fault

	edits []reconcile.Edit
}

// Changes says whether there is anything to change.
func (p *Preview) Changes() bool { return len(p.edits) > 0 }

// announcementTable is the table of an edit that is a route of BGP's.
const announcementTable = "announcement"

// Plan returns what an agent with this configuration would change on this host
// if it looked now; with files of intent, once these were applied over what is
// stored. It reads, and changes nothing.
func Plan(ctx context.Context, c Config, from string, files []string, stdin io.Reader) (*Preview, error) {
	if err := mayLook(); err != nil {
		return nil, err
	}
	var objects []intent.Object
	var err error
	if len(files) > 0 {
		if objects, err = intent.Read(files, stdin); err != nil {
			return nil, err
		}
	}
	cache, p, err := c.stored(ctx, from)
	if err != nil {
		return nil, err
	}
	if err := p.with(cache, objects, c.reserved()); err != nil {
		return nil, err
	}
	return p, p.look(ctx, cache.Snapshot(), c.self(), c.announcedNow)
}

// with puts objects over what is stored, unless they would be refused there.
func (p *Preview) with(cache *state.Cache, objects []intent.Object, reserved map[netip.Addr]string) error {
	if len(objects) == 0 {
		return nil
	}
	var entries []store.Entry
	cache.Each(func(key string, value []byte, revision, lease int64) {
		entries = append(entries, store.Entry{Key: key, Value: value, ModRevision: revision, Lease: lease})
	})
	if _, err := intent.Check(entries, p.Revision, objects, reserved); err != nil {
		return err
	}
	for _, o := range objects {
		cache.Put(o.Key.String(), o.Value, p.Revision+1, 0)
	}
	p.Objects = len(objects)
	return nil
}

// announced are the routes that the agent on this host announces now, none where
// no agent runs, and the VIPs that a person has withdrawn.
type announced func(context.Context) (routes []plan.Announcement, withdrawn []string, err error)

func (c Config) announcedNow(ctx context.Context) (routes []plan.Announcement, withdrawn []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	s, err := local.NewClient(c.socket()).Status(ctx)
	if errors.Is(err, local.ErrNotRunning) {
		// One that starts reads this file, and is not kept from it by damage.
		vips, _ := readWithdrawals(c.withdrawalsFile())
		return nil, slices.Collect(maps.Keys(vips)), nil
	}
	for _, r := range s.Routes {
		a := plan.Announcement{Prefix: r.Prefix, MED: r.MED, Prepend: r.Prepend}
		for _, text := range r.Communities {
			var high, low uint32
			if _, err := fmt.Sscanf(text, "%d:%d", &high, &low); err != nil {
				return nil, nil, fmt.Errorf("community %q: %w", text, err)
			}
			a.Communities = append(a.Communities, high<<16|low)
		}
		routes = append(routes, a)
	}
	for _, w := range s.Withdrawn {
		withdrawn = append(withdrawn, w.VIP)
	}
	return routes, withdrawn, err
}

// mayLook says in time what else the kernel would say with EPERM and less.
func mayLook() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("capget: %w", err)
	}
	if data[0].Effective&(1<<unix.CAP_NET_ADMIN) == 0 {
		return errors.New("reading IPVS and iptables needs CAP_NET_ADMIN: run this as root")
	}
	return nil
}

// stored reads what etcd or the disk holds, as a starting agent does: where a
// value in etcd is malformed, the good one on disk stays in force.
func (c Config) stored(ctx context.Context, from string) (*state.Cache, *Preview, error) {
	cache := state.NewCache()
	cache.Reserve(c.reserved())
	disk, diskErr := store.LoadSnapshot(filepath.Join(c.StateDir, "snapshot"), c.Node)
	for _, e := range disk.Entries {
		// An old claim says nothing of what its node may announce now.
		if k, err := state.ParseKey(e.Key); err == nil && k.Kind != state.KindClaim {
			cache.Put(e.Key, e.Value, e.ModRevision, 0)
		}
	}
	var unreachable error
	if from != FromDisk {
		known := cache.Snapshot() // which also remembers the targets that are good
		all, err := c.list(ctx, cache)
		if err == nil {
			p := &Preview{Source: FromEtcd, Revision: all.Revision}
			if diskErr == nil {
				p.NotTaken = disk.Continues(all)
			}
			// One that was restored is taken once all nodes have joined its epoch.
			if p.NotTaken != nil && plan.Ours(nodesIn(all), known.Nodes, c.Node, known.Nodes[c.Node].MachineID) == nil {
				p.NotTaken = nil
			}
			return cache, p, nil
		}
		unreachable = fmt.Errorf("etcd can't be reached: %w", err)
		if from == FromEtcd {
			return nil, nil, unreachable
		}
	}
	if diskErr != nil {
		return nil, nil, errors.Join(unreachable, diskErr)
	}
	cache.SetRevision(disk.Revision)
	return cache, &Preview{Source: FromDisk, Revision: disk.Revision, Saved: disk.Saved, Unreachable: unreachable}, nil
}

// listTimeout is how long Plan waits for etcd before it takes the disk, and for
// the agent that runs.
const listTimeout = 5 * time.Second

// list brings all that etcd holds into the cache, and returns it.
func (c Config) list(ctx context.Context, cache *state.Cache) (all store.Update, err error) {
	tls, err := c.Etcd.tls()
	if err != nil {
		return all, err
	}
	client, err := store.Open(store.Config{Endpoints: c.Etcd.Endpoints, TLS: tls})
	if err != nil {
		return all, err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	if all, err = client.Whole(ctx, state.Prefix); err != nil {
		return all, err
	}
	keep := make(map[string]bool, len(all.Put))
	for _, e := range all.Put {
		keep[e.Key] = true
	}
	cache.Retain(keep)
	for _, e := range all.Put {
		cache.Put(e.Key, e.Value, e.ModRevision, e.Lease)
	}
	cache.SetRevision(all.Revision)
	return all, nil
}

// look compares the host with what a snapshot wants of it.
func (p *Preview) look(ctx context.Context, s *state.Snapshot, self plan.Self, now announced) error {
	p.Faults = slices.Concat(s.Faults, plan.Faults(s, self))
	d, loaded, err := readDataplane()
	if err != nil {
		return err
	}
	defer d.close()
	if !loaded {
		p.edits = append(p.edits, reconcile.Edit{Op: reconcile.Create, Key: "module ip_vs", Text: reconcile.Text{
			Table: "module", Commands: reconcile.Commands(reconcile.Create, "modprobe ip_vs"),
		}})
	}
	edits, err := d.preview(ctx, plan.KernelOf(s, self))
	if err != nil {
		return err
	}
	have, withdrawn, err := now(ctx)
	if err != nil {
		return fmt.Errorf("ask the running agent: %w", err)
	}
	p.edits = append(p.edits, withRoutes(edits, announcementEdits(announcements(s, self, have, withdrawn), have))...)
	return nil
}

// withRoutes puts routes between what is made and what is removed: they are
// announced when the host can serve them, and withdrawn before it no longer can.
func withRoutes(edits, routes []reconcile.Edit) []reconcile.Edit {
	removals := slices.IndexFunc(edits, func(e reconcile.Edit) bool { return e.Op == reconcile.Delete })
	if removals < 0 {
		removals = len(edits)
	}
	return slices.Concat(edits[:removals], routes, edits[removals:])
}

// announcements are the routes that the agent should announce. A MED that is
// announced already stays: where it moves next is decided with the other nodes,
// and not by this host's look at itself. What isn't announced yet gets the MED
// of an agent that has just started.
func announcements(s *state.Snapshot, self plan.Self, have []plan.Announcement, withdrawn []string) []plan.Announcement {
	if self.Segment != "" {
		return nil
	}
	meds := map[netip.Prefix]state.MED{}
	for _, a := range have {
		meds[a.Prefix] = state.MED(a.MED)
	}
	var out []plan.Announcement
	for _, vip := range plan.VIPs(s, self) {
		if slices.Contains(withdrawn, vip) {
			continue
		}
		_, decision := plan.Decide(plan.Memory{}, plan.Input{
			Snapshot: s, Self: self, Lease: -1, CanServe: plan.Equipped(s, vip), Now: time.Now(),
		}, vip)
		for _, a := range plan.Announcements(s, vip, decision) {
			if med, ok := meds[a.Prefix]; ok {
				decision = plan.Decision{MED: med}
			}
		}
		out = append(out, plan.Announcements(s, vip, decision)...)
	}
	return slices.DeleteFunc(out, func(a plan.Announcement) bool { return !self.Has(a.Prefix.Addr()) })
}

type prefix netip.Prefix

func (p prefix) String() string { return "route " + netip.Prefix(p).String() }

func announcementEdits(want, have []plan.Announcement) []reconcile.Edit {
	index := func(routes []plan.Announcement) map[prefix]string {
		out := map[prefix]string{}
		for _, a := range routes {
			out[prefix(a.Prefix)] = attributes(a)
		}
		return out
	}
	var edits []reconcile.Edit
	for _, c := range reconcile.Diff(index(want), index(have), nil) {
		edits = append(edits, reconcile.Edit{Op: c.Op, Key: c.Key.String(), Text: reconcile.Text{
			Table: announcementTable, Old: c.Old, New: c.New,
		}})
	}
	return edits
}

// attributes are a route's, in the words of router configurations.
func attributes(a plan.Announcement) string {
	out := fmt.Sprintf("med %d", a.MED)
	for i, c := range a.Communities {
		if i == 0 {
			out += " community"
		}
		out += fmt.Sprintf(" %d:%d", c>>16, c&0xffff)
	}
	if a.Prepend > 0 {
		out += fmt.Sprintf(" prepend %d", a.Prepend)
	}
	return out
}

// source says where the intent comes from.
func (p *Preview) source() string {
	out := fmt.Sprintf("etcd at revision %d", p.Revision)
	if p.Source == FromDisk {
		out = fmt.Sprintf("the snapshot on disk, saved %s (%s ago), at revision %d",
			p.Saved.Format(time.RFC3339), time.Since(p.Saved).Round(time.Second), p.Revision)
	}
	if p.Objects > 0 {
		out += fmt.Sprintf(" and the files given (%d objects)", p.Objects)
	}
	if p.Unreachable != nil {
		out += ": " + strings.ReplaceAll(p.Unreachable.Error(), "\n", "; ")
	}
	return out
}

// JSON writes the preview for programs.
func (p *Preview) JSON(out io.Writer) error {
	type change struct {
		Table    string   `json:"table"`
		Op       string   `json:"op"` // create, update or delete
		Key      string   `json:"key"`
		Old      string   `json:"old"`
		New      string   `json:"new"`
		Commands []string `json:"commands"`
	}
	type fault struct {
		Key    string `json:"key"`
		Reason string `json:"reason"`
		Notice bool   `json:"notice"` // in force all the same
	}
	doc := struct {
		Source   string   `json:"source"` // etcd or disk
		Saved    string   `json:"saved,omitempty"`
		Reason   string   `json:"reason,omitempty"`
		NotTaken string   `json:"not_taken,omitempty"` // why the agent would not act on it
		Revision int64    `json:"revision"`
		Objects  int      `json:"objects,omitempty"` // from files
		Faults   []fault  `json:"faults"`
		Changes  []change `json:"changes"`
	}{Source: p.Source, Revision: p.Revision, Objects: p.Objects, Faults: []fault{}, Changes: []change{}}
	if !p.Saved.IsZero() {
		doc.Saved = p.Saved.UTC().Format(time.RFC3339)
	}
	if p.Unreachable != nil {
		doc.Reason = p.Unreachable.Error()
	}
	if p.NotTaken != nil {
		doc.NotTaken = p.NotTaken.Error()
	}
	for _, f := range p.Faults {
		doc.Faults = append(doc.Faults, fault{f.Key, f.Reason, f.Notice})
	}
	for _, e := range p.edits {
		c := change{Table: e.Table, Op: e.Op.String(), Key: e.Key, Old: e.Old, New: e.New, Commands: []string{}}
		for _, command := range e.Commands {
			c.Commands = append(c.Commands, command.Line)
		}
		doc.Changes = append(doc.Changes, c)
	}
	encoder := json.NewEncoder(out)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	return encoder.Encode(doc)
}
