package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"
)

// Failover measures what a client sees of a host that dies without a word.
func Failover(ctx context.Context, o Options) (*Report, error) {
	report := newReport(o.Bin, "etcd", "Keepalived", "BIRD")
	n, err := newFailnet(ctx, o)
	if err != nil {
		return report, err
	}
	defer n.stop()
	if err := n.keepalived(); err != nil {
		return report, err
	}
	if err := n.echoes(); err != nil {
		return report, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	clients := []*client{
		{what: "MEDWAY: BFD 150 ms x 3, its default", vip: vipMedway},
		{what: "Keepalived: advert_int 1, its default", vip: vipVRRP},
		{what: "Keepalived: advert_int 0.1", vip: vipVRRPTenth},
	}
	for _, c := range clients {
		if c.stream, err = newStream(ctx, c.vip); err != nil {
			return report, err
		}
	}
	o.say("a host that dies without a word, %d times", o.Deaths)
	for i := range o.Deaths + 1 {
		if err := n.death(ctx, clients); err != nil {
			return report, err
		}
		if i == 0 { // the first of everything warms up
			for _, c := range clients {
				c.gaps = nil
			}
		}
	}
	t := Table{Title: "The active host dies without a word: longest time without an answer, at 1,000 packets a second"}
	for _, c := range clients {
		t.add(c.what, c.gaps, clients[0].gaps)
	}
	report.Tables = append(report.Tables, t)
	gaps := clients[0].gaps
	report.aim("a host's death, median within 0.5 s", gaps.Quantile(.5) <= 500*time.Millisecond,
		"%.3f s, worst %.3f s", gaps.Quantile(.5).Seconds(), gaps.Quantile(1).Seconds())
	return report, nil
}

// client is one whose calls go to a VIP, and what it found.
type client struct {
	*stream
	what string
	vip  netip.Addr
	gaps Samples
}

const (
	// steadyFor is how long a is to answer all clients, without a longer break
	// than steadyGap, before it dies.
	steadyFor = 2 * time.Second
	steadyGap = 100 * time.Millisecond
)

// death lets host a die, measures until b has taken over all VIPs, and brings a back.
func (n *failnet) death(ctx context.Context, clients []*client) error {
	if err := n.steady(ctx, clients); err != nil {
		return err
	}
	// At any moment between two advertisements.
	if err := pause(ctx, time.Duration(rand.Int64N(int64(time.Second)))); err != nil {
		return err
	}
	for _, c := range clients {
		c.mark()
	}
	if err := n.cut(ctx, "a"); err != nil {
		return err
	}
	if err := until(ctx, 30*time.Second, 10*time.Millisecond, func() error {
		return answeredBy("b", clients)
	}); err != nil {
		return err
	}
	for _, c := range clients {
		_, gap := c.seen()
		c.gaps = append(c.gaps, gap)
	}
	return n.mend(ctx, "a")
}

func answeredBy(host string, clients []*client) error {
	for _, c := range clients {
		if from, gap := c.seen(); from != host {
			return fmt.Errorf("%s: answered by %q for %s, expected %q", c.what, from, gap, host)
		}
	}
	return nil
}

// steady waits until a answers all clients and BFD is up with both hosts.
func (n *failnet) steady(ctx context.Context, clients []*client) error {
	begin := time.Now()
	restart := func() {
		begin = time.Now()
		for _, c := range clients {
			c.mark()
		}
	}
	restart()
	return until(ctx, 2*time.Minute, 50*time.Millisecond, func() error {
		err := n.bfdUp(ctx)
		if err == nil {
			err = answeredBy("a", clients)
		}
		i := slices.IndexFunc(clients, func(c *client) bool { _, gap := c.seen(); return gap > steadyGap })
		if err == nil && i >= 0 {
			err = fmt.Errorf("%s: not steady", clients[i].what)
		}
		if err != nil {
			restart()
			return err
		}
		if time.Since(begin) < steadyFor {
			return fmt.Errorf("steady for less than %s", steadyFor)
		}
		return nil
	})
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
