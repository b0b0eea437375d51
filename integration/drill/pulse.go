package drill

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/medway-lb/medway/integration/lab"
)

// pulseInterval is how often a pulse asks.
const pulseInterval = 100 * time.Millisecond

// pulse is a client that asks the VIP's backends over UDP at a steady pace, whether they
// answer or not: what it hears, and doesn't, is what an interruption looks like from outside.
type pulse struct {
	conn   net.Conn
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu   sync.Mutex
	last time.Time     // answer
	gap  time.Duration // longest between two answers
}

func startPulse(ctx context.Context, l *lab.Lab) (*pulse, error) {
	conn, err := l.Dial(ctx, lab.Clients, "udp", net.JoinHostPort(lab.VIP.String(), "5060"))
	if err != nil {
		return nil, fmt.Errorf("pulse: %w", err)
	}
	return newPulse(ctx, conn), nil
}

func newPulse(ctx context.Context, conn net.Conn) *pulse {
	ctx, cancel := context.WithCancel(ctx)
	p := &pulse{conn: conn, cancel: cancel, last: time.Now()}
	p.done.Go(func() { p.ask(ctx) })
	p.done.Go(p.listen)
	return p
}

func (p *pulse) ask(ctx context.Context) {
	defer p.conn.Close()
	tick := time.NewTicker(pulseInterval)
	defer tick.Stop()
	local := p.conn.LocalAddr()
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		// An error is one of an earlier request that somebody refused.
		_, _ = fmt.Fprintf(p.conn, "OPTIONS sip:pulse@%[1]s SIP/2.0\r\nVia: SIP/2.0/UDP %[2]s;branch=z9hG4bK-pulse-%[3]d\r\n"+
			"From: <sip:pulse@%[2]s>;tag=pulse\r\nTo: <sip:pulse@%[1]s>\r\nCall-ID: pulse-%[3]d@%[2]s\r\n"+
			"CSeq: 1 OPTIONS\r\nMax-Forwards: 70\r\nContent-Length: 0\r\n\r\n", lab.VIP, local, i)
	}
}

func (p *pulse) listen() {
	buf := make([]byte, 64<<10)
	for {
		_, err := p.conn.Read(buf)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err == nil: // an error is somebody's refusal, and no answer
			p.heard(time.Now())
		}
	}
}

func (p *pulse) heard(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gap = max(p.gap, now.Sub(p.last))
	p.last = now
}

// longest is the longest time between two answers since it was asked last; one that is
// still going on counts.
func (p *pulse) longest() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	gap := max(p.gap, time.Since(p.last))
	p.gap = 0
	return gap
}

func (p *pulse) stop() {
	p.cancel()
	p.done.Wait()
}
