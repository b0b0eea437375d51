package pki

import (
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// certificates makes an authority with a server and a client in a directory.
func certificates(t *testing.T) (a *Authority, server, client *x509.Certificate) {
	t.Helper()
	a, made, err := Open(filepath.Join(t.TempDir(), "pki"))
	if err != nil || !made {
		t.Fatal(made, err)
	}
	if err := a.Server("etcd1", []string{"10.1.0.5", "2001:db8::5", "etcd1.example.com"}, time.Hour); err != nil {
		t.Fatal(err)
	}
	if err := a.Client("alice", time.Hour); err != nil {
		t.Fatal(err)
	}
	read := func(name string) *x509.Certificate {
		file, _ := a.Files(name)
		cert, err := ReadCertificate(file)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	return a, read("etcd1"), read("alice")
}

// TestWhatACertificateIsGoodFor: a client can't pose as etcd, nor open the
// members' door; a member is nobody as a client; neither can sign.
func TestWhatACertificateIsGoodFor(t *testing.T) {
	a, server, client := certificates(t)
	roots := x509.NewCertPool()
	roots.AddCert(a.cert)
	good := func(cert *x509.Certificate, host string, usage x509.ExtKeyUsage) bool {
		_, err := cert.Verify(x509.VerifyOptions{Roots: roots, DNSName: host, KeyUsages: []x509.ExtKeyUsage{usage}})
		return err == nil
	}
	for _, host := range []string{"10.1.0.5", "2001:db8::5", "etcd1.example.com", "127.0.0.1", "localhost", PeerName} {
		if !good(server, host, x509.ExtKeyUsageServerAuth) || good(client, host, x509.ExtKeyUsageServerAuth) {
			t.Errorf("a server at %s: the member's %v, the client's %v", host, good(server, host, x509.ExtKeyUsageServerAuth), good(client, host, x509.ExtKeyUsageServerAuth))
		}
	}
	if good(server, "10.2.0.5", x509.ExtKeyUsageServerAuth) || good(client, PeerName, x509.ExtKeyUsageClientAuth) {
		t.Error("good for a name that it has not")
	}
	if !good(server, "", x509.ExtKeyUsageClientAuth) || !good(client, "", x509.ExtKeyUsageClientAuth) {
		t.Error("not good as a client's")
	}
	if server.Subject.CommonName != "" || client.Subject.CommonName != "alice" || server.IsCA || client.IsCA || !a.cert.MaxPathLenZero {
		t.Errorf("server %q, client %q", server.Subject, client.Subject)
	}
}

func TestOpenRefusesWhatIsNoAuthority(t *testing.T) {
	a, _, _ := certificates(t)
	if _, made, err := Open(a.dir); made || err != nil {
		t.Fatalf("the second time: %v, %v", made, err)
	}
	put := func(file, as string) {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(a.dir, file))
		if err == nil {
			err = os.WriteFile(filepath.Join(a.dir, as), text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	refused := func(want string) {
		t.Helper()
		if _, _, err := Open(a.dir); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, expected it to contain %q", err, want)
		}
	}
	put("ca.key", "kept")
	put("alice.key", "ca.key")
	refused("expected the certificate of an authority, with its key in ")
	put("alice.pem", "ca.pem")
	refused("expected the certificate of an authority")
	put("kept", "ca.pem")
	refused("expected a certificate in PEM")
}

// TestACertificateGetsNoOtherKey: a key that was taken away is not made anew beside the
// certificate that it was of.
func TestACertificateGetsNoOtherKey(t *testing.T) {
	a, _, _ := certificates(t)
	_, key := a.Files("alice")
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	if err := a.Client("alice", time.Hour); !errors.Is(err, fs.ErrExist) {
		t.Errorf("error %v, expected that the certificate exists", err)
	}
	if _, err := os.Lstat(key); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("there is a key: %v", err)
	}
}
