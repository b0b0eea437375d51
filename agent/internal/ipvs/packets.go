package ipvs

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Packets counts those that came to any virtual service in the network namespace
// of the calling thread, up to this moment: [Kernel.Stats] is 2 seconds late.
func Packets() (uint64, error) {
	const path = "/proc/thread-self/net/ip_vs_stats_percpu"
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	n, err := parsePackets(string(text))
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return n, nil
}

// parsePackets adds up the packets that came in by processor, the third column,
// in hexadecimal (ip_vs_stats_percpu_show in linux net/netfilter/ipvs/ip_vs_ctl.c).
// The line of totals is as late as the statistics of services.
func parsePackets(text string) (sum uint64, err error) {
	cpus := 0
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) != 6 {
			continue
		}
		if _, err := strconv.ParseUint(fields[0], 16, 32); err != nil {
			continue
		}
		n, err := strconv.ParseUint(fields[2], 16, 64)
		if err != nil {
			return 0, fmt.Errorf("line %q: expected a hexadecimal number of packets in its third column", line)
		}
		sum += n
		cpus++
	}
	if cpus == 0 {
		return 0, fmt.Errorf("no line of a processor in %q", text)
	}
	return sum, nil
}
