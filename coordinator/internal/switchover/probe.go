package switchover

import (
	"context"
	"errors"
	"maps"
	"sync"
	"time"

	"github.com/medway-lb/medway/pkg/probe"
	"github.com/medway-lb/medway/pkg/state"
)

const (
	probeTimeout  = 5 * time.Second
	probeInterval = time.Second
)

// answer is what was heard through a VIP.
type answer struct {
	wrong   string // "": nothing
	unknown bool   // nothing was heard: there may be no way to it from here
}

// probes ask VIPs whose switchovers are to be verified, until they answer.
type probes struct {
	mu      sync.Mutex
	running sync.WaitGroup
	asked   map[string]bool   // by id, while it is asked
	answers map[string]answer // by id: the last one
}

func newProbes() probes { return probes{asked: map[string]bool{}, answers: map[string]answer{}} }

func (p *probes) wait() { p.running.Wait() }

// results begins to ask where it is time to, and returns what is known.
func (p *probes) results(ctx context.Context, e *Engine, s *state.Snapshot, records map[string]record) map[string]answer {
	p.mu.Lock()
	defer p.mu.Unlock()
	verified := map[string]bool{}
	for vip, r := range records {
		if r.Result != "" || r.Step != StepVerify {
			continue
		}
		verified[r.Id] = true
		if last, tried := p.answers[r.Id]; p.asked[r.Id] || tried && last.wrong == "" {
			continue
		}
		p.asked[r.Id] = true
		p.running.Go(func() { p.ask(ctx, e, s, vip, r.Id) })
	}
	maps.DeleteFunc(p.answers, func(id string, _ answer) bool { return !verified[id] })
	return maps.Clone(p.answers)
}

func (p *probes) ask(ctx context.Context, e *Engine, s *state.Snapshot, vip, id string) {
	limited, cancel := context.WithTimeout(ctx, probeTimeout)
	err := e.config.Probe(limited, s, vip)
	cancel()
	p.mu.Lock()
	p.answers[id] = answer{}
	if err != nil {
		p.answers[id] = answer{state.Line(err.Error()), errors.Is(err, probe.ErrUnreached)}
	}
	p.mu.Unlock()
	e.poke()
	if err != nil {
		again := time.NewTimer(probeInterval)
		defer again.Stop()
		select {
		case <-ctx.Done():
		case <-again.C:
		}
	}
	p.mu.Lock()
	delete(p.asked, id)
	p.mu.Unlock()
}
