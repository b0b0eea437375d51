package state

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// Decode turns the value of a key into its typed form: Settings, Ladder, VIP,
// Pool, Backend, Node, Alive, Lock, BackendDrain, Order for drains of nodes and pauses, or for targets,
// owners, claims, epoch and joined a string, a node's name, a MED and words. It is strict: unknown fields, wrong types and values
// out of range are errors, all of them at once, that name the field, the value
// and what was expected ([Invalid]).
func Decode(k Key, value []byte) (any, error) {
	switch k.Kind {
	case KindSettings:
		return decode(value, &medwayv1.Settings{}, settings)
	case KindLadder:
		return decode(value, &medwayv1.Ladder{}, ladder)
	case KindVIP:
		return decode(value, &medwayv1.VIP{}, vip)
	case KindPool:
		return decode(value, &medwayv1.Pool{}, pool)
	case KindBackend:
		return decode(value, &medwayv1.Backend{}, backend)
	case KindNode:
		return decode(value, &medwayv1.Node{}, node)
	case KindAlive:
		return decode(value, &medwayv1.Alive{}, alive)
	case KindOwner:
		return decode(value, &medwayv1.Owner{}, owner)
	case KindClaim:
		return decode(value, &medwayv1.Claim{}, claim)
	case KindLock:
		return decode(value, &medwayv1.Lock{}, lock)
	case KindDrain:
		return decode(value, &medwayv1.Drain{}, func(c *checker, m *medwayv1.Drain) Order { return order(c, m) })
	case KindBackendDrain:
		return decode(value, &medwayv1.BackendDrain{}, func(c *checker, m *medwayv1.BackendDrain) BackendDrain {
			return BackendDrain{order(c, m), c.text("switchover", m.Switchover)}
		})
	case KindPause, KindPauseAll:
		return decode(value, &medwayv1.Pause{}, func(c *checker, m *medwayv1.Pause) Order { return order(c, m) })
	case KindTarget:
		return word(value, "the name of a site")
	case KindEpoch, KindJoined:
		return word(value, "an epoch")
	}
	return nil, fmt.Errorf("unknown kind %q", k.Kind)
}

// DecodeStatus decodes a value below StatusPrefix. Only people act on one, so
// fields of a newer node are left out rather than refused.
func DecodeStatus(value []byte) (*medwayv1.Status, error) {
	m := &medwayv1.Status{}
	if len(bytes.TrimSpace(value)) == 0 {
		return m, Invalid{{"", "empty value", "a JSON object"}}
	}
	return m, protojsonError((protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(value, m))
}

// Encode gives the stored form of a message: JSON on one line.
func Encode(m proto.Message) []byte {
	b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		// Only invalid UTF-8 in a string can do this; what is encoded here was decoded or checked before.
		return []byte("{}")
	}
	// protojson varies its white space on purpose; stored values should not.
	var out bytes.Buffer
	if err := json.Compact(&out, b); err != nil {
		return b
	}
	return out.Bytes()
}

// unmarshal decodes JSON into a message.
func unmarshal(value []byte, m proto.Message) error {
	if err := shape(value, m.ProtoReflect().Descriptor()); err != nil {
		return err
	}
	return protojsonError(protojson.Unmarshal(value, m))
}

func protojsonError(err error) error {
	if err == nil {
		return nil
	}
	// protojson varies between a space and a non-breaking space on purpose.
	text := strings.ReplaceAll(err.Error(), "\u00a0", " ")
	text = shorten(strings.TrimPrefix(text, "proto: "), maxErrorText/4)
	return Invalid{{"", shorten("not readable: "+Line(text), maxErrorText/2), "a JSON object"}}
}

func decode[M proto.Message, T any](value []byte, m M, read func(*checker, M) T) (any, error) {
	if err := unmarshal(value, m); err != nil {
		return nil, err
	}
	var c checker
	t := read(&c, m)
	if err := c.err(); err != nil {
		return nil, err
	}
	return t, nil
}

// word reads a value that is a plain word. Its white space is ignored, so that
// `echo dc2 | etcdctl put KEY` works.
func word(value []byte, what string) (any, error) {
	text := strings.TrimSpace(string(value))
	if !validName.MatchString(text) {
		return nil, Invalid{{"", "value " + Quote(string(value)), what + " as a plain word: " + nameForm}}
	}
	return text, nil
}

func owner(c *checker, m *medwayv1.Owner) string { return c.name("node", m.Node) }

func claim(c *checker, m *medwayv1.Claim) MED {
	if m.Med == "none" {
		return NoMED
	}
	n, err := strconv.ParseUint(m.Med, 10, 32)
	if err != nil {
		c.wrong("med", m.Med, `a number from 0 to 4294967295 in quotes, or "none"`)
	}
	return MED(n)
}

func node(c *checker, m *medwayv1.Node) Node {
	n := Node{
		MachineID: c.text("machine_id", m.MachineId), Site: c.name("site", m.Site), Group: c.name("group", m.Group),
		IPv4:    c.optional("ipv4", m.Ipv4, netip.Addr.Is4, "an IPv4 unicast address"),
		IPv6:    c.optional("ipv6", m.Ipv6, netip.Addr.Is6, "an IPv6 unicast address"),
		Version: c.text("version", m.Version), Schema: max(m.Schema, 1),
	}
	if m.MachineId == "" {
		c.missing("machine_id", "the host's machine id")
	}
	if m.Ipv4 == "" && m.Ipv6 == "" {
		c.missing("ipv4", "an address here or in ipv6")
	}
	var err error
	if n.SyncAddress, err = netip.ParseAddr(m.SyncAddress); err != nil || !n.SyncAddress.Is4() || !n.SyncAddress.IsLinkLocalUnicast() {
		c.wrong("sync_address", m.SyncAddress, "an address in 169.254.0.0/16")
	}
	return n
}

func alive(c *checker, m *medwayv1.Alive) Alive {
	a := Alive{BootID: c.text("boot_id", m.BootId), BGPSessions: m.BgpSessions, Since: c.time("since", m.Since), Cold: m.Cold}
	a.Unable = c.names("unable", m.Unable)
	slices.Sort(a.Unable)
	return a
}

// order checks a person's word: a drain or a pause.
func order(c *checker, m interface {
	GetSince() string
	GetReason() string
	GetBy() string
}) Order {
	return Order{Since: c.time("since", m.GetSince()), Reason: c.text("reason", m.GetReason()), By: c.text("by", m.GetBy())}
}

func lock(c *checker, m *medwayv1.Lock) Lock {
	l := Lock{Since: c.time("since", m.Since), Reason: c.text("reason", m.Reason), By: c.text("by", m.By)}
	if m.From != "" {
		l.From = c.name("from", m.From)
	}
	if m.To != "" {
		l.To = c.name("to", m.To)
	}
	return l
}

// The checks of single fields record what is wrong and return what is right.

func (c *checker) name(field, value string) string {
	switch {
	case value == "":
		c.missing(field, nameForm)
	case !validName.MatchString(value):
		c.wrong(field, value, nameForm)
	}
	return value
}

// names checks a list of names, each of which may be there once.
func (c *checker) names(field string, list []string) []string {
	if !c.atMost(field, len(list), maxNames) {
		return nil
	}
	var out []string
	for i, text := range list {
		name := c.name(fmt.Sprintf("%s[%d]", field, i), text)
		if slices.Contains(out, name) {
			c.wrong(fmt.Sprintf("%s[%d]", field, i), text, "each name once")
		}
		out = append(out, name)
	}
	return out
}

// text checks words for people, which go to terminals and logs.
func (c *checker) text(field, value string) string {
	if len(value) > 200 || Line(value) != value {
		c.wrong(field, value, "at most 200 bytes of text that can be printed")
	}
	return value
}

func (c *checker) time(field, value string) time.Time {
	t, err := time.Parse(time.RFC3339, value)
	switch {
	case value == "":
		c.missing(field, "a time in the form of RFC 3339")
	case err != nil:
		c.wrong(field, value, "a time in the form of RFC 3339")
	}
	return t
}

// reserved are ranges that no host or service has (IANA's special-purpose
// registry) though netip counts them as unicast.
var reserved = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("240.0.0.0/4")}

// Unicast says whether other hosts can reach an address.
func Unicast(a netip.Addr) bool {
	return a.IsGlobalUnicast() && !a.Is4In6() && a.Zone() == "" && !slices.ContainsFunc(reserved, func(p netip.Prefix) bool { return p.Contains(a) })
}

// unicast parses an address of either family that other hosts can reach.
func unicast(value string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(value)
	if err != nil || !Unicast(a) {
		return netip.Addr{}, false
	}
	return a, true
}

func (c *checker) unicast(field, value string) netip.Addr {
	const expected = "an IPv4 or IPv6 unicast address, not of loopback or link-local range"
	a, ok := unicast(value)
	switch {
	case value == "":
		c.missing(field, expected)
	case !ok:
		c.wrong(field, value, expected)
	}
	return a
}

// optional parses an address of one family; "" is none.
func (c *checker) optional(field, value string, family func(netip.Addr) bool, expected string) netip.Addr {
	if value == "" {
		return netip.Addr{}
	}
	a, ok := unicast(value)
	if !ok || !family(a) {
		c.wrong(field, value, expected)
		return netip.Addr{}
	}
	return a
}

// duration parses a duration from least to most; "" is def.
func (c *checker) duration(field, value string, def, least, most time.Duration) time.Duration {
	if value == "" {
		return def
	}
	d, err := time.ParseDuration(value)
	if err != nil || d < least || d > most {
		c.wrong(field, value, fmt.Sprintf("a duration from %s to %s, such as 10s", least, most))
		return def
	}
	return d
}

// seconds parses a duration of whole seconds, a second to a day; "" is def.
func (c *checker) seconds(field, value string, def time.Duration) time.Duration {
	d := c.duration(field, value, def, time.Second, 24*time.Hour)
	if d%time.Second != 0 {
		c.wrong(field, value, "whole seconds")
	}
	return d
}

// number checks a number from least to most; nil is def.
func (c *checker) number(field string, value *uint32, def, least, most uint32) uint32 {
	if value == nil {
		return def
	}
	if *value < least || *value > most {
		c.outside(field, *value, fmt.Sprintf("a number from %d to %d", least, most))
	}
	return *value
}

func (c *checker) outside(field string, value uint32, expected string) {
	c.errs = append(c.errs, FieldError{field, fmt.Sprintf("value %d", value), expected})
}

// atMost checks the length of a list.
func (c *checker) atMost(field string, length, most int) bool {
	if length > most {
		c.errs = append(c.errs, FieldError{field, fmt.Sprintf("%d of them", length), fmt.Sprintf("at most %d", most)})
	}
	return length <= most
}

// schedulers are the IPVS schedulers of Linux (net/netfilter/ipvs/Kconfig).
var schedulers = []string{
	"rr", "wrr", "lc", "wlc", "fo", "ovf", "lblc", "lblcr", "dh", "sh", "mh", "sed", "nq", "twos",
}

// activeOnly are those that look at active connections alone, of which UDP has
// none (ip_vs_bind_dest in net/netfilter/ipvs/ip_vs_conn.c).
var activeOnly = []string{"sed", "nq", "ovf"}

// scheduler checks the name of one; "" is none.
func (c *checker) scheduler(field, value string) string {
	if value != "" && !slices.Contains(schedulers, value) {
		c.wrong(field, value, "one of "+strings.Join(schedulers, ", "))
	}
	return value
}
