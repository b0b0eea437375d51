package main

import (
	"context"
	"net"
	"path/filepath"
	"testing"
	"time"
)

func TestNotify(t *testing.T) {
	for name, c := range map[string]struct {
		ready bool
		want  []string
	}{"ready": {true, []string{"READY=1", "STOPPING=1"}}, "ended before": {false, []string{"STOPPING=1"}}} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "notify")
			conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
				t.Fatal(err)
			}
			t.Setenv("NOTIFY_SOCKET", path)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ready, done := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(done)
				notify(ctx, ready)
			}()
			if c.ready {
				close(ready)
			} else {
				cancel()
			}
			buf := make([]byte, 100)
			for _, want := range c.want {
				n, err := conn.Read(buf)
				if err != nil || string(buf[:n]) != want {
					t.Errorf("%q, %v; expected %q", buf[:n], err, want)
				}
				cancel()
			}
			<-done
		})
	}
	t.Setenv("NOTIFY_SOCKET", "")
	notify(t.Context(), nil) // returns at once
}
