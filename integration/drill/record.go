package drill

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/medway-lb/medway/integration/lab"
)

// Recorder follows etcd from its start on, so that there is a Record afterwards.
type Recorder struct {
	lab    *lab.Lab
	cancel context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex
	changes []lab.Change
	err     error
}

// StartRecorder follows etcd by the witness's member. Start it before the agents.
func StartRecorder(ctx context.Context, l *lab.Lab) *Recorder {
	ctx, cancel := context.WithCancel(ctx)
	r := &Recorder{lab: l, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		err := l.FollowEtcd(ctx, lab.Witness, func(c lab.Change) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.changes = append(r.changes, c)
		})
		r.mu.Lock()
		defer r.mu.Unlock()
		r.err = err
	}()
	return r
}

// Stop ends the recording and reads what the routers have logged since their start.
func (r *Recorder) Stop() (Record, error) {
	r.cancel()
	<-r.done
	routes, err := ReadRoutes(r.lab)
	return Record{Topology: r.lab.Topology(), Routes: routes, Changes: r.changes}, errors.Join(r.err, err)
}

// ReadRoutes reads the logs of all routers.
func ReadRoutes(l *lab.Lab) ([]lab.RouteEvent, error) {
	var all []lab.RouteEvent
	for _, router := range l.Topology().Routers() {
		file, err := os.Open(l.BirdLog(router))
		if err != nil {
			return nil, fmt.Errorf("log of %s: %w", router, err)
		}
		all = append(all, lab.ParseBirdLog(file, router)...)
		file.Close()
	}
	return all, nil
}
