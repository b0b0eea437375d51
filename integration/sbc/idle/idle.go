// Package idle holds TCP connections to a SIP server the way a phone without a call does: nothing but the
// double-CRLF keepalive of RFC 5626 section 3.5.1, and one OPTIONS at either end to learn which backend it is.
package idle

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Config says what to hold.
type Config struct {
	Addr        string
	Connections int
	Every       time.Duration // between keepalives on one connection
	Timeout     time.Duration // for a connect, a pong or an answer
	Ready       func(n int)   // called once, when every connection was tried; n of them are up
}

// Result is what became of the connections.
type Result struct {
	Connections int            `json:"connections"`
	Alive       int            `json:"alive"`
	Lost        int            `json:"lost"`
	Moved       int            `json:"moved"` // alive, but another backend answers than at the start
	Pings       int            `json:"pings"`
	Pongs       int            `json:"pongs"`
	PongsMissed int            `json:"pongs_missed"` // pings not answered within the timeout; the connection may live on
	Backends    map[string]int `json:"backends"`     // connections per backend at the start
	Errors      map[string]int `json:"errors,omitempty"`
}

// Err is not nil unless every connection is alive at the backend where it began.
func (r Result) Err() error {
	if r.Alive == r.Connections && r.Moved == 0 {
		return nil
	}
	return fmt.Errorf("of %d connections %d were lost and %d moved", r.Connections, r.Lost, r.Moved)
}

// Run opens the connections and keeps them until ctx ends.
func Run(ctx context.Context, cfg Config) (Result, error) {
	if cfg.Connections < 1 || cfg.Every <= 0 || cfg.Timeout <= 0 {
		return Result{}, errors.New("connections, every and timeout must be positive")
	}
	phones := make([]*phone, cfg.Connections)
	var opened, ended sync.WaitGroup
	for i := range phones {
		p := &phone{cfg: cfg}
		phones[i] = p
		opened.Add(1)
		ended.Go(func() {
			p.open(ctx)
			opened.Done()
			p.hold(ctx)
			p.finish()
		})
	}
	opened.Wait()
	if cfg.Ready != nil {
		up := 0
		for _, p := range phones {
			if p.before() != "" {
				up++
			}
		}
		cfg.Ready(up)
	}
	ended.Wait()
	return sum(phones), nil
}

func sum(phones []*phone) Result {
	r := Result{Connections: len(phones), Backends: map[string]int{}, Errors: map[string]int{}}
	for _, p := range phones {
		r.Pings += p.pings
		r.Pongs += p.pongs
		r.PongsMissed += p.missed
		if p.name != "" {
			r.Backends[p.name]++
		}
		if p.err != nil {
			r.Lost++
			r.Errors[p.err.Error()]++
			continue
		}
		r.Alive++
		if p.nameAfter != p.name {
			r.Moved++
		}
	}
	return r
}
