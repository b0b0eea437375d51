package bgp

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync/atomic"

	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"go.uber.org/zap"
	"go.uber.org/zap/exp/zapslog"
)

// The log records of GoBGP that are read as facts. GoBGP v4.8.0 has neither an
// event nor a counter that tells *which* routes it has written to a session
// (PeerState.Queues is always empty), but it logs every UPDATE right after the
// write, at debug level. If a later version words this differently, sessions
// stay pending for ever, which is the safe side, and the tests fail.
const (
	recordSent      = "sent update"                     // sendMessageloop, after conn.Write
	recordReceived  = "received update"                 // handleUpdate
	recordUp        = "Peer Up"                         // before the first message of a session is sent
	recordDial      = "failed to connect"               // connectLoop
	recordOpened    = "outgoing connection established" // after our OPEN was written
	recordNotifySnt = "sent notification"               // sendNotification
	recordNotifyRcv = "received notification"           // recvMessageloop
	recordOpenFail  = "outgoing connection IO error"
	recordBFDListen = "Can't listen UDP" // every second, and so is the next
	recordBFDDial   = "Can't dial UDP"
)

// logHandler stands between GoBGP's slog and our zap: it passes on warnings
// and above, and hands the records above to the speaker.
type logHandler struct {
	zap   slog.Handler
	peer  netip.Addr // of the logger's "Key", if it is a neighbour's
	sent  func(netip.Addr, update)
	up    func(netip.Addr)
	fault func(netip.Addr, string)
	open  func(netip.Addr)
	heard func(netip.Addr, int)
	deaf  func(string)
	quiet *atomic.Bool
}

func newLogHandler(log *zap.Logger, s *Speaker) *logHandler {
	return &logHandler{
		zap:   zapslog.NewHandler(log.Core(), zapslog.WithName(log.Named("gobgp").Name())),
		sent:  s.onSent,
		up:    s.onUp,
		fault: s.onFault,
		open:  s.onOpen,
		heard: s.onHeard,
		deaf:  s.onDeaf,
		quiet: &s.stopping,
	}
}

// Enabled is true at every level, because the records wanted are debug ones.
func (h *logHandler) Enabled(context.Context, slog.Level) bool { return true }

func (h *logHandler) Handle(ctx context.Context, r slog.Record) error {
	if h.peer.IsValid() {
		h.read(r)
	}
	switch r.Message {
	case recordBFDListen:
		h.deaf(attr(r, "Error"))
		return nil
	case recordBFDDial:
		return nil // BGP can't reach the router either, and says so once
	}
	// While stopping, GoBGP's Stop complains that it has been stopped.
	if r.Level < slog.LevelWarn || h.quiet.Load() || !h.zap.Enabled(ctx, r.Level) {
		return nil
	}
	return h.zap.Handle(ctx, r)
}

func (h *logHandler) read(r slog.Record) {
	switch r.Message {
	case recordSent:
		h.sent(h.peer, parseUpdate(updateOf(r, "attributes")))
	case recordReceived:
		if n := len(parseUpdate(updateOf(r, "path_attributes")).announced); n > 0 {
			h.heard(h.peer, n)
		}
	case recordUp:
		h.up(h.peer)
	case recordOpened:
		h.open(h.peer)
	case recordDial:
		h.fault(h.peer, attr(r, "Error"))
	case recordOpenFail:
		h.fault(h.peer, closedEarly)
	case recordNotifySnt:
		h.fault(h.peer, "we sent "+notification(r))
	case recordNotifyRcv:
		h.fault(h.peer, "the router sent "+notification(r))
	}
}

// updateOf is the UPDATE message that a record tells of.
func updateOf(r slog.Record, attributes string) (nlri, withdrawn []bgp.PathNLRI, attrs []bgp.PathAttributeInterface) {
	r.Attrs(func(a slog.Attr) bool {
		switch a.Key {
		case "nlri":
			nlri, _ = a.Value.Any().([]bgp.PathNLRI)
		case "withdrawals":
			withdrawn, _ = a.Value.Any().([]bgp.PathNLRI)
		case attributes:
			attrs, _ = a.Value.Any().([]bgp.PathAttributeInterface)
		}
		return true
	})
	return nlri, withdrawn, attrs
}

func (h *logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	c.zap = h.zap.WithAttrs(attrs)
	for _, a := range attrs {
		if a.Key != "Key" {
			continue
		}
		if addr, err := netip.ParseAddr(a.Value.String()); err == nil {
			c.peer = addr
		}
	}
	return &c
}

func (h *logHandler) WithGroup(name string) slog.Handler {
	c := *h
	c.zap = h.zap.WithGroup(name)
	return &c
}

// attr returns the text of one attribute of a record.
func attr(r slog.Record, key string) (text string) {
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == key {
			text = a.Value.String()
		}
		return a.Key != key
	})
	return text
}

// notification names a NOTIFICATION's code and subcode.
func notification(r slog.Record) string {
	var code, subcode int64
	text := ""
	r.Attrs(func(a slog.Attr) bool {
		switch a.Key {
		case "Code":
			code = a.Value.Int64()
		case "Subcode":
			subcode = a.Value.Int64()
		case "Communicated-Reason":
			text = a.Value.String()
		}
		return true
	})
	s := "NOTIFICATION " + bgp.NewNotificationErrorCode(uint8(code), uint8(subcode)).String()
	// RFC 6608: something else than an OPEN came in answer to ours.
	if code == bgp.BGP_ERROR_FSM_ERROR && subcode == 1 {
		text = "it answers our OPEN with something else, perhaps with a NOTIFICATION: see its log"
	}
	if text != "" {
		s += fmt.Sprintf(" (%s)", text)
	}
	return s
}
