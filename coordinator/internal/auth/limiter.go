package auth

import (
	"net/netip"
	"sync"
	"time"
)

// Limiter slows down who fails to log in. It forgets a failure after a while, and
// holds a bounded number of sources.
type Limiter struct {
	// Failures that a source may have at once; one is forgiven each Every.
	Failures int
	Every    time.Duration
	// Sources that are remembered. Where there are more, those that failed least are
	// forgotten: an attacker with so many addresses is not stopped by counting them.
	Sources int

	mu      sync.Mutex
	sources map[netip.Prefix]time.Time // when all its failures will be forgiven
}

// NewLimiter allows 10 failures at once and one each 10 seconds, of 10,000 sources.
func NewLimiter() *Limiter { return &Limiter{Failures: 10, Every: 10 * time.Second, Sources: 10000} }

// source is what one attacker has at least: an IPv4 address, or an IPv6 network of a
// site (RFC 6177).
func source(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := a.BitLen()
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits)
	return p
}

// Wait is how long an address has to wait before it may try again; 0: it may now.
func (l *Limiter) Wait(from netip.Addr, now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	until, failed := l.sources[source(from)]
	if !failed {
		return 0
	}
	return max(0, until.Sub(now)-time.Duration(l.Failures-1)*l.Every)
}

// Failed counts a failure.
func (l *Limiter) Failed(from netip.Addr, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sources == nil {
		l.sources = map[netip.Prefix]time.Time{}
	}
	key := source(from)
	until, known := l.sources[key]
	if !known && len(l.sources) >= l.Sources {
		l.forget(now)
	}
	if until.Before(now) {
		until = now
	}
	l.sources[key] = until.Add(l.Every)
}

// forget makes room: for all that is forgiven, or else for the one that will be next.
func (l *Limiter) forget(now time.Time) {
	var next netip.Prefix
	for key, until := range l.sources {
		if !until.After(now) {
			delete(l.sources, key)
		} else if soonest, ok := l.sources[next]; !ok || until.Before(soonest) {
			next = key
		}
	}
	if len(l.sources) >= l.Sources {
		delete(l.sources, next)
	}
}
