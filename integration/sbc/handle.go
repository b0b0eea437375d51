package sbc

import (
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/emiago/sipgo/sip"
)

// retryAfter is short: by then the client's next connection lands at the other site.
const retryAfter = "1"

var allow = strings.Join([]string{"INVITE", "ACK", "BYE", "CANCEL", "OPTIONS", "REGISTER", "INFO", "UPDATE"}, ", ")

// handle answers every request, whatever its method.
func (s *Server) handle(req *sip.Request, tx sip.ServerTransaction) {
	s.book.asked(req.Method)
	whole := req.CallID() != nil && req.From() != nil && req.To() != nil && req.CSeq() != nil
	if req.IsAck() { // it confirms what was answered; nothing may be sent
		if whole {
			s.book.confirm(req)
		}
		return
	}
	if !whole {
		s.respond(req, tx, sip.StatusBadRequest, "Bad Request")
		return
	}
	if id, ok := dialogOf(req); ok {
		s.inDialog(id, req, tx)
		return
	}
	if s.book.isDraining() {
		s.refuse(req, tx)
		return
	}
	switch req.Method {
	case sip.INVITE:
		s.invite(req, tx)
	case sip.REGISTER:
		s.register(req, tx)
	case sip.OPTIONS:
		s.respond(req, tx, sip.StatusOK, "OK", sip.NewHeader("Allow", allow))
	case sip.BYE, sip.CANCEL, sip.INFO, sip.UPDATE:
		s.respond(req, tx, sip.StatusCallTransactionDoesNotExists, "Call/Transaction Does Not Exist")
	default:
		s.respond(req, tx, sip.StatusMethodNotAllowed, "Method Not Allowed", sip.NewHeader("Allow", allow))
	}
}

func (s *Server) inDialog(id dialogID, req *sip.Request, tx sip.ServerTransaction) {
	if !s.book.known(id) {
		s.respond(req, tx, sip.StatusCallTransactionDoesNotExists, "Call/Transaction Does Not Exist")
		return
	}
	switch req.Method {
	case sip.INVITE, sip.UPDATE:
		res := sip.NewSDPResponseFromRequest(req, sdp(tx))
		res.AppendHeader(s.contact(req, tx))
		s.send(tx, res)
	case sip.BYE:
		last := s.book.end(id)
		s.respond(req, tx, sip.StatusOK, "OK")
		if last != nil {
			last.hangUp()
		}
	default:
		s.respond(req, tx, sip.StatusOK, "OK")
	}
}

func (s *Server) invite(req *sip.Request, tx sip.ServerTransaction) {
	ok := sip.NewSDPResponseFromRequest(req, sdp(tx))
	ok.AppendHeader(s.contact(req, tx))
	ok.AppendHeader(sip.NewHeader("Allow", allow))
	var id dialogID
	id.callID = req.CallID().Value()
	id.remote, _ = req.From().Params.Get("tag")
	id.local, _ = ok.To().Params.Get("tag")

	ringing := sip.NewResponseFromRequest(req, sip.StatusRinging, "Ringing", nil)
	ringing.To().Params.Add("tag", id.local)
	ringing.AppendHeader(s.contact(req, tx))
	s.send(tx, ringing)

	s.book.begin(id, connOf(tx)) // before the 200, or a quick client's first request would get 481
	s.send(tx, ok)
	if connOf(tx) == nil {
		go s.repeat(tx, ok, s.book.unconfirmed(id))
	}
}

// repeat sends the 200 of an INVITE again until its ACK has come or 64 T1 are over: over UDP
// nobody else does (RFC 3261, 13.3.1.4).
func (s *Server) repeat(tx sip.ServerTransaction, ok *sip.Response, confirmed <-chan struct{}) {
	again := time.NewTimer(sip.T1)
	defer again.Stop()
	for wait := sip.T1; ; {
		select {
		case <-confirmed:
			return
		case <-tx.Done():
			return
		case <-again.C:
			_ = tx.Respond(ok) // as in send
			wait = min(2*wait, sip.T2)
			again.Reset(wait)
		}
	}
}

func (s *Server) register(req *sip.Request, tx sip.ServerTransaction) {
	var extra []sip.Header
	if c := req.Contact(); c != nil {
		extra = append(extra, sip.NewHeader("Contact", c.Value()))
	}
	expires := "3600"
	if h := req.GetHeader("Expires"); h != nil {
		if n, err := strconv.ParseUint(h.Value(), 10, 32); err == nil {
			expires = strconv.FormatUint(n, 10)
		}
	}
	s.respond(req, tx, sip.StatusOK, "OK", append(extra, sip.NewHeader("Expires", expires))...)
}

func (s *Server) refuse(req *sip.Request, tx sip.ServerTransaction) {
	c := connOf(tx)
	closeNow := s.book.refuse(c)
	s.respond(req, tx, sip.StatusServiceUnavailable, "Service Unavailable", sip.NewHeader("Retry-After", retryAfter))
	if closeNow {
		c.hangUp()
	}
}

func (s *Server) respond(req *sip.Request, tx sip.ServerTransaction, code int, reason string, extra ...sip.Header) {
	res := sip.NewResponseFromRequest(req, code, reason, nil)
	for _, h := range extra {
		res.AppendHeader(h)
	}
	s.send(tx, res)
}

func (s *Server) send(tx sip.ServerTransaction, res *sip.Response) {
	res.AppendHeader(sip.NewHeader("Server", s.cfg.Name))
	// A response that cannot be written means a peer that has gone; closing its connection tells the book.
	_ = tx.Respond(res)
}

func (s *Server) contact(req *sip.Request, tx sip.ServerTransaction) *sip.ContactHeader {
	host, port := local(tx)
	params := sip.NewParams()
	params.Add("transport", strings.ToLower(req.Transport()))
	return &sip.ContactHeader{Address: sip.Uri{Scheme: "sip", User: "sbc", Host: host, Port: port, UriParams: params}}
}

// sdp is the least that a caller accepts: one audio stream at the address the call came to.
func sdp(tx sip.ServerTransaction) []byte {
	host, _ := local(tx)
	family := "IP4"
	if strings.Contains(host, ":") {
		family = "IP6"
	}
	at := family + " " + strings.Trim(host, "[]")
	return []byte("v=0\r\no=sbc 1 1 IN " + at + "\r\ns=-\r\nc=IN " + at +
		"\r\nt=0 0\r\nm=audio 40000 RTP/AVP 0\r\na=rtpmap:0 PCMU/8000\r\na=inactive\r\n")
}

// local is the address that the request came to, with brackets if it is IPv6, as a URI wants it.
func local(tx sip.ServerTransaction) (host string, port int) {
	stx, ok := tx.(*sip.ServerTx)
	if !ok {
		return "127.0.0.1", sip.DefaultTcpPort
	}
	host, p, err := net.SplitHostPort(stx.Connection().LocalAddr().String())
	if err != nil {
		return "127.0.0.1", sip.DefaultTcpPort
	}
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	port, _ = strconv.Atoi(p) // LocalAddr prints numbers only
	return host, port
}
