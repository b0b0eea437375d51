package state

import (
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// The checks of what operators write: each turns a decoded message into its
// typed form with defaults filled in.

// The most of a kind that one VIP may have: far above any use, and low enough
// that its rules, routes and services stay few.
const (
	maxAddresses   = 64
	maxServices    = 256
	maxCommunities = 64 // 4 bytes each, in a BGP message of 4096
	// maxSites and ranks are the room on the ladder (PROTOCOL): ranks go from 0 to 8.
	maxSites = 9
	ranks    = 9
	// maxNames is the most names in a list of nodes or VIPs.
	maxNames = 10000
)

func settings(c *checker, m *medwayv1.Settings) Settings {
	s := DefaultSettings()
	c.sync(m.GetSync(), &s.Sync)
	s.NormaliseAfter = c.duration("normalise_after", m.NormaliseAfter, s.NormaliseAfter, 0, 24*time.Hour)
	s.Settle = c.duration("settle", m.Settle, s.Settle, 0, time.Minute)
	s.ResyncInterval = c.duration("resync_interval", m.ResyncInterval, s.ResyncInterval, time.Second, time.Hour)
	t := m.GetTimeouts()
	s.Timeouts.TCP = c.seconds("timeouts.tcp", t.GetTcp(), s.Timeouts.TCP)
	s.Timeouts.TCPFin = c.seconds("timeouts.tcp_fin", t.GetTcpFin(), s.Timeouts.TCPFin)
	s.Timeouts.UDP = c.seconds("timeouts.udp", t.GetUdp(), s.Timeouts.UDP)
	s.LongestKeepalive = c.seconds("longest_keepalive", m.LongestKeepalive, s.LongestKeepalive)
	s.Parity = c.number("parity", m.Parity, s.Parity, 1, 100)
	for _, key := range slices.Sorted(maps.Keys(m.Sysctls)) {
		s.Sysctls[key] = c.sysctl(key, m.Sysctls[key])
	}
	return s
}

var validSysctl = regexp.MustCompile(`^net(\.[A-Za-z0-9_:@/-]+)+$`)

// sysctl checks a kernel parameter; its runs of white space become one space.
func (c *checker) sysctl(key, value string) string {
	if len(key) > 200 || !validSysctl.MatchString(key) || upwards(key) {
		c.errs = append(c.errs, FieldError{join("sysctls", key), "name " + Quote(key), "a kernel parameter that begins with net., in the form of sysctl(8)"})
	}
	// A newline would be cut off, or begin another value.
	plain := strings.ReplaceAll(value, "\t", " ")
	if strings.TrimSpace(plain) == "" || len(plain) > 200 || Line(plain) != plain {
		c.wrong(join("sysctls", key), value, "a value of 1 to 200 printable bytes on one line")
	}
	return strings.Join(strings.Fields(value), " ")
}

// upwards says whether a parameter's path leads out of its folder. A slash
// stands for a dot inside a name (sysctl(8)), so two of them are the parent.
func upwards(key string) bool {
	return slices.ContainsFunc(strings.Split(key, "."), func(name string) bool { return strings.Trim(name, "/") == "" })
}

func (c *checker) sync(m *medwayv1.Sync, s *Sync) {
	if m == nil {
		return
	}
	s.ID = uint8(c.number("sync.id", m.Id, uint32(s.ID), 1, 255))
	s.Port = uint16(c.number("sync.port", m.Port, uint32(s.Port), 1, 65535))
	const least, most = 1052, 65000
	mtu := c.number("sync.tunnel_mtu", m.TunnelMtu, uint32(s.TunnelMTU), least, most)
	s.TunnelMTU = int(mtu)
	if mtu >= least && mtu <= most {
		// The kernel takes no backup daemon below 1024 (ip_vs_sync.c).
		s.MaxLength = uint16(c.number("sync.max_length", m.MaxLength, 0, 1024, mtu-28))
	}
	if m.Group != "" {
		group, err := netip.ParseAddr(m.Group)
		if err != nil || !group.Is4() || !group.IsMulticast() {
			c.wrong("sync.group", m.Group, "an IPv4 multicast address")
		}
		s.Group = group
	}
}

func ladder(c *checker, m *medwayv1.Ladder) Ladder { return c.ladder("", m) }

// ladder checks the rungs; prefix begins the names of its fields.
func (c *checker) ladder(prefix string, m *medwayv1.Ladder) Ladder {
	l := DefaultLadder()
	before := len(c.errs)
	for _, f := range []struct {
		name  string
		value *uint32
		into  *uint32
	}{
		{"force", m.Force, &l.Force}, {"step", m.Step, &l.Step}, {"active", m.Active, &l.Active},
		{"unconfirmed", m.Unconfirmed, &l.Unconfirmed}, {"standby", m.Standby, &l.Standby},
		{"backup", m.Backup, &l.Backup}, {"site_step", m.SiteStep, &l.SiteStep}, {"last_resort", m.LastResort, &l.LastResort},
	} {
		least, most := uint32(0), uint32(1<<31-1)
		switch f.name {
		case "force", "step":
			least = 1 // nothing undercuts a MED of 0 (PROTOCOL R4)
		case "site_step":
			least, most = 2*ranks, 1000
		}
		*f.into = c.number(prefix+f.name, f.value, *f.into, least, most)
	}
	if len(c.errs) > before {
		return l
	}
	// Each rung needs room for all ranks, and a backup site for owner and standbys
	// of every site before the last resort.
	for _, rung := range []struct {
		field      string
		low, high  uint32
		lowName    string
		difference uint32
	}{
		{"active", l.Force, l.Active, "force", 1},
		{"unconfirmed", l.Active, l.Unconfirmed, "active", 1},
		{"standby", l.Unconfirmed, l.Standby, "unconfirmed", ranks},
		{"backup", l.Standby, l.Backup, "standby", ranks},
		{"last_resort", l.Backup, l.LastResort, "backup", maxSites * l.SiteStep},
	} {
		if rung.high < rung.low || rung.high-rung.low < rung.difference {
			c.outside(prefix+rung.field, rung.high, fmt.Sprintf("at least %d more than %s (%d)", rung.difference, rung.lowName, rung.low))
		}
	}
	return l
}

func vip(c *checker, m *medwayv1.VIP) VIP {
	v := VIP{Groups: map[string]string{}}
	if len(m.Addresses) == 0 {
		c.missing("addresses", "at least one address")
	}
	if c.atMost("addresses", len(m.Addresses), maxAddresses) {
		for i, text := range m.Addresses {
			field := fmt.Sprintf("addresses[%d]", i)
			a := c.unicast(field, text)
			if a.IsValid() && slices.Contains(v.Addresses, a) {
				c.wrong(field, text, "each address once")
			}
			v.Addresses = append(v.Addresses, a)
		}
	}
	if len(m.Groups) == 0 {
		c.missing("groups", "at least one site and its group")
	}
	if c.atMost("groups", len(m.Groups), maxSites) {
		for _, site := range slices.Sorted(maps.Keys(m.Groups)) {
			if !validName.MatchString(site) {
				c.errs = append(c.errs, FieldError{join("groups", site), "site " + Quote(site), nameForm})
			}
			v.Groups[site] = c.name(join("groups", site), m.Groups[site])
		}
	}
	v.Services = c.services(m.Services)
	if m.Announcement != nil {
		v.Announcement = c.announcement(m.Announcement, v.Addresses)
	}
	if m.AutomaticSwitchover != nil {
		v.Automatic = c.automatic(m.AutomaticSwitchover)
	}
	if m.Ownership != nil {
		v.Ownership = Ownership{Preference: c.names("ownership.preference", m.Ownership.Preference), Preempt: m.Ownership.Preempt}
	}
	return v
}

func (c *checker) automatic(m *medwayv1.AutomaticSwitchover) Automatic {
	a := DefaultAutomatic()
	a.Enabled = m.Enabled
	if m.Share != "" {
		number, percent := strings.CutSuffix(m.Share, "%")
		n, err := strconv.ParseUint(number, 10, 32)
		if !percent || err != nil || n < 1 || n > 100 {
			c.wrong("automatic_switchover.share", m.Share, "a share from 1% to 100%, such as 50%")
		}
		a.Share = uint32(n)
	}
	// Below one packet a second nothing can be told.
	a.Floor = float64(c.number("automatic_switchover.packets_per_second", m.PacketsPerSecond, uint32(a.Floor), 1, 1<<31-1))
	a.For = c.duration("automatic_switchover.for", m.For, a.For, time.Second, time.Hour)
	a.Settle = c.duration("automatic_switchover.settle", m.Settle, a.Settle, 0, 24*time.Hour)
	return a
}

func (c *checker) services(list []*medwayv1.Service) []Service {
	if len(list) == 0 {
		c.missing("services", "at least one service")
	}
	if !c.atMost("services", len(list), maxServices) {
		return nil
	}
	type port struct {
		protocol string
		number   uint32
	}
	first := map[port]int{}
	var out []Service
	for i, m := range list {
		field := func(name string) string { return fmt.Sprintf("services[%d].%s", i, name) }
		s := Service{Protocol: m.Protocol, Port: uint16(m.Port), Engine: m.PersistenceEngine, OnePacket: m.OnePacket}
		switch {
		case m.Protocol == "":
			c.missing(field("protocol"), "tcp or udp")
		case m.Protocol != "tcp" && m.Protocol != "udp":
			c.wrong(field("protocol"), m.Protocol, "tcp or udp")
		}
		p := port{m.Protocol, m.Port}
		other, twice := first[p]
		switch {
		case m.Port < 1 || m.Port > 65535:
			c.outside(field("port"), m.Port, "a number from 1 to 65535")
		case twice:
			c.outside(field("port"), m.Port, fmt.Sprintf("each port of a protocol once: services[%d] has it", other))
		default:
			first[p] = i
		}
		s.Pool = c.name(field("pool"), m.Pool)
		s.Persistence = c.seconds(field("persistence"), m.Persistence, 0)
		s.Scheduler = c.scheduler(field("scheduler"), m.Scheduler)
		c.persistence(field, m)
		out = append(out, s)
	}
	return out
}

// persistence checks what goes with what.
func (c *checker) persistence(field func(string) string, m *medwayv1.Service) {
	udp, persistent, engine := m.Protocol == "udp", m.Persistence != "", m.PersistenceEngine
	switch {
	case engine != "" && engine != "sip":
		c.wrong(field("persistence_engine"), engine, "sip, or no such field")
	case engine != "" && (!udp || !persistent):
		c.wrong(field("persistence_engine"), engine, "protocol udp and a persistence beside it")
	case m.OnePacket && !udp:
		c.errs = append(c.errs, FieldError{field("one_packet"), "value true", "protocol udp beside it"})
	case m.OnePacket && persistent && engine == "":
		c.errs = append(c.errs, FieldError{field("one_packet"), "value true", "no persistence beside it, or persistence_engine sip"})
	}
}

func pool(c *checker, m *medwayv1.Pool) Pool {
	p := Pool{Scheduler: c.scheduler("scheduler", m.Scheduler)}
	weights, thresholds := m.GetWeights(), m.GetThresholds()
	if weights == nil {
		weights = &medwayv1.Weights{}
	}
	// 65535 is the most that reads back from the kernel through every tool.
	p.Local = uint16(c.number("weights.local", weights.Local, 50000, 0, 65535))
	p.Remote = uint16(c.number("weights.remote", weights.Remote, 2, 0, 65535))
	// The kernel compares thresholds with counts that are signed (ip_vs.h).
	upper, lower := thresholds.GetUpper(), thresholds.GetLower()
	p.Upper = c.number("thresholds.upper", &upper, 0, 0, 1<<31-1)
	p.Lower = c.number("thresholds.lower", &lower, 0, 0, 1<<31-1)
	if p.Lower > p.Upper {
		c.outside("thresholds.lower", p.Lower, fmt.Sprintf("at most thresholds.upper (%d)", p.Upper))
	}
	return p
}

func backend(c *checker, m *medwayv1.Backend) Backend {
	b := Backend{Site: c.name("site", m.Site)}
	a := c.unicast("address", m.Address)
	if a.Is4() {
		b.IPv4 = a
	} else {
		b.IPv6 = a
	}
	switch {
	case m.Address6 == "":
	case a.Is6():
		c.wrong("address6", m.Address6, "an IPv4 address in the field address beside it")
	default:
		b.IPv6 = c.optional("address6", m.Address6, netip.Addr.Is6, "an IPv6 unicast address")
	}
	return b
}
