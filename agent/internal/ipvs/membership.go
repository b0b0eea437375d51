package ipvs

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"strings"
)

// markDeaf marks the daemons whose device was deleted and made again under the
// same name: the kernel goes on showing them as if nothing were, and they send to
// and listen on an index that no device has (linux net/netfilter/ipvs/
// ip_vs_sync.c takes the index once, at the start). What gives them away is that
// the device is not in the group which the backup's socket has joined. The
// master joins none, but is on the same device.
func markDeaf(found []daemon) error {
	for _, b := range found {
		if b.state != stateBackup {
			continue
		}
		in, err := joined(b.ifn, b.group)
		if err != nil {
			return fmt.Errorf("read the multicast groups of %s: %w", b.ifn, err)
		}
		for i := range found {
			found[i].deaf = !in && found[i].ifn == b.ifn
		}
	}
	return nil
}

// joined says whether a device of the calling thread's namespace is in a
// multicast group.
func joined(device string, group netip.Addr) (bool, error) {
	file, in := "igmp", inIGMP
	if group.Is6() {
		file, in = "igmp6", inIGMP6
	}
	text, err := os.ReadFile("/proc/thread-self/net/" + file)
	return in(string(text), device, group), err
}

// inIGMP reads /proc/net/igmp: a line for each device, and indented below it one
// for each of its groups, as a number in the machine's byte order.
func inIGMP(text, device string, group netip.Addr) bool {
	a := group.As4()
	want := fmt.Sprintf("%08X", native.Uint32(a[:]))
	at := ""
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		switch {
		case len(words) < 2:
		case line[0] != '\t' && line[0] != ' ':
			at = strings.TrimSuffix(words[1], ":")
		case at == device && words[0] == want:
			return true
		}
	}
	return false
}

// inIGMP6 reads /proc/net/igmp6: index, device and group on each line.
func inIGMP6(text, device string, group netip.Addr) bool {
	want := hex.EncodeToString(group.AsSlice())
	for line := range strings.Lines(text) {
		if words := strings.Fields(line); len(words) > 2 && words[1] == device && words[2] == want {
			return true
		}
	}
	return false
}
