package state

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// The checks of what operators write: each turns a decoded message into its
// typed form with defaults filled in.

func settings(m *medwayv1.Settings) (Settings, error) {
	s := DefaultSettings()
	var err error
	if s.Sync, err = syncSettings(m.GetSync(), s.Sync); err != nil {
		return s, err
	}
	for _, f := range []struct {
		name, value string
		into        *time.Duration
		least, most time.Duration
	}{
		{"normalise_after", m.NormaliseAfter, &s.NormaliseAfter, 0, 24 * time.Hour},
		{"settle", m.Settle, &s.Settle, 0, time.Minute},
		{"resync_interval", m.ResyncInterval, &s.ResyncInterval, time.Second, time.Hour},
		{"timeouts.tcp", m.GetTimeouts().GetTcp(), &s.Timeouts.TCP, time.Second, 24 * time.Hour},
		{"timeouts.tcp_fin", m.GetTimeouts().GetTcpFin(), &s.Timeouts.TCPFin, time.Second, 24 * time.Hour},
		{"timeouts.udp", m.GetTimeouts().GetUdp(), &s.Timeouts.UDP, time.Second, 24 * time.Hour},
	} {
		if *f.into, err = durationField(f.name, f.value, *f.into, f.least, f.most); err != nil {
			return s, err
		}
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{{"timeouts.tcp", s.Timeouts.TCP}, {"timeouts.tcp_fin", s.Timeouts.TCPFin}, {"timeouts.udp", s.Timeouts.UDP}} {
		if d.value%time.Second != 0 {
			return s, fieldError(d.name, d.value.String(), "whole seconds")
		}
	}
	for key, value := range m.Sysctls {
		// A slash stands for a dot inside a name (sysctl(8)), so two of them are the parent directory.
		if !strings.HasPrefix(key, "net.") || strings.Contains(key, "..") || strings.Contains(key, "//") {
			return s, fieldError("sysctls", key, "a kernel parameter that begins with net.")
		}
		s.Sysctls[key] = strings.Join(strings.Fields(value), " ")
	}
	return s, nil
}

func syncSettings(m *medwayv1.Sync, s Sync) (Sync, error) {
	if m == nil {
		return s, nil
	}
	id, err := uintField("sync.id", m.Id, uint32(s.ID), 1, 255)
	if err != nil {
		return s, err
	}
	port, err := uintField("sync.port", m.Port, uint32(s.Port), 1, 65535)
	if err != nil {
		return s, err
	}
	mtu, err := uintField("sync.tunnel_mtu", m.TunnelMtu, uint32(s.TunnelMTU), 1052, 65000)
	if err != nil {
		return s, err
	}
	// The kernel takes no backup daemon below 1024 (ip_vs_sync.c).
	maxLength, err := uintField("sync.max_length", m.MaxLength, 0, 1024, mtu-28)
	if err != nil {
		return s, err
	}
	if m.Group != "" {
		s.Group, err = netip.ParseAddr(m.Group)
		if err != nil || !s.Group.Is4() || !s.Group.IsMulticast() {
			return s, fieldError("sync.group", m.Group, "an IPv4 multicast address")
		}
	}
	s.ID, s.Port, s.TunnelMTU, s.MaxLength = uint8(id), uint16(port), int(mtu), uint16(maxLength)
	return s, nil
}

func ladder(m *medwayv1.Ladder) (Ladder, error) {
	l := DefaultLadder()
	for _, f := range []struct {
		name  string
		value *uint32
		into  *uint32
	}{
		{"force", m.Force, &l.Force}, {"step", m.Step, &l.Step}, {"active", m.Active, &l.Active},
		{"unconfirmed", m.Unconfirmed, &l.Unconfirmed}, {"standby", m.Standby, &l.Standby},
		{"backup", m.Backup, &l.Backup}, {"site_step", m.SiteStep, &l.SiteStep}, {"last_resort", m.LastResort, &l.LastResort},
	} {
		v, err := uintField(f.name, f.value, *f.into, 0, 1<<31-1)
		if err != nil {
			return l, err
		}
		*f.into = v
	}
	// Ranks go from 0 to 8 (PROTOCOL): each rung needs room for nine, and a
	// backup site for owner and standbys of every site before the last resort.
	const ranks = 9
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
		{"last_resort", l.Backup, l.LastResort, "backup", ranks * l.SiteStep},
	} {
		if rung.high < rung.low || rung.high-rung.low < rung.difference {
			return l, fieldError(rung.field, strconv.Itoa(int(rung.high)),
				fmt.Sprintf("at least %d more than %s (%d)", rung.difference, rung.lowName, rung.low))
		}
	}
	if l.Step < 1 {
		return l, fieldError("step", "0", "at least 1")
	}
	if l.SiteStep < 2*ranks || l.SiteStep > 1000 {
		return l, fieldError("site_step", strconv.Itoa(int(l.SiteStep)), fmt.Sprintf("a number from %d to 1000", 2*ranks))
	}
	return l, nil
}

func vip(m *medwayv1.VIP) (VIP, error) {
	v := VIP{Groups: map[string]string{}}
	if len(m.Addresses) == 0 {
		return v, fieldError("addresses", "", "at least one address")
	}
	seen := map[netip.Addr]bool{}
	for _, text := range m.Addresses {
		a, err := unicast("addresses", text)
		if err != nil {
			return v, err
		}
		if a.IsLoopback() {
			return v, fieldError("addresses", text, "an address that clients can reach")
		}
		if seen[a] {
			return v, fieldError("addresses", text, "each address once")
		}
		seen[a] = true
		v.Addresses = append(v.Addresses, a)
	}
	if len(m.Groups) == 0 {
		return v, fieldError("groups", "", "at least one site and its group")
	}
	for site, group := range m.Groups {
		if err := checkNameField("groups", site); err != nil {
			return v, err
		}
		if err := checkNameField("groups."+site, group); err != nil {
			return v, err
		}
		v.Groups[site] = group
	}
	var err error
	if v.Services, err = services(m.Services); err != nil {
		return v, err
	}
	v.Announcement, err = announcement(m.GetAnnouncement(), v.Addresses)
	return v, err
}

func services(list []*medwayv1.Service) ([]Service, error) {
	if len(list) == 0 {
		return nil, fieldError("services", "", "at least one service")
	}
	type port struct {
		protocol string
		number   uint32
	}
	seen := map[port]bool{}
	var out []Service
	for i, m := range list {
		field := func(name string) string { return fmt.Sprintf("services[%d].%s", i, name) }
		if m.Protocol != "tcp" && m.Protocol != "udp" {
			return nil, fieldError(field("protocol"), m.Protocol, "tcp or udp")
		}
		if m.Port < 1 || m.Port > 65535 {
			return nil, fieldError(field("port"), strconv.Itoa(int(m.Port)), "a number from 1 to 65535")
		}
		p := port{m.Protocol, m.Port}
		if seen[p] {
			return nil, fieldError(field("port"), strconv.Itoa(int(m.Port)), "each port of a protocol once")
		}
		seen[p] = true
		if err := checkNameField(field("pool"), m.Pool); err != nil {
			return nil, err
		}
		persistence, err := durationField(field("persistence"), m.Persistence, 0, time.Second, 24*time.Hour)
		if err != nil {
			return nil, err
		}
		if persistence%time.Second != 0 {
			return nil, fieldError(field("persistence"), m.Persistence, "whole seconds")
		}
		switch {
		case m.PersistenceEngine != "" && m.PersistenceEngine != "sip":
			return nil, fieldError(field("persistence_engine"), m.PersistenceEngine, "sip, or no such field")
		case m.PersistenceEngine != "" && (m.Protocol != "udp" || persistence == 0):
			return nil, fieldError(field("persistence_engine"), m.PersistenceEngine, "protocol udp and a persistence beside it")
		case m.OnePacket && m.Protocol != "udp":
			return nil, fieldError(field("one_packet"), "true", "protocol udp beside it")
		case m.OnePacket && persistence > 0 && m.PersistenceEngine == "":
			return nil, fieldError(field("one_packet"), "true", "no persistence beside it, or persistence_engine sip")
		}
		out = append(out, Service{
			Protocol: m.Protocol, Port: uint16(m.Port), Pool: m.Pool, Persistence: persistence,
			Engine: m.PersistenceEngine, OnePacket: m.OnePacket,
		})
	}
	return out, nil
}

func pool(m *medwayv1.Pool) (Pool, error) {
	p := Pool{Scheduler: m.Scheduler, Upper: m.GetThresholds().GetUpper(), Lower: m.GetThresholds().GetLower()}
	if p.Scheduler == "" {
		p.Scheduler = "sed"
	}
	if err := checkScheduler(p.Scheduler); err != nil {
		return p, err
	}
	weights := m.GetWeights()
	if weights == nil {
		weights = &medwayv1.Weights{}
	}
	// 65535 is the most that reads back from the kernel through every tool.
	local, err := uintField("weights.local", weights.Local, 50000, 0, 65535)
	if err != nil {
		return p, err
	}
	remote, err := uintField("weights.remote", weights.Remote, 2, 0, 65535)
	if err != nil {
		return p, err
	}
	p.Local, p.Remote = uint16(local), uint16(remote)
	if p.Lower > p.Upper {
		return p, fieldError("thresholds.lower", strconv.Itoa(int(p.Lower)), fmt.Sprintf("at most thresholds.upper (%d)", p.Upper))
	}
	return p, nil
}

func backend(m *medwayv1.Backend) (b Backend, err error) {
	b = Backend{Site: m.Site}
	if err := checkNameField("site", m.Site); err != nil {
		return b, err
	}
	a, err := unicast("address", m.Address)
	if err != nil {
		return b, err
	}
	if a.Is4() {
		b.IPv4 = a
	} else {
		b.IPv6 = a
	}
	if m.Address6 == "" {
		return b, nil
	}
	if !a.Is4() {
		return b, fieldError("address6", m.Address6, "an IPv4 address in the field address beside it")
	}
	if b.IPv6, err = unicast("address6", m.Address6); err == nil && !b.IPv6.Is6() {
		err = fieldError("address6", m.Address6, "an IPv6 unicast address")
	}
	return b, err
}
