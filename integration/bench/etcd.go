package bench

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
)

const (
	etcdAddress = "127.0.0.1:2379"
	etcdURL     = "http://" + etcdAddress
	// etcdOps is etcd's limit on the operations of one transaction.
	etcdOps = 128
)

// etcd is a real server of one member with a client of our own.
type etcd struct {
	*process
	client *clientv3.Client
}

// startEtcd keeps its data in dir, which should be in memory: else a slow disk
// hides the rest. It also listens at urls.
func startEtcd(ctx context.Context, bin, dir string, urls ...string) (*etcd, error) {
	listen := strings.Join(append([]string{etcdURL}, urls...), ",")
	p, err := start(dir, "etcd", nil, filepath.Join(bin, "etcd"), "--data-dir", filepath.Join(dir, "etcd"),
		"--listen-client-urls", listen, "--advertise-client-urls", listen,
		"--listen-peer-urls", "http://127.0.0.1:2380", "--initial-advertise-peer-urls", "http://127.0.0.1:2380",
		"--initial-cluster", "default=http://127.0.0.1:2380", "--log-level", "warn")
	if err != nil {
		return nil, err
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{etcdURL}, Logger: zap.NewNop()})
	if err != nil {
		p.stop()
		return nil, err
	}
	e := &etcd{p, client}
	err = until(ctx, time.Minute, 20*time.Millisecond, func() error {
		if err := p.ended(); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_, err := client.Get(ctx, "health")
		return err
	})
	if err != nil {
		e.stop()
		return nil, fmt.Errorf("etcd: %w", err)
	}
	return e, nil
}

func (e *etcd) stop() {
	if e != nil {
		e.client.Close()
		e.process.stop()
	}
}

type pair struct{ key, value string }

// putAll puts many keys in as few transactions as may be, all in flight at once.
func (e *etcd) putAll(ctx context.Context, pairs []pair) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for chunk := range slices.Chunk(pairs, etcdOps) {
		g.Go(func() error {
			var ops []clientv3.Op
			for _, p := range chunk {
				ops = append(ops, clientv3.OpPut(p.key, p.value))
			}
			_, err := e.client.Txn(ctx).Then(ops...).Commit()
			return err
		})
	}
	return g.Wait()
}

func (e *etcd) delete(ctx context.Context, prefix string) error {
	_, err := e.client.Delete(ctx, prefix, clientv3.WithPrefix())
	return err
}

// putToWatch measures from before a put to when a watcher has its event; of
// many keys, to the last event.
func (e *etcd) putToWatch(ctx context.Context, pairs []pair) (time.Duration, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	prefix := pairs[0].key[:strings.LastIndexByte(pairs[0].key, '/')+1]
	events := e.client.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	<-events // it stands
	failed := make(chan error, 1)
	begin := time.Now()
	go func() {
		if err := e.putAll(ctx, pairs); err != nil {
			failed <- err
		}
	}()
	for left := len(pairs); left > 0; {
		select {
		case r, ok := <-events:
			if !ok || r.Err() != nil {
				return 0, fmt.Errorf("watch: %w", r.Err())
			}
			left -= len(r.Events)
		case err := <-failed:
			return 0, err
		}
	}
	return time.Since(begin), nil
}

// claims measures guarded transactions as an agent writes claims: n puts with
// three comparisons each, 40 in one transaction, all in flight at once.
func (e *etcd) claims(ctx context.Context, pairs []pair) (time.Duration, error) {
	begin := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	for chunk := range slices.Chunk(pairs, 40) {
		g.Go(func() error {
			var guards []clientv3.Cmp
			var puts []clientv3.Op
			for _, p := range chunk {
				for _, key := range []string{p.key, p.key + "/target", p.key + "/owner"} {
					guards = append(guards, clientv3.Compare(clientv3.ModRevision(key), "<", 1<<62))
				}
				puts = append(puts, clientv3.OpPut(p.key, p.value))
			}
			r, err := e.client.Txn(ctx).If(guards...).Then(puts...).Commit()
			if err == nil && !r.Succeeded {
				err = fmt.Errorf("a guard of %s failed", chunk[0].key)
			}
			return err
		})
	}
	err := g.Wait()
	return time.Since(begin), err
}

// counters are etcd's own, as its /metrics shows them, summed over their labels.
func (e *etcd) counters(ctx context.Context, names ...string) (map[string]float64, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, etcdURL+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	sums := map[string]float64{}
	for line := range strings.Lines(string(text)) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok {
			continue
		}
		if i := strings.LastIndexByte(line, ' '); i >= 0 {
			value = strings.TrimSpace(line[i:])
		}
		name, _, _ = strings.Cut(name, "{")
		if slices.Contains(names, name) {
			n, err := strconv.ParseFloat(value, 64)
			if err != nil {
				return nil, fmt.Errorf("etcd's metrics: %q: %w", line, err)
			}
			sums[name] += n
		}
	}
	return sums, nil
}
