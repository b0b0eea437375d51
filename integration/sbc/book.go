package sbc

import (
	"sync"

	"github.com/emiago/sipgo/sip"
)

// dialogID names a dialogue as RFC 3261 section 12 does, seen from this side.
type dialogID struct{ callID, local, remote string }

// dialogOf returns the dialogue that a request names; ok is false for one outside any dialogue (no To tag).
func dialogOf(req *sip.Request) (id dialogID, ok bool) {
	id.callID = req.CallID().Value()
	id.remote, _ = req.From().Params.Get("tag")
	id.local, ok = req.To().Params.Get("tag")
	return id, ok
}

// book is what the backend knows: its dialogues, its connections and what it was asked.
type book struct {
	onDrained func()

	mu       sync.Mutex
	dialogs  map[dialogID]*conn         // nil conn for UDP
	waiting  map[dialogID]chan struct{} // for the ACK of a 200 over UDP; closed when it comes
	conns    map[*conn]struct{}
	draining bool
	drained  bool
	count    Status // only the running totals; status fills the rest
}

func newBook(onDrained func()) *book {
	return &book{
		onDrained: onDrained,
		dialogs:   map[dialogID]*conn{},
		waiting:   map[dialogID]chan struct{}{},
		conns:     map[*conn]struct{}{},
		count:     Status{Requests: map[string]int{}},
	}
}

// asked counts a request. Methods that no one defined share a line: a peer must not grow the map.
func (b *book) asked(m sip.RequestMethod) {
	name := "OTHER"
	switch m {
	case sip.INVITE, sip.ACK, sip.BYE, sip.CANCEL, sip.OPTIONS, sip.REGISTER, sip.INFO, sip.UPDATE, sip.MESSAGE:
		name = string(m)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.count.Requests[name]++
}

// begin adds a dialogue, unless its connection is already gone.
func (b *book) begin(id dialogID, c *conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if c != nil {
		if _, open := b.conns[c]; !open {
			b.count.Lost++
			return
		}
	}
	b.dialogs[id] = c
}

// unconfirmed is closed when the ACK of a dialogue comes, or the dialogue ends.
func (b *book) unconfirmed(id dialogID) <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := make(chan struct{})
	if _, begun := b.dialogs[id]; !begun {
		close(c)
		return c
	}
	b.waiting[id] = c
	return c
}

// confirm takes in an ACK.
func (b *book) confirm(ack *sip.Request) {
	id, _ := dialogOf(ack)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.confirmed(id)
}

func (b *book) confirmed(id dialogID) {
	if c, waits := b.waiting[id]; waits {
		close(c)
		delete(b.waiting, id)
	}
}

// known says whether a dialogue exists, and counts those that do not: one is a call at the wrong backend.
func (b *book) known(id dialogID) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, ok := b.dialogs[id]
	if !ok {
		b.count.Unknown++
	}
	return ok
}

// end removes a dialogue that said BYE. When it was the last on a connection that has been refused new work,
// that connection is returned, to be closed.
func (b *book) end(id dialogID) *conn {
	b.mu.Lock()
	defer b.mu.Unlock()
	c, ok := b.dialogs[id]
	if !ok {
		return nil
	}
	delete(b.dialogs, id)
	b.confirmed(id)
	b.count.Ended++
	b.checkDrained()
	if c != nil && c.refused && !b.busy(c) {
		return c
	}
	return nil
}

// refuse counts a 503 and says whether the connection can be closed now. One that carries a dialogue stays
// until that has ended: a phone that renews its registration during a call must not lose the call.
func (b *book) refuse(c *conn) (closeNow bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.count.Refused++
	if c == nil {
		return false
	}
	c.refused = true
	return !b.busy(c)
}

func (b *book) busy(c *conn) bool {
	for _, of := range b.dialogs {
		if of == c {
			return true
		}
	}
	return false
}

func (b *book) opened(c *conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.conns[c] = struct{}{}
	b.count.Accepted++
}

// closed forgets a connection and the dialogues on it. SIP would let a dialogue outlive its connection; the lab
// must not: a call whose connection broke is a lost call, whatever the client does next.
func (b *book) closed(c *conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.conns[c]; !ok {
		return
	}
	delete(b.conns, c)
	for id, of := range b.dialogs {
		if of == c {
			delete(b.dialogs, id)
			b.count.Lost++
		}
	}
	b.checkDrained()
}

func (b *book) closeConns() {
	b.mu.Lock()
	open := make([]*conn, 0, len(b.conns))
	for c := range b.conns {
		open = append(open, c)
	}
	b.mu.Unlock()
	for _, c := range open {
		_ = c.Close() // the server is going away; the peer sees the end either way
	}
}

// drain starts draining; it returns false when it was on already.
func (b *book) drain() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.draining {
		return false
	}
	b.draining = true
	b.checkDrained()
	return true
}

func (b *book) isDraining() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.draining
}

func (b *book) checkDrained() {
	if b.draining && !b.drained && len(b.dialogs) == 0 {
		b.drained = true
		b.onDrained()
	}
}

func (b *book) status() Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := b.count
	out.Requests = make(map[string]int, len(b.count.Requests))
	for m, n := range b.count.Requests {
		out.Requests[m] = n
	}
	out.Dialogs, out.Connections = len(b.dialogs), len(b.conns)
	out.Draining, out.Drained = b.draining, b.drained
	return out
}
