package lab

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/template"
	"time"
)

//go:embed templates intent
var files embed.FS

var templates = template.Must(template.ParseFS(files, "templates/*"))

// peer is another router as a template sees it: one of a site, or of a provider.
type peer struct {
	Edge      string
	LAN, LAN6 netip.Prefix
	// Via and Via6 are its addresses on the cable to it, Own6 is this router's.
	Via, Via6, Own6 netip.Addr
	Provider        Provider
}

// A Rung is a role in which LVS hosts announce. Its routes bear the community
// <OperatorAS>:<Community>; for a provider that ignores MEDs, the edges turn it into
// Prepend more hops. Better roles have shorter paths, strictly, as they have lower MEDs.
type Rung struct {
	Name      string
	Community int
	Prepend   int
}

// Rungs are those of the ladder, best first; unconfirmed is announced as active.
var Rungs = []Rung{{"force", 50, 0}, {"active", 100, 1}, {"standby", 110, 2}, {"backup", 500, 3}, {"last_resort", 900, 4}}

// routerConfig is what the templates of BIRD's configuration know.
type routerConfig struct {
	Node, Log               string
	RouterID                netip.Addr
	AS                      int
	VIPs, VIPs6             netip.Prefix
	LAN                     netip.Prefix
	LVS                     []Node
	BFD                     int64 // ms
	Others, Sites           []peer
	Providers               []peer
	Provider                Provider
	Rungs                   []Rung
	WitnessAddr, WitnessVia netip.Addr
}

// Worst is the last rung.
func (routerConfig) Worst() Rung { return Rungs[len(Rungs)-1] }

// BirdLog is the log file of a router, which ParseBirdLog and Follow read.
func (l *Lab) BirdLog(router string) string { return l.path(router, "bird.log") }

func (l *Lab) birdConfig(router string) ([]byte, error) {
	node, _ := l.topo.Node(router)
	c := routerConfig{
		Node: router, Log: l.BirdLog(router), RouterID: node.Addr,
		AS: OperatorAS, VIPs: vipNet, VIPs6: vipNet6,
	}
	name := "edge.conf"
	if site, ok := l.topo.Site(node.Site); ok {
		l.edgeConfig(site, &c)
	} else {
		name = "transit.conf"
		c.Provider, _ = l.topo.Provider(router)
		place := 1 + slices.Index(l.topo.Providers, c.Provider)
		for _, s := range l.topo.Sites {
			own, own6 := s.providerSide(place)
			c.Sites = append(c.Sites, peer{
				Edge: s.Edge(), LAN: s.LAN(), LAN6: s.LAN6(), Via: own.Next(), Via6: own6.Next(), Own6: own6,
			})
		}
	}
	var b bytes.Buffer
	err := templates.ExecuteTemplate(&b, name, c)
	return b.Bytes(), err
}

func (l *Lab) edgeConfig(site Site, c *routerConfig) {
	c.LAN = site.LAN()
	c.LVS = slices.DeleteFunc(site.Hosts(), func(n Node) bool { return n.Role != RoleLVS })
	c.Rungs, c.BFD = Rungs, l.opts.BFD.Milliseconds()
	c.WitnessAddr, c.WitnessVia = l.topo.WitnessAddr(), site.witnessSide().Next()
	for i, p := range l.topo.Providers {
		via, via6 := site.providerSide(i + 1)
		c.Providers = append(c.Providers, peer{Provider: p, Via: via, Via6: via6, Own6: via6.Next()})
	}
	for _, o := range l.topo.Sites {
		if o.Name == site.Name {
			continue
		}
		via, via6 := wanSide(o, site)
		_, own6 := wanSide(site, o)
		c.Others = append(c.Others, peer{Edge: o.Edge(), LAN: o.LAN(), LAN6: o.LAN6(), Via: via, Via6: via6, Own6: own6})
	}
}

// StartRouter starts BIRD on an edge or on the transit.
func (l *Lab) StartRouter(router string) error {
	config, err := l.birdConfig(router)
	if err != nil {
		return fmt.Errorf("configuration of %s: %w", router, err)
	}
	file := l.path(router, "bird.conf")
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(file, config, 0o644); err != nil {
		return err
	}
	// A socket that a killed BIRD left behind would answer nobody.
	_ = os.Remove(l.path(router, "bird.ctl"))
	// -f stays in the foreground: the pid is the daemon's. Its log goes to the file of `log`.
	_, err = l.Start(router, "bird", "bird", "-f", "-c", file, "-s", l.path(router, "bird.ctl"), "-P", l.path(router, "bird.pid"))
	return err
}

// StopRouter ends BIRD: SIGTERM withdraws its routes, SIGKILL leaves them in the
// kernel, as a router whose control plane crashed.
func (l *Lab) StopRouter(ctx context.Context, router string, sig syscall.Signal) error {
	return l.Stop(ctx, router, "bird", sig)
}

// waitSessions waits until the router's BGP sessions with the named ones are established.
func (l *Lab) waitSessions(ctx context.Context, router string, with ...string) error {
	err := until(ctx, 50*time.Millisecond, func() error {
		if d, err := l.Daemon(router, "bird"); err != nil || !d.Alive() {
			return errors.New("bird has ended")
		}
		sessions, err := l.Sessions(router)
		if err != nil {
			return err
		}
		for _, name := range with {
			if sessions[name] != "Established" {
				return fmt.Errorf("session with %s: %q", name, sessions[name])
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("router %s: %w\n%s", router, err, indent(l.routerTail(router)))
	}
	return nil
}

// routerTail is the end of what BIRD printed (errors in its configuration) and logged.
func (l *Lab) routerTail(router string) string {
	return tail(l.BirdLog(router), 15)
}

func indent(s string) string { return "    " + strings.ReplaceAll(s, "\n", "\n    ") }
