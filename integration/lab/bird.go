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

// peer is another site or site router as a template sees it.
type peer struct {
	Edge string
	LAN  netip.Prefix
	Via  netip.Addr
}

// routerConfig is what the templates of BIRD's configuration know.
type routerConfig struct {
	Node, Log               string
	RouterID                netip.Addr
	AS, TransitAS           int
	ClientNet, LAN          netip.Prefix
	LVS                     []Node
	Others, Sites           []peer
	TransitAddr             netip.Addr
	WitnessAddr, WitnessVia netip.Addr
}

// BirdLog is the log file of a router, which ParseBirdLog and Follow read.
func (l *Lab) BirdLog(router string) string { return l.path(router, "bird.log") }

func (l *Lab) birdConfig(router string) ([]byte, error) {
	node, _ := l.topo.Node(router)
	c := routerConfig{
		Node: router, Log: l.BirdLog(router), RouterID: node.Addr,
		AS: OperatorAS, TransitAS: TransitAS, ClientNet: clientNet,
	}
	name := "transit.conf"
	if site, ok := l.topo.Site(node.Site); ok {
		name = "edge.conf"
		c.LAN = site.LAN()
		c.LVS = slices.DeleteFunc(site.Hosts(), func(n Node) bool { return n.Role != RoleLVS })
		c.TransitAddr = site.transitSide()
		c.WitnessAddr, c.WitnessVia = l.topo.WitnessAddr(), site.witnessSide().Next()
		for _, o := range l.topo.Sites {
			if o.Name != site.Name {
				c.Others = append(c.Others, peer{o.Edge(), o.LAN(), wanSide(o, site)})
			}
		}
	} else {
		for _, s := range l.topo.Sites {
			c.Sites = append(c.Sites, peer{s.Edge(), s.LAN(), s.transitSide().Next()})
		}
	}
	var b bytes.Buffer
	err := templates.ExecuteTemplate(&b, name, c)
	return b.Bytes(), err
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
