package coordinator

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/medway-lb/medway/pkg/pki"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

const (
	// pollInterval is how often a node is asked for its live numbers.
	pollInterval = time.Second
	// pollTime bounds one question with its answer.
	pollTime = 5 * time.Second
	// maxLive is the longest answer in bytes.
	maxLive = 4 << 20
)

// live has the live numbers of all nodes that tell where they serve them.
type live struct {
	client *store.Client
	config Config
	log    *zap.Logger

	mu      sync.Mutex
	numbers map[string]*medwayv1.Live
	polled  map[string]poller // by node
	trends  *trends
}

// poller asks one node, at one address.
type poller struct {
	url  string
	stop context.CancelFunc
}

func newLive(client *store.Client, c Config, log *zap.Logger) *live {
	return &live{client: client, config: c, log: log, numbers: map[string]*medwayv1.Live{}, polled: map[string]poller{}, trends: newTrends()}
}

// all are the numbers of this moment. One of a node that does not answer any more is
// there until another takes its place: its time tells how old it is.
func (l *live) all() map[string]*medwayv1.Live {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.numbers)
}

// run asks nodes until ctx ends: each where its status says.
func (l *live) run(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { l.trends.run(ctx, l.all) })
	return l.client.Follow(ctx, state.StatusPrefix, func(u store.Update) {
		gone := map[string]bool{}
		if u.Reset {
			l.mu.Lock()
			for node := range l.polled {
				gone[node] = true
			}
			l.mu.Unlock()
		}
		for _, e := range u.Put {
			node := strings.TrimPrefix(e.Key, state.StatusPrefix)
			delete(gone, node)
			url := ""
			if s, err := state.DecodeStatus(e.Value); err == nil {
				url = s.Telemetry
			}
			l.poll(ctx, &running, node, url)
		}
		for _, key := range u.Deleted {
			gone[strings.TrimPrefix(key, state.StatusPrefix)] = true
		}
		for node := range gone {
			l.poll(ctx, &running, node, "")
		}
	})
}

// poll has a node asked at an address from now on; "" is not at all.
func (l *live) poll(ctx context.Context, running *sync.WaitGroup, node, url string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	was := l.polled[node]
	if was.url == url {
		return
	}
	if was.stop != nil {
		was.stop()
	}
	delete(l.polled, node)
	delete(l.numbers, node)
	if url == "" {
		return
	}
	client, err := l.httpClient(node, url)
	if err != nil {
		l.polled[node] = poller{url: url} // said once
		l.log.Warn("can't ask a node for its live numbers", zap.String("node", node), zap.Error(err))
		return
	}
	ctx, stop := context.WithCancel(ctx)
	l.polled[node] = poller{url, stop}
	running.Go(func() { l.ask(ctx, client, node, url) })
}

// httpClient reaches a node's telemetry: with the coordinator's certificate, and no one
// but the node.
func (l *live) httpClient(node, url string) (*http.Client, error) {
	transport := &http.Transport{MaxIdleConns: 1, IdleConnTimeout: time.Minute, TLSHandshakeTimeout: pollTime}
	switch {
	case strings.HasPrefix(url, "http://") && l.config.Etcd.Insecure:
	case strings.HasPrefix(url, "https://") && l.config.Etcd.CA != "" && l.config.Etcd.Cert != "":
		roots, err := store.CertPool(l.config.Etcd.CA)
		if err != nil {
			return nil, err
		}
		certificate, err := store.ClientCertificate(l.config.Etcd.Cert, l.config.Etcd.Key)
		if err != nil {
			return nil, err
		}
		transport.TLSClientConfig = pki.AsNode(&tls.Config{MinVersion: tls.VersionTLS12, GetClientCertificate: certificate}, roots, node)
	default:
		return nil, fmt.Errorf("address %s: expected https:// and the files etcd.ca, etcd.cert and etcd.key", state.Quote(url))
	}
	// It goes nowhere else.
	return &http.Client{Transport: transport, Timeout: pollTime, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}, nil
}

func (l *live) ask(ctx context.Context, client *http.Client, node, url string) {
	defer client.CloseIdleConnections()
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	silent := false
	for {
		numbers, err := question(ctx, client, node, url)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			if !silent { // once is enough to say
				l.log.Warn("a node does not tell its live numbers", zap.String("node", node), zap.Error(err))
			}
			silent = true
		default:
			silent = false
			// By this clock: how old they are is asked here.
			numbers.At = time.Now().UTC().Format(time.RFC3339Nano)
			l.mu.Lock()
			if l.polled[node].url == url && ctx.Err() == nil {
				l.numbers[node] = numbers
			}
			l.mu.Unlock()
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// question asks a node, and takes no answer that speaks for another one.
func question(ctx context.Context, client *http.Client, node, url string) (*medwayv1.Live, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(url, "/")+"/v1/live", nil)
	if err != nil {
		return nil, err
	}
	answer, err := client.Do(r)
	if err != nil {
		return nil, err
	}
	defer func() { _ = answer.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxLive))
	if err != nil {
		return nil, err
	}
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", url, answer.Status)
	}
	numbers := &medwayv1.Live{}
	// A newer node may tell more than is known here.
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(text, numbers); err != nil {
		return nil, err
	}
	if name := numbers.GetStatus().GetNode(); numbers.Status == nil || name != node {
		return nil, fmt.Errorf("%s: field status.node: value %s: expected %s", url, state.Quote(name), node)
	}
	return numbers, nil
}
