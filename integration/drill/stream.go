package drill

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/medway-lb/medway/integration/lab"
)

// StreamPort is the UDP port of the VIP on which streams come, beside its services.
const StreamPort = 5070

// PacketStream is a steady flow of numbered UDP datagrams from the clients through the
// VIP to its backends. It counts what does not arrive.
type PacketStream struct {
	sender    net.Conn
	receivers []*net.UDPConn
	stop      context.CancelFunc
	sending   sync.WaitGroup
	receiving sync.WaitGroup

	mu      sync.Mutex
	arrived []bool // by number
	sent    int
	failed  error
}

// ServeStreams gives the VIP a service for streams.
func ServeStreams(ctx context.Context, l *lab.Lab) error {
	files, err := filepath.Glob(filepath.Join(l.IntentDir(), "*.yaml"))
	if err != nil {
		return err
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		const before = "services:\n"
		if !strings.Contains(string(text), "kind: VIP\n") || !strings.Contains(string(text), before) {
			continue
		}
		service := fmt.Sprintf("%s  - {protocol: udp, port: %d, pool: sbc}\n", before, StreamPort)
		if err := os.WriteFile(file, []byte(strings.Replace(string(text), before, service, 1)), 0o644); err != nil {
			return err
		}
		return l.Apply(ctx)
	}
	return fmt.Errorf("no VIP with services in %s", l.IntentDir())
}

// StartStream sends perSecond datagrams a second, once every LVS host has the
// service and the first has arrived.
func StartStream(ctx context.Context, l *lab.Lab, perSecond int) (*PacketStream, error) {
	target := netip.AddrPortFrom(lab.VIP, StreamPort)
	for _, host := range l.Topology().Role(lab.RoleLVS) {
		err := Until(ctx, time.Minute, func() error {
			out, err := l.Output(ctx, host.Name, "ipvsadm", "-Sn")
			if err == nil && !strings.Contains(out, "-a -u "+target.String()) {
				err = fmt.Errorf("%s does not serve %s yet", host.Name, target)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	s := &PacketStream{}
	ctx, s.stop = context.WithCancel(ctx)
	for _, backend := range l.Topology().Role(lab.RoleSBC) {
		err := l.Inside(backend.Name, func() error {
			conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(target))
			if err == nil {
				s.receivers = append(s.receivers, conn)
				err = conn.SetReadBuffer(1 << 20)
			}
			return err
		})
		if err != nil {
			s.close()
			return nil, fmt.Errorf("%s: %w", backend.Name, err)
		}
	}
	var err error
	if s.sender, err = l.Dial(ctx, lab.Clients, "udp4", target.String()); err != nil {
		s.close()
		return nil, err
	}
	for _, r := range s.receivers {
		s.receiving.Go(func() { s.receive(r) })
	}
	// The first one makes the entry that all hosts must know.
	err = Until(ctx, time.Minute, func() error {
		s.send()
		if sent, lost := s.count(); lost == sent {
			return errors.New("no datagram arrives")
		}
		return nil
	})
	if err != nil {
		s.close()
		return nil, err
	}
	s.mu.Lock()
	s.sent, s.arrived = 0, nil
	s.mu.Unlock()
	s.sending.Go(func() { s.flow(ctx, perSecond) })
	return s, nil
}

// flow sends what is due, also after this process had to wait for a processor.
func (s *PacketStream) flow(ctx context.Context, perSecond int) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	began := time.Now()
	for n := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for due := int(time.Since(began) * time.Duration(perSecond) / time.Second); n < due; n++ {
			s.send()
		}
	}
}

func (s *PacketStream) send() {
	s.mu.Lock()
	n := s.sent
	s.sent++
	s.arrived = append(s.arrived, false)
	s.mu.Unlock()
	if _, err := s.sender.Write(binary.BigEndian.AppendUint64(nil, uint64(n))); err != nil {
		s.mu.Lock()
		s.failed = err // and it counts as lost
		s.mu.Unlock()
	}
}

func (s *PacketStream) receive(conn *net.UDPConn) {
	buf := make([]byte, 64)
	for {
		n, err := conn.Read(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if n != 8 {
			continue
		}
		s.mu.Lock()
		if number := binary.BigEndian.Uint64(buf); number < uint64(len(s.arrived)) {
			s.arrived[number] = true
		}
		s.mu.Unlock()
	}
}

// count returns how many were sent, and how many have not arrived.
func (s *PacketStream) count() (sent, lost int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, arrived := range s.arrived {
		if !arrived {
			lost++
		}
	}
	return s.sent, lost
}

// StreamCount is what became of a stream.
type StreamCount struct {
	Sent, Lost int
	// Gaps are the lost ones in a row, in order.
	Gaps []int
	// Failed is the last error of sending, nil if there was none.
	Failed error
}

// End stops sending, and counts when all has arrived or nothing more does.
func (s *PacketStream) End() StreamCount {
	s.stop()
	s.sending.Wait()
	_ = Until(context.Background(), 5*time.Second, func() error {
		if _, lost := s.count(); lost > 0 {
			return errors.New("some are on the way")
		}
		return nil
	})
	s.close()
	c := StreamCount{Failed: s.failed}
	c.Sent, c.Lost = s.count()
	run := 0
	for _, arrived := range append(s.arrived, true) {
		if !arrived {
			run++
		} else if run > 0 {
			c.Gaps = append(c.Gaps, run)
			run = 0
		}
	}
	return c
}

func (s *PacketStream) close() {
	s.stop()
	s.sending.Wait()
	if s.sender != nil {
		_ = s.sender.Close()
	}
	for _, r := range s.receivers {
		_ = r.Close()
	}
	s.receiving.Wait()
}
