package bench

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// Load watches BFD while there is more to do than the processors can: a session
// that is lost then would take a VIP from a host that is well.
func Load(ctx context.Context, o Options) (*Report, error) {
	report := newReport(o.Bin, "etcd", "BIRD")
	n, err := newFailnet(ctx, o)
	if err != nil {
		return report, err
	}
	defer n.stop()
	if err := until(ctx, time.Minute, 100*time.Millisecond, func() error { return n.bfdUp(ctx) }); err != nil {
		return report, err
	}
	before, err := n.lost()
	if err != nil {
		return report, err
	}
	busy := 2 * runtime.NumCPU()
	o.say("BFD for %s beside %d busy processes", o.Load, busy)
	for i := range busy {
		p, err := start(n.dir, fmt.Sprintf("busy-%d", i), nil, "sh", "-c", "while :; do :; done")
		if err != nil {
			return report, err
		}
		defer p.stop()
	}
	begin := time.Now()
	silences, err := n.silences(ctx, o.Load)
	if err != nil {
		return report, err
	}
	took := time.Since(begin)
	lost, err := n.lost()
	if err != nil {
		return report, err
	}
	t := Table{Title: fmt.Sprintf("BFD 150 ms x 3 for %s beside %d busy processes: a session is lost after 450 ms of silence", took.Round(time.Second), busy)}
	for _, from := range []struct{ what, address string }{
		{"longest silence of agent a", hosts[0].address}, {"longest silence of agent b", hosts[1].address}, {"longest silence of BIRD", edgeAddress},
	} {
		s := silences[from.address]
		t.say(from.what, "%.0f ms between two of %d packets", ms(s.longest), s.packets)
	}
	t.say("BGP sessions lost", "%d", lost-before)
	report.Tables = append(report.Tables, t)
	report.aim("no BFD session lost in ten minutes with all processors busy", lost == before && took >= 10*time.Minute, "%d in %s", lost-before, took.Round(time.Second))
	return report, nil
}

// lost is how many BGP sessions the agents have lost so far.
func (n *failnet) lost() (int, error) {
	lost := 0
	for _, a := range n.agents {
		text, err := os.ReadFile(a.log)
		if err != nil {
			return 0, err
		}
		lost += strings.Count(string(text), " lost: ")
	}
	return lost, nil
}

// silence is what was seen of one sender of BFD.
type silence struct {
	longest, last time.Duration // last since 1970
	packets       int
}

// silences listens to BFD at the router for a while, by the kernel's own time
// of each packet.
func (n *failnet) silences(ctx context.Context, d time.Duration) (map[string]*silence, error) {
	p, err := n.start("router", "tcpdump", nil, "tcpdump", "-n", "-l", "-tt", "-i", "eth0", "udp port 3784")
	if err != nil {
		return nil, err
	}
	if err := pause(ctx, d); err != nil {
		return nil, err
	}
	if err := p.ended(); err != nil {
		return nil, err
	}
	p.stop()
	file, err := os.Open(filepath.Join(n.dir, "tcpdump.log"))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	found := map[string]*silence{edgeAddress: {}, hosts[0].address: {}, hosts[1].address: {}}
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		at, from, ok := sender(lines.Text())
		s := found[from]
		if !ok || s == nil {
			continue
		}
		if s.packets > 0 {
			s.longest = max(s.longest, at-s.last)
		}
		s.last = at
		s.packets++
	}
	return found, lines.Err()
}

// sender reads a line of tcpdump: "1764039600.123456 IP 10.8.0.11.49999 > ...".
func sender(line string) (at time.Duration, address string, ok bool) {
	words := strings.Fields(line)
	if len(words) < 4 || words[1] != "IP" {
		return 0, "", false
	}
	seconds, err := strconv.ParseFloat(words[0], 64)
	end := strings.LastIndexByte(words[2], '.')
	if err != nil || end < 0 {
		return 0, "", false
	}
	return time.Duration(seconds * float64(time.Second)), words[2][:end], true
}
