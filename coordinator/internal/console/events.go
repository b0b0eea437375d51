package console

import (
	"context"
	"net/http"
	"time"

	"connectrpc.com/connect"

	"github.com/medway-lb/medway/coordinator/internal/api"
)

const (
	// maxStreams are those of one session: one for each tab.
	maxStreams = 8
	// quiet is between two events of a stream at least, so that a burst of changes is
	// one; numbers is when there is one though etcd has no news: live numbers have.
	quiet   = 400 * time.Millisecond
	numbers = 3 * time.Second
)

// events tells a page when to look again, until its session ends or this coordinator
// stops (https://html.spec.whatwg.org/multipage/server-sent-events.html).
func (c *Console) events(w http.ResponseWriter, r *http.Request) {
	ctx, who, err := c.API.Session(r)
	if err != nil {
		http.Error(w, words(err), statusOf(err))
		return
	}
	leave, err := c.API.Enter(who.Name, true)
	if err != nil {
		http.Error(w, words(err), statusOf(err))
		return
	}
	defer leave()
	if !c.enter(who) {
		http.Error(w, "too many pages of this session are open", http.StatusTooManyRequests)
		return
	}
	defer c.leave(who)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changed, ended := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		ended <- c.API.Changes(ctx, who, func() {
			select {
			case changed <- struct{}{}:
			default:
			}
		})
	}()
	select {
	case <-changed: // from here on nothing is missed
	case err := <-ended:
		http.Error(w, words(err), statusOf(err))
		return
	}
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Time{}) // the request was read
	w.Header().Set("Content-Type", "text/event-stream")
	ticker := time.NewTicker(numbers)
	defer ticker.Stop()
	for {
		if _, err := w.Write([]byte("event: change\ndata:\n\n")); err != nil || control.Flush() != nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(quiet):
		}
		select {
		case <-ctx.Done():
			return
		case err := <-ended:
			if connect.CodeOf(err) == connect.CodeUnauthenticated {
				_, _ = w.Write([]byte("event: end\ndata:\n\n"))
				_ = control.Flush()
			}
			return
		case <-changed:
		case <-ticker.C:
		}
	}
}

func (c *Console) enter(who api.Session) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.streams[who.Key] >= maxStreams {
		return false
	}
	c.streams[who.Key]++
	return true
}

func (c *Console) leave(who api.Session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.streams[who.Key]--; c.streams[who.Key] == 0 {
		delete(c.streams, who.Key)
	}
}
