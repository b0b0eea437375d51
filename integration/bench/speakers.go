package bench

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/osrg/gobgp/v4/pkg/server"
)

// The addresses of the network: all on the loopback device.
var (
	routerAddress = netip.MustParseAddr("10.9.0.1")
	goBGPAddress  = netip.MustParseAddr("10.9.0.2")
	exaAddress    = netip.MustParseAddr("10.9.0.3")
	agentAddress  = map[string]netip.Addr{"dc1": netip.MustParseAddr("10.9.1.1"), "dc2": netip.MustParseAddr("10.9.2.1")}
)

const localAS = 65001

// A pipe to a BGP speaker takes commands, one a line.
type pipe struct {
	*process
	in io.WriteCloser
	// announce makes the line, or lines, that announce prefixes with a MED.
	announce func(med uint32, prefixes []netip.Prefix) string
	address  netip.Addr
}

func (p *pipe) stop() {
	if p != nil {
		p.in.Close()
		p.process.stop()
	}
}

// toWire measures from before the command is written to when the last of the
// routes has arrived at the router.
func (p *pipe) toWire(ctx context.Context, r *Router, med uint32, prefixes []netip.Prefix) (time.Duration, error) {
	news := r.News(p.address)
	drain(news)
	line := p.announce(med, prefixes)
	missing := map[netip.Prefix]bool{}
	for _, prefix := range prefixes {
		missing[prefix] = true
	}
	begin := time.Now()
	// A pipe holds 64 KiB: the writing must not hold up the listening.
	failed := make(chan error, 1)
	if len(prefixes) == 1 {
		if _, err := io.WriteString(p.in, line); err != nil {
			return 0, err
		}
	} else {
		go func() {
			if _, err := io.WriteString(p.in, line); err != nil {
				failed <- err
			}
		}()
	}
	limit := time.NewTimer(30 * time.Second)
	defer limit.Stop()
	for {
		select {
		case route := <-news:
			if route.MED == med && !route.Withdrawn {
				delete(missing, route.Prefix)
			}
			if len(missing) == 0 {
				return route.At.Sub(begin), nil
			}
		case err := <-failed:
			return 0, err
		case <-limit.C:
			return 0, fmt.Errorf("%s: %d of %d routes did not arrive within 30 s\n%s", p.name, len(missing), len(prefixes), p.tail())
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

func drain(news <-chan Route) {
	for {
		select {
		case <-news:
		default:
			return
		}
	}
}

// startGoBGP runs GoBGP alone, in a process of its own.
func startGoBGP(ctx context.Context, dir string, r *Router) (*pipe, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	out, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer out.Close()
	p, err := startWithInput(dir, "gobgp", out, nil, self, "gobgp")
	if err != nil {
		return nil, err
	}
	return ready(ctx, r, &pipe{
		process: p, in: in, address: goBGPAddress,
		announce: func(med uint32, prefixes []netip.Prefix) string { return fmt.Sprintf("%d %s\n", med, join(prefixes)) },
	})
}

func ready(ctx context.Context, r *Router, p *pipe) (*pipe, error) {
	err := until(ctx, 30*time.Second, 20*time.Millisecond, func() error {
		if err := p.ended(); err != nil {
			return err
		}
		if !r.Established(p.address) {
			return fmt.Errorf("%s: no session\n%s", p.name, p.tail())
		}
		return nil
	})
	if err != nil {
		p.stop()
		return nil, err
	}
	return p, nil
}

func join(prefixes []netip.Prefix) string {
	words := make([]string, len(prefixes))
	for i, p := range prefixes {
		words[i] = p.String()
	}
	return strings.Join(words, " ")
}

// GoBGP is the process of GoBGP alone: a line of in is a MED and the prefixes to
// announce with it, which it hands over in one call.
func GoBGP(ctx context.Context, in io.Reader) error {
	srv := server.NewBgpServer()
	go srv.Serve()
	if err := srv.StartBgp(ctx, &api.StartBgpRequest{Global: &api.Global{
		Asn: localAS, RouterId: goBGPAddress.String(), ListenPort: -1,
	}}); err != nil {
		return err
	}
	if err := srv.AddPeer(ctx, &api.AddPeerRequest{Peer: &api.Peer{
		Conf:      &api.PeerConf{NeighborAddress: routerAddress.String(), PeerAsn: localAS},
		Timers:    &api.Timers{Config: &api.TimersConfig{ConnectRetry: 2, HoldTime: uint64(holdTime / time.Second), KeepaliveInterval: 30}},
		Transport: &api.Transport{LocalAddress: goBGPAddress.String()},
	}}); err != nil {
		return err
	}
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		med, err := strconv.ParseUint(words[0], 10, 32)
		if err != nil {
			return err
		}
		var paths []*apiutil.Path
		for _, word := range words[1:] {
			path, err := pathOf(word, uint32(med))
			if err != nil {
				return err
			}
			paths = append(paths, path)
		}
		if _, err := srv.AddPath(apiutil.AddPathRequest{Paths: paths}); err != nil {
			return err
		}
	}
	return lines.Err()
}

func pathOf(word string, med uint32) (*apiutil.Path, error) {
	prefix, err := netip.ParsePrefix(word)
	if err != nil {
		return nil, err
	}
	nlri, err := bgp.NewIPAddrPrefix(prefix)
	if err != nil {
		return nil, err
	}
	hop, err := bgp.NewPathAttributeNextHop(goBGPAddress)
	if err != nil {
		return nil, err
	}
	return &apiutil.Path{Family: bgp.RF_IPv4_UC, Nlri: nlri, Attrs: []bgp.PathAttributeInterface{
		bgp.NewPathAttributeOrigin(bgp.BGP_ORIGIN_ATTR_TYPE_IGP), bgp.NewPathAttributeMultiExitDisc(med), hop,
	}}, nil
}

const exaConfig = `process bench {
	run /bin/sleep 100000;
	encoder text;
}
neighbor %s {
	router-id %s;
	local-address %s;
	local-as %d;
	peer-as %d;
	hold-time %d;
	family { ipv4 unicast; }
	api { processes [ bench ]; }
}
`

// startExaBGP runs ExaBGP. It takes commands from the standard output of a
// program that it starts; ours does nothing, and we write into its pipe
// ourselves, so that no further process stands in the way.
func startExaBGP(ctx context.Context, dir string, r *Router) (*pipe, error) {
	config := filepath.Join(dir, "exabgp.conf")
	text := fmt.Sprintf(exaConfig, routerAddress, exaAddress, exaAddress, localAS, localAS, int(holdTime/time.Second))
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return nil, err
	}
	env := []string{"exabgp_daemon_user=root", "exabgp_api_ack=false", "exabgp_log_level=WARNING", "exabgp_api_cli=false"}
	exa, err := start(dir, "exabgp", env, "exabgp", config)
	if err != nil {
		return nil, err
	}
	p := &pipe{process: exa, address: exaAddress, announce: func(med uint32, prefixes []netip.Prefix) string {
		var b strings.Builder
		for _, prefix := range prefixes {
			fmt.Fprintf(&b, "announce route %s next-hop %s med %d\n", prefix, exaAddress, med)
		}
		return b.String()
	}}
	err = until(ctx, 30*time.Second, 50*time.Millisecond, func() error {
		if err := exa.ended(); err != nil {
			return err
		}
		file, err := outputOfChild(exa.cmd.Process.Pid, "sleep")
		if err == nil {
			p.in = file
		}
		return err
	})
	if err != nil {
		exa.stop()
		return nil, fmt.Errorf("ExaBGP's API: %w\n%s", err, exa.tail())
	}
	return ready(ctx, r, p)
}

// outputOfChild opens the standard output of a process's child for writing.
func outputOfChild(pid int, name string) (*os.File, error) {
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return nil, err
	}
	for _, child := range strings.Fields(string(children)) {
		comm, err := os.ReadFile("/proc/" + child + "/comm")
		if err == nil && strings.TrimSpace(string(comm)) == name {
			return os.OpenFile("/proc/"+child+"/fd/1", os.O_WRONLY, 0)
		}
	}
	return nil, fmt.Errorf("process %d has no child %s", pid, name)
}
