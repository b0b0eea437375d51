// Package sbc is the SIP backend of the lab: it stands where an operator's session border controller stands
// behind the load balancer. It answers calls over TCP or UDP, names itself in the Server header of every response,
// and refuses in-dialogue requests of dialogues it does not know, so that a connection that reached the wrong
// backend is noticed by both ends.
package sbc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"regexp"

	"github.com/emiago/sipgo"
	"github.com/emiago/sipgo/sip"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
)

// Listen is one address that the backend answers on.
type Listen struct {
	Transport string // "tcp" or "udp"
	Addr      string // host:port. For UDP it must be the VIP itself: responses leave from the address that is bound
}

// Config is what a Server is made of.
type Config struct {
	Name   string // sent in the Server header; a SIP token
	Listen []Listen
	Status string // host:port or the path of a unix socket for the status page; empty for none
	Log    *zap.Logger
}

// A name goes into headers and tags unquoted.
var nameRE = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)

// Validate says what is wrong with a configuration, before anything is opened.
func (c Config) Validate() error {
	if !nameRE.MatchString(c.Name) {
		return fmt.Errorf("name %q: letters, digits, '.', '_' and '-' only", c.Name)
	}
	if len(c.Listen) == 0 {
		return errors.New("no address to listen on")
	}
	for _, l := range c.Listen {
		if l.Transport != "tcp" && l.Transport != "udp" {
			return fmt.Errorf("transport %q: tcp or udp", l.Transport)
		}
	}
	return nil
}

// Server is a running backend. Use New, Run, and end the context of Run to stop it.
type Server struct {
	cfg       Config
	log       *zap.Logger
	book      *book
	endpoints []*endpoint
	status    net.Listener
}

// endpoint is one listening socket with a SIP stack of its own. sipgo finds a connection by the peer's address
// alone, so with one stack for all VIPs a client that uses the same source port towards two VIPs would get the
// answers of one on the connection of the other.
type endpoint struct {
	tcp net.Listener   // one of the two is set
	udp net.PacketConn //
	ua  *sipgo.UserAgent
	srv *sipgo.Server
}

// New opens every socket, so that a caller who gets no error knows that the backend is reachable.
func New(cfg Config) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	s := &Server{cfg: cfg, log: cfg.Log.With(zap.String("backend", cfg.Name))}
	s.book = newBook(func() { s.log.Info("drained") })
	for _, l := range cfg.Listen {
		e, err := s.open(l)
		if err != nil {
			return nil, errors.Join(err, s.close())
		}
		s.endpoints = append(s.endpoints, e)
	}
	if cfg.Status != "" {
		l, err := listenStatus(cfg.Status)
		if err != nil {
			return nil, errors.Join(err, s.close())
		}
		s.status = l
	}
	return s, nil
}

func (s *Server) open(l Listen) (*endpoint, error) {
	// What a client sends wrongly is that client's business: sipgo would log each byte of it.
	quiet := slog.New(slog.DiscardHandler)
	ua, err := sipgo.NewUA(sipgo.WithUserAgent(s.cfg.Name),
		sipgo.WithUserAgentTransportLayerOptions(sip.WithTransportLayerLogger(quiet)),
		sipgo.WithUserAgentTransactionLayerOptions(sip.WithTransactionLayerLogger(quiet)))
	if err != nil {
		return nil, err
	}
	srv, err := sipgo.NewServer(ua, sipgo.WithServerLogger(quiet))
	if err != nil {
		return nil, errors.Join(err, ua.Close())
	}
	srv.OnNoRoute(s.handle)
	e := &endpoint{ua: ua, srv: srv}
	if l.Transport == "udp" {
		e.udp, err = net.ListenPacket("udp", l.Addr)
	} else {
		var tcp net.Listener
		// No probes of the kernel either: they would refresh the load balancer's entry of an idle connection.
		lc := net.ListenConfig{KeepAlive: -1}
		if tcp, err = lc.Listen(context.Background(), "tcp", l.Addr); err == nil {
			e.tcp = &listener{Listener: tcp, book: s.book}
		}
	}
	if err != nil {
		return nil, errors.Join(err, ua.Close())
	}
	return e, nil
}

func (e *endpoint) serve() error {
	if e.udp != nil {
		return e.srv.ServeUDP(e.udp)
	}
	return e.srv.ServeTCP(e.tcp)
}

func (e *endpoint) close() error {
	var err error
	if e.udp != nil {
		err = e.udp.Close()
	} else {
		err = e.tcp.Close()
	}
	return errors.Join(err, e.ua.Close())
}

// Addrs returns the addresses listened on, in the order of the configuration.
func (s *Server) Addrs() []net.Addr {
	out := make([]net.Addr, len(s.endpoints))
	for i, e := range s.endpoints {
		if e.udp != nil {
			out[i] = e.udp.LocalAddr()
		} else {
			out[i] = e.tcp.Addr()
		}
	}
	return out
}

// StatusAddr is where the status page is, or nil without one.
func (s *Server) StatusAddr() net.Addr {
	if s.status == nil {
		return nil
	}
	return s.status.Addr()
}

// Run answers until ctx ends, then closes every connection. It may be called once.
func (s *Server) Run(ctx context.Context) error {
	s.log.Info("started", zap.Stringers("listen", s.Addrs()))
	g, ctx := errgroup.WithContext(ctx)
	for _, e := range s.endpoints {
		g.Go(func() error { return ignoreClosed(e.serve()) })
	}
	if s.status != nil {
		g.Go(func() error { return s.serveStatus(ctx) })
	}
	g.Go(func() error {
		<-ctx.Done()
		return s.close()
	})
	err := g.Wait()
	s.log.Info("stopped", zap.Error(err))
	return err
}

// Drain makes the backend refuse new work with 503 while its dialogues go on. It never ends by itself:
// "drained" is logged once no dialogue is left, and the status page says so.
func (s *Server) Drain() {
	if s.book.drain() {
		s.log.Info("draining", zap.Int("dialogs", s.book.status().Dialogs))
	}
}

func (s *Server) close() error {
	var errs []error
	for _, e := range s.endpoints {
		errs = append(errs, ignoreClosed(e.close()))
	}
	if s.status != nil {
		errs = append(errs, ignoreClosed(s.status.Close()))
	}
	s.book.closeConns()
	return errors.Join(errs...)
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
