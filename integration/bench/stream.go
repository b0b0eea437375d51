package bench

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// Echo answers each UDP packet to one of the addresses with name, from the
// address that it was sent to.
func Echo(ctx context.Context, name string, addresses []string) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, address := range addresses {
		conn, err := net.ListenPacket("udp", address)
		if err != nil {
			return err
		}
		context.AfterFunc(ctx, func() { conn.Close() })
		g.Go(func() error {
			buffer := make([]byte, 64)
			for {
				_, from, err := conn.ReadFrom(buffer)
				if errors.Is(err, net.ErrClosed) {
					return nil
				}
				if err == nil {
					// Lost where there is no way back: the client counts.
					_, _ = conn.WriteTo([]byte(name), from)
				}
			}
		})
	}
	return g.Wait()
}

// sendInterval makes 1,000 packets a second.
const sendInterval = time.Millisecond

// stream is a client: it sends to an echo and looks at what comes back.
type stream struct {
	conn net.Conn

	mu   sync.Mutex
	from string // who answered last
	last time.Time
	// gap is the longest time between two answers since mark.
	gap time.Duration
}

// newStream sends until ctx ends.
func newStream(ctx context.Context, to netip.Addr) (*stream, error) {
	conn, err := net.Dial("udp", netip.AddrPortFrom(to, echoPort).String())
	if err != nil {
		return nil, err
	}
	s := &stream{conn: conn, last: time.Now()}
	context.AfterFunc(ctx, func() { conn.Close() })
	go func() {
		ticker := time.NewTicker(sendInterval)
		defer ticker.Stop()
		for ctx.Err() == nil {
			<-ticker.C
			_, _ = conn.Write([]byte{0}) // what is unreachable now may be reachable soon
		}
	}()
	go s.listen(ctx)
	return s, nil
}

func (s *stream) listen(ctx context.Context) {
	buffer := make([]byte, 64)
	for ctx.Err() == nil {
		n, err := s.conn.Read(buffer)
		if err != nil {
			continue // ICMP says that there is nobody, at the moment
		}
		now := time.Now()
		s.mu.Lock()
		s.gap, s.last, s.from = max(s.gap, now.Sub(s.last)), now, string(buffer[:n])
		s.mu.Unlock()
	}
}

// mark begins a measurement.
func (s *stream) mark() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gap = 0
}

// seen is who answered last, and the longest time between two answers since
// mark, also where it lasts still.
func (s *stream) seen() (from string, gap time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.from, max(s.gap, time.Since(s.last))
}
