package agent

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	_ "net/http/pprof" // what the benchmark asks about memory, goroutines and time
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"testing"

	"go.uber.org/zap"

	"github.com/medway-lb/medway/agent/internal/bgp"
	"github.com/medway-lb/medway/agent/internal/firewall"
	"github.com/medway-lb/medway/agent/internal/ipvs"
	"github.com/medway-lb/medway/agent/internal/link"
	"github.com/medway-lb/medway/agent/internal/sysctl"
	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/reconcile"
)

// With this variable, which names an agent's file, the test binary is that
// agent on the adapters' fakes, with real etcd and real BGP: `make bench`
// measures it. pprofEnv is where it then serves net/http/pprof.
const (
	processEnv = "MEDWAY_AGENT_ON_FAKES"
	pprofEnv   = "MEDWAY_AGENT_PPROF"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(processEnv); path != "" {
		if err := runOnFakes(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func runOnFakes(path string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	config, err := LoadConfig(path)
	if err != nil {
		return err
	}
	log, err := zap.NewProduction(zap.AddStacktrace(zap.PanicLevel), zap.WithCaller(false))
	if err != nil {
		return err
	}
	a, err := newAgent(config, log, host{
		kernel:  func() (kernel, error) { return newOnFakes(), nil },
		speaker: func(c bgp.Config, log *zap.Logger) (speaker, error) { return bgp.New(c, log) },
		segment: openSegment,
	})
	if err != nil {
		return err
	}
	defer a.Close()
	if address := os.Getenv(pprofEnv); address != "" {
		go func() { log.Error("pprof", zap.Error(http.ListenAndServe(address, nil))) }()
	}
	return a.Run(ctx)
}

// onFakes is the data plane on the adapters' fakes: all of it but the kernel.
// Its parameters are always as they should be.
type onFakes struct {
	link      *link.Fake
	firewalls map[plan.Family]*firewall.Fake
	ipvs      *ipvs.Kernel
}

func newOnFakes() *onFakes {
	k, _ := ipvs.NewFake()
	firewalls := map[plan.Family]*firewall.Fake{}
	for _, family := range families {
		firewalls[family] = firewall.NewFake(family)
	}
	return &onFakes{link: link.NewFake(), firewalls: firewalls, ipvs: k}
}

func (d *onFakes) apply(ctx context.Context, h plan.Host) reconcile.Report {
	steps := []reconcile.Step{
		reconcile.Bind(d.link.Links(h.Links), h.Links, nil),
		reconcile.Bind(sysctl.NewFake(h.Sysctls, slices.Collect(maps.Keys(h.Sysctls))), h.Sysctls, nil),
	}
	for _, family := range families {
		chains, jumps := h.ChainsOf(family), h.JumpsOf(family)
		steps = append(steps,
			reconcile.Bind(d.firewalls[family].Chains(chains), chains, nil),
			reconcile.Bind(d.firewalls[family].Jumps(jumps), jumps, nil))
	}
	return reconcile.Run(ctx, append(steps,
		reconcile.Bind(d.link.Routes(), h.Routes, nil),
		reconcile.Bind(d.link.Neighbors(), h.Neighbors, nil),
		reconcile.Bind(d.link.Addresses(), h.Addresses, nil),
		reconcile.Bind(d.ipvs.Timeouts(), h.Timeouts, func(plan.TimeoutName) bool { return false }),
		reconcile.Bind(d.ipvs.Daemons(), h.Daemons, nil),
		reconcile.Bind(d.ipvs.Services(), h.Services, nil),
		reconcile.Bind(d.ipvs.Destinations(), h.Destinations, nil),
	)...)
}

func (d *onFakes) held(_ context.Context, h plan.Host) (map[netip.Addr]held, error) {
	return compare(h, h), nil
}

func (d *onFakes) connections(context.Context) (map[netip.Addr]connections, error) { return nil, nil }

func (d *onFakes) arrived(context.Context) (map[netip.Addr]arrivals, error) { return nil, nil }

func (d *onFakes) syncing(context.Context) (bool, error)   { return true, nil }
func (d *onFakes) packets(context.Context) (uint64, error) { return 0, nil }

func (d *onFakes) close() {}
