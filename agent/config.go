package agent

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/goccy/go-yaml"

	"github.com/medway-lb/medway/agent/internal/bgp"
	"github.com/medway-lb/medway/agent/internal/local"
	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"
	"github.com/medway-lb/medway/pkg/yamlfile"
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
	// ARP takes BGP's place where no router speaks it with this node: docs/arp.md.
	ARP *ARP `yaml:"arp"`
	// LeaseTTL is how long the node may be silent before others count it as
	// gone. Default 5s.
	LeaseTTL time.Duration `yaml:"lease_ttl"`
	// StateDir holds the last good snapshot, the lease, and what was withdrawn by hand. Default /var/lib/medway.
	StateDir string `yaml:"state_dir"`
	// Socket is where people on this host reach the agent. Default agent.sock in
	// StateDir.
	Socket    string    `yaml:"socket"`
	Telemetry Telemetry `yaml:"telemetry"`
}

// Addresses are where other nodes and backends reach the host: one of each
// family at most, and one at least.
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

// ARP says where the node holds VIPs itself: on one segment, which it shares with
// the other nodes of its group and with whoever is the clients' next hop.
type ARP struct {
	// Interface is the segment's device. Default uplink.
	Interface string `yaml:"interface"`
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
	// hold_time. A pointer tells what is not set from 0.
	HoldTime  *time.Duration `yaml:"hold_time"`
	Keepalive *time.Duration `yaml:"keepalive"`
	// PasswordFile holds the TCP MD5 password (RFC 2385).
	PasswordFile string `yaml:"password_file"`
	// TTLSecurity is GTSM (RFC 5082), for a router that is directly connected.
	TTLSecurity bool `yaml:"ttl_security"`
	// Multihop is the TTL towards an eBGP router that isn't. Default 1.
	Multihop uint8 `yaml:"multihop"`
	// BFD is on by default, though not with Multihop.
	BFD *BFD `yaml:"bfd"`
	// GracefulRestart is how long the router is asked to keep routes while the
	// agent restarts. Default 120s; 0s is off.
	GracefulRestart *time.Duration `yaml:"graceful_restart"`
	// MaxPrefixes is how many routes of a family the router may send, all of
	// which are refused, before its session is closed. Default 2000000.
	MaxPrefixes *uint32 `yaml:"max_prefixes"`
}

// BFD configures a single-hop BFD session with a neighbour (RFC 5881). With a
// router that has none it stays down, and the BGP session lives without it.
type BFD struct {
	// Enabled is true by default.
	Enabled *bool `yaml:"enabled"`
	// Interval is that of the packets in both directions, 10ms to 1m. Default
	// 150ms.
	Interval *time.Duration `yaml:"interval"`
	// Multiplier is how many packets in a row may be missing. Default 3.
	Multiplier *uint8 `yaml:"multiplier"`
}

const (
	defaultStateDir        = "/var/lib/medway"
	defaultHoldTime        = 9 * time.Second
	defaultGracefulRestart = 120 * time.Second
	// A dead host is missed within half a second, and a busy one has that long
	// for its turn on the processor (docs/benchmarks.md).
	defaultBFDInterval   = 150 * time.Millisecond
	defaultBFDMultiplier = 3
	minSegmentTTL        = 3 * time.Second
)

// LoadConfig reads and checks the agent's file. Its errors name file, line and
// column of each field that is wrong.
func LoadConfig(path string) (Config, error) {
	c := Config{LeaseTTL: 5 * time.Second, StateDir: defaultStateDir}
	err := yamlfile.Load(path, &c)
	return c, err
}

// Validate checks everything that can be checked without touching the host.
// All that is wrong is said at once, as state.FieldErrors.
func (c Config) Validate() error {
	var errs []error
	wrong := func(field string, value any, expected string) {
		found := "missing"
		if text := fmt.Sprint(value); text != "" && text != "invalid IP" {
			found = "value " + state.Quote(text)
		}
		errs = append(errs, state.FieldError{Field: field, Found: found, Expected: expected})
	}
	for _, f := range []struct{ field, name string }{{"node", c.Node}, {"site", c.Site}, {"group", c.Group}} {
		if state.CheckName(f.name) != nil {
			wrong(f.field, f.name, "a name of 1 to 63 of a-z, 0-9 and '-', not beginning or ending with '-'")
		}
	}
	v4, v6 := c.Addresses.IPv4, c.Addresses.IPv6
	if !usable(v4, netip.Addr.Is4) && (v4.IsValid() || !v6.IsValid()) {
		wrong("addresses.ipv4", v4, "an IPv4 unicast address of this host")
	}
	if !usable(v6, netip.Addr.Is6) && v6.IsValid() {
		wrong("addresses.ipv6", v6, "an IPv6 unicast address of this host")
	}
	if medwayMakes(c.Uplink) {
		wrong("uplink", c.Uplink, "the device on which clients' packets arrive, not one that medway makes")
	}
	if !validDevice(c.Uplink) {
		wrong("uplink", c.Uplink, "the name of a network device: 1 to 15 bytes without white space, '/' or ':'")
	}
	if c.LeaseTTL < time.Second || c.LeaseTTL > 10*time.Minute {
		wrong("lease_ttl", c.LeaseTTL, "a duration from 1s to 10m")
	}
	if !filepath.IsAbs(c.StateDir) {
		wrong("state_dir", c.StateDir, "the absolute path of a directory")
	}
	if path := c.socket(); !filepath.IsAbs(path) || len(path) >= local.MaxPath {
		wrong("socket", path, fmt.Sprintf("an absolute path of at most %d bytes", local.MaxPath-1))
	}
	c.Etcd.validate(wrong)
	c.Telemetry.validate(c.Etcd, wrong)
	if c.ARP != nil {
		c.validateARP(wrong)
		return errors.Join(errs...)
	}
	if len(c.BGP.Neighbors) == 0 {
		wrong("bgp.neighbors", "", "at least one router, or \"arp\" in place of \"bgp\"")
	}
	for i, n := range c.BGP.Neighbors {
		n.validate(func(field string, value any, expected string) {
			wrong(fmt.Sprintf("bgp.neighbors[%d].%s", i, field), value, expected)
		})
	}
	return errors.Join(append(errs, c.checkSpeaker()...)...)
}

// validateARP checks what takes the place of BGP.
func (c Config) validateARP(wrong func(field string, value any, expected string)) {
	if c.BGP.AS != 0 || c.BGP.RouterID.IsValid() || len(c.BGP.Neighbors) > 0 {
		wrong("arp", c.segment(), "either \"arp\" or \"bgp\", not both")
	}
	name := c.ARP.Interface
	if name != "" && (!validDevice(name) || medwayMakes(name)) {
		wrong("arp.interface", name, "the name of the segment's network device, not one that medway makes")
	}
	// The kernel counts the lives of addresses in whole seconds.
	if c.LeaseTTL < minSegmentTTL {
		wrong("lease_ttl", c.LeaseTTL, fmt.Sprintf("at least %s with \"arp\"", minSegmentTTL))
	}
}

// segment is the device of ARP mode, "" in BGP mode.
func (c Config) segment() string {
	switch {
	case c.ARP == nil:
		return ""
	case c.ARP.Interface == "":
		return c.Uplink
	}
	return c.ARP.Interface
}

// medwayMakes says whether a device is medway's own.
func medwayMakes(name string) bool {
	return name == string(plan.VIPLink) || name == string(plan.SyncLink) || name == string(plan.SyncPeerLink)
}

// usable says whether other hosts can send to an address of a family.
func usable(a netip.Addr, family func(netip.Addr) bool) bool {
	return family(a) && state.Unicast(a)
}

// validate refuses a 0 that the speaker would take for its default.
func (n Neighbor) validate(wrong func(field string, value any, expected string)) {
	if n.HoldTime != nil && *n.HoldTime == 0 {
		wrong("hold_time", *n.HoldTime, "whole seconds from 3s to 65535s")
	}
	if n.Keepalive != nil && *n.Keepalive == 0 {
		wrong("keepalive", *n.Keepalive, "whole seconds from 1s to less than hold_time")
	}
	if n.MaxPrefixes != nil && *n.MaxPrefixes == 0 {
		wrong("max_prefixes", *n.MaxPrefixes, "a whole number from 1 to 4294967295")
	}
}

// validDevice is the kernel's own rule (dev_valid_name in net/core/dev.c).
func validDevice(name string) bool {
	return name != "" && len(name) <= 15 && name != "." && name != ".." && !strings.ContainsAny(name, "/:") &&
		!strings.ContainsFunc(name, unicode.IsSpace) && state.Line(name) == name
}

// checkSpeaker makes BGP's own checks.
func (c Config) checkSpeaker() []error {
	var errs []error
	for _, f := range c.speaker(nil).Faults() {
		errs = append(errs, state.FieldError{Field: "bgp." + f.Field, Found: "value " + state.Quote(f.Value), Expected: f.Expected})
	}
	return errs
}

func (c Config) socket() string {
	if c.Socket != "" {
		return c.Socket
	}
	return filepath.Join(c.StateDir, "agent.sock")
}

// SocketPath is where the agent with this file listens. Nothing else in the file
// is looked at: a file that has been spoilt since the agent started must not keep
// people from it.
func SocketPath(file string) (path string, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	// A fault of the library should not end the program, as in yamlfile.
	defer func() {
		if recover() != nil {
			err = fmt.Errorf("%s: not YAML", file)
		}
	}()
	c := struct {
		Socket   string `yaml:"socket"`
		StateDir string `yaml:"state_dir"`
	}{StateDir: defaultStateDir}
	if err := yaml.Unmarshal(text, &c); err != nil {
		return "", fmt.Errorf("%s: %s", file, yaml.FormatError(err, false, false))
	}
	return Config{Socket: c.Socket, StateDir: c.StateDir}.socket(), nil
}

func (e Etcd) validate(wrong func(field string, value any, expected string)) {
	if len(e.Endpoints) == 0 {
		wrong("etcd.endpoints", "", "at least one URL")
	}
	for i, endpoint := range e.Endpoints {
		field := fmt.Sprintf("etcd.endpoints[%d]", i)
		secure, plain := strings.HasPrefix(endpoint, "https://"), strings.HasPrefix(endpoint, "http://")
		u, err := url.Parse(endpoint)
		switch {
		case !secure && !plain:
			wrong(field, endpoint, "a URL that begins with https://")
		case err != nil || u.Hostname() == "" || !validPort(u.Port()) || u.User != nil || u.Path != "" || u.RawQuery != "" || u.Fragment != "":
			// Without its value: there may be a password in it.
			wrong(field, "(not shown)", "https://HOST:PORT and nothing more")
		case secure && e.Insecure:
			wrong(field, endpoint, "http://, or no \"insecure\" beside it")
		case plain && !e.Insecure:
			wrong(field, endpoint, "https://, or \"insecure: true\" beside it")
		}
	}
	if (e.Cert == "") != (e.Key == "") {
		wrong("etcd.cert", e.Cert, "cert and key together")
	}
}

func validPort(text string) bool {
	port, err := strconv.ParseUint(text, 10, 16)
	return err == nil && port > 0
}

// CheckFiles opens the files that the configuration names, and says of each what
// is wrong with it. No error holds a secret.
func (c Config) CheckFiles() error {
	var errs []error
	add := func(err error) { errs = append(errs, err) }
	add(c.Etcd.checkKey())
	_, err := c.Etcd.tls()
	add(err)
	if c.Etcd.Cert != "" && err == nil {
		add(checkCertificate("etcd.cert", c.Etcd.Cert, c.Node))
	}
	_, err = c.BGP.passwords()
	add(err)
	return errors.Join(errs...)
}

// checkKey is for --check and the status. A start is not refused for it: the host
// would be without an agent, which is worse.
func (e Etcd) checkKey() error {
	if e.Key == "" || e.Insecure {
		return nil
	}
	return checkSecret("etcd.key", e.Key)
}

// checkSecret refuses what is no file, and a secret that is none on this host.
func checkSecret(field, path string) error {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return fmt.Errorf("field %s: %w", field, err)
	case !info.Mode().IsRegular():
		return fmt.Errorf("field %s: value %q: expected a file", field, path)
	}
	if err := store.CheckSecret(path); err != nil {
		return fmt.Errorf("field %s: %w", field, err)
	}
	return nil
}

// checkCertificate says when a certificate is out of its time, or of another
// node: etcd takes its common name for the user.
func checkCertificate(field, path, node string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("field %s: %w", field, err)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return fmt.Errorf("field %s: value %q: expected a file with a PEM certificate", field, path)
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return fmt.Errorf("field %s: value %q: %w", field, path, err)
	}
	if now := time.Now(); now.Before(certificate.NotBefore) || now.After(certificate.NotAfter) {
		return fmt.Errorf("field %s: value %q: valid from %s to %s: expected a certificate that is valid now", field, path,
			certificate.NotBefore.Format(time.DateTime), certificate.NotAfter.Format(time.DateTime))
	}
	if name := certificate.Subject.CommonName; name != node {
		return fmt.Errorf("field %s: value %q: its common name is %s: expected that of this node, %q", field, path, state.Quote(name), node)
	}
	return nil
}

// tls reads the certificates; nil where TLS is off.
func (e Etcd) tls() (*tls.Config, error) {
	if e.Insecure {
		return nil, nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	var err error
	if e.CA != "" {
		if config.RootCAs, err = store.CertPool(e.CA); err != nil {
			return nil, fmt.Errorf("field etcd.ca: %w", err)
		}
	}
	if e.Cert != "" {
		if config.GetClientCertificate, err = store.ClientCertificate(e.Cert, e.Key); err != nil {
			return nil, fmt.Errorf("field etcd.cert: %w", err)
		}
	}
	return config, nil
}

// speaker is the configuration of the BGP speaker; passwords by neighbour.
func (c Config) speaker(passwords map[netip.Addr]string) bgp.Config {
	out := bgp.Config{AS: c.BGP.AS, RouterID: c.BGP.RouterID, LocalAddress: c.Addresses.IPv4, LocalAddress6: c.Addresses.IPv6}
	for _, n := range c.BGP.Neighbors {
		neighbor := bgp.Neighbor{
			Address: n.Address, AS: n.AS, HoldTime: n.holdTime(), Keepalive: valueOf(n.Keepalive),
			Password: passwords[n.Address], TTLSecurity: n.TTLSecurity, Multihop: n.Multihop,
			GracefulRestart: n.gracefulRestart(), MaxPrefixes: valueOf(n.MaxPrefixes), BFD: n.bfd(),
		}
		out.Neighbors = append(out.Neighbors, neighbor)
	}
	return out
}

// bfd is nil where it is off.
func (n Neighbor) bfd() *bgp.BFD {
	switch {
	case n.BFD == nil && n.Multihop > 0:
		return nil
	case n.BFD == nil:
		return &bgp.BFD{Interval: defaultBFDInterval, Multiplier: defaultBFDMultiplier}
	case n.BFD.Enabled != nil && !*n.BFD.Enabled:
		return nil
	}
	return &bgp.BFD{Interval: valueOr(n.BFD.Interval, defaultBFDInterval), Multiplier: valueOr(n.BFD.Multiplier, defaultBFDMultiplier)}
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

// hold is the longest hold time of a session.
func (b BGP) hold() (longest time.Duration) {
	for _, n := range b.Neighbors {
		longest = max(longest, n.holdTime())
	}
	return longest
}

func (n Neighbor) holdTime() time.Duration {
	if n.HoldTime == nil {
		return defaultHoldTime
	}
	return *n.HoldTime
}

// valueOf is what p points at, the zero value for nil.
func valueOf[T any](p *T) (value T) {
	if p != nil {
		value = *p
	}
	return value
}

// valueOr is what p points at, or for nil the default.
func valueOr[T any](p *T, or T) T {
	if p != nil {
		return *p
	}
	return or
}

// maxPassword is the kernel's limit (TCP_MD5SIG_MAXKEYLEN).
const maxPassword = 80

// passwords reads the neighbours' password files.
func (b BGP) passwords() (map[netip.Addr]string, error) {
	out := map[netip.Addr]string{}
	var errs []error
	for i, n := range b.Neighbors {
		if n.PasswordFile == "" {
			continue
		}
		field := fmt.Sprintf("bgp.neighbors[%d].password_file", i)
		if err := checkSecret(field, n.PasswordFile); err != nil {
			errs = append(errs, err)
			continue
		}
		text, err := os.ReadFile(n.PasswordFile)
		if err != nil {
			errs = append(errs, fmt.Errorf("field %s: %w", field, err))
			continue
		}
		password := strings.TrimSpace(string(text))
		if password == "" || len(password) > maxPassword || strings.ContainsAny(password, "\r\n\x00") {
			errs = append(errs, fmt.Errorf("field %s: value %q: expected a file with one line of 1 to %d bytes", field, n.PasswordFile, maxPassword))
		}
		out[n.Address] = password
	}
	return out, errors.Join(errs...)
}

// reserved are the addresses without which this host is lost, and who has them:
// as a VIP they would be closed, and etcd or a router beyond reach.
func (c Config) reserved() map[netip.Addr]string {
	hosts := store.Hosts(c.Etcd.Endpoints)
	for _, n := range c.BGP.Neighbors {
		hosts[n.Address] = "this node's BGP neighbour"
	}
	for _, a := range []netip.Addr{c.Addresses.IPv4, c.Addresses.IPv6} {
		if a.IsValid() {
			hosts[a] = "node " + c.Node
		}
	}
	return hosts
}

func (c Config) self() plan.Self {
	return plan.Self{
		Name: c.Node, Site: c.Site, Group: c.Group, IPv4: c.Addresses.IPv4, IPv6: c.Addresses.IPv6, Uplink: c.Uplink,
		Segment: c.segment(),
	}
}
