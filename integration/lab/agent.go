package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"text/template"
	"time"
)

var intentFiles = template.Must(template.ParseFS(files, "intent/*"))

// AgentConfig is the agent's configuration file of an LVS host.
func (l *Lab) AgentConfig(node string) string { return l.path(node, "agent.yaml") }

func (l *Lab) agentConfig(node string) ([]byte, error) {
	n, ok := l.topo.Node(node)
	if !ok || n.Role != RoleLVS {
		return nil, fmt.Errorf("%s is no LVS host", node)
	}
	site, _ := l.topo.Site(n.Site)
	cert, key := l.Certificate(node)
	var b bytes.Buffer
	err := templates.ExecuteTemplate(&b, "agent.yaml", struct {
		Node, Site, Group string
		Addr, Addr6, Edge netip.Addr
		Endpoints         []string
		CA, Cert, Key     string
		AS                int
		StateDir          string
		HoldTime          time.Duration
	}{node, n.Site, site.Group(), n.Addr, n.Addr6, site.Addr(1), l.Endpoints(), l.CA(), cert, key, OperatorAS, l.path(node, "state"), l.opts.HoldTime})
	return b.Bytes(), err
}

// writeAgentConfig leaves a file that is there alone: a drill may have edited it.
func (l *Lab) writeAgentConfig(node string) error {
	file := l.AgentConfig(node)
	if _, err := os.Stat(file); err == nil {
		return nil
	}
	config, err := l.agentConfig(node)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(l.path(node, "state"), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, config, 0o644)
}

// StartAgent starts the agent of an LVS host.
func (l *Lab) StartAgent(node string) error {
	bin, err := l.bin("medway-agent")
	if err != nil {
		return err
	}
	if err := l.writeAgentConfig(node); err != nil {
		return err
	}
	_, err = l.Start(node, "agent", bin, "run", "--config", l.AgentConfig(node))
	return err
}

// StopAgent ends the agent of an LVS host: SIGTERM in order, SIGKILL as a crash.
func (l *Lab) StopAgent(ctx context.Context, node string, sig syscall.Signal) error {
	return l.Stop(ctx, node, "agent", sig)
}

// waitVIP waits until the transit's best route leads to the site, and every LVS host
// can serve and says so to its edge.
func (l *Lab) waitVIP(ctx context.Context, site Site) error {
	err := until(ctx, 100*time.Millisecond, func() error {
		for _, n := range l.topo.Role(RoleLVS) {
			if d, err := l.Daemon(n.Name, "agent"); err != nil || !d.Alive() {
				return fmt.Errorf("the agent on %s has ended", n.Name)
			}
		}
		routes, err := l.Routes(Transit)
		if err != nil {
			return err
		}
		for _, r := range routes {
			if r.Best && r.Session == site.Edge() {
				return l.allAnnounce()
			}
		}
		return fmt.Errorf("%s doesn't prefer %s for %s: it has %d routes", Transit, site.Name, VIP, len(routes))
	})
	if err == nil {
		return nil
	}
	var logs strings.Builder
	for _, n := range l.topo.Role(RoleLVS) {
		fmt.Fprintf(&logs, "\n  agent on %s:\n%s", n.Name, indent(tail(l.path(n.Name, "agent.log"), 10)))
	}
	return fmt.Errorf("announcement: %w%s", err, logs.String())
}

// allAnnounce names an LVS host that does not announce the VIP, or does so as the last
// resort: it can't serve, or waits to learn the connections.
func (l *Lab) allAnnounce() error {
	meds, err := l.MEDs()
	if err != nil {
		return err
	}
	lastResort := Rungs[len(Rungs)-1].Community // the communities are those of the MEDs
	for _, n := range l.topo.Role(RoleLVS) {
		if med, ok := meds[n.Name]; !ok || med >= lastResort {
			return fmt.Errorf("%s does not serve %s yet: the MEDs are %v", n.Name, VIP, meds)
		}
	}
	return nil
}

// MEDs are what the edge routers hear from the LVS hosts of their site for the VIP,
// by host. One that does not announce it is left out.
func (l *Lab) MEDs() (map[string]int, error) {
	meds := map[string]int{}
	for _, s := range l.topo.Sites {
		routes, err := l.Routes(s.Edge())
		if err != nil {
			return nil, err
		}
		for _, r := range routes {
			if n, ok := l.topo.Node(r.Session); ok && n.Role == RoleLVS && r.Prefix.Addr() == VIP {
				meds[n.Name] = r.MED
			}
		}
	}
	return meds, nil
}

// Owner is the LVS host that owns the VIP in a site, as etcd has it; "" is none.
func (l *Lab) Owner(ctx context.Context, site string) (string, error) {
	value, found, err := l.Get(ctx, Witness, "/medway/v1/owners/"+site+"/"+VIPName)
	if err != nil || !found {
		return "", err
	}
	var owner struct{ Node string }
	if err := json.Unmarshal([]byte(value), &owner); err != nil {
		return "", fmt.Errorf("owner of %s in %s: value %q: %w", VIPName, site, value, err)
	}
	return owner.Node, nil
}

// IntentDir is where the lab's intent is, for `medwayctl apply -f`.
func (l *Lab) IntentDir() string { return l.path("intent") }

func (l *Lab) writeIntent() error {
	entries, err := fs.ReadDir(files, "intent")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(l.IntentDir(), 0o755); err != nil {
		return err
	}
	for _, e := range entries {
		var b bytes.Buffer
		err := intentFiles.ExecuteTemplate(&b, e.Name(), struct {
			VIPName   string
			VIP, VIP6 netip.Addr
			Sites     []Site
			Backends  []Node
			AS        int
			Rungs     []Rung
		}{VIPName, VIP, VIP6, l.topo.Sites, l.topo.Role(RoleSBC), OperatorAS, Rungs})
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(l.IntentDir(), e.Name()), b.Bytes(), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// Apply loads the intent files into etcd by medwayctl, on the witness.
func (l *Lab) Apply(ctx context.Context) error {
	bin, err := l.bin("medwayctl")
	if err != nil {
		return err
	}
	_, err = l.Output(ctx, Witness, bin, "apply", "-f", l.IntentDir(), "--command-timeout", "30s")
	return err
}

// SetTarget does what an operator's `etcdctl put` of target_state does.
func (l *Lab) SetTarget(ctx context.Context, vip, site string) error {
	return l.Put(ctx, Witness, "/medway/v1/target_state/"+vip, site)
}

// bin finds one of the project's binaries.
func (l *Lab) bin(name string) (string, error) {
	file := filepath.Join(l.opts.BinDir, name)
	if _, err := os.Stat(file); errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("%s is missing: run make build", file)
	}
	return file, nil
}
