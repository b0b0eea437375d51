package bgp

import (
	"fmt"
	"net/netip"
	"time"
)

// Config is a speaker's configuration. It doesn't change while the speaker
// lives.
type Config struct {
	// AS is our autonomous system number, of 2 or 4 octets.
	AS uint32
	// RouterID is the BGP identifier, an IPv4 address (RFC 6286). The zero
	// value takes LocalAddress.
	RouterID netip.Addr
	// LocalAddress is the source of sessions over IPv4 and the next hop of
	// IPv4 routes, LocalAddress6 that of IPv6. One of them may be missing:
	// its family is not spoken then. With BFD it must be the address that the
	// kernel itself chooses towards the neighbours: GoBGP doesn't bind BFD's
	// source.
	LocalAddress  netip.Addr
	LocalAddress6 netip.Addr
	Neighbors     []Neighbor
}

// Neighbor is a router. One whose AS is ours is internal (iBGP): it gets local
// preference 100 and no prepends (see prepend).
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
	// Multihop is the TTL towards an external router that is not directly
	// connected; 0 is 1. An internal one may be anywhere.
	Multihop uint8
	// BFD tears the session down when it times out (RFC 5882, 4.1); nil for
	// none.
	BFD *BFD
	// GracefulRestart is how long the router keeps our routes when the
	// session ends without a NOTIFICATION (RFC 4724): whole seconds, 4095 s
	// at most; 0 for none.
	GracefulRestart time.Duration
	// MaxPrefixes is how many routes of a family the router may send before
	// its session is closed for maxPrefixesIdle; 0 takes 2,000,000. All are
	// refused, but GoBGP keeps them, at about 0.8 KB each, and routes that stay
	// announced matter more than memory: the default is twice a full table.
	MaxPrefixes uint32
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
	// defaultMaxPrefixes is out of reach of a mistake in an export policy.
	defaultMaxPrefixes = 2_000_000
	maxPrefixesIdle    = 5 * time.Minute
	maxRestartTime     = 4095 * time.Second // 12 bits, RFC 4724, 3
	maxPassword        = 80                 // bytes, TCP_MD5SIG_MAXKEYLEN
	asTrans            = 23456              // stands for others, RFC 6793
)

// withDefaults returns the configuration with defaults filled in, as a copy
// that the caller of New can't change any more.
func (c Config) withDefaults() Config {
	if !c.RouterID.IsValid() {
		c.RouterID = c.LocalAddress
	}
	neighbors := make([]Neighbor, len(c.Neighbors))
	for i, n := range c.Neighbors {
		if n.HoldTime == 0 {
			n.HoldTime = defaultHoldTime
		}
		if n.Keepalive == 0 {
			n.Keepalive = (n.HoldTime / 3).Truncate(time.Second)
		}
		if n.MaxPrefixes == 0 {
			n.MaxPrefixes = defaultMaxPrefixes
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

// Fault is something wrong with a configuration, in the words of the agent's
// file: Field is a path below bgp, for example "neighbors[0].hold_time".
type Fault struct {
	Field, Value, Expected string
}

func (f Fault) Error() string {
	return fmt.Sprintf("%s: value %q: expected %s", f.Field, f.Value, f.Expected)
}

// Faults are what is wrong with a configuration.
func (c Config) Faults() []Fault {
	c = c.withDefaults()
	var faults []Fault
	wrong := func(field string, value any, expected string) {
		faults = append(faults, Fault{field, fmt.Sprint(value), expected})
	}
	checkAS := func(field string, as uint32) {
		if as == 0 || as == asTrans {
			wrong(field, as, fmt.Sprintf("an AS number from 1 to 4294967295 other than %d", asTrans))
		}
	}
	checkAS("as", c.AS)
	if !c.RouterID.Is4() || c.RouterID.IsUnspecified() {
		wrong("router_id", text(c.RouterID), "an IPv4 address; without addresses.ipv4 there is no default")
	}
	if a := c.LocalAddress; a.IsValid() && (!a.Is4() || a.IsUnspecified()) {
		wrong("local address", a, "an IPv4 address")
	}
	if a := c.LocalAddress6; a.IsValid() && (!a.Is6() || a.Is4In6() || a.IsUnspecified() || a.Zone() != "") {
		wrong("local address", a, "an IPv6 address without a zone")
	}
	seen := map[netip.Addr]bool{}
	for i, n := range c.Neighbors {
		field := fmt.Sprintf("neighbors[%d].", i)
		if a := n.Address; a.IsValid() {
			switch {
			case seen[a]:
				wrong(field+"address", a, "a router that is not there twice")
			case a == c.LocalAddress || a == c.LocalAddress6:
				wrong(field+"address", a, "the address of a router, not of this host")
			case a.Is4() && !c.LocalAddress.IsValid():
				wrong(field+"address", a, "an IPv6 address, as addresses.ipv4 is not set")
			case a.Is6() && !a.Is4In6() && !c.LocalAddress6.IsValid():
				wrong(field+"address", a, "an IPv4 address, as addresses.ipv6 is not set")
			}
			seen[a] = true
		}
		checkAS(field+"as", n.AS)
		n.check(n.AS == c.AS, func(name string, value any, expected string) { wrong(field+name, value, expected) })
	}
	return faults
}

func (n Neighbor) check(internal bool, wrong func(field string, value any, expected string)) {
	if a := n.Address; !a.IsGlobalUnicast() && !a.IsLoopback() || a.Is4In6() || a.Zone() != "" {
		wrong("address", text(a), "a router's unicast address, and not a link-local one")
	}
	// RFC 4271, 4.2: a hold time is 0 or at least 3 s. 0 never notices a dead
	// router, so it isn't offered.
	if n.HoldTime < 3*time.Second || n.HoldTime > 65535*time.Second || !wholeSeconds(n.HoldTime) {
		wrong("hold_time", n.HoldTime, "whole seconds from 3s to 65535s")
	} else if n.Keepalive < time.Second || n.Keepalive >= n.HoldTime || !wholeSeconds(n.Keepalive) {
		wrong("keepalive", n.Keepalive, fmt.Sprintf("whole seconds from 1s to less than hold_time, %s", n.HoldTime))
	}
	if n.GracefulRestart < 0 || n.GracefulRestart > maxRestartTime || !wholeSeconds(n.GracefulRestart) {
		wrong("graceful_restart", n.GracefulRestart, "whole seconds from 0s (off) to 4095s")
	}
	if len(n.Password) > maxPassword {
		// Not the value: it is a secret.
		wrong("password_file", fmt.Sprintf("%d bytes", len(n.Password)), fmt.Sprintf("a password of at most %d bytes", maxPassword))
	}
	switch {
	case n.Multihop == 0:
	case internal:
		wrong("multihop", n.Multihop, "none: a router of our own AS may be any number of hops away")
	case n.TTLSecurity:
		wrong("multihop", n.Multihop, "none with ttl_security, which is for a directly connected router")
	case n.BFD != nil:
		wrong("multihop", n.Multihop, "none with bfd, which is single-hop")
	case n.Multihop == 1:
		wrong("multihop", n.Multihop, "2 to 255")
	}
	if b := n.BFD; b != nil {
		if b.Interval < 10*time.Millisecond || b.Interval > time.Minute || b.Interval%time.Microsecond != 0 {
			wrong("bfd.interval", b.Interval, "10ms to 1m")
		}
		if b.Multiplier == 0 {
			wrong("bfd.multiplier", b.Multiplier, "1 to 255")
		}
	}
}

// text is an address as an operator wrote it: nothing where there is none.
func text(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func wholeSeconds(d time.Duration) bool { return d%time.Second == 0 }
