package sbc

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"strings"
	"time"
)

// Status is what the backend tells about itself, as JSON.
type Status struct {
	Name        string         `json:"name"`
	Draining    bool           `json:"draining"`
	Drained     bool           `json:"drained"` // no dialogue was left at some time after draining began
	Dialogs     int            `json:"dialogs"`
	Connections int            `json:"connections"`
	Accepted    int            `json:"accepted"` // TCP connections since the start
	Ended       int            `json:"ended"`    // dialogues that ended with BYE
	Lost        int            `json:"lost"`     // dialogues whose connection closed under them
	Unknown     int            `json:"unknown"`  // requests for dialogues of some other backend (481)
	Refused     int            `json:"refused"`  // requests answered 503 while draining
	Requests    map[string]int `json:"requests"`
}

// Status returns the present state.
func (s *Server) Status() Status {
	out := s.book.status()
	out.Name = s.cfg.Name
	return out
}

func listenStatus(addr string) (net.Listener, error) {
	if strings.Contains(addr, "/") {
		return net.Listen("unix", addr)
	}
	return net.Listen("tcp", addr)
}

// serveStatus answers any HTTP request with the status.
func (s *Server) serveStatus(ctx context.Context) error {
	h := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(s.Status()) // a reader that left needs no answer
	}
	srv := &http.Server{Handler: http.HandlerFunc(h), ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(s.status); !errors.Is(err, http.ErrServerClosed) {
		return ignoreClosed(err)
	}
	return nil
}
