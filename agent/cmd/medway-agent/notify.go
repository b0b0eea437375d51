package main

import (
	"context"
	"net"
	"os"
	"strings"
)

// notify tells systemd how the service stands (sd_notify(3)): READY=1 once ready
// is closed, STOPPING=1 once ctx ends. Where nobody wants to know it does nothing.
func notify(ctx context.Context, ready <-chan struct{}) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	if strings.HasPrefix(path, "@") {
		path = "\x00" + path[1:] // in the abstract namespace
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return // systemd's own time-out tells it
	}
	defer conn.Close()
	select {
	case <-ready:
		_, _ = conn.Write([]byte("READY=1"))
		<-ctx.Done()
	case <-ctx.Done():
	}
	_, _ = conn.Write([]byte("STOPPING=1"))
}
