package access

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"time"

	"github.com/medway-lb/medway/pkg/pki"
)

// Certificates are those that a person asks for.
type Certificates struct {
	// Dir has the authority, and gets them.
	Dir string
	// Servers are etcd members as NAME=HOST[,HOST...], Coordinators likewise.
	Servers, Coordinators []string
	// Clients are nodes and people, by name.
	Clients []string
	// Days is how long new ones are valid.
	Days int
	// DryRun makes nothing.
	DryRun bool
}

// maxDays is more than any authority lasts, and less than a duration can hold.
const maxDays = 36500

// check refuses all that is wrong before the first file is made, and returns
// the servers' hosts.
func (c Certificates) check() (hosts map[string][]string, err error) {
	if c.Days < 1 || c.Days > maxDays {
		return nil, fmt.Errorf("flag --days: value %d: expected 1 to %d", c.Days, maxDays)
	}
	taken := map[string]bool{}
	take := func(flag, name string) error {
		if err := pki.CheckName(name); err != nil {
			return fmt.Errorf("flag %s: %w", flag, err)
		}
		if taken[name] {
			return fmt.Errorf("flag %s: name %q: it is given twice, and would have one file", flag, name)
		}
		taken[name] = true
		return nil
	}
	hosts = map[string][]string{}
	serves := func(flag, text string) error {
		name, list, ok := strings.Cut(text, "=")
		if !ok || name == "" || list == "" {
			return fmt.Errorf("flag %s: value %q: expected NAME=HOST, with the addresses or names of the host", flag, text)
		}
		if err := take(flag, name); err != nil {
			return err
		}
		hosts[text] = strings.Split(list, ",")
		for _, host := range hosts[text] {
			if !isHost(host) {
				return fmt.Errorf("flag %s: value %q: host %q: expected an address or a DNS name, without scheme and port", flag, text, host)
			}
		}
		return nil
	}
	for _, text := range c.Servers {
		if err := serves("--server", text); err != nil {
			return nil, err
		}
	}
	for _, text := range c.Coordinators {
		if err := serves("--coordinator", text); err != nil {
			return nil, err
		}
	}
	for _, name := range c.Clients {
		if err := CheckUser(name); err != nil {
			return nil, fmt.Errorf("flag --client: %w", err)
		}
		if err := take("--client", name); err != nil {
			return nil, err
		}
	}
	return hosts, nil
}

// isHost tells whether a text is an address or can be a DNS name.
func isHost(text string) bool {
	if net.ParseIP(text) != nil {
		return true
	}
	for label := range strings.SplitSeq(text, ".") {
		other := func(r rune) bool {
			return r != '-' && r != '_' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
		}
		if label == "" || strings.ContainsFunc(label, other) {
			return false
		}
	}
	return true
}

// Make makes those that are not there yet, and the authority, and tells of each; one that
// is there must be as wanted.
func (c Certificates) Make(out io.Writer) error {
	servers, err := c.check()
	if err != nil {
		return err
	}
	if c.DryRun && !exists(pki.Files(c.Dir, pki.AuthorityName)) {
		return c.preview(out, servers)
	}
	authority, made, err := pki.Open(c.Dir)
	if err != nil {
		return err
	}
	if err := tellCertificate(out, authority.CA(), "authority", made, nil); err != nil {
		return err
	}
	for _, w := range c.all(servers) {
		if c.DryRun && !exists(authority.Files(w.name)) {
			w.preview(out, c.Dir)
			continue
		}
		made := fs.ErrExist
		if !c.DryRun {
			made = w.issue(authority)
		}
		if err := kept(authority, out, w.name, w.of, made, w.fits); err != nil {
			return err
		}
	}
	return nil
}

// preview tells what would be made where there is no authority yet.
func (c Certificates) preview(out io.Writer, servers map[string][]string) error {
	wanted{name: pki.AuthorityName, of: "authority"}.preview(out, c.Dir)
	for _, w := range c.all(servers) {
		if cert, key := pki.Files(c.Dir, w.name); exists(cert, key) {
			return fmt.Errorf("%s or %s is there already, and its authority is not", cert, key)
		}
		w.preview(out, c.Dir)
	}
	return nil
}

// exists tells whether one of two files does.
func exists(cert, key string) bool {
	_, err := os.Lstat(cert)
	_, keyErr := os.Lstat(key)
	return err == nil || keyErr == nil
}

// wanted is one certificate.
type wanted struct {
	name, of string
	issue    func(*pki.Authority) error
	// fits says what is wrong with one that is there.
	fits func(*x509.Certificate) error
}

func (w wanted) preview(out io.Writer, dir string) {
	cert, _ := pki.Files(dir, w.name)
	fmt.Fprintf(out, "+ %s: %s\n", cert, w.of)
}

// all are those to have, but for the authority.
func (c Certificates) all(servers map[string][]string) (all []wanted) {
	valid := time.Duration(c.Days) * 24 * time.Hour
	for _, text := range c.Servers {
		name, _, _ := strings.Cut(text, "=")
		all = append(all, wanted{
			name, "etcd member " + name,
			func(a *pki.Authority) error { return a.Server(name, servers[text], valid) },
			func(cert *x509.Certificate) error { return pki.ServesAs(cert, servers[text], true) },
		})
	}
	for _, text := range c.Coordinators {
		name, _, _ := strings.Cut(text, "=")
		all = append(all, wanted{
			name, "coordinator " + name,
			func(a *pki.Authority) error { return a.Coordinator(name, servers[text], valid) },
			func(cert *x509.Certificate) error { return pki.ServesAs(cert, servers[text], false) },
		})
	}
	for _, name := range c.Clients {
		all = append(all, wanted{
			name, "user " + name,
			func(a *pki.Authority) error { return a.Client(name, valid) },
			func(cert *x509.Certificate) error {
				if cert.Subject.CommonName != name {
					return fmt.Errorf("its common name is %q", cert.Subject.CommonName)
				}
				return nil
			},
		})
	}
	return all
}

// kept tells what has become of a certificate, where one that exists must be
// the one that was asked for.
func kept(a *pki.Authority, out io.Writer, name, of string, made error, fits func(*x509.Certificate) error) error {
	cert, key := a.Files(name)
	if made != nil && !errors.Is(made, fs.ErrExist) {
		return made
	}
	checked := func(cert *x509.Certificate) error { return errors.Join(a.Signed(cert), fits(cert)) }
	if err := tellCertificate(out, cert, of, made == nil, checked); err != nil {
		return fmt.Errorf("%w: to have a new one, remove %s and %s", err, cert, key)
	}
	return nil
}

func tellCertificate(out io.Writer, file, of string, made bool, fits func(*x509.Certificate) error) error {
	cert, err := pki.ReadCertificate(file)
	if err != nil {
		return err
	}
	if fits != nil {
		if err := fits(cert); err != nil {
			return fmt.Errorf("%s is there already and is another one: %w", file, err)
		}
	}
	if time.Now().After(cert.NotAfter) {
		return fmt.Errorf("%s ended on %s", file, cert.NotAfter.Format(time.DateOnly))
	}
	sign := ' '
	if made {
		sign = '+'
	}
	fmt.Fprintf(out, "%c %s: %s, until %s\n", sign, file, of, cert.NotAfter.Format(time.DateOnly))
	return nil
}
