package store

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"sync"
	"time"
)

// reachTimeout bounds the look at one endpoint.
const reachTimeout = 2 * time.Second

// Reach connects to every endpoint by itself and says of each what is wrong
// with it, in words for a person: gRPC's own errors name neither the server nor
// what to do. It is for explaining a failure, not for every call: nil only says
// that connections can be made.
func Reach(ctx context.Context, cfg Config) error {
	errs := make([]error, len(cfg.Endpoints))
	var all sync.WaitGroup
	for i, endpoint := range cfg.Endpoints {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, reachTimeout)
			defer cancel()
			err := reach(ctx, cfg, endpoint)
			if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
				err = fmt.Errorf("no answer within %s", reachTimeout)
			}
			if err != nil {
				errs[i] = fmt.Errorf("%s: %w", endpoint, err)
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// greeting is how an HTTP/2 client begins: its preface and empty settings.
const greeting = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"

func reach(ctx context.Context, cfg Config, endpoint string) error {
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" {
		u = &url.URL{Scheme: "http", Host: endpoint} // the client takes a bare address for plain
	}
	dial := cfg.Dial
	if dial == nil {
		dial = func(ctx context.Context, address string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", address)
		}
	}
	conn, err := dial(ctx, u.Host)
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) {
			err = op.Err // without the address again
		}
		return fmt.Errorf("can't connect: %w", err)
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	if u.Scheme == "https" {
		config := &tls.Config{}
		if cfg.TLS != nil {
			config = cfg.TLS.Clone()
		}
		config.ServerName, config.NextProtos = u.Hostname(), []string{"h2"}
		secure := tls.Client(conn, config)
		if err := secure.HandshakeContext(ctx); err != nil {
			return cfg.explainHandshake(err)
		}
		conn = secure
	}
	_, err = io.WriteString(conn, greeting)
	if err == nil {
		// With TLS 1.3 a server that refuses our certificate says so only here.
		_, err = io.ReadFull(conn, make([]byte, 9))
	}
	switch {
	case u.Scheme == "https" && err != nil:
		return cfg.explainHandshake(err)
	case errors.Is(err, io.EOF):
		return errors.New("it hangs up: does it speak TLS only? then expected https://")
	case err != nil:
		return fmt.Errorf("it connects but does not answer as etcd does: %w", err)
	}
	return nil
}

func (c *Config) explainHandshake(err error) error {
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	var remote *net.OpError
	switch {
	case errors.As(err, &unknown):
		return fmt.Errorf("its certificate is not signed by the CA that this client trusts: %w", err)
	case errors.As(err, &name):
		return fmt.Errorf("its certificate is not for this address; the server needs one that names it: %w", name)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Errorf("its certificate is valid from %s to %s, and this host's clock says %s",
			date(invalid.Cert.NotBefore), date(invalid.Cert.NotAfter), date(time.Now()))
	case errors.As(err, &invalid):
		return fmt.Errorf("its certificate is no server's: %w", err)
	case errors.Is(err, io.EOF):
		return errors.New("it hangs up at the first word of TLS: is it a server without? then expected http://, or start it with --cert-file")
	case errors.As(err, &remote) && remote.Op == "remote error":
		return c.explainRefusal(remote.Err)
	}
	return fmt.Errorf("TLS: %w", err)
}

// explainRefusal is for what the server says of our certificate, which is little.
func (c *Config) explainRefusal(alert error) error {
	leaf := c.leaf()
	switch now := time.Now(); {
	case leaf == nil:
		return fmt.Errorf("it asks for a client's certificate, and none was given (%w)", alert)
	case now.Before(leaf.NotBefore) || now.After(leaf.NotAfter):
		return fmt.Errorf("it refuses this client's certificate, of %s: it is valid from %s to %s, and this host's clock says %s (%w)",
			c.who(), date(leaf.NotBefore), date(leaf.NotAfter), date(now), alert)
	}
	return fmt.Errorf("it refuses this client's certificate, of %s, issued by %q: is it of the CA that the server trusts (--trusted-ca-file)? (%w)",
		c.who(), leaf.Issuer.CommonName, alert)
}

func date(t time.Time) string { return t.UTC().Format(time.RFC3339) }
