package agent

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/medway-lb/medway/agent/internal/bgp"
	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/state"
)

// Config is the agent's own file: what must be known before etcd can be asked.
type Config struct {
	Node      string    `yaml:"node"`
	Site      string    `yaml:"site"`
	Group     string    `yaml:"group"`
	Addresses Addresses `yaml:"addresses"`
	// Uplink is the device on which clients' packets arrive.
	Uplink string `yaml:"uplink"`
	Etcd   Etcd   `yaml:"etcd"`
	BGP    BGP    `yaml:"bgp"`
	// LeaseTTL is how long the node may be silent before others count it as
	// gone. Default 5s.
	LeaseTTL time.Duration `yaml:"lease_ttl"`
	// StateDir holds the last good snapshot. Default /var/lib/medway.
	StateDir string `yaml:"state_dir"`
}

// Addresses are where other nodes and backends reach the host.
type Addresses struct {
	IPv4 netip.Addr `yaml:"ipv4"`
	IPv6 netip.Addr `yaml:"ipv6"`
}

// Etcd says how to reach etcd. TLS is required unless Insecure says otherwise.
type Etcd struct {
	Endpoints []string `yaml:"endpoints"`
	// Insecure allows endpoints without TLS.
	Insecure bool   `yaml:"insecure"`
	CA       string `yaml:"ca"`
	Cert     string `yaml:"cert"`
	Key      string `yaml:"key"`
}

// BGP configures the speaker. docs/routers.md says what the routers need.
type BGP struct {
	AS uint32 `yaml:"as"`
	// RouterID is the BGP identifier. Default addresses.ipv4.
	RouterID  netip.Addr `yaml:"router_id"`
	Neighbors []Neighbor `yaml:"neighbors"`
}

// Neighbor is a router. One of our own AS is spoken to by iBGP, another by
// eBGP. Routes of both families go over one session, whatever its own family.
type Neighbor struct {
	Address netip.Addr `yaml:"address"`
	AS      uint32     `yaml:"as"`
	// HoldTime and Keepalive in whole seconds. Default 9s, and a third of
	// hold_time.
	HoldTime  time.Duration `yaml:"hold_time"`
	Keepalive time.Duration `yaml:"keepalive"`
	// PasswordFile holds the TCP MD5 password (RFC 2385).
	PasswordFile string `yaml:"password_file"`
	// TTLSecurity is GTSM (RFC 5082), for a router that is directly connected.
	TTLSecurity bool `yaml:"ttl_security"`
	// Multihop is the TTL towards an eBGP router that isn't. Default 1.
	Multihop uint8 `yaml:"multihop"`
	BFD      *BFD  `yaml:"bfd"`
	// GracefulRestart is how long the router is asked to keep routes while the
	// agent restarts. Default 120s; 0s is off.
	GracefulRestart *time.Duration `yaml:"graceful_restart"`
	// MaxPrefixes is how many routes of a family the router may send, all of
	// which are refused, before its session is closed. Default 2000000.
	MaxPrefixes uint32 `yaml:"max_prefixes"`
}

// BFD configures a BFD session with a neighbour.
type BFD struct {
	Interval   time.Duration `yaml:"interval"`
	Multiplier uint8         `yaml:"multiplier"`
}

const (
	defaultHoldTime        = 9 * time.Second
	defaultGracefulRestart = 120 * time.Second
)

// LoadConfig reads and checks the agent's file. Its errors name the place.
func LoadConfig(path string) (Config, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return Config{}, err
	}
	c := Config{LeaseTTL: 5 * time.Second, StateDir: "/var/lib/medway"}
	decoder := yaml.NewDecoder(bytes.NewReader(text), yaml.Strict())
	if err := decoder.Decode(&c); err != nil && !errors.Is(err, io.EOF) {
		// Without the lines around it: one of them may hold a password that does not belong there.
		return c, fmt.Errorf("%s: %s", path, yaml.FormatError(err, false, false))
	}
	if err := c.Validate(); err != nil {
		return c, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// Validate checks everything that can be checked without touching the host.
// All that is wrong is said at once.
func (c Config) Validate() error {
	var errs []error
	wrong := func(field string, value any, expected string) {
		errs = append(errs, fmt.Errorf("field %s: value %q: expected %s", field, fmt.Sprint(value), expected))
	}
	for _, f := range []struct{ field, name string }{{"node", c.Node}, {"site", c.Site}, {"group", c.Group}} {
		if err := state.CheckName(f.name); err != nil {
			errs = append(errs, fmt.Errorf("field %s: %w", f.field, err))
		}
	}
	if !c.Addresses.IPv4.Is4() || !c.Addresses.IPv4.IsGlobalUnicast() {
		wrong("addresses.ipv4", c.Addresses.IPv4, "an IPv4 unicast address of this host")
	}
	if c.Uplink == "" || len(c.Uplink) > 15 {
		wrong("uplink", c.Uplink, "the name of a network device")
	}
	if c.LeaseTTL < time.Second || c.LeaseTTL > 10*time.Minute {
		wrong("lease_ttl", c.LeaseTTL, "a duration from 1s to 10m")
	}
	if c.StateDir == "" {
		wrong("state_dir", c.StateDir, "a directory")
	}
	c.Etcd.validate(wrong)
	if len(c.BGP.Neighbors) == 0 {
		wrong("bgp.neighbors", "", "at least one router")
	}
	for _, fault := range c.speaker(nil).Faults() {
		errs = append(errs, fmt.Errorf("field bgp.%w", fault))
	}
	return errors.Join(errs...)
}

func (e Etcd) validate(wrong func(field string, value any, expected string)) {
	if len(e.Endpoints) == 0 {
		wrong("etcd.endpoints", "", "at least one URL")
	}
	for _, endpoint := range e.Endpoints {
		secure, plain := strings.HasPrefix(endpoint, "https://"), strings.HasPrefix(endpoint, "http://")
		switch {
		case !secure && !plain:
			wrong("etcd.endpoints", endpoint, "a URL that begins with https://")
		case secure && e.Insecure:
			wrong("etcd.endpoints", endpoint, "http://, or no \"insecure\" beside it")
		case plain && !e.Insecure:
			wrong("etcd.endpoints", endpoint, "https://, or \"insecure: true\" beside it")
		}
	}
	if (e.Cert == "") != (e.Key == "") {
		wrong("etcd.cert", e.Cert, "cert and key together")
	}
}

// tls reads the certificates; nil where TLS is off.
func (e Etcd) tls() (*tls.Config, error) {
	if e.Insecure {
		return nil, nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if e.CA != "" {
		pem, err := os.ReadFile(e.CA)
		if err != nil {
			return nil, fmt.Errorf("field etcd.ca: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("field etcd.ca: value %q: expected a file with PEM certificates", e.CA)
		}
	}
	if e.Cert != "" {
		pair, err := tls.LoadX509KeyPair(e.Cert, e.Key)
		if err != nil {
			return nil, fmt.Errorf("field etcd.cert: %w", err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

// speaker is the configuration of the BGP speaker; passwords by neighbour.
func (c Config) speaker(passwords map[netip.Addr]string) bgp.Config {
	out := bgp.Config{AS: c.BGP.AS, RouterID: c.BGP.RouterID, LocalAddress: c.Addresses.IPv4, LocalAddress6: c.Addresses.IPv6}
	for _, n := range c.BGP.Neighbors {
		neighbor := bgp.Neighbor{
			Address: n.Address, AS: n.AS, HoldTime: n.holdTime(), Keepalive: n.Keepalive,
			Password: passwords[n.Address], TTLSecurity: n.TTLSecurity, Multihop: n.Multihop,
			GracefulRestart: n.gracefulRestart(), MaxPrefixes: n.MaxPrefixes,
		}
		if n.BFD != nil {
			neighbor.BFD = &bgp.BFD{Interval: n.BFD.Interval, Multiplier: n.BFD.Multiplier}
		}
		out.Neighbors = append(out.Neighbors, neighbor)
	}
	return out
}

func (n Neighbor) gracefulRestart() time.Duration {
	if n.GracefulRestart == nil {
		return defaultGracefulRestart
	}
	return *n.GracefulRestart
}

// kept is how long a router may hold our routes after its session was lost: the
// time that it takes to miss us, and then to wait for our return.
func (b BGP) kept(neighbor netip.Addr) time.Duration {
	for _, n := range b.Neighbors {
		if n.Address == neighbor {
			return n.holdTime() + n.gracefulRestart()
		}
	}
	return defaultHoldTime + defaultGracefulRestart
}

func (n Neighbor) holdTime() time.Duration {
	if n.HoldTime == 0 {
		return defaultHoldTime
	}
	return n.HoldTime
}

// passwords reads the neighbours' password files.
func (b BGP) passwords() (map[netip.Addr]string, error) {
	out := map[netip.Addr]string{}
	for _, n := range b.Neighbors {
		if n.PasswordFile == "" {
			continue
		}
		text, err := os.ReadFile(n.PasswordFile)
		if err != nil {
			return nil, fmt.Errorf("field bgp.neighbors[%s].password_file: %w", n.Address, err)
		}
		if out[n.Address] = strings.TrimSpace(string(text)); out[n.Address] == "" {
			return nil, fmt.Errorf("field bgp.neighbors[%s].password_file: value %q: expected a file with a password", n.Address, n.PasswordFile)
		}
	}
	return out, nil
}

func (c Config) self() plan.Self {
	return plan.Self{Name: c.Node, Site: c.Site, Group: c.Group, IPv4: c.Addresses.IPv4, Uplink: c.Uplink}
}
