package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/medway-lb/medway/pkg/pki"
)

// certificates are what a person asks for.
type certificates struct {
	dir          string
	servers      []string // NAME=HOST,HOST..., as are coordinators
	coordinators []string
	clients      []string
	days         int
}

func certs() *cobra.Command {
	var want certificates
	cmd := &cobra.Command{
		Use:   "certs --dir DIR",
		Short: "Make a certificate authority, and certificates for etcd, its clients and coordinators",
		Long: `Make NAME.pem and NAME.key in a directory, signed by the authority ca.pem of the
same directory, which is made first where there is none. A server is an etcd member;
name all addresses by which clients and other members reach it. A client is a node, or
a person: its name is the user that etcd takes it for (see init-etcd); root may
administer etcd. A coordinator is the server that people ask; as etcd's client it needs
a certificate beside that.

Files that exist are never overwritten: to renew a certificate, remove its two files and
run the same command again. Agents take up the new ones without a restart. Keep ca.key
away from the servers: whoever has it can be anyone.`,
		Example: `  medwayctl certs --dir pki --server etcd1=10.1.0.5 --server etcd2=10.2.0.5 --server etcd3=10.3.0.5,etcd3.example.com
  medwayctl certs --dir pki --client root --client alice --client dc1-lvs-a`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return want.make(cmd.OutOrStdout()) },
	}
	f := cmd.Flags()
	f.StringVar(&want.dir, "dir", "", "`directory` of the authority and its certificates")
	f.StringArrayVar(&want.servers, "server", nil, "`NAME=HOST[,HOST...]` of an etcd member (may be repeated)")
	f.StringArrayVar(&want.coordinators, "coordinator", nil, "`NAME=HOST[,HOST...]` of a coordinator (may be repeated)")
	f.StringArrayVar(&want.clients, "client", nil, "`NAME` of a node or a person (may be repeated)")
	f.IntVar(&want.days, "days", 365, "how long new certificates are valid")
	completeWith(cmd, "server")
	completeWith(cmd, "coordinator")
	completeWith(cmd, "client")
	_ = cmd.MarkFlagDirname("dir")
	_ = cmd.MarkFlagRequired("dir")
	return cmd
}

// maxDays is more than any authority lasts, and less than a duration can hold.
const maxDays = 36500

// check refuses all that is wrong before the first file is made, and returns
// the servers' hosts.
func (c certificates) check() (hosts map[string][]string, err error) {
	if c.days < 1 || c.days > maxDays {
		return nil, fmt.Errorf("flag --days: value %d: expected 1 to %d", c.days, maxDays)
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
	for _, text := range c.servers {
		if err := serves("--server", text); err != nil {
			return nil, err
		}
	}
	for _, text := range c.coordinators {
		if err := serves("--coordinator", text); err != nil {
			return nil, err
		}
	}
	for _, name := range c.clients {
		if err := checkUser(name); err != nil {
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

func (c certificates) make(out io.Writer) error {
	servers, err := c.check()
	if err != nil {
		return err
	}
	valid := time.Duration(c.days) * 24 * time.Hour
	authority, made, err := pki.Open(c.dir)
	if err != nil {
		return err
	}
	if err := tellCertificate(out, authority.CA(), "authority", made, nil); err != nil {
		return err
	}
	for _, text := range c.servers {
		name, _, _ := strings.Cut(text, "=")
		err := authority.Server(name, servers[text], valid)
		fits := func(cert *x509.Certificate) error { return pki.ServesAs(cert, servers[text], true) }
		if err := kept(authority, out, name, "etcd member "+name, err, fits); err != nil {
			return err
		}
	}
	for _, text := range c.coordinators {
		name, _, _ := strings.Cut(text, "=")
		err := authority.Coordinator(name, servers[text], valid)
		fits := func(cert *x509.Certificate) error { return pki.ServesAs(cert, servers[text], false) }
		if err := kept(authority, out, name, "coordinator "+name, err, fits); err != nil {
			return err
		}
	}
	for _, name := range c.clients {
		err := authority.Client(name, valid)
		fits := func(cert *x509.Certificate) error {
			if cert.Subject.CommonName != name {
				return fmt.Errorf("its common name is %q", cert.Subject.CommonName)
			}
			return nil
		}
		if err := kept(authority, out, name, "user "+name, err, fits); err != nil {
			return err
		}
	}
	return nil
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
