package sbc

import (
	"net"
	"sync"
	"time"

	"github.com/emiago/sipgo/sip"
)

// linger is how long a refused peer may take to close its own side.
const linger = 2 * time.Second

// listener enters each accepted connection in the book.
type listener struct {
	net.Listener
	book *book
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: nc, book: l.book}
	l.book.opened(c)
	return c, nil
}

// conn is an accepted TCP connection. Nothing closes it for being idle.
type conn struct {
	net.Conn
	book    *book
	refused bool // guarded by book.mu

	once sync.Once
	err  error
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.once.Do(func() {
		c.err = c.Conn.Close()
		c.book.closed(c)
	})
	return c.err
}

// hangUp ends a connection after its last response. The write side goes first: closing both while the peer's ACK
// is on its way would answer it with a reset, and a reset may take the response with it.
func (c *conn) hangUp() {
	if tcp, ok := c.Conn.(*net.TCPConn); ok {
		_ = tcp.CloseWrite() // failing means that the peer was faster
	}
	time.AfterFunc(linger, func() { _ = c.Close() })
}

// connOf finds the connection that a transaction came in on; nil for UDP.
func connOf(tx sip.ServerTransaction) *conn {
	stx, ok := tx.(*sip.ServerTx)
	if !ok {
		return nil
	}
	tcp, ok := stx.Connection().(*sip.TCPConnection)
	if !ok {
		return nil
	}
	c, _ := tcp.Conn.(*conn)
	return c
}
