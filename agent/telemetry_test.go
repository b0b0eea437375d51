package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/medway-lb/medway/agent/internal/telemetry"
	"github.com/medway-lb/medway/pkg/pki"
	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

func TestTelemetryConfig(t *testing.T) {
	plain := strings.NewReplacer("https://", "http://", "  ca: ", "  insecure: true\n  ca: ").Replace(goodConfig)
	without := strings.ReplaceAll(goodConfig, "  ca: /etc/medway/ca.pem\n", "")
	for _, test := range []struct {
		name, text, field string
		wrong             []string // nil: good
	}{
		{"all addresses", goodConfig, `{listen: ":9400"}`, nil},
		{"one address", goodConfig, `{listen: "[2001:db8::1]:9400"}`, nil},
		{"plain by name", plain, `{listen: ":9400", insecure: true}`, nil},
		{"off", plain, `{}`, nil},
		{"no port", goodConfig, `{listen: "10.1.0.11"}`, []string{":19:", "field telemetry.listen", `"10.1.0.11"`, "PORT"}},
		{"port 0", goodConfig, `{listen: ":0"}`, []string{"field telemetry.listen", `":0"`}},
		{"a name", goodConfig, `{listen: "host:9400"}`, []string{"field telemetry.listen", `"host:9400"`}},
		{"without certificates", plain, `{listen: ":9400"}`, []string{"field telemetry.listen", "etcd.ca", "insecure"}},
		{"without a CA anybody's certificate would do", without, `{listen: ":9400"}`, []string{"field telemetry.listen", "etcd.ca"}},
		{"plain and off", goodConfig, `{insecure: true}`, []string{"field telemetry.insecure", "listen"}},
		{"unknown field", goodConfig, `{port: 1}`, []string{"port"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, _, err := load(t, test.text+"telemetry: "+test.field+"\n")
			if test.wrong == nil {
				if err != nil {
					t.Error(err)
				}
				return
			}
			for _, part := range test.wrong {
				if err == nil || !strings.Contains(err.Error(), part) {
					t.Errorf("%v does not say %q", err, part)
				}
			}
		})
	}
}

// silent is a node that knows nothing yet.
type silent struct{}

func (silent) Live(context.Context) *medwayv1.Live {
	return &medwayv1.Live{Status: &medwayv1.Status{Node: "dc1-lvs-a"}}
}
func (silent) Unready() string { return "not yet" }

// served runs telemetry until the test ends.
func served(t *testing.T, s *telemetry.Server) (address string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("telemetry ended: %v", err)
		}
	})
	eventually(t, "telemetry listens", func() bool {
		bound, _ := s.Address()
		if bound != nil {
			address = bound.String()
		}
		return bound != nil
	})
	return address
}

// fetch gets a path with a client of its own.
func fetch(t *testing.T, config *tls.Config, url string) (code int, body string, err error) {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: config}
	defer transport.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return response.StatusCode, string(text), err
}

// TestTelemetryKnowsWhoAsks: with the files that medwayctl makes for a node.
func TestTelemetryKnowsWhoAsks(t *testing.T) {
	t.Parallel()
	authority := func() *pki.Authority {
		a, _, err := pki.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	client := func(a *pki.Authority, name string, valid time.Duration) (cert, key string) {
		if err := a.Client(name, valid); err != nil {
			t.Fatal(err)
		}
		return a.Files(name)
	}
	ours, others := authority(), authority()
	cert, key := client(ours, "dc1-lvs-a", time.Hour)
	config, err := Telemetry{Listen: "127.0.0.1:0"}.tls(Etcd{CA: ours.CA(), Cert: cert, Key: key})
	if err != nil {
		t.Fatal(err)
	}
	url := "https://" + served(t, telemetry.New("127.0.0.1:0", config, silent{}, zap.NewNop()))
	roots, err := store.CertPool(ours.CA())
	if err != nil {
		t.Fatal(err)
	}
	with := func(a *pki.Authority, name string, valid time.Duration) *tls.Config {
		cert, key := client(a, name, valid)
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		// Unlike a list of certificates, this is shown whatever the server asks for.
		return &tls.Config{GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }}
	}
	coordinator := with(ours, "coordinator", time.Hour)
	for path, want := range map[string]int{
		telemetry.LivePath: http.StatusOK, telemetry.MetricsPath: http.StatusOK, telemetry.HealthPath: http.StatusOK,
		telemetry.ReadyPath: http.StatusServiceUnavailable, "/": http.StatusNotFound, "/v1/live/..%2f": http.StatusNotFound,
	} {
		if code, body, err := fetch(t, pki.AsNode(coordinator, roots, "dc1-lvs-a"), url+path); code != want || err != nil {
			t.Errorf("%s: %d %q %v, expected %d", path, code, body, err, want)
		}
	}
	for name, test := range map[string]struct {
		config *tls.Config
		says   string
	}{
		"no certificate":              {pki.AsNode(&tls.Config{}, roots, "dc1-lvs-a"), "certificate required"},
		"another authority's":         {pki.AsNode(with(others, "coordinator", time.Hour), roots, "dc1-lvs-a"), "certificate"},
		"expired":                     {pki.AsNode(with(ours, "old", -time.Minute), roots, "dc1-lvs-a"), "certificate"},
		"the node is another":         {pki.AsNode(coordinator, roots, "dc1-lvs-b"), `of "dc1-lvs-a": expected node "dc1-lvs-b"`},
		"the node's is not to be had": {coordinator, "certificate"}, // as a host's, which it isn't
	} {
		if code, body, err := fetch(t, test.config, url+telemetry.LivePath); err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %d %q %v, expected an error with %q", name, code, body, err, test.says)
		}
	}
	if code, body, err := fetch(t, nil, "http"+strings.TrimPrefix(url, "https")+telemetry.LivePath); err == nil && code == http.StatusOK {
		t.Errorf("without TLS: %d %q", code, body)
	}
}

// TestTelemetryTellsWhatTheNodeSees, and where it is found.
func TestTelemetryTellsWhatTheNodeSees(t *testing.T) {
	n := newNode(t)
	n.config.Telemetry = Telemetry{Listen: "127.0.0.1:0", Insecure: true}
	n.kernel.conns[netip.MustParseAddr("203.0.113.10")] = connections{active: 7, inactive: 3}
	n.kernel.pps = 1000
	n.run()
	n.announces("203.0.113.10/32 100")
	url := ""
	eventually(t, "the status says where", func() bool { url = n.status().Telemetry; return url != "" })
	var live medwayv1.Live
	vip := func() *medwayv1.VIPStatus {
		live.Reset()
		code, body, err := fetch(t, nil, url+telemetry.LivePath)
		if err != nil || code != http.StatusOK {
			t.Fatalf("%d %v", code, err)
		}
		if err := protojson.Unmarshal([]byte(body), &live); err != nil {
			t.Fatalf("%q: %v", body, err)
		}
		if len(live.GetStatus().GetVips()) != 1 {
			return &medwayv1.VIPStatus{}
		}
		return live.Status.Vips[0]
	}
	eventually(t, "the live numbers", func() bool {
		v := vip()
		return v.GetMed() == 100 && v.ActiveConnections == 7 && v.InactiveConnections == 3 && v.GetPacketsPerSecond() > 900 &&
			live.InPlan && live.Cold == "" && live.Status.Revision > 0 && live.Status.Sessions[0].Established && len(live.Unable) == 0
	})
	eventually(t, "ready", func() bool {
		code, _, err := fetch(t, nil, url+telemetry.ReadyPath)
		return err == nil && code == http.StatusOK
	})
	_, body, err := fetch(t, nil, url+telemetry.MetricsPath)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(body, "\n")
	for _, line := range []string{
		`medway_vip_connections{state="active",vip="v"} 7`, `medway_vip_connections{state="inactive",vip="v"} 3`,
		`medway_vip_med{vip="v"} 100`, `medway_vip_role{role="active",target="dc1",vip="v"} 1`, `medway_kernel_in_plan 1`,
		`medway_bgp_session_established{neighbor="192.0.2.1"} 1`, `medway_ready 1`, `medway_cold 0`,
	} {
		if !slices.Contains(lines, line) {
			t.Errorf("no line %q in:\n%s", line, body)
		}
	}
	n.kernel.set(func(k *fakeKernel) { k.broken = errors.New("no luck") })
	eventually(t, "the kernel differs", func() bool { vip(); return !live.InPlan && n.fault("kernel", "no luck") })
}

// TestTelemetryIsNoReasonNotToStart: an address that another program has.
func TestTelemetryIsNoReasonNotToStart(t *testing.T) {
	n := newNode(t)
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	n.config.Telemetry = Telemetry{Listen: other.Addr().String(), Insecure: true}
	n.run()
	n.announces("203.0.113.10/32 100")
	eventually(t, "a fault", func() bool { return n.fault("telemetry", "address already in use") && n.status().Telemetry == "" })
	other.Close()
	eventually(t, "mended", func() bool { return !n.fault("telemetry", "") && n.status().Telemetry != "" })
}

// TestTelemetryNeedsItsFiles: at the start, with the field's name.
func TestTelemetryNeedsItsFiles(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "ca.pem")
	if _, err := (Telemetry{}).tls(Etcd{CA: missing}); err == nil || !strings.Contains(err.Error(), "field etcd.ca: open "+missing) {
		t.Errorf("%v", err)
	}
}

// TestBackendConnections are those of all VIPs of a pool, by name.
func TestBackendConnections(t *testing.T) {
	c := state.NewCache()
	for key, value := range map[string]string{
		"pools/sbc": `{}`, "pools/web": `{}`,
		"vips/v":          `{"addresses":["203.0.113.10","2001:db8:10::10"],"groups":{"dc1":"g"},"services":[{"protocol":"tcp","port":5060,"pool":"sbc"},{"protocol":"udp","port":5060,"pool":"sbc"}]}`,
		"vips/w":          `{"addresses":["203.0.113.11"],"groups":{"dc1":"g"},"services":[{"protocol":"tcp","port":80,"pool":"web"},{"protocol":"tcp","port":5060,"pool":"sbc"}]}`,
		"backends/sbc/b1": `{"site":"dc1","address":"10.1.1.21","address6":"2001:db8:1::21"}`, "backends/sbc/b2": `{"site":"dc1","address":"10.1.1.22"}`,
		"backends/web/b1": `{"site":"dc1","address":"10.1.1.21"}`,
	} {
		c.Put(state.Prefix+key, []byte(value), 1, 0)
	}
	counts := map[netip.Addr]connections{}
	add := func(protocol plan.Protocol, vip string, port uint16, backend string, active, inactive uint64) {
		address := netip.MustParseAddr(vip)
		n := counts[address]
		if n.to == nil {
			n.to = map[plan.DestinationKey]connections{}
		}
		n.to[plan.DestinationKey{Service: plan.ServiceKey{Protocol: protocol, Addr: address, Port: port}, Addr: netip.MustParseAddr(backend), Port: port}] =
			connections{active: active, inactive: inactive}
		counts[address] = n
	}
	add("tcp", "203.0.113.10", 5060, "10.1.1.21", 1, 10)
	add("udp", "203.0.113.10", 5060, "10.1.1.21", 0, 100)
	add("tcp", "2001:db8:10::10", 5060, "2001:db8:1::21", 1000, 0)
	add("tcp", "203.0.113.11", 5060, "10.1.1.21", 10000, 0)
	add("tcp", "203.0.113.11", 80, "10.1.1.21", 7, 0)
	add("tcp", "203.0.113.11", 5060, "10.1.1.22", 0, 0)
	add("tcp", "203.0.113.11", 5060, "10.1.1.99", 5, 0)    // nobody's
	add("tcp", "203.0.113.11", 9, "10.1.1.21", 5, 0)       // of a service that is gone
	add("tcp", "198.51.100.1", 5060, "10.1.1.21", 5, 1000) // of a VIP that is gone
	got := fmt.Sprint(backendsOf(c.Snapshot(), counts))
	want := fmt.Sprint([]*medwayv1.BackendConnections{
		{Pool: "sbc", Backend: "b1", Active: 11001, Inactive: 110}, {Pool: "web", Backend: "b1", Active: 7},
	})
	if got != want {
		t.Errorf("%s, expected %s", got, want)
	}
}
