package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// Agent is what the socket gives access to. Orders return what was done; with an
// error as well where it was not done wholly.
type Agent interface {
	Status(ctx context.Context) (Status, error)
	Withdraw(Order) (string, error)
	Resume(vip string) (string, error)
	Accept() (string, error)
}

// MaxPath is how long a socket's path may be (unix(7): sun_path, with its end).
const MaxPath = 107

// listener removes its path when it is closed.
type listener struct {
	*net.UnixListener
	path string
}

func (l *listener) Close() error {
	return errors.Join(l.UnixListener.Close(), os.Remove(l.path))
}

// Listen makes the socket, which only its owner may use. One that is left from a
// process that has ended is replaced; one on which somebody listens is refused,
// and so is anything else that has the path.
func Listen(path string) (net.Listener, error) {
	switch info, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case info.Mode().Type() != fs.ModeSocket:
		return nil, fmt.Errorf("%s is there and not a socket", path)
	default:
		if c, err := net.Dial("unix", path); err == nil {
			_ = c.Close()
			return nil, fmt.Errorf("somebody listens on %s already", path)
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	// Under another name first: between bind and chmod anybody might connect.
	temp := path + "~"
	if len(temp) > MaxPath {
		return nil, fmt.Errorf("%s: expected a path of at most %d bytes", path, MaxPath-1)
	}
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temp, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	if err = os.Chmod(temp, 0o600); err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close(), os.Remove(temp))
	}
	return &listener{l, path}, nil
}

// Serve answers on l until ctx ends.
func Serve(ctx context.Context, l net.Listener, a Agent) error {
	server := &http.Server{Handler: handler(a), ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	err := server.Serve(l)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("socket: %w", err)
}

func handler(a Agent) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		s, err := a.Status(r.Context())
		if err != nil {
			answer(w, http.StatusInternalServerError, Answer{Error: err.Error()})
			return
		}
		answer(w, http.StatusOK, s)
	})
	order := func(path string, do func(Order) (string, error)) {
		mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
			o, err := readOrder(http.MaxBytesReader(w, r.Body, 1<<16))
			if err != nil {
				answer(w, http.StatusBadRequest, Answer{Error: "body: " + err.Error()})
				return
			}
			done, err := do(o)
			switch {
			case err == nil:
				answer(w, http.StatusOK, Answer{Done: done})
			case done != "":
				answer(w, http.StatusInternalServerError, Answer{Done: done, Error: err.Error()})
			default:
				answer(w, http.StatusUnprocessableEntity, Answer{Error: err.Error()})
			}
		})
	}
	order("/withdraw", a.Withdraw)
	order("/resume", func(o Order) (string, error) { return a.Resume(o.VIP) })
	order("/accept", func(Order) (string, error) { return a.Accept() })
	return mux
}

// readOrder reads the body of an order: one JSON object, or nothing.
func readOrder(body io.Reader) (o Order, err error) {
	d := json.NewDecoder(body)
	d.DisallowUnknownFields()
	switch err = d.Decode(&o); {
	case errors.Is(err, io.EOF):
		return Order{}, nil
	case err != nil:
		return Order{}, err
	}
	if _, err = d.Token(); !errors.Is(err, io.EOF) {
		return Order{}, errors.New("more than one JSON object")
	}
	return o, nil
}

func answer(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	_ = e.Encode(body) // the other side may be gone
}
