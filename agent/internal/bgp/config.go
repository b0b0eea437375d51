package bgp

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Config is a speaker's configuration. It doesn't change while the speaker
// lives.
type Config struct {
	// AS is our autonomous system number.
	AS uint32
	// RouterID is the BGP identifier, an IPv4 address (RFC 6286).
	RouterID netip.Addr
	// LocalAddress is the source of sessions over IPv4 and the next hop of
	// IPv4 routes. With BFD it must be the address that the kernel itself
	// chooses towards the neighbours: GoBGP doesn't bind BFD's source.
	LocalAddress netip.Addr
	// LocalAddress6 is the source of sessions over IPv6 and the next hop of
	// IPv6 routes. The zero value: IPv6 is not spoken.
	LocalAddress6 netip.Addr
	Neighbors     []Neighbor
}

// Neighbor is a directly connected router. One whose AS is ours is internal
// (iBGP): it gets local preference 100 and no prepends.
type Neighbor struct {
	Address netip.Addr
	AS      uint32
	// HoldTime in whole seconds, 3 s at least; 0 takes 9 s.
	HoldTime time.Duration
	// Keepalive in whole seconds; 0 takes a third of HoldTime.
	Keepalive time.Duration
	// Password is the TCP MD5 password (RFC 2385), "" for none.
	Password string
	// TTLSecurity sends with TTL 255 and accepts nothing less (RFC 5082).
	TTLSecurity bool
	// BFD tears the session down when it times out (RFC 5882, 4.1); nil for
	// none.
	BFD *BFD
	// GracefulRestart is how long the router keeps our routes when the
	// session ends without a NOTIFICATION (RFC 4724): whole seconds, 4095 s
	// at most; 0 for none.
	GracefulRestart time.Duration
}

// BFD is a single-hop BFD session (RFC 5881). It detects within
// Interval x Multiplier.
type BFD struct {
	// Interval is both the transmit and the required receive interval, in
	// whole microseconds, 10 ms at least.
	Interval   time.Duration
	Multiplier uint8
}

const (
	defaultHoldTime = 9 * time.Second
	maxRestartTime  = 4095 * time.Second // 12 bits, RFC 4724, 3
)

// withDefaults returns the configuration with defaults filled in, as a copy
// that the caller of New can't change any more.
func (c Config) withDefaults() Config {
	neighbors := make([]Neighbor, len(c.Neighbors))
	for i, n := range c.Neighbors {
		if n.HoldTime == 0 {
			n.HoldTime = defaultHoldTime
		}
		if n.Keepalive == 0 {
			n.Keepalive = (n.HoldTime / 3).Truncate(time.Second)
		}
		if n.BFD != nil {
			b := *n.BFD
			n.BFD = &b
		}
		neighbors[i] = n
	}
	c.Neighbors = neighbors
	return c
}

func (c Config) validate() error {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.AS == 0 {
		fault("bgp: the AS is missing")
	}
	if !c.RouterID.Is4() || c.RouterID.IsUnspecified() {
		fault("bgp: the router id %v is not an IPv4 address", c.RouterID)
	}
	if !c.LocalAddress.Is4() || c.LocalAddress.IsUnspecified() {
		fault("bgp: the local address %v is not an IPv4 address", c.LocalAddress)
	}
	if a := c.LocalAddress6; a.IsValid() && (!a.Is6() || a.Is4In6() || a.IsUnspecified() || a.Zone() != "") {
		fault("bgp: the local address %v is not an IPv6 address without a zone", a)
	}
	seen := map[netip.Addr]bool{}
	for _, n := range c.Neighbors {
		if seen[n.Address] {
			fault("bgp: neighbour %v is there twice", n.Address)
		}
		seen[n.Address] = true
		if n.Address.Is6() && !c.LocalAddress6.IsValid() {
			fault("bgp: neighbour %v needs a local IPv6 address", n.Address)
		}
		if err := n.validate(); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (n Neighbor) validate() error {
	var errs []error
	fault := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("bgp: neighbour %v: "+format, append([]any{n.Address}, args...)...))
	}
	if !n.Address.IsValid() || n.Address.IsUnspecified() || n.Address.Is4In6() {
		fault("not an address")
	}
	if n.AS == 0 {
		fault("the AS is missing")
	}
	// RFC 4271, 4.2: a hold time is 0 or at least 3 s. 0 never notices a dead
	// router, so it isn't offered.
	if n.HoldTime < 3*time.Second || n.HoldTime > 65535*time.Second || !wholeSeconds(n.HoldTime) {
		fault("hold time %v is not a whole number of seconds from 3 to 65535", n.HoldTime)
	}
	if n.Keepalive < time.Second || n.Keepalive >= n.HoldTime || !wholeSeconds(n.Keepalive) {
		fault("keepalive %v is not a whole number of seconds from 1 to less than the hold time", n.Keepalive)
	}
	if n.GracefulRestart < 0 || n.GracefulRestart > maxRestartTime || !wholeSeconds(n.GracefulRestart) {
		fault("graceful restart time %v is not a whole number of seconds up to 4095", n.GracefulRestart)
	}
	if b := n.BFD; b != nil && (b.Interval < 10*time.Millisecond || b.Interval > time.Minute || b.Multiplier == 0) {
		fault("BFD interval %v (10 ms to 1 min) or multiplier %d (1 to 255) is out of range", b.Interval, b.Multiplier)
	}
	return errors.Join(errs...)
}

func wholeSeconds(d time.Duration) bool { return d%time.Second == 0 }
