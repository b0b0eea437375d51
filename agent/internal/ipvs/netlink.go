package ipvs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	moby "github.com/moby/ipvs"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// replyTimeout bounds the wait for a message from the kernel.
	replyTimeout = 3 * time.Second
	// stopTimeout bounds the wait for an answer to the stop of a sync daemon.
	stopTimeout = 200 * time.Millisecond
	// dumpAttempts is how often a dump that the kernel reports as
	// interrupted by a change (NLM_F_DUMP_INTR) is read in all.
	dumpAttempts = 5
)

// session is a generic netlink socket in the network namespace of the thread
// that opened it. It is not safe for concurrent use.
type session struct {
	socket *nl.SocketHandle
	family uint16
	// wait is the limit that was set on the socket last.
	wait time.Duration
}

func openSession(find func(*session) (uint16, error)) (*session, error) {
	// The namespace is that of the thread at socket(2), as for moby.New("").
	sock, err := nl.Subscribe(unix.NETLINK_GENERIC)
	if err != nil {
		return nil, fmt.Errorf("open generic netlink: %w", err)
	}
	s := &session{socket: &nl.SocketHandle{Socket: sock}}
	if s.family, err = find(s); err != nil {
		sock.Close()
		return nil, err
	}
	return s, nil
}

func (s *session) close() { s.socket.Close() }

// findFamily asks for IPVS by name, at which the kernel loads its module.
func (s *session) findFamily() (uint16, error) {
	req := nl.NewNetlinkRequest(nl.GENL_ID_CTRL, unix.NLM_F_ACK)
	req.AddData(&nl.Genlmsg{Command: nl.GENL_CTRL_CMD_GETFAMILY, Version: nl.GENL_CTRL_VERSION})
	req.AddData(nl.NewRtAttr(nl.GENL_CTRL_ATTR_FAMILY_NAME, nl.ZeroTerminated(familyName)))
	msgs, err := s.execute(context.Background(), req)
	if errors.Is(err, unix.ENOENT) {
		return 0, ErrAbsent
	}
	if err != nil {
		return 0, fmt.Errorf("look up the generic netlink family %s: %w", familyName, err)
	}
	if len(msgs) == 0 || len(msgs[0]) < nl.SizeofGenlmsg {
		return 0, fmt.Errorf("look up the generic netlink family %s: no answer", familyName)
	}
	d := decode(msgs[0][nl.SizeofGenlmsg:])
	id := d.u16(nl.GENL_CTRL_ATTR_FAMILY_ID)
	return id, d.err
}

// lookForFamily looks for IPVS among the families that there are.
func (s *session) lookForFamily() (uint16, error) {
	req := nl.NewNetlinkRequest(nl.GENL_ID_CTRL, unix.NLM_F_DUMP)
	req.AddData(&nl.Genlmsg{Command: nl.GENL_CTRL_CMD_GETFAMILY, Version: nl.GENL_CTRL_VERSION})
	msgs, err := s.execute(context.Background(), req)
	if err != nil {
		return 0, fmt.Errorf("list the generic netlink families: %w", err)
	}
	for _, m := range msgs {
		if len(m) < nl.SizeofGenlmsg {
			return 0, fmt.Errorf("netlink message of %d bytes", len(m))
		}
		if d := decode(m[nl.SizeofGenlmsg:]); d.text(nl.GENL_CTRL_ATTR_FAMILY_NAME) == familyName {
			id := d.u16(nl.GENL_CTRL_ATTR_FAMILY_ID)
			return id, d.err
		}
	}
	return 0, ErrAbsent
}

// execute sends one request and returns the payloads of its answers.
func (s *session) execute(ctx context.Context, req *nl.NetlinkRequest) ([][]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	wait := replyTimeout
	if deadline, ok := ctx.Deadline(); ok {
		// 0 would mean no limit at all.
		wait = max(min(wait, time.Until(deadline)), time.Millisecond)
	}
	if err := s.limit(wait); err != nil {
		return nil, err
	}
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_GENERIC: s.socket}
	msgs, err := req.Execute(unix.NETLINK_GENERIC, 0)
	if errors.Is(err, unix.EAGAIN) {
		return nil, fmt.Errorf("no answer from the kernel within %s: %w", wait, context.DeadlineExceeded)
	}
	return msgs, err
}

// limit bounds the wait for the kernel: once for all requests alike, of which a look
// at the whole table makes thousands.
func (s *session) limit(wait time.Duration) error {
	if s.wait == wait {
		return nil
	}
	tv := unix.NsecToTimeval(wait.Nanoseconds())
	for _, set := range []func(*unix.Timeval) error{s.socket.Socket.SetSendTimeout, s.socket.Socket.SetReceiveTimeout} {
		if err := set(&tv); err != nil {
			return err
		}
	}
	s.wait = wait
	return nil
}

func (s *session) request(cmd uint8, flags int, attrs ...*nl.RtAttr) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(int(s.family), flags)
	req.AddData(&nl.Genlmsg{Command: cmd, Version: familyVersion})
	for _, a := range attrs {
		req.AddData(a)
	}
	return req
}

// dump reads all objects of a kind; each result is the inside of the
// attribute that wraps one object.
func (s *session) dump(ctx context.Context, cmd uint8, wrapper uint16, attrs ...*nl.RtAttr) ([]*decoder, error) {
	var msgs [][]byte
	err := error(nl.ErrDumpInterrupted)
	for i := 0; i < dumpAttempts && errors.Is(err, nl.ErrDumpInterrupted); i++ {
		msgs, err = s.execute(ctx, s.request(cmd, unix.NLM_F_DUMP, attrs...))
	}
	if err != nil {
		return nil, err
	}
	found := make([]*decoder, 0, len(msgs))
	for _, m := range msgs {
		if len(m) < nl.SizeofGenlmsg {
			return nil, fmt.Errorf("netlink message of %d bytes", len(m))
		}
		outer := decode(m[nl.SizeofGenlmsg:])
		inner := outer.bytes(wrapper, 0)
		if outer.err != nil {
			return nil, outer.err
		}
		found = append(found, decode(inner))
	}
	return found, nil
}

func (s *session) services(ctx context.Context) ([]service, error) {
	return dumpAll(ctx, s, decodeService, cmdGetService, attrService)
}

func (s *session) destinations(ctx context.Context, of *moby.Service) ([]destination, error) {
	key := nl.NewRtAttr(attrService, nil)
	key.AddRtAttr(svcFamily, nl.Uint16Attr(of.AddressFamily))
	key.AddRtAttr(svcProtocol, nl.Uint16Attr(of.Protocol))
	key.AddRtAttr(svcAddr, of.Address)
	key.AddRtAttr(svcPort, nl.BEUint16Attr(of.Port))
	return dumpAll(ctx, s, decodeDestination, cmdGetDest, attrDest, key)
}

func (s *session) daemons(ctx context.Context) ([]daemon, error) {
	found, err := dumpAll(ctx, s, decodeDaemon, cmdGetDaemon, attrDaemon)
	if err != nil {
		return nil, err
	}
	return found, markDeaf(found)
}

func (s *session) timeouts() (*moby.Config, error) {
	msgs, err := s.execute(context.Background(), s.request(cmdGetConfig, unix.NLM_F_ACK))
	if err != nil {
		return nil, err
	}
	if len(msgs) != 1 || len(msgs[0]) < nl.SizeofGenlmsg {
		return nil, fmt.Errorf("%d answers for the timeouts", len(msgs))
	}
	d := decode(msgs[0][nl.SizeofGenlmsg:])
	seconds := func(attr uint16) time.Duration { return time.Duration(d.u32(attr)) * time.Second }
	c := &moby.Config{TimeoutTCP: seconds(configTCP), TimeoutTCPFin: seconds(configTCPFin), TimeoutUDP: seconds(configUDP)}
	return c, d.err
}

func dumpAll[T any](ctx context.Context, s *session, one func(*decoder) (T, error), cmd uint8, wrapper uint16, attrs ...*nl.RtAttr) ([]T, error) {
	found, err := s.dump(ctx, cmd, wrapper, attrs...)
	if err != nil {
		return nil, err
	}
	all := make([]T, 0, len(found))
	for _, d := range found {
		v, err := one(d)
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, nil
}

func (s *session) setDaemon(ctx context.Context, v verb, d daemon) error {
	if v == remove {
		return s.stopDaemon(ctx, d)
	}
	_, err := s.execute(ctx, s.request(cmdNewDaemon, unix.NLM_F_ACK, encodeDaemon(d)))
	return err
}

// stopDaemon can't rely on an answer: where the daemon's thread has not yet
// run, it ends with EINTR (kthread_stop), and netlink sends no acknowledgement
// for EINTR (linux net/netlink/af_netlink.c, netlink_rcv_skb). So silence means
// to look for oneself. The kernel works inside sendmsg(2): an answer that isn't
// there at once will not come.
func (s *session) stopDaemon(ctx context.Context, d daemon) error {
	brief, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	_, err := s.execute(brief, s.request(cmdDelDaemon, unix.NLM_F_ACK, encodeDaemon(d)))
	if !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	running, readErr := s.daemons(ctx)
	if readErr != nil {
		return readErr
	}
	if slices.ContainsFunc(running, func(r daemon) bool { return r.state == d.state }) {
		return err
	}
	return nil
}
