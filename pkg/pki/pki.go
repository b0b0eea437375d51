// Package pki makes what TLS between medway and etcd needs: a certificate
// authority in a directory, and certificates of servers and of clients that it
// signs. It never overwrites a file. Keys are ECDSA P-256, which makes
// handshakes cheap.
package pki

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"
)

const (
	// PeerName is a DNS name in every server's certificate and in no client's:
	// etcd members know each other by it (--peer-cert-allowed-hostname), so that
	// a client's certificate does not open the door for members.
	PeerName = "medway-etcd-member"

	// AuthorityName is what the authority's own files are called.
	AuthorityName = "ca"

	authorityValid = 10 * 365 * 24 * time.Hour
	// skew is how far a reader's clock may be behind: as far as a hardware clock in some
	// zone's time, of which nobody told the system.
	skew = 24 * time.Hour
)

// Authority is a certificate authority whose files are in a directory.
type Authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Open reads the authority of a directory, ca.pem and ca.key, and makes both,
// and the directory, where there is none yet; made tells.
func Open(dir string) (a *Authority, made bool, err error) {
	a = &Authority{dir: dir}
	if a.cert, err = ReadCertificate(a.CA()); errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, false, err
		}
		return a, true, a.create()
	}
	if err != nil {
		return nil, false, err
	}
	_, file := a.Files(AuthorityName)
	if a.key, err = readKey(file); err != nil {
		return nil, false, err
	}
	if !a.cert.IsCA || !a.key.PublicKey.Equal(a.cert.PublicKey) {
		return nil, false, fmt.Errorf("%s: expected the certificate of an authority, with its key in %s", a.CA(), file)
	}
	return a, false, nil
}

// CA is the file with the authority's certificate.
func (a *Authority) CA() string { return filepath.Join(a.dir, AuthorityName+".pem") }

// Files are where the certificate and the key of a name are, or would be.
func (a *Authority) Files(name string) (cert, key string) { return Files(a.dir, name) }

// Files are those of a name in an authority's directory.
func Files(dir, name string) (cert, key string) {
	return filepath.Join(dir, name+".pem"), filepath.Join(dir, name+".key")
}

// Signed tells whether a certificate is one of the authority's.
func (a *Authority) Signed(cert *x509.Certificate) error { return cert.CheckSignatureFrom(a.cert) }

func (a *Authority) create() (err error) {
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "medway etcd CA"}, IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return err
	}
	a.cert, err = a.sign(AuthorityName, template, template, a.key, authorityValid)
	return err
}

// Client makes a client's certificate, name.pem and name.key. etcd takes its
// common name, which is name, for the user.
func (a *Authority) Client(name string, valid time.Duration) error {
	return a.issue(name, &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, valid)
}

// Server makes an etcd member's certificate, name.pem and name.key, for its
// clients' side and its peers'. hosts are the addresses and DNS names that
// clients and peers reach it by; loopback is added, for etcdctl on the member
// itself. It has no common name, so that it is nobody as a client.
func (a *Authority) Server(name string, hosts []string, valid time.Duration) error {
	template := &x509.Certificate{
		Subject: pkix.Name{Organization: []string{"medway etcd member"}}, KeyUsage: x509.KeyUsageDigitalSignature,
		// Members are each other's clients.
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	template.IPAddresses, template.DNSNames = serverNames(append([]string{PeerName}, hosts...))
	return a.issue(name, template, valid)
}

// Coordinator makes a coordinator's certificate, name.pem and name.key, for its
// clients' side alone: to etcd it is nobody.
func (a *Authority) Coordinator(name string, hosts []string, valid time.Duration) error {
	template := &x509.Certificate{
		Subject: pkix.Name{Organization: []string{"medway coordinator"}}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	template.IPAddresses, template.DNSNames = serverNames(hosts)
	return a.issue(name, template, valid)
}

func serverNames(hosts []string) (addresses []net.IP, names []string) {
	for _, host := range append(slices.Clone(hosts), "127.0.0.1", "::1", "localhost") {
		if ip := net.ParseIP(host); ip != nil {
			addresses = append(addresses, ip)
		} else {
			names = append(names, host)
		}
	}
	return addresses, names
}

// ServesAs tells whether a server's certificate is good for all the hosts, and is an
// etcd member's, or a coordinator's.
func ServesAs(cert *x509.Certificate, hosts []string, member bool) error {
	isMember := cert.VerifyHostname(PeerName) == nil
	switch {
	case len(cert.DNSNames) == 0:
		return errors.New("it is a client's certificate")
	case isMember && !member:
		return errors.New("it is an etcd member's certificate")
	case !isMember && member:
		return errors.New("it is a coordinator's certificate")
	}
	for _, host := range hosts {
		if err := cert.VerifyHostname(host); err != nil {
			return err
		}
	}
	return nil
}

// AsNode is for a client of a node's telemetry, which serves with the certificate
// that makes the node a client of etcd: that is for no host's name, but bears the
// node's. roots are the authority's.
func AsNode(config *tls.Config, roots *x509.CertPool, node string) *tls.Config {
	config = config.Clone()
	config.InsecureSkipVerify = true // but for this:
	config.VerifyConnection = func(s tls.ConnectionState) error {
		options := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
		for _, c := range s.PeerCertificates[1:] {
			options.Intermediates.AddCert(c)
		}
		if _, err := s.PeerCertificates[0].Verify(options); err != nil {
			return err
		}
		if name := s.PeerCertificates[0].Subject.CommonName; name != node {
			return fmt.Errorf("its certificate is of %q: expected node %q", name, node)
		}
		return nil
	}
	return config
}

// CheckName says whether files of a certificate can have the name.
func CheckName(name string) error {
	if name == AuthorityName || name == "" || name == "." || name == ".." || filepath.Base(name) != name {
		return fmt.Errorf("name %q: expected one that can name a file, and not %q, the authority's own", name, AuthorityName)
	}
	return nil
}

func (a *Authority) issue(name string, template *x509.Certificate, valid time.Duration) error {
	if err := CheckName(name); err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	if end := a.cert.NotAfter; time.Now().Add(valid).After(end) {
		return fmt.Errorf("%s: valid for %s, but the authority ends at %s: make a new one", name, valid, end.Format(time.DateOnly))
	}
	_, err = a.sign(name, template, a.cert, key, valid)
	return err
}

// sign completes the template, has the authority sign it, and writes both files.
func (a *Authority) sign(name string, template, parent *x509.Certificate, key *ecdsa.PrivateKey, valid time.Duration) (*x509.Certificate, error) {
	now := time.Now()
	template.NotBefore, template.NotAfter = now.Add(-skew), now.Add(valid)
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	certFile, keyFile := a.Files(name)
	// The certificate last: a name that has one is complete, and gets no other key.
	if _, err := os.Lstat(certFile); !errors.Is(err, fs.ErrNotExist) {
		return nil, cmp.Or(err, error(&fs.PathError{Op: "create", Path: certFile, Err: fs.ErrExist}))
	}
	if err := writeNew(keyFile, "PRIVATE KEY", secret, 0o600); err != nil {
		return nil, err
	}
	if err := writeNew(certFile, "CERTIFICATE", der, 0o644); err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func writeNew(file, kind string, der []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	return errors.Join(pem.Encode(f, &pem.Block{Type: kind, Bytes: der}), f.Sync(), f.Close())
}

// ReadCertificate reads the first certificate of a PEM file.
func ReadCertificate(file string) (*x509.Certificate, error) {
	all, err := ReadCertificates(file)
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

// ReadCertificates reads all certificates of a PEM file, and at least one.
func ReadCertificates(file string) (all []*x509.Certificate, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			break
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		all = append(all, cert)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s: expected a certificate in PEM", file)
	}
	return all, nil
}

func readKey(file string) (*ecdsa.PrivateKey, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s: expected a key in PEM", file)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s: expected an ECDSA key", file)
	}
	return ec, nil
}
