package agent

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/medway-lb/medway/agent/internal/telemetry"
	"github.com/medway-lb/medway/pkg/daemon"
	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// Telemetry says where live numbers and metrics are served: over TLS with the
// files of Etcd, to whoever shows a certificate of the same CA.
type Telemetry struct {
	// Listen is "host:port", or ":port" for all addresses. Default: nothing is served.
	Listen string `yaml:"listen"`
	// Insecure allows to serve without TLS, to anybody.
	Insecure bool `yaml:"insecure"`
}

func (t Telemetry) validate(e Etcd, wrong func(field string, value any, expected string)) {
	if t.Listen == "" {
		if t.Insecure {
			wrong("telemetry.insecure", t.Insecure, "\"listen\" beside it")
		}
		return
	}
	host, port, err := net.SplitHostPort(t.Listen)
	_, bad := netip.ParseAddr(host)
	if err != nil || !validPort(port) || host != "" && bad != nil {
		wrong("telemetry.listen", t.Listen, "\":PORT\" or \"ADDRESS:PORT\"")
	}
	if !t.Insecure && (e.Insecure || e.CA == "" || e.Cert == "") {
		wrong("telemetry.listen", t.Listen, "etcd.ca, etcd.cert and etcd.key, by which it is served and knows who may ask, or \"insecure: true\" beside it")
	}
}

// tls is nil where telemetry is plain.
func (t Telemetry) tls(e Etcd) (*tls.Config, error) {
	if t.Insecure {
		return nil, nil
	}
	authority, err := store.CertPool(e.CA)
	if err != nil {
		return nil, fmt.Errorf("field etcd.ca: %w", err)
	}
	own, err := store.ClientCertificate(e.Cert, e.Key)
	if err != nil {
		return nil, fmt.Errorf("field etcd.cert: %w", err)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: authority,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return own(&tls.CertificateRequestInfo{}) },
	}, nil
}

// openTelemetry leaves a.telemetry nil where it is off.
func (a *Agent) openTelemetry() error {
	t := a.config.Telemetry
	if t.Listen == "" {
		return nil
	}
	config, err := t.tls(a.config.Etcd)
	if err != nil {
		return err
	}
	a.telemetry = telemetry.New(t.Listen, config, told{a}, a.log.Named("telemetry"))
	return nil
}

func (a *Agent) serveTelemetry(ctx context.Context) error {
	if a.telemetry == nil {
		return nil
	}
	return a.telemetry.Serve(ctx)
}

// told is what telemetry tells of the agent.
type told struct{ *Agent }

// Live is the node's status with the counters of this moment.
func (a told) Live(ctx context.Context) *medwayv1.Live {
	live := &medwayv1.Live{At: time.Now().UTC().Format(time.RFC3339Nano), Status: a.statusNow()}
	if live.Status == nil {
		live.Status = a.withLive(&medwayv1.Status{Node: a.self.Name, Site: a.self.Site, Version: daemon.Version()})
	} else {
		counts := a.count(ctx, live.Status)
		if s := a.view().snapshot; s != nil && counts != nil {
			live.Backends, live.BackendsKnown = backendsOf(s, counts), true
		}
	}
	a.status.mu.Lock()
	live.InPlan, live.Cold = a.status.inPlan, a.status.coldness
	a.status.mu.Unlock()
	_, live.Unable = a.observed.standing()
	return live
}

// backendsOf adds up the connections of backends over all VIPs.
func backendsOf(s *state.Snapshot, counts map[netip.Addr]connections) (out []*medwayv1.BackendConnections) {
	inPool := map[string]map[netip.Addr]string{} // the backends' names by address
	for k, b := range s.Backends {
		if inPool[k.Pool] == nil {
			inPool[k.Pool] = map[netip.Addr]string{}
		}
		inPool[k.Pool][b.IPv4], inPool[k.Pool][b.IPv6] = k.Name, k.Name
	}
	sums := map[state.BackendKey]connections{}
	for _, v := range s.VIPs {
		for _, address := range v.Addresses {
			for k, n := range counts[address].to {
				i := slices.IndexFunc(v.Services, func(s state.Service) bool {
					return k.Service == plan.ServiceKey{Protocol: plan.Protocol(s.Protocol), Addr: address, Port: s.Port}
				})
				if i < 0 {
					continue
				}
				name, ok := inPool[v.Services[i].Pool][k.Addr]
				if !ok {
					continue
				}
				backend := state.BackendKey{Pool: v.Services[i].Pool, Name: name}
				sums[backend] = connections{active: sums[backend].active + n.active, inactive: sums[backend].inactive + n.inactive}
			}
		}
	}
	for k, n := range sums {
		if n.active+n.inactive > 0 {
			out = append(out, &medwayv1.BackendConnections{Pool: k.Pool, Backend: k.Name, Active: n.active, Inactive: n.inactive})
		}
	}
	slices.SortFunc(out, func(a, b *medwayv1.BackendConnections) int {
		return cmp.Or(strings.Compare(a.Pool, b.Pool), strings.Compare(a.Backend, b.Backend))
	})
	return out
}

// Unready is why others can't count on the node.
func (a told) Unready() string {
	select {
	case <-a.ready:
		return ""
	default:
		return "no router has taken this node's routes yet, or other nodes can't see that"
	}
}

// telemetryURL is where other hosts find the telemetry, "" where it is not served.
func (a *Agent) telemetryURL() string {
	if a.telemetry == nil {
		return ""
	}
	bound, _ := a.telemetry.Address()
	tcp, ok := bound.(*net.TCPAddr)
	if !ok {
		return ""
	}
	host, _ := netip.AddrFromSlice(tcp.IP)
	if host = host.Unmap(); !host.IsValid() || host.IsUnspecified() {
		host = a.self.IPv4
		if !host.IsValid() {
			host = a.self.IPv6
		}
	}
	scheme := "https://"
	if a.config.Telemetry.Insecure {
		scheme = "http://"
	}
	return scheme + net.JoinHostPort(host.String(), strconv.Itoa(tcp.Port))
}

// telemetryFaults are for the status.
func (a *Agent) telemetryFaults() (faults []*medwayv1.Fault) {
	if a.telemetry == nil {
		return nil
	}
	if _, err := a.telemetry.Address(); err != nil {
		faults = append(faults, &medwayv1.Fault{Subject: "telemetry", Reason: state.Line(fmt.Sprintf("not served: %v", err))})
	}
	return faults
}
