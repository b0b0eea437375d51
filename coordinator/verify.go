package coordinator

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/medway-lb/medway/pkg/probe"
	"github.com/medway-lb/medway/pkg/state"
)

// Verify is how a VIP is asked whether it serves, once a planned switchover has moved it.
type Verify string

const (
	// VerifySIP asks services that speak SIP by OPTIONS, and others as VerifyConnect.
	VerifySIP Verify = "sip"
	// VerifyConnect opens a TCP connection to each TCP service.
	VerifyConnect Verify = "connect"
	// VerifyOff asks nothing: for a coordinator that has no way to VIPs.
	VerifyOff Verify = "off"
)

// askTime bounds one round of questions to a VIP.
const askTime = 4 * time.Second

// maxAsked is how many services of a VIP are asked at the same time.
const maxAsked = 16

// asked is one check of one endpoint of a VIP.
type asked struct {
	check probe.Check
	at    netip.AddrPort
}

// questions are what a VIP is asked. SIP is spoken at its port, 5060 (RFC 3261 section
// 19.1.2), and where calls are told apart by Call-ID. Of other UDP services nothing is
// known that would answer, and of 5061 no name that its certificate should bear.
func (v Verify) questions(vip state.VIP) (out []asked) {
	for _, a := range vip.Addresses {
		for _, s := range vip.Services {
			at := netip.AddrPortFrom(a, s.Port)
			sip := v == VerifySIP && (s.Port == 5060 || s.Engine == "sip")
			switch {
			case sip && s.Protocol == "udp":
				out = append(out, asked{probe.SIPOptions{Transport: probe.UDP}, at})
			case sip:
				out = append(out, asked{probe.SIPOptions{Transport: probe.TCP}, at})
			case s.Protocol == "tcp":
				out = append(out, asked{probe.Connect{}, at})
			}
		}
	}
	return out
}

// ask puts all questions to a VIP. What an endpoint answered wrongly comes before those
// of which nothing was heard.
func (v Verify) ask(ctx context.Context, s *state.Snapshot, vip string) error {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	questions := v.questions(s.VIPs[vip])
	errs := make([]error, len(questions))
	var g errgroup.Group
	g.SetLimit(maxAsked)
	for i, q := range questions {
		g.Go(func() error { errs[i] = q.check.Run(ctx, q.at); return nil })
	}
	_ = g.Wait()
	var wrong, unheard []string
	for _, err := range errs {
		switch {
		case errors.Is(err, probe.ErrUnreached):
			unheard = append(unheard, err.Error())
		case err != nil:
			wrong = append(wrong, err.Error())
		}
	}
	const most = 3
	few := func(list []string) string {
		if n := len(list); n > most {
			list = append(list[:most:most], fmt.Sprintf("and %d more", n-most))
		}
		return strings.Join(list, "; ")
	}
	switch {
	case len(wrong) > 0:
		return errors.New(few(wrong))
	case len(unheard) > 0:
		return fmt.Errorf("%s: %w", few(unheard), probe.ErrUnreached)
	}
	return nil
}
