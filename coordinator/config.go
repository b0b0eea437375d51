package coordinator

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"
	"github.com/medway-lb/medway/pkg/yamlfile"
)

const defaultListen = ":9443"

// Config is the coordinator's own file.
type Config struct {
	// Listen is where the API is served, "host:port". Default ":9443".
	Listen string `yaml:"listen"`
	TLS    TLS    `yaml:"tls"`
	Etcd   Etcd   `yaml:"etcd"`
	// Verify is what VIPs are asked when they have moved. Default "sip".
	Verify  Verify  `yaml:"verify"`
	History History `yaml:"history"`
}

// History says how much of it stays in etcd.
type History struct {
	// PerVIP is how many events of a VIP stay, and of what concerns all. Default 1000;
	// 0: all.
	PerVIP int `yaml:"per_vip"`
	// Days is how old an event may be. Default 400; 0: as old as it is.
	Days int `yaml:"days"`
}

// maxKept bounds both: more than anybody reads, and less than a duration can hold.
const maxKept = 100000

// TLS is what the API is served with. It is required unless Insecure says otherwise.
type TLS struct {
	Cert string `yaml:"cert"`
	Key  string `yaml:"key"`
	// ClientCA is the file of the authority that signs clients' certificates; unset:
	// only tokens are taken.
	ClientCA string `yaml:"client_ca"`
	// Insecure serves without TLS: for laboratories, and behind a proxy on this host.
	Insecure bool `yaml:"insecure"`
}

// Etcd says how to reach etcd. TLS is required unless Insecure says otherwise.
type Etcd struct {
	Endpoints []string `yaml:"endpoints"`
	CA        string   `yaml:"ca"`
	Cert      string   `yaml:"cert"`
	Key       string   `yaml:"key"`
	Insecure  bool     `yaml:"insecure"`
}

// LoadConfig reads and checks a file. All that is wrong is said at once, each with its
// line.
func LoadConfig(path string) (Config, error) {
	c := Config{Listen: defaultListen, Verify: VerifySIP, History: History{PerVIP: 1000, Days: 400}}
	err := yamlfile.Load(path, &c)
	return c, err
}

// Validate checks everything that can be checked without touching the host, as
// state.FieldErrors.
func (c Config) Validate() error {
	var errs []error
	wrong := func(field, value, expected string) {
		found := "missing"
		if value != "" {
			found = "value " + state.Quote(value)
		}
		errs = append(errs, state.FieldError{Field: field, Found: found, Expected: expected})
	}
	if host, port, err := net.SplitHostPort(c.Listen); err != nil || !isPort(port) || host != "" && net.ParseIP(host) == nil {
		wrong("listen", c.Listen, `an address of this host and a port, such as ":9443" or "10.0.0.1:9443"`)
	}
	if !slices.Contains([]Verify{VerifySIP, VerifyConnect, VerifyOff}, c.Verify) {
		wrong("verify", string(c.Verify), `"sip", "connect" or "off"`)
	}
	if !c.TLS.Insecure {
		for field, file := range map[string]string{"tls.cert": c.TLS.Cert, "tls.key": c.TLS.Key} {
			if file == "" {
				wrong(field, file, "a file, or tls.insecure: true")
			}
		}
	}
	scheme := "https"
	if c.Etcd.Insecure {
		scheme = "http"
	}
	if len(c.Etcd.Endpoints) == 0 {
		wrong("etcd.endpoints", "", "at least one URL")
	}
	for i, endpoint := range c.Etcd.Endpoints {
		if u, err := url.Parse(endpoint); err != nil || u.Scheme != scheme || u.Port() == "" || strings.Trim(u.Path, "/") != "" {
			wrong(fmt.Sprintf("etcd.endpoints[%d]", i), endpoint, scheme+"://HOST:PORT"+map[bool]string{false: ", or etcd.insecure: true and http://", true: ", or no etcd.insecure"}[c.Etcd.Insecure])
		}
	}
	if (c.Etcd.Cert == "") != (c.Etcd.Key == "") {
		wrong("etcd.cert", c.Etcd.Cert, "etcd.cert and etcd.key, or none of the two")
	}
	for field, n := range map[string]int{"history.per_vip": c.History.PerVIP, "history.days": c.History.Days} {
		if n < 0 || n > maxKept {
			wrong(field, strconv.Itoa(n), fmt.Sprintf("0 to %d", maxKept))
		}
	}
	return errors.Join(errs...)
}

func isPort(text string) bool {
	_, err := strconv.ParseUint(text, 10, 16)
	return err == nil
}

// store is how etcd is reached.
func (e Etcd) store() (store.Config, error) {
	c := store.Config{Endpoints: e.Endpoints}
	if e.Insecure {
		return c, nil
	}
	if e.Key != "" {
		if err := store.CheckSecret(e.Key); err != nil {
			return c, fmt.Errorf("field etcd.key: %w", err)
		}
	}
	var err error
	if c.TLS, err = store.TLS(e.CA, e.Cert, e.Key); err != nil {
		return c, fmt.Errorf("fields etcd.ca, etcd.cert and etcd.key: %w", err)
	}
	return c, nil
}

// server is what the API is served with; nil where TLS is off.
func (t TLS) server() (*tls.Config, error) {
	if t.Insecure {
		return nil, nil
	}
	if err := store.CheckSecret(t.Key); err != nil {
		return nil, fmt.Errorf("field tls.key: %w", err)
	}
	certificate, err := store.ClientCertificate(t.Cert, t.Key)
	if err != nil {
		return nil, fmt.Errorf("fields tls.cert and tls.key: %w", err)
	}
	c := &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"},
		// A renewed certificate needs no restart.
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return certificate(&tls.CertificateRequestInfo{})
		},
	}
	if t.ClientCA != "" {
		if c.ClientCAs, err = store.CertPool(t.ClientCA); err != nil {
			return nil, fmt.Errorf("field tls.client_ca: %w", err)
		}
		c.ClientAuth = tls.VerifyClientCertIfGiven
	}
	return c, nil
}
