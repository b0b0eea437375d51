package bench

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/medway-lb/medway/pkg/state"
)

// The table that is loaded: 200 VIPs of five services, each with a pool of its
// own of ten backends, so that one weight is one destination.
const (
	tableVIPs    = 200
	vipServices  = 5
	poolBackends = 10
	firstPort    = 5060
	localWeight  = 50000
	remoteWeight = 2
)

// loader is what brings the table into the kernel and keeps it there.
type loader struct {
	name string
	// start begins; the table is to be there some time later.
	start func(ctx context.Context) (*process, error)
	// order is that of the services, the last one to be made first: where to look
	// first. A wrong order makes the figure larger, not smaller.
	order []service
	// prepare makes ready what change then uses; its time does not count.
	prepare func(of destination, weight int) error
	// change begins to give a backend's destination another weight.
	change func(ctx context.Context, p *process, of destination, weight int) error
	// clean removes what stop leaves, so that the next start is cold too.
	clean func(ctx context.Context) error
}

// Kernel measures how IPVS is loaded and changed, on a kernel that has it.
func Kernel(ctx context.Context, o Options) (*Report, error) {
	report := newReport(o.Bin, "etcd", "Keepalived", "ipvsadm")
	if err := network(); err != nil {
		return report, err
	}
	eye, err := newEye()
	if err != nil {
		return report, err
	}
	defer eye.Close()
	router, err := NewRouter(routerAddress, localAS)
	if err != nil {
		return report, err
	}
	defer router.Close()
	e, err := startEtcd(ctx, o.Bin, o.Dir)
	if err != nil {
		return report, err
	}
	defer e.stop()
	o.say("loading %d pools of %d backends into etcd", tableVIPs*vipServices, poolBackends)
	if err := e.putAll(ctx, tableIntent()); err != nil {
		return report, err
	}

	k := &kernel{Options: o, report: report, etcd: e, eye: eye, cold: map[string]Samples{}, changed: map[string]Samples{}, memory: map[string]int64{}}
	loaders := []*loader{k.medway(), k.keepalived(), k.ipvsadm()}
	for round := range o.Loads {
		for _, l := range loaders {
			o.say("round %d of %d: %s", round+1, o.Loads, l.name)
			if err := k.measure(ctx, l, round); err != nil {
				return report, fmt.Errorf("%s: %w", l.name, err)
			}
		}
	}
	k.tables()
	return report, nil
}

type kernel struct {
	Options
	report *Report
	etcd   *etcd
	eye    *eye
	// cold and changed are the figures by loader.
	cold, changed map[string]Samples
	// memory in bytes by loader, all its processes together.
	memory map[string]int64
	// table is what ipvsadm prints of the whole table.
	table string
}

// measure loads the table with one loader, changes weights, and takes it away.
func (k *kernel) measure(ctx context.Context, l *loader, round int) error {
	if err := l.clean(ctx); err != nil {
		return err
	}
	begin := time.Now()
	p, err := l.start(ctx)
	if err != nil {
		return err
	}
	defer p.stop()
	at, err := k.eye.loaded(ctx, l.order)
	if err != nil {
		return fmt.Errorf("%w\n%s", err, p.tail())
	}
	k.cold[l.name] = append(k.cold[l.name], at.Sub(begin))
	if err := k.same(ctx); err != nil {
		return err
	}
	if l.change == nil {
		return nil
	}
	if err := k.settle(ctx, p); err != nil {
		return err
	}
	for i := range k.Changes {
		// Backends 1 to 5 of a pool are local and have the greater weight.
		d := destination{services()[(round*k.Changes+i)*37%(tableVIPs*vipServices)], 1 + i%(poolBackends/2)}
		for _, weight := range []int{remoteWeight, localWeight} {
			if l.prepare != nil {
				if err := l.prepare(d, weight); err != nil {
					return err
				}
			}
			begin := time.Now()
			if err := l.change(ctx, p, d, weight); err != nil {
				return err
			}
			at, err := k.eye.changed(ctx, d, weight)
			if err != nil {
				return fmt.Errorf("%w\n%s", err, p.tail())
			}
			k.changed[l.name] = append(k.changed[l.name], at.Sub(begin))
			if err := k.settle(ctx, p); err != nil {
				return err
			}
		}
	}
	if k.memory[l.name], err = p.family((*process).memory); err != nil {
		return err
	}
	return k.same(ctx)
}

// settle waits until a loader and its children have used no processor time for
// half a second, or 10 s: what one change leaves to do must not burden the next.
func (k *kernel) settle(ctx context.Context, p *process) error {
	last, since := time.Duration(-1), time.Now()
	for begin := since; time.Since(since) < 500*time.Millisecond && time.Since(begin) < 10*time.Second; {
		used, err := p.family(func(q *process) (int64, error) {
			d, err := q.cpu()
			return int64(d), err
		})
		if err != nil {
			return err
		}
		if time.Duration(used) != last {
			last, since = time.Duration(used), time.Now()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	return nil
}

// same checks with ipvsadm that the table is the same one whoever loaded it.
func (k *kernel) same(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, "ipvsadm", "-Sn").Output()
	if err != nil {
		return fmt.Errorf("ipvsadm -Sn: %w", err)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	slices.Sort(lines)
	if want := tableVIPs * vipServices * (1 + poolBackends); len(lines) != want {
		return fmt.Errorf("ipvsadm -Sn prints %d services and destinations, expected %d", len(lines), want)
	}
	table := strings.Join(lines, "\n")
	if k.table == "" {
		k.table = table
	}
	if table != k.table {
		return fmt.Errorf("ipvsadm -Sn prints another table than before")
	}
	return nil
}

func (k *kernel) tables() {
	size := fmt.Sprintf("%d services x %d destinations", tableVIPs*vipServices, poolBackends)
	weight := Table{Title: "One weight among " + size + ": to the kernel"}
	weight.add("MEDWAY: put of the backend's key", k.changed["medway"], k.changed["Keepalived"])
	weight.add("Keepalived: SIGHUP with the new file in place", k.changed["Keepalived"], k.changed["Keepalived"])
	cold := Table{Title: "Cold start of " + size + ": from the program's start to the whole table"}
	cold.add("MEDWAY, with addresses, firewall and the list from etcd", k.cold["medway"], k.cold["Keepalived"])
	cold.add("Keepalived", k.cold["Keepalived"], k.cold["Keepalived"])
	cold.add("ipvsadm -R", k.cold["ipvsadm -R"], k.cold["Keepalived"])
	for name, bytes := range k.memory {
		cold.say("resident memory, "+name, "%.0f MiB", float64(bytes)/(1<<20))
	}
	k.report.Tables = append(k.report.Tables, weight, cold)
	for what, figures := range map[string]map[string]Samples{"one weight": k.changed, "cold start": k.cold} {
		ours, theirs := figures["medway"].Quantile(.5), figures["Keepalived"].Quantile(.5)
		k.report.aim(what+" no slower than Keepalived", ours <= theirs, "%.2f s against %.2f s (medians)", ours.Seconds(), theirs.Seconds())
	}
}

// service is one virtual service of the table, destination the i-th backend of
// its pool, from 1.
type service struct{ vip, n int }

type destination struct {
	service
	i int
}

func services() []service {
	var all []service
	for vip := range tableVIPs {
		for n := range vipServices {
			all = append(all, service{vip, n})
		}
	}
	return all
}

func (s service) port() uint16        { return uint16(firstPort + s.n) }
func (s service) pool() string        { return fmt.Sprintf("%s-%d", vipName(s.vip), s.n) }
func (s service) address() string     { return netip.AddrPortFrom(vipAddress(s.vip), s.port()).String() }
func (d destination) backend() string { return fmt.Sprintf("b%d", d.i) }

// ip is distinct for each backend: a pool is a group of hosts.
func (d destination) ip() netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(100 + d.n), byte(d.vip), byte(d.i)})
}

// weight is the destination's at the start.
func (d destination) weight() int {
	if d.i <= poolBackends/2 {
		return localWeight
	}
	return remoteWeight
}

func (s service) destinations() []destination {
	all := make([]destination, poolBackends)
	for i := range all {
		all[i] = destination{s, i + 1}
	}
	return all
}

// backendOf is a backend's key and value: near ones have the greater weight.
func backendOf(d destination, weight int) pair {
	site := sites[0]
	if weight == remoteWeight {
		site = sites[1]
	}
	return pair{key(state.KindBackend, d.pool(), d.backend()), fmt.Sprintf(`{"site":"%s","address":"%s"}`, site, d.ip())}
}

func tableIntent() []pair {
	// The other site has a node too, or its backends would be called strays.
	pairs := []pair{{key(state.KindNode, sites[1]+"-lvs-a"), fmt.Sprintf(
		`{"machine_id":"bench","site":"%[1]s","group":"%[1]s-edge1","ipv4":"%[2]s","sync_address":"169.254.1.1","version":"bench","schema":2}`,
		sites[1], agentAddress[sites[1]])}}
	for vip := range tableVIPs {
		var list []string
		for n := range vipServices {
			s := service{vip, n}
			list = append(list, fmt.Sprintf(`{"protocol":"tcp","port":%d,"pool":"%s"}`, s.port(), s.pool()))
			pairs = append(pairs, pair{key(state.KindPool, s.pool()), `{"scheduler":"sed"}`})
			for _, d := range s.destinations() {
				pairs = append(pairs, backendOf(d, d.weight()))
			}
		}
		pairs = append(pairs, pair{key(state.KindVIP, vipName(vip)), fmt.Sprintf(
			`{"addresses":["%s"],"services":[%s],"groups":{"dc1":"dc1-edge1","dc2":"dc2-edge1"}}`, vipAddress(vip), strings.Join(list, ","))})
	}
	return append(pairs, targets(0, tableVIPs, sites[0])...)
}

// medway loads with the real agent.
func (k *kernel) medway() *loader {
	order := services()
	// It makes destinations in the order of their text.
	slices.SortFunc(order, func(a, b service) int { return strings.Compare(b.address(), a.address()) })
	return &loader{
		name: "medway", order: order,
		start: func(context.Context) (*process, error) {
			config, err := writeAgentConfig(k.Dir, sites[0])
			if err != nil {
				return nil, err
			}
			return start(k.Dir, "agent", nil, filepath.Join(k.Bin, "medway-agent"), "run", "--config", config)
		},
		change: func(ctx context.Context, _ *process, d destination, weight int) error {
			p := backendOf(d, weight)
			_, err := k.etcd.client.Put(ctx, p.key, p.value)
			return err
		},
		clean: func(ctx context.Context) error {
			node := sites[0] + "-lvs-a"
			for _, prefix := range []string{key(state.KindNode, node), key(state.KindAlive, ""), key(state.KindOwner, ""), key(state.KindClaim, "")} {
				if err := k.etcd.delete(ctx, prefix); err != nil {
					return err
				}
			}
			if err := os.RemoveAll(filepath.Join(k.Dir, "agent-"+sites[0])); err != nil {
				return err
			}
			for _, link := range []string{"medway0", "sync01"} {
				_ = exec.CommandContext(ctx, "ip", "link", "delete", link).Run() // the first time there is none
			}
			for _, table := range []string{"filter", "mangle", "raw"} {
				for _, flag := range []string{"-F", "-X"} {
					if err := run(ctx, "iptables", "-t", table, flag); err != nil {
						return err
					}
				}
			}
			return run(ctx, "ipvsadm", "-C")
		},
	}
}

func (k *kernel) keepalived() *loader {
	config := filepath.Join(k.Dir, "keepalived.conf")
	write := func(changed destination, weight int) error {
		var b strings.Builder
		for _, s := range services() {
			fmt.Fprintf(&b, "virtual_server %s %d {\n\tlvs_sched sed\n\tlvs_method TUN\n\tprotocol TCP\n", vipAddress(s.vip), s.port())
			for _, d := range s.destinations() {
				w := d.weight()
				if d == changed {
					w = weight
				}
				fmt.Fprintf(&b, "\treal_server %s %d {\n\t\tweight %d\n\t}\n", d.ip(), d.port(), w)
			}
			b.WriteString("}\n")
		}
		return os.WriteFile(config, []byte(b.String()), 0o644)
	}
	return &loader{
		name: "Keepalived", order: backwards(),
		start: func(context.Context) (*process, error) {
			return start(k.Dir, "keepalived", nil, "keepalived", "--check", "--dont-fork", "--log-console",
				"--use-file", config, "--pid", filepath.Join(k.Dir, "keepalived.pid"), "--checkers_pid", filepath.Join(k.Dir, "checkers.pid"))
		},
		change: func(_ context.Context, p *process, _ destination, _ int) error {
			return p.cmd.Process.Signal(syscall.SIGHUP)
		},
		clean: func(ctx context.Context) error {
			if err := write(destination{}, 0); err != nil {
				return err
			}
			return run(ctx, "ipvsadm", "-C")
		},
		prepare: write,
	}
}

func (k *kernel) ipvsadm() *loader {
	file := filepath.Join(k.Dir, "ipvsadm.rules")
	return &loader{
		name: "ipvsadm -R", order: backwards(),
		start: func(context.Context) (*process, error) {
			in, err := os.Open(file)
			if err != nil {
				return nil, err
			}
			defer in.Close()
			return startWithInput(k.Dir, "ipvsadm", in, nil, "ipvsadm", "-R")
		},
		clean: func(ctx context.Context) error {
			var b strings.Builder
			for _, s := range services() {
				fmt.Fprintf(&b, "-A -t %s -s sed\n", s.address())
				for _, d := range s.destinations() {
					fmt.Fprintf(&b, "-a -t %s -r %s:%d -i -w %d\n", s.address(), d.ip(), d.port(), d.weight())
				}
			}
			if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
				return err
			}
			return run(ctx, "ipvsadm", "-C")
		},
	}
}

func backwards() []service {
	order := services()
	slices.Reverse(order)
	return order
}

func run(ctx context.Context, args ...string) error {
	_, err := output(ctx, args...)
	return err
}

func output(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}
