package bench

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/medway-lb/medway/pkg/state"
)

// The line of the default ladder, and a backup's place in it.
const (
	line   = 100
	backup = 500
)

var sites = []string{"dc1", "dc2"}

func other(site string) string {
	if site == sites[0] {
		return sites[1]
	}
	return sites[0]
}

// Without BFD: it knows the other end by its address, and here all are of one host.
const agentConfig = `node: %[1]s-lvs-a
site: %[1]s
group: %[1]s-edge1
addresses: {ipv4: %[2]s}
uplink: lo
etcd: {endpoints: ["%[3]s"], insecure: true}
bgp:
  as: %[4]d
  router_id: %[2]s
  neighbors:
    - {address: %[5]s, as: %[4]d, hold_time: %[6]s, bfd: {enabled: false}}
lease_ttl: 15s
state_dir: %[7]s
`

// writeAgentConfig writes the file of a site's one agent and returns its path.
func writeAgentConfig(dir, site string) (string, error) {
	stateDir := filepath.Join(dir, "agent-"+site)
	text := fmt.Sprintf(agentConfig, site, agentAddress[site], etcdURL, localAS, routerAddress, holdTime, stateDir)
	path := stateDir + ".yaml"
	return path, os.WriteFile(path, []byte(text), 0o644)
}

// agent is an agent on fakes in a process of its own.
type agent struct {
	*process
	site  string
	pprof string
}

func startAgent(bin, dir, site string) (*agent, error) {
	config, err := writeAgentConfig(dir, site)
	if err != nil {
		return nil, err
	}
	pprof := netip.AddrPortFrom(agentAddress[site], 6060).String()
	p, err := start(dir, "agent-"+site, []string{"MEDWAY_AGENT_ON_FAKES=" + config, "MEDWAY_AGENT_PPROF=" + pprof},
		filepath.Join(bin, "medway-agent-on-fakes"))
	return &agent{p, site, pprof}, err
}

// goroutines asks the agent how many goroutines it has.
func (a *agent) goroutines(ctx context.Context) (int, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+a.pprof+"/debug/pprof/goroutine?debug=1", nil)
	if err != nil {
		return 0, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	first, err := bufio.NewReader(response.Body).ReadString('\n')
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(first[strings.LastIndexByte(strings.TrimSpace(first), ' ')+1 : len(first)-1])
}

// vipName and vipPrefix are the i-th VIP's: RFC 2544 keeps 198.18.0.0/15 for
// benchmarks.
func vipName(i int) string { return fmt.Sprintf("vip-%04d", i) }

func vipAddress(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})
}

func vipPrefix(i int) netip.Prefix { return netip.PrefixFrom(vipAddress(i), 32) }

func key(kind state.Kind, names ...string) string {
	return state.Prefix + strings.Join(append([]string{string(kind)}, names...), "/")
}

// intent is n VIPs of one service each, in both sites, which share a pool of
// four backends; all are at first.
func intent(n int, settle, quiet time.Duration) []pair {
	pairs := []pair{
		{key(state.KindSettings), fmt.Sprintf(`{"settle":"%s","normalise_after":"%s"}`, settle, quiet)},
		{key(state.KindPool, "sbc"), `{"scheduler":"sed"}`},
	}
	for i := range 4 {
		pairs = append(pairs, pair{key(state.KindBackend, "sbc", fmt.Sprintf("sbc%d", i+1)),
			fmt.Sprintf(`{"site":"%s","address":"10.9.%d.%d"}`, sites[i/2], i/2+1, 21+i)})
	}
	for i := range n {
		pairs = append(pairs, pair{key(state.KindVIP, vipName(i)), fmt.Sprintf(
			`{"addresses":["%s"],"services":[{"protocol":"tcp","port":5060,"pool":"sbc"}],"groups":{"dc1":"dc1-edge1","dc2":"dc2-edge1"}}`,
			vipAddress(i))})
	}
	return append(pairs, targets(0, n, sites[0])...)
}

// targets are the puts that give VIPs from..to-1 to a site.
func targets(from, to int, site string) []pair {
	var pairs []pair
	for i := from; i < to; i++ {
		pairs = append(pairs, pair{key(state.KindTarget, vipName(i)), site})
	}
	return pairs
}

// pairOfAgents are the agents of both sites, with what they need.
type pairOfAgents struct {
	etcd   *etcd
	router *Router
	agents map[string]*agent
}

func startAgents(bin, dir string, e *etcd, r *Router) (*pairOfAgents, error) {
	p := &pairOfAgents{etcd: e, router: r, agents: map[string]*agent{}}
	for _, site := range sites {
		a, err := startAgent(bin, dir, site)
		if err != nil {
			p.stop()
			return nil, err
		}
		p.agents[site] = a
	}
	return p, nil
}

func (p *pairOfAgents) stop() {
	if p != nil {
		for _, a := range p.agents {
			a.stop()
		}
	}
}

// settled waits until n VIPs are where a switchover ends.
func (p *pairOfAgents) settled(ctx context.Context, n int, site string) error {
	return p.settledPart(ctx, 0, n, site)
}

// settledPart waits until VIPs first..first+n-1 are where a switchover ends: the
// target site's agent announces and claims the line, the other's announces a
// backup value and claims nothing.
func (p *pairOfAgents) settledPart(ctx context.Context, first, n int, site string) error {
	return until(ctx, 2*time.Minute, 50*time.Millisecond, func() error {
		for _, a := range p.agents {
			if err := a.ended(); err != nil {
				return err
			}
		}
		for of, want := range map[string]struct {
			from, to uint32
			claim    string
		}{site: {line, line, strconv.Itoa(line)}, other(site): {backup, backup + 99, "none"}} {
			meds := map[netip.Prefix]uint32{}
			p.router.Each(agentAddress[of], func(prefix netip.Prefix, med uint32) { meds[prefix] = med })
			claims, err := p.claims(ctx, of, first, n)
			if err != nil {
				return err
			}
			for i := first; i < first+n; i++ {
				if med, ok := meds[vipPrefix(i)]; !ok || med < want.from || med > want.to {
					return fmt.Errorf("%s: %s is at %d, expected %d\n%s", of, vipName(i), med, want.from, p.agents[of].tail())
				}
				// One that never took the traffic has never claimed.
				if claim, ok := claims[vipName(i)]; ok && !strings.Contains(claim, `"`+want.claim+`"`) || !ok && of == site {
					return fmt.Errorf("%s: the claim of %s is %q, expected %s", of, vipName(i), claim, want.claim)
				}
			}
		}
		return nil
	})
}

// claims are a site's claims by VIP, of VIPs first..first+n-1.
func (p *pairOfAgents) claims(ctx context.Context, site string, first, n int) (map[string]string, error) {
	prefix := key(state.KindClaim, site+"-lvs-a", "")
	r, err := p.etcd.client.Get(ctx, prefix+vipName(first), clientv3.WithRange(prefix+vipName(first+n)))
	if err != nil {
		return nil, err
	}
	claims := map[string]string{}
	for _, kv := range r.Kvs {
		claims[strings.TrimPrefix(string(kv.Key), prefix)] = string(kv.Value)
	}
	return claims, nil
}

// flip puts VIPs from..to-1 to a site and measures from before the put to the
// last UPDATE of that site's agent with a MED at or below the line.
func (p *pairOfAgents) flip(ctx context.Context, from, to int, site string) (time.Duration, error) {
	news := p.router.News(agentAddress[site])
	drain(news)
	missing := map[netip.Prefix]bool{}
	for i := from; i < to; i++ {
		missing[vipPrefix(i)] = true
	}
	puts := targets(from, to, site)
	failed := make(chan error, 1)
	begin := time.Now()
	go func() {
		if err := p.etcd.putAll(ctx, puts); err != nil {
			failed <- err
		}
	}()
	limit := time.NewTimer(time.Minute)
	defer limit.Stop()
	for {
		select {
		case route := <-news:
			if route.MED <= line && !route.Withdrawn {
				delete(missing, route.Prefix)
			}
			if len(missing) == 0 {
				return route.At.Sub(begin), nil
			}
		case err := <-failed:
			return 0, err
		case <-limit.C:
			return 0, fmt.Errorf("%d of %d VIPs did not switch to %s within a minute\n%s", len(missing), to-from, site, p.agents[site].tail())
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}
