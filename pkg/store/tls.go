package store

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"sync"
	"time"
)

// TLS is [CertPool] and [ClientCertificate] together; cert and key may be "".
func TLS(ca, cert, key string) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	var err error
	if ca != "" {
		config.RootCAs, err = CertPool(ca)
	}
	if err == nil && cert+key != "" {
		config.GetClientCertificate, err = ClientCertificate(cert, key)
	}
	return config, err
}

// CertPool reads a file of CA certificates, for [tls.Config.RootCAs].
func CertPool(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("value %q: expected a file with PEM certificates", file)
	}
	return pool, nil
}

// ClientCertificate reads a certificate and its key, for
// [tls.Config.GetClientCertificate]. Files that have changed are read again at
// the next handshake, so that a renewed certificate needs no restart; while they
// don't fit together, as between two writes, the last good pair stays.
func ClientCertificate(cert, key string) (func(*tls.CertificateRequestInfo) (*tls.Certificate, error), error) {
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	seen := [2]fileVersion{versionOf(cert), versionOf(key)}
	return func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		mu.Lock()
		defer mu.Unlock()
		// Looked at before they are read: a write in between is found next time.
		if now := [2]fileVersion{versionOf(cert), versionOf(key)}; now != seen {
			if renewed, err := tls.LoadX509KeyPair(cert, key); err == nil {
				pair, seen = renewed, now
			}
		}
		current := pair
		return &current, nil
	}, nil
}

// CheckSecret says by an error that other users of the host can read a file that
// is secret, or its group write it. A group may read: keys are often shared with
// one.
func CheckSecret(file string) error {
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	if mode := info.Mode().Perm(); mode&0o027 != 0 {
		return fmt.Errorf("value %q: mode %04o: expected no access for others and no writing by its group (chmod 600)", file, mode)
	}
	return nil
}

type fileVersion struct {
	modified time.Time
	size     int64
}

func versionOf(file string) fileVersion {
	info, err := os.Stat(file)
	if err != nil {
		return fileVersion{}
	}
	return fileVersion{info.ModTime(), info.Size()}
}

// leaf is the certificate that this configuration shows to etcd; nil where it
// shows none.
func (c *Config) leaf() *x509.Certificate {
	if c.TLS == nil || c.TLS.GetClientCertificate == nil {
		return nil
	}
	pair, err := c.TLS.GetClientCertificate(&tls.CertificateRequestInfo{})
	if err != nil {
		return nil
	}
	return pair.Leaf
}

// User is who etcd takes this client for: the user name, else the common name of
// its certificate; "" is nobody.
func (c *Config) User() string {
	if c.Username != "" {
		return c.Username
	}
	if leaf := c.leaf(); leaf != nil {
		return leaf.Subject.CommonName
	}
	return ""
}

// who is User in words.
func (c *Config) who() string {
	if user := c.User(); user != "" {
		return fmt.Sprintf("user %q", user)
	}
	if c.leaf() != nil {
		return "a certificate without a common name"
	}
	return "a client without a certificate"
}
