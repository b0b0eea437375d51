package drill

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/medway-lb/medway/integration/lab"
)

// Sample is what one LVS host's kernel said at a moment.
type Sample struct {
	At   time.Time
	Node string
	// Connections in the table, those that came by sync among them.
	Connections int
	// Packets that came in for the VIPs, in all.
	Packets uint64
}

// sampler reads the LVS hosts' kernels at a steady pace.
type sampler struct {
	mu      sync.Mutex
	samples []Sample
	err     error
	done    chan struct{}
}

const sampleInterval = time.Second

func startSampler(ctx context.Context, l *lab.Lab) *sampler {
	s := &sampler{done: make(chan struct{})}
	go func() {
		defer close(s.done)
		for wait(ctx, sampleInterval) == nil {
			for _, n := range l.Topology().Role(lab.RoleLVS) {
				sample, err := readKernel(l, n.Name)
				s.mu.Lock()
				if err != nil {
					s.err = err
				} else {
					s.samples = append(s.samples, sample)
				}
				s.mu.Unlock()
			}
		}
	}()
	return s
}

// all returns the samples so far.
func (s *sampler) all() ([]Sample, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.samples, s.err
}

// readKernel reads what `ipvsadm -ln` and its --stats show, from the same
// tables as text: a program start takes too long on an emulated processor.
func readKernel(l *lab.Lab, node string) (Sample, error) {
	out := Sample{At: time.Now(), Node: node}
	err := l.Inside(node, func() error {
		table, err := os.ReadFile("/proc/thread-self/net/ip_vs")
		if err != nil {
			return err
		}
		stats, err := os.ReadFile("/proc/thread-self/net/ip_vs_stats_percpu")
		if err != nil {
			return err
		}
		if out.Connections, err = parseConnections(string(table)); err != nil {
			return err
		}
		out.Packets, err = parsePackets(string(stats))
		return err
	})
	if err != nil {
		return out, fmt.Errorf("%s: %w", node, err)
	}
	return out, nil
}

// parseConnections adds up ActiveConn and InActConn of /proc/net/ip_vs.
func parseConnections(text string) (int, error) {
	total := 0
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		// -> address:port forward weight active inactive
		if len(f) != 6 || f[0] != "->" || f[1] == "RemoteAddress:Port" {
			continue
		}
		for _, field := range f[4:] {
			n, err := strconv.Atoi(field)
			if err != nil {
				return 0, fmt.Errorf("line %q: %w", line, err)
			}
			total += n
		}
	}
	return total, nil
}

// parsePackets reads the packets that came in, in hexadecimal, from the line of
// totals ("~") of /proc/net/ip_vs_stats_percpu. Unlike ip_vs_stats, which the
// kernel's estimator brings up to date every 2 s, this is the present.
func parsePackets(text string) (uint64, error) {
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) == 6 && f[0] == "~" {
			return strconv.ParseUint(f[2], 16, 64)
		}
	}
	return 0, fmt.Errorf("no totals in %q", text)
}
