package switchover

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/medway-lb/medway/pkg/state"
)

const (
	probeTimeout  = 5 * time.Second
	probeInterval = time.Second
)

// probes ask VIPs whose switchovers are to be verified, until they answer.
type probes struct {
	mu      sync.Mutex
	running sync.WaitGroup
	asked   map[string]bool   // by id, while it is asked
	answers map[string]string // by id: what was wrong last, "" for nothing
}

func newProbes() probes { return probes{asked: map[string]bool{}, answers: map[string]string{}} }

func (p *probes) wait() { p.running.Wait() }

// results begins to ask where it is time to, and returns what is known.
func (p *probes) results(ctx context.Context, e *Engine, records map[string]record) map[string]string {
	p.mu.Lock()
	defer p.mu.Unlock()
	verified := map[string]bool{}
	for vip, r := range records {
		if r.Result != "" || r.Step != StepVerify {
			continue
		}
		verified[r.Id] = true
		if answer, tried := p.answers[r.Id]; p.asked[r.Id] || tried && answer == "" {
			continue
		}
		p.asked[r.Id] = true
		p.running.Go(func() { p.ask(ctx, e, vip, r.Id) })
	}
	maps.DeleteFunc(p.answers, func(id string, _ string) bool { return !verified[id] })
	return maps.Clone(p.answers)
}

func (p *probes) ask(ctx context.Context, e *Engine, vip, id string) {
	limited, cancel := context.WithTimeout(ctx, probeTimeout)
	err := e.config.Probe(limited, vip)
	cancel()
	p.mu.Lock()
	p.answers[id] = ""
	if err != nil {
		p.answers[id] = state.Line(err.Error())
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
