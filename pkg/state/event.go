package state

import (
	"bytes"
	"errors"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

const (
	// eventTime is RFC 3339 in UTC with all nine digits, so that keys sort by time.
	eventTime = "2006-01-02T15:04:05.000000000Z"
	// eventOfAll stands for a VIP where an event concerns them all. It is no name
	// that a VIP can have.
	eventOfAll = "-"
)

// HistoryKey is where an event at a time is stored: of a VIP, or with "" of all,
// such as the drain of a node. Keys of a VIP sort by time.
func HistoryKey(vip string, at time.Time) string {
	return HistoryOf(vip) + at.UTC().Format(eventTime)
}

// HistoryOf is the prefix of a VIP's events, and with "" of those of all VIPs.
func HistoryOf(vip string) string {
	if vip == "" {
		vip = eventOfAll
	}
	return HistoryPrefix + vip + "/"
}

// ParseHistoryKey gives the VIP, "" for all, and the time of an event's key.
func ParseHistoryKey(key string) (vip string, at time.Time, err error) {
	rest, ok := strings.CutPrefix(key, HistoryPrefix)
	vip, text, _ := strings.Cut(rest, "/")
	at, bad := time.Parse(eventTime, text)
	if vip == eventOfAll {
		vip = ""
	} else {
		ok = ok && CheckName(vip) == nil
	}
	if !ok || bad != nil {
		return "", time.Time{}, errors.New("key " + Quote(key) + ": expected " + HistoryPrefix + "<vip>/<time>, with a time such as " + eventTime)
	}
	return vip, at, nil
}

// EncodeEvent gives the key and the value under which an event is stored; it sets
// the event's time. The words in it are for a terminal: of what is not a name the
// caller sees to that ([Line]).
func EncodeEvent(vip string, at time.Time, e *medwayv1.Event) (key string, value []byte) {
	e.At = at.UTC().Format(eventTime)
	return HistoryKey(vip, at), Encode(e)
}

// DecodeEvent decodes a value below HistoryPrefix. Only people read one, so
// fields of a newer writer are left out rather than refused, as in DecodeStatus.
func DecodeEvent(value []byte) (*medwayv1.Event, error) {
	m := &medwayv1.Event{}
	if len(bytes.TrimSpace(value)) == 0 {
		return m, Invalid{{"", "empty value", "a JSON object"}}
	}
	return m, protojsonError((protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(value, m))
}
