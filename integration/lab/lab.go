package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

// DefaultDir is where a lab keeps its state, logs and data.
const DefaultDir = "/run/medway-lab"

// Options say what to build. The zero value is the whole default lab.
type Options struct {
	// Dir is the run directory; default DefaultDir.
	Dir string
	// Prefix is put before node names to make namespace names; default "mw-". A lab
	// with a Dir and a Prefix of its own doesn't touch another one.
	Prefix string
	// Topology is the plan; default Default().
	Topology *Topology
	// WANDelay is the one-way delay between sites; it needs sch_netem.
	WANDelay time.Duration
	// BinDir holds the project's binaries; default: where this program is if etcd is
	// beside it, else ./bin.
	BinDir string
	// RoutingOnly leaves out what needs IPVS: backends, agents and the intent.
	RoutingOnly bool
	// NoAgents leaves out the agents and the intent.
	NoAgents bool
	// BFD is the interval at which the edges want BFD from the LVS hosts, of which three
	// may be missing; 0 is none, and default. With it a host's death shows in seconds and not
	// when the hold time ends, but BIRD takes the routes of an agent that restarts away for a
	// moment, which graceful restart alone keeps. The agents' own interval is their default:
	// the slower one counts. 150 ms is for a real processor; an emulated one carries 1 s.
	BFD time.Duration
	// HoldTime is that of the agents' BGP sessions; default 90 s, which an emulated
	// processor never exceeds by itself.
	HoldTime time.Duration
	// Target is the site that takes the traffic first; default the first one.
	Target string
	// Transient marks a lab that ends with the program that builds it: what a killed
	// one left is in nobody's way (Vacant).
	Transient bool
	// BeforeAgents is called when all but the agents is up.
	BeforeAgents func(context.Context, *Lab) error `json:"-"`
	// Timeout bounds each wait for readiness; default 2 min.
	Timeout time.Duration
	// Progress receives a line for each finished part, also from two goroutines at once;
	// default none.
	Progress io.Writer `json:"-"`
}

// A Lab is a running one.
type Lab struct {
	opts    Options
	topo    Topology
	started time.Time
}

// state is what Open needs to know.
type state struct {
	Options  Options
	Topology Topology
	// Owner is the program that a transient lab ends with.
	Owner *Daemon `json:",omitempty"`
}

func newLab(opts Options) (*Lab, error) {
	if opts.Dir == "" {
		opts.Dir = DefaultDir
	}
	if opts.Prefix == "" {
		opts.Prefix = "mw-"
	}
	if opts.Topology == nil {
		t := Default()
		opts.Topology = &t
	}
	if opts.BinDir == "" {
		opts.BinDir = "bin"
		if self, err := os.Executable(); err == nil {
			if _, err := os.Stat(filepath.Join(filepath.Dir(self), "etcd")); err == nil {
				opts.BinDir = filepath.Dir(self)
			}
		}
	}
	if opts.Target == "" {
		opts.Target = opts.Topology.Sites[0].Name
	}
	if opts.HoldTime == 0 {
		opts.HoldTime = 90 * time.Second
	}
	if opts.Timeout == 0 {
		opts.Timeout = 2 * time.Minute
	}
	if opts.Progress == nil {
		opts.Progress = io.Discard
	}
	var err1, err2 error
	opts.Dir, err1 = filepath.Abs(opts.Dir)
	opts.BinDir, err2 = filepath.Abs(opts.BinDir)
	l := &Lab{opts: opts, topo: *opts.Topology, started: time.Now()}
	return l, errors.Join(err1, err2, l.topo.Validate())
}

// Open attaches to the lab whose run directory is dir ("" for the default).
func Open(dir string) (*Lab, error) {
	if dir == "" {
		dir = DefaultDir
	}
	s, err := readState(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("no lab is up: %w", err)
	}
	if err != nil {
		return nil, err
	}
	s.Options.Topology = &s.Topology
	return newLab(s.Options)
}

func readState(dir string) (s state, err error) {
	file := filepath.Join(dir, "state.json")
	data, err := os.ReadFile(file)
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return s, fmt.Errorf("%s: %w", file, err)
	}
	return s, nil
}

// Vacant tells whether Up with these options would take nothing away from anybody. An
// error names what is in the way: a lab that was built to stay, or one whose program
// still runs.
func Vacant(opts Options) error {
	l, err := newLab(opts)
	if err != nil {
		return err
	}
	s, err := readState(l.opts.Dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return err
	case s.Owner == nil:
		return fmt.Errorf("a lab is up in %s", l.opts.Dir)
	case s.Owner.Alive():
		return fmt.Errorf("the lab in %s is in use by process %d", l.opts.Dir, s.Owner.PID)
	case s.Options.Prefix == l.opts.Prefix:
		return nil
	}
	names, err := namespaces(l.opts.Prefix)
	if err == nil && len(names) > 0 {
		err = fmt.Errorf("the namespaces %s* belong to a lab that is not in %s", l.opts.Prefix, l.opts.Dir)
	}
	return err
}

// Up builds a lab, after it has removed what an earlier one left under the same Dir
// and Prefix. On failure what was built stays, to be looked at; Clean removes it.
func Up(ctx context.Context, opts Options) (*Lab, error) {
	l, err := newLab(opts)
	if err != nil {
		return nil, err
	}
	if err := Clean(l.opts); err != nil {
		return nil, fmt.Errorf("remove what an earlier lab left: %w", err)
	}
	if err := l.build(ctx); err != nil {
		return nil, err
	}
	return l, nil
}

// A part of the lab is built, or waited for, as a whole.
type part struct {
	name string
	do   func(context.Context) error
}

// build starts what is slow first, and does the rest while etcd gets ready: each of the
// many changes that set its users up waits for a majority of the members.
func (l *Lab) build(ctx context.Context) error {
	backends, agents := !l.opts.RoutingOnly, !l.opts.RoutingOnly && !l.opts.NoAgents
	first := []part{
		{"namespaces", func(context.Context) error { return l.createNamespaces() }},
		{"network", func(context.Context) error { return l.buildNetwork() }},
		{"etcd and routers started", func(context.Context) error { return l.startInfrastructure() }},
	}
	etcd := []part{{"etcd healthy", l.waitEtcd}, {"etcd's users and roles", l.InitEtcd}}
	beside := []part{{"routers' sessions established", l.waitRouters}}
	if backends {
		first = append([]part{{"kernel", func(context.Context) error { return CheckKernel() }}}, first...)
		beside = append([]part{{"backends started", l.startBackends}}, append(beside, part{"backends answer", l.waitBackends})...)
	}
	var last []part
	if agents {
		etcd = append(etcd, part{"intent in etcd, target " + l.opts.Target, l.loadIntent})
		if before := l.opts.BeforeAgents; before != nil {
			last = append(last, part{"all but the agents is up", func(ctx context.Context) error { return before(ctx, l) }})
		}
		last = append(last, part{"agents started", l.startAgents}, part{"VIP announced by every LVS host, best at the transit", func(ctx context.Context) error {
			site, ok := l.topo.Site(l.opts.Target)
			if !ok {
				return fmt.Errorf("no site %q", l.opts.Target)
			}
			return l.waitVIP(ctx, site)
		}})
	}
	s := state{Options: l.opts, Topology: l.topo}
	if l.opts.Transient {
		started, _, err := processStat(os.Getpid())
		if err != nil {
			return err
		}
		s.Owner = &Daemon{PID: os.Getpid(), StartTime: started, BootID: bootID()}
	}
	if err := writeJSON(l.path("state.json"), s); err != nil {
		return err
	}
	if err := l.do(ctx, first); err != nil {
		return err
	}
	together, inner := errgroup.WithContext(ctx)
	together.Go(func() error { return l.do(inner, etcd) })
	together.Go(func() error { return l.do(inner, beside) })
	if err := together.Wait(); err != nil {
		return err
	}
	return l.do(ctx, last)
}

// do does one part after the other.
func (l *Lab) do(ctx context.Context, parts []part) error {
	for _, p := range parts {
		ctx, cancel := context.WithTimeoutCause(ctx, l.opts.Timeout, fmt.Errorf("not within %s", l.opts.Timeout))
		err := p.do(ctx)
		cancel()
		if err != nil {
			return fmt.Errorf("lab: %s: %w", p.name, err)
		}
		l.progress(p.name)
	}
	return nil
}

func (l *Lab) progress(what string) {
	fmt.Fprintf(l.opts.Progress, "%6.2fs  %s\n", time.Since(l.started).Seconds(), what)
}

func (l *Lab) startInfrastructure() error {
	if err := l.makeCertificates(); err != nil {
		return err
	}
	l.mountEtcdData()
	for _, node := range l.EtcdNodes() {
		if err := l.StartEtcd(node); err != nil {
			return err
		}
	}
	for _, router := range l.topo.Routers() {
		if err := l.StartRouter(router); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) startBackends(context.Context) error {
	var g errgroup.Group
	for _, n := range l.topo.Role(RoleSBC) {
		g.Go(func() error {
			if err := l.prepareBackend(n); err != nil {
				return fmt.Errorf("%s: %w", n.Name, err)
			}
			return l.StartBackend(n.Name)
		})
	}
	return g.Wait()
}

func (l *Lab) waitBackends(ctx context.Context) error {
	for _, n := range l.topo.Role(RoleSBC) {
		if err := l.waitBackend(ctx, n.Name); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) loadIntent(ctx context.Context) error {
	if err := l.writeIntent(); err != nil {
		return err
	}
	if err := l.Apply(ctx); err != nil {
		return err
	}
	return l.SetTarget(ctx, VIPName, l.opts.Target)
}

func (l *Lab) startAgents(context.Context) error {
	for _, n := range l.topo.Role(RoleLVS) {
		if err := l.StartAgent(n.Name); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) waitRouters(ctx context.Context) error {
	for _, router := range l.topo.Routers() {
		peers := slices.DeleteFunc(l.topo.Routers(), func(other string) bool {
			_, err := l.topo.Link(router, other)
			return err != nil
		})
		if err := l.waitSessions(ctx, router, peers...); err != nil {
			return err
		}
	}
	return nil
}

// Topology is what the lab was built from.
func (l *Lab) Topology() Topology { return l.topo }

// Dir is the run directory: <node>/<daemon>.log and what the daemons keep.
func (l *Lab) Dir() string { return l.opts.Dir }

// BinDir is where the lab takes the project's binaries from.
func (l *Lab) BinDir() string { return l.opts.BinDir }

// Down ends every daemon of the lab and removes its namespaces and run directory.
func (l *Lab) Down() error { return Clean(l.opts) }

// Clean removes whatever a lab with these options left, complete or not. It ends the
// processes that were recorded, if they are still the same ones, and those inside
// the lab's own namespaces, which can't be anyone else's.
func Clean(opts Options) error {
	l, err := newLab(opts)
	if err != nil {
		return err
	}
	daemons, err := l.Daemons()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, d := range daemons { // all at once: nobody waits for another's goodbye
		if err := d.signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("end %s on %s: %w", d.Name, d.Node, err)
		}
	}
	for _, d := range daemons {
		if err := d.wait(ctx); err != nil {
			return fmt.Errorf("%s on %s (pid %d): %w", d.Name, d.Node, d.PID, err)
		}
	}
	names, err := namespaces(l.opts.Prefix)
	if err != nil {
		return err
	}
	killInside(names)
	var errs []error
	for _, name := range names {
		if err := deleteNamespace(name); err != nil {
			errs = append(errs, fmt.Errorf("delete namespace %s: %w", name, err))
		}
	}
	l.unmountEtcdData()
	return errors.Join(append(errs, os.RemoveAll(l.opts.Dir))...)
}

// killInside ends processes that are in one of the namespaces: commands of a test that
// was interrupted, shells.
func killInside(names []string) {
	inodes := namespaceInodes(names)
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		link, err := os.Readlink("/proc/" + e.Name() + "/ns/net")
		if err != nil {
			continue
		}
		inode, _ := strconv.ParseUint(strings.TrimSuffix(strings.TrimPrefix(link, "net:["), "]"), 10, 64)
		if _, ours := inodes[inode]; ours {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

func (l *Lab) path(elem ...string) string {
	return filepath.Join(append([]string{l.opts.Dir}, elem...)...)
}
