package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// The network in which hosts die: this namespace is the client, behind a router
// (BIRD) on whose other side two LVS hosts hang on a switch, each in a namespace
// of its own. The switch drops all that goes to and from a host, and neither the
// host nor the router sees a change of carrier.
//
//	client 10.8.1.2 --- 10.8.1.1 router 10.8.0.1 --- switch --- a 10.8.0.11
//	                                                       \--- b 10.8.0.12
//
// Both hosts have medway's VIP on lo, and Keepalived gives each of its VIPs to
// one of them.
const (
	clientAddress = "10.8.1.2"
	edgeAddress   = "10.8.0.1"
	echoPort      = 9000
)

// hosts are the LVS hosts: a is in dc1, the active site, and b in dc2. Two hosts
// of one site differ in nothing that counts here, the second best route.
var hosts = []struct{ name, site, address string }{{"a", "dc1", "10.8.0.11"}, {"b", "dc2", "10.8.0.12"}}

// The addresses that clients send to.
var (
	vipMedway    = vipAddress(0)
	vipVRRP      = netip.MustParseAddr("10.8.0.101") // advert_int 1
	vipVRRPTenth = netip.MustParseAddr("10.8.0.102") // advert_int 0.1
)

// edgeConfig is the router's part of docs/routers/bird.conf.
const edgeConfig = `log stderr all;
router id 10.8.0.1;
protocol device {}
protocol kernel { ipv4 { import none; export where source = RTS_BGP; }; }
protocol bfd { interface "*" { interval 150 ms; multiplier 3; }; }
template bgp lvs {
	local 10.8.0.1 as 65001;
	direct;
	passive on;
	hold time 9;
	error wait time 2, 10;
	bfd on;
	graceful restart on;
	ipv4 { import all; export none; };
}
protocol bgp a from lvs { neighbor 10.8.0.11 as 65001; }
protocol bgp b from lvs { neighbor 10.8.0.12 as 65001; }
`

// hostConfig leaves BFD at its default.
const hostConfig = `node: %[1]s-lvs-a
site: %[1]s
group: %[1]s-edge1
addresses: {ipv4: %[2]s}
uplink: eth0
etcd: {endpoints: ["http://%[3]s:2379"], insecure: true}
bgp:
  as: 65001
  neighbors:
    - {address: %[4]s, as: 65001}
state_dir: %[5]s
`

// vrrpConfig has priorities so near to 255 that the wait is hardly more than
// three intervals. Intervals below a second need version 3.
const vrrpConfig = `vrrp_instance one {
	state BACKUP
	interface eth0
	virtual_router_id 51
	priority %[1]d
	advert_int 1
	virtual_ipaddress { %[2]s/32 }
}
vrrp_instance tenth {
	version 3
	state BACKUP
	interface eth0
	virtual_router_id 52
	priority %[1]d
	advert_int 0.1
	virtual_ipaddress { %[3]s/32 }
}
`

// failnet is the network with all that runs in it.
type failnet struct {
	dir, bin string
	spaces   map[string]*process
	running  []*process
	etcd     *etcd
	agents   map[string]*process
}

// newFailnet builds the network and starts the router, etcd and the agents.
func newFailnet(ctx context.Context, o Options) (*failnet, error) {
	n := &failnet{dir: o.Dir, bin: o.Bin, spaces: map[string]*process{}, agents: map[string]*process{}}
	for _, step := range []func(context.Context) error{n.cables, n.router, n.medway} {
		if err := step(ctx); err != nil {
			n.stop()
			return nil, err
		}
	}
	return n, nil
}

func (n *failnet) stop() {
	for _, p := range n.running {
		p.stop()
	}
	n.etcd.stop()
	for _, p := range n.spaces {
		p.stop()
	}
}

// space makes a network namespace, which lives as long as a process in it.
func (n *failnet) space(ctx context.Context, name string) error {
	p, err := start(n.dir, "space-"+name, nil, "unshare", "--net", "sleep", "infinity")
	if err != nil {
		return err
	}
	n.spaces[name] = p
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return err
	}
	return until(ctx, 10*time.Second, 5*time.Millisecond, func() error {
		if space, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", p.cmd.Process.Pid)); err != nil || space == own {
			return errors.Join(errors.New("no namespace for "+name), err, p.ended())
		}
		return nil
	})
}

// in is the command that runs another in a namespace, as the same process.
func (n *failnet) in(name string, args ...string) []string {
	return append([]string{"nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", n.spaces[name].cmd.Process.Pid), "--"}, args...)
}

// run runs a command, and start a program that lives on, in a namespace.
func (n *failnet) run(ctx context.Context, space, line string) error {
	return run(ctx, n.in(space, strings.Fields(line)...)...)
}

func (n *failnet) start(space, name string, env []string, args ...string) (*process, error) {
	p, err := start(n.dir, name, env, n.in(space, args...)...)
	if err == nil {
		n.running = append(n.running, p)
	}
	return p, err
}

// weighted runs a program before all others, as CPUWeight=10000 in
// docs/medway-agent.service does: in a session of its own, whose share of the
// processors is that of nice -20 (autogroups, sched(7)). A kernel without them
// runs it as any other.
func weighted(args ...string) []string {
	return append([]string{"setsid", "sh", "-c", `{ echo -20 >/proc/self/autogroup; } 2>/dev/null; exec "$0" "$@"`}, args...)
}

func (n *failnet) cables(ctx context.Context) error {
	for _, name := range []string{"switch", "router", "a", "b"} {
		if err := n.space(ctx, name); err != nil {
			return err
		}
	}
	var lines [][2]string
	add := func(space, line string) { lines = append(lines, [2]string{space, line}) }
	add("switch", "ip link add lan type bridge forward_delay 0")
	add("switch", "ip link set lan up")
	pid := func(name string) int { return n.spaces[name].cmd.Process.Pid }
	for _, name := range []string{"router", "a", "b"} {
		add("switch", fmt.Sprintf("ip link add name %s type veth peer name eth0 netns %d", name, pid(name)))
		add("switch", fmt.Sprintf("ip link set dev %s master lan up", name))
		add(name, "ip link set lo up")
		add(name, "ip link set eth0 up")
	}
	add("router", "ip address add "+edgeAddress+"/24 dev eth0")
	add("router", "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.send_redirects=0")
	for _, h := range hosts {
		add(h.name, "ip address add "+h.address+"/24 dev eth0")
		add(h.name, "ip address add "+vipMedway.String()+"/32 dev lo")
		add(h.name, "ip route add default via "+edgeAddress)
		add(h.name, "sysctl -qw net.ipv4.ip_nonlocal_bind=1") // for the VIPs that Keepalived brings and takes
	}
	for _, l := range lines {
		if err := n.run(ctx, l[0], l[1]); err != nil {
			return err
		}
	}
	for _, line := range []string{
		"ip link set lo up", fmt.Sprintf("ip link add cable0 type veth peer name cable0 netns %d", pid("router")),
		"ip address add " + clientAddress + "/24 dev cable0", "ip link set cable0 up", "ip route add default via 10.8.1.1",
	} {
		args := strings.Fields(line)
		if strings.Contains(line, "default") { // the router's end must be up for it
			if err := errors.Join(n.run(ctx, "router", "ip address add 10.8.1.1/24 dev cable0"), n.run(ctx, "router", "ip link set cable0 up")); err != nil {
				return err
			}
		}
		if err := run(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}

func (n *failnet) router(context.Context) error {
	config := filepath.Join(n.dir, "edge.conf")
	if err := os.WriteFile(config, []byte(edgeConfig), 0o644); err != nil {
		return err
	}
	// A router has processors of its own.
	_, err := n.start("router", "edge", nil, weighted("bird", "-f", "-c", config, "-s", n.socket(), "-P", filepath.Join(n.dir, "edge.pid"))...)
	return err
}

func (n *failnet) socket() string { return filepath.Join(n.dir, "edge.ctl") }

// medway starts the agents of both hosts on one VIP, whose target is a's site.
func (n *failnet) medway(ctx context.Context) (err error) {
	if n.etcd, err = startEtcd(ctx, n.bin, n.dir, "http://"+clientAddress+":2379"); err != nil {
		return err
	}
	if err := n.etcd.putAll(ctx, intent(1, time.Second, time.Second)); err != nil {
		return err
	}
	for _, h := range hosts {
		config := filepath.Join(n.dir, h.name+".yaml")
		text := fmt.Sprintf(hostConfig, h.site, h.address, clientAddress, edgeAddress, filepath.Join(n.dir, h.name))
		if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
			return err
		}
		agent, err := n.start(h.name, "agent-"+h.name, []string{"MEDWAY_AGENT_ON_FAKES=" + config},
			weighted(filepath.Join(n.bin, "medway-agent-on-fakes"))...)
		if err != nil {
			return err
		}
		n.agents[h.name] = agent
	}
	return nil
}

// keepalived starts VRRP on both hosts; a has the higher priority.
func (n *failnet) keepalived() error {
	for i, h := range hosts {
		file := func(suffix string) string { return filepath.Join(n.dir, "vrrp-"+h.name+suffix) }
		if err := os.WriteFile(file(".conf"), fmt.Appendf(nil, vrrpConfig, 250-10*i, vipVRRP, vipVRRPTenth), 0o644); err != nil {
			return err
		}
		if _, err := n.start(h.name, "vrrp-"+h.name, nil, "keepalived", "--vrrp", "--dont-fork", "--log-console",
			"--use-file", file(".conf"), "--pid", file(".pid"), "--vrrp_pid", file("-vrrp.pid")); err != nil {
			return err
		}
	}
	return nil
}

// echoes answers on every VIP of both hosts.
func (n *failnet) echoes() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for _, h := range hosts {
		args := []string{self, "echo", h.name}
		for _, vip := range []netip.Addr{vipMedway, vipVRRP, vipVRRPTenth} {
			args = append(args, netip.AddrPortFrom(vip, echoPort).String())
		}
		if _, err := n.start(h.name, "echo-"+h.name, nil, args...); err != nil {
			return err
		}
	}
	return nil
}

// cut drops all that goes to and from a host, and mend ends it.
func (n *failnet) cut(ctx context.Context, host string) error { return n.port(ctx, host, "disabled") }

func (n *failnet) mend(ctx context.Context, host string) error {
	return n.port(ctx, host, "forwarding")
}

func (n *failnet) port(ctx context.Context, host, state string) error {
	number := map[string]string{"disabled": "0", "forwarding": "3"}[state]
	return n.run(ctx, "switch", "bridge link set dev "+host+" state "+number)
}

// bfdUp is nil when the router has BFD with both hosts, and a's route is its best.
func (n *failnet) bfdUp(ctx context.Context) error {
	for _, p := range n.running {
		if err := p.ended(); err != nil {
			return err
		}
	}
	sessions, err := n.birdc(ctx, "show", "bfd", "sessions")
	if err != nil {
		return err
	}
	if strings.Count(sessions, " Up ") != len(hosts) {
		return fmt.Errorf("BFD is not up with both hosts:\n%s", sessions)
	}
	route, err := n.birdc(ctx, "show", "route", "primary", "for", vipMedway.String())
	if err == nil && !strings.Contains(route, "via "+hosts[0].address) {
		err = fmt.Errorf("the router's best route is not the first host's:\n%s", route)
	}
	return err
}

func (n *failnet) birdc(ctx context.Context, args ...string) (string, error) {
	return output(ctx, append([]string{"birdc", "-s", n.socket()}, args...)...)
}
