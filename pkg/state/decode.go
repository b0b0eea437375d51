package state

import (
	"bytes"
	"encoding/json"
	"errors"
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
// Pool, Backend, Node, Alive, or for targets, owners and claims a string, a
// node's name and a MED. It is strict: unknown fields, wrong types and values
// out of range are errors that name the field, the value and what was
// expected.
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
	case KindTarget:
		return target(value)
	}
	return nil, fmt.Errorf("unknown kind %q", k.Kind)
}

// DecodeStatus decodes a value below StatusPrefix.
func DecodeStatus(value []byte) (*medwayv1.Status, error) {
	m := &medwayv1.Status{}
	return m, unmarshal(value, m)
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

// Schema is the newest schema of stored values that this build understands;
// proto/medway/v1 says which field came with which.
const Schema = 2

const maxErrorText = 400

func unmarshal(value []byte, m proto.Message) error {
	if len(bytes.TrimSpace(value)) == 0 {
		return errors.New("empty value: expected a JSON object")
	}
	if err := protojson.Unmarshal(value, m); err != nil {
		// protojson varies between a space and a non-breaking space on purpose.
		text := strings.ReplaceAll(err.Error(), "\u00a0", " ")
		text = strings.TrimPrefix(text, "proto: ")
		if len(text) > maxErrorText {
			// It quotes the value, and every node puts it into its status.
			text = strings.ToValidUTF8(text[:maxErrorText], "") + "..."
		}
		return errors.New(text)
	}
	return nil
}

func decode[M proto.Message, T any](value []byte, m M, check func(M) (T, error)) (any, error) {
	if err := unmarshal(value, m); err != nil {
		return nil, err
	}
	t, err := check(m)
	if err != nil {
		return nil, err
	}
	return t, nil
}

// target reads the plain word of a target key. Its white space is ignored, so
// that `echo dc2 | etcdctl put KEY` works.
func target(value []byte) (any, error) {
	site := strings.TrimSpace(string(value))
	if err := CheckName(site); err != nil {
		return nil, fmt.Errorf("expected the name of a site as a plain word: %w", err)
	}
	return site, nil
}

func owner(m *medwayv1.Owner) (string, error) {
	return m.Node, CheckName(m.Node)
}

func claim(m *medwayv1.Claim) (MED, error) {
	if m.Med == "none" {
		return NoMED, nil
	}
	n, err := strconv.ParseUint(m.Med, 10, 32)
	if err != nil {
		return NoMED, fieldError("med", m.Med, `a number from 0 to 4294967295, or "none"`)
	}
	return MED(n), nil
}

func node(m *medwayv1.Node) (n Node, err error) {
	n = Node{MachineID: m.MachineId, Site: m.Site, Group: m.Group, Version: m.Version, Schema: max(m.Schema, 1)}
	if m.MachineId == "" {
		return n, fieldError("machine_id", "", "the host's machine id")
	}
	if err := checkNameField("site", m.Site); err != nil {
		return n, err
	}
	if err := checkNameField("group", m.Group); err != nil {
		return n, err
	}
	if n.IPv4, err = optional("ipv4", m.Ipv4, netip.Addr.Is4, "an IPv4 unicast address"); err != nil {
		return n, err
	}
	if n.IPv6, err = optional("ipv6", m.Ipv6, netip.Addr.Is6, "an IPv6 unicast address"); err != nil {
		return n, err
	}
	if !n.IPv4.IsValid() && !n.IPv6.IsValid() {
		return n, fieldError("ipv4", "", "an address here or in ipv6")
	}
	n.SyncAddress, err = netip.ParseAddr(m.SyncAddress)
	if err != nil || !n.SyncAddress.Is4() || !n.SyncAddress.IsLinkLocalUnicast() {
		return n, fieldError("sync_address", m.SyncAddress, "an address in 169.254.0.0/16")
	}
	return n, nil
}

func alive(m *medwayv1.Alive) (a Alive, err error) {
	a = Alive{BootID: m.BootId, BGPSessions: m.BgpSessions}
	if a.Since, err = time.Parse(time.RFC3339, m.Since); err != nil {
		return a, fieldError("since", m.Since, "a time in the form of RFC 3339")
	}
	return a, nil
}

func fieldError(field, value, expected string) error {
	return fmt.Errorf("field %s: value %.200q: expected %s", field, value, expected)
}

func checkNameField(field, value string) error {
	if err := CheckName(value); err != nil {
		return fmt.Errorf("field %s: %w", field, err)
	}
	return nil
}

// unicast parses an address of either family.
func unicast(field, value string) (netip.Addr, error) {
	a, err := netip.ParseAddr(value)
	if err != nil || a.Is4In6() || a.Zone() != "" || !a.IsGlobalUnicast() && !a.IsLoopback() {
		return netip.Addr{}, fieldError(field, value, "an IPv4 or IPv6 unicast address")
	}
	return a, nil
}

// optional parses an address of one family; "" is none.
func optional(field, value string, family func(netip.Addr) bool, expected string) (netip.Addr, error) {
	if value == "" {
		return netip.Addr{}, nil
	}
	a, err := unicast(field, value)
	if err != nil || !family(a) {
		return netip.Addr{}, fieldError(field, value, expected)
	}
	return a, nil
}

// durationField parses a duration between least and most; "" is def.
func durationField(field, value string, def, least, most time.Duration) (time.Duration, error) {
	if value == "" {
		return def, nil
	}
	d, err := time.ParseDuration(value)
	if err != nil || d < least || d > most {
		return 0, fieldError(field, value, fmt.Sprintf("a duration from %s to %s", least, most))
	}
	return d, nil
}

func uintField(field string, value *uint32, def, least, most uint32) (uint32, error) {
	if value == nil {
		return def, nil
	}
	if *value < least || *value > most {
		return 0, fieldError(field, strconv.FormatUint(uint64(*value), 10), fmt.Sprintf("a number from %d to %d", least, most))
	}
	return *value, nil
}

// schedulers are the IPVS schedulers of Linux (net/netfilter/ipvs/Kconfig).
var schedulers = []string{
	"rr", "wrr", "lc", "wlc", "fo", "ovf", "lblc", "lblcr", "dh", "sh", "mh", "sed", "nq", "twos",
}

func checkScheduler(name string) error {
	if !slices.Contains(schedulers, name) {
		return fieldError("scheduler", name, "one of "+strings.Join(schedulers, ", "))
	}
	return nil
}
