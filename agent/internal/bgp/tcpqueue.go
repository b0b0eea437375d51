package bgp

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// unacknowledged returns how many bytes each TCP connection of this process's
// network namespace has written and not yet had acknowledged (the tx_queue
// column, proc_pid_net(5); Send-Q of ss), by connection.
//
// A successful write says only that the bytes are in our own kernel. Towards a
// router that has gone silent they stay there until the hold time ends.
func unacknowledged(six bool) (map[connection]uint64, error) {
	file := "/proc/self/net/tcp"
	if six {
		file = "/proc/self/net/tcp6"
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("bgp: send queues: %w", err)
	}
	queues := map[connection]uint64{}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 5 || f[0] == "sl" {
			continue
		}
		tx, _, _ := strings.Cut(f[4], ":")
		n, err := strconv.ParseUint(tx, 16, 64)
		if err != nil {
			return nil, fmt.Errorf("bgp: send queues: %s: %q", file, line)
		}
		queues[connection{f[1], f[2]}] = n
	}
	return queues, nil
}

// connection is a TCP connection's two ends in the notation of /proc/net/tcp.
type connection struct{ local, remote string }

func newConnection(local, remote netip.AddrPort) connection {
	return connection{procAddr(local), procAddr(remote)}
}

// procAddr writes an address as /proc/net/tcp does: words of 32 bits in the
// host's byte order.
func procAddr(a netip.AddrPort) string {
	var b strings.Builder
	bytes := a.Addr().AsSlice()
	for i := 0; i+4 <= len(bytes); i += 4 {
		fmt.Fprintf(&b, "%08X", binary.NativeEndian.Uint32(bytes[i:]))
	}
	fmt.Fprintf(&b, ":%04X", a.Port())
	return b.String()
}
