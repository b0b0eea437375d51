package coordinator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/medway-lb/medway/coordinator/internal/access"
	"github.com/medway-lb/medway/pkg/pki"
	"github.com/medway-lb/medway/pkg/store"
)

const (
	// etcdUser is who coordinators are to etcd.
	etcdUser = "coordinator"
	// setupTime bounds what is done in etcd: it is many requests.
	setupTime = 30 * time.Second
)

// ErrLeft says that what could be made is there, and that the output tells what is left
// to do.
var ErrLeft = errors.New("something is left to do")

// Setup is a working set for a fresh machine: certificates, the coordinator's file,
// etcd's users and roles, and a first admin.
type Setup struct {
	// Path is the coordinator's file; Dir gets certificates and keys.
	Path, Dir string
	// Coordinator is NAME=HOST[,HOST...] of its server; Servers are etcd members likewise.
	Coordinator string
	Servers     []string
	// Nodes are NAME=SITE of LVS hosts.
	Nodes []string
	// Endpoints are etcd's URLs.
	Endpoints []string
	// Admin is who may do everything first, by token and by certificate.
	Admin string
	// Days is how long certificates are valid.
	Days int
	// Group may read the coordinator's keys; "": nobody else.
	Group string
	// DryRun makes nothing.
	DryRun bool
}

// Init makes what is not there, keeps what is, and tells of each on out: "+" what it
// makes. It overwrites nothing: what is there and is another one is an error, before
// anything is made. The admin's token comes last, and only where it is new.
func Init(ctx context.Context, s Setup, out io.Writer) error {
	config, err := s.config()
	if err != nil {
		return err
	}
	certificates, people, err := s.wanted()
	if err != nil {
		return err
	}
	gid, err := groupID(s.Group)
	if err != nil {
		return err
	}
	// Looked at before the first file is made.
	preview := io.Discard
	if s.DryRun {
		preview = out
	}
	dry := certificates
	dry.DryRun = true
	if err := dry.Make(preview); err != nil {
		return err
	}
	there, err := s.configured(config)
	if err != nil {
		return err
	}
	_, err = os.Lstat(s.Dir)
	made := errors.Is(err, fs.ErrNotExist)
	if !s.DryRun {
		if err := certificates.Make(out); err != nil {
			return err
		}
	}
	if err := s.writeConfig(config, there, out); err != nil {
		return err
	}
	if gid >= 0 && !s.DryRun {
		if err := s.share(config, gid, made, out); err != nil {
			return err
		}
	}
	return s.inEtcd(ctx, config, people, out)
}

// wanted are the certificates and etcd's users.
func (s Setup) wanted() (c access.Certificates, p access.People, err error) {
	if err := (Permission{Name: s.Admin}).check(); err != nil {
		return c, p, fmt.Errorf("flag --admin: %w", err)
	}
	name, _, _ := strings.Cut(s.Coordinator, "=")
	for flag, name := range map[string]string{"--coordinator": name, "--admin": s.Admin} {
		if name == etcdUser || name == store.RootUser {
			return c, p, fmt.Errorf("flag %s: value %q: expected another name: it is of a user of etcd that is made too", flag, name)
		}
	}
	c = access.Certificates{
		Dir: s.Dir, Servers: s.Servers, Coordinators: []string{s.Coordinator}, Days: s.Days,
		Clients: []string{store.RootUser, etcdUser, s.Admin},
	}
	for _, node := range s.Nodes {
		name, _, _ := strings.Cut(node, "=")
		c.Clients = append(c.Clients, name)
	}
	p, err = access.ParsePeople(s.Nodes, []string{etcdUser, s.Admin}, nil)
	return c, p, err
}

// config is what the coordinator's file is to say.
func (s Setup) config() (Config, error) {
	dir, err := filepath.Abs(s.Dir)
	if err != nil {
		return Config{}, err
	}
	name, _, _ := strings.Cut(s.Coordinator, "=")
	ca, _ := pki.Files(dir, pki.AuthorityName)
	c := Config{Listen: defaultListen, Verify: VerifySIP, TLS: TLS{ClientCA: ca}, Etcd: Etcd{Endpoints: s.Endpoints, CA: ca}}
	c.TLS.Cert, c.TLS.Key = pki.Files(dir, name)
	c.Etcd.Cert, c.Etcd.Key = pki.Files(dir, etcdUser)
	return c, c.Validate()
}

// configured tells whether the file is there, and refuses one that says other things
// than it should; on which port the coordinator listens is the operator's.
func (s Setup) configured(wanted Config) (there bool, err error) {
	c, err := LoadConfig(s.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return true, err
	case !reflect.DeepEqual(c.TLS, wanted.TLS) || !reflect.DeepEqual(c.Etcd, wanted.Etcd):
		return true, fmt.Errorf("%s is there already and says other things under tls and etcd than\n%sto have a new one, remove it", s.Path, wanted.text())
	}
	return true, nil
}

// text is the file.
func (c Config) text() string {
	endpoints := make([]string, len(c.Etcd.Endpoints))
	for i, e := range c.Etcd.Endpoints {
		endpoints[i] = strconv.Quote(e)
	}
	return fmt.Sprintf(`listen: %q
tls:
  cert: %q
  key: %q
  client_ca: %q
etcd:
  endpoints: [%s]
  ca: %q
  cert: %q
  key: %q
`, c.Listen, c.TLS.Cert, c.TLS.Key, c.TLS.ClientCA, strings.Join(endpoints, ", "), c.Etcd.CA, c.Etcd.Cert, c.Etcd.Key)
}

func (s Setup) writeConfig(c Config, there bool, out io.Writer) error {
	sign := '+'
	switch {
	case there:
		sign = ' '
	case !s.DryRun:
		if err := writeNew(s.Path, c.text()); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(out, "%c %s: the coordinator's file\n", sign, s.Path)
	return err
}

// writeNew makes a file whole or not at all, and never in place of another.
func writeNew(path, text string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	_, err = f.WriteString(text)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Link(f.Name(), path)
}

// groupID is -1 for no group.
func groupID(name string) (int, error) {
	if name == "" {
		return -1, nil
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, fmt.Errorf("flag --group: value %q: %w", name, err)
	}
	return strconv.Atoi(g.Gid)
}

// share lets a group read what the coordinator reads: not the keys of others, and not
// the authority's.
func (s Setup) share(c Config, gid int, made bool, out io.Writer) error {
	for _, f := range []struct {
		path string
		mode fs.FileMode
	}{{s.Dir, 0o750}, {s.Path, 0o640}, {c.TLS.Key, 0o640}, {c.Etcd.Key, 0o640}} {
		if f.path == s.Dir && !made {
			// Others may have a use for a folder that was there.
			if info, err := os.Stat(f.path); err == nil && info.Mode().Perm()&0o011 == 0 {
				fmt.Fprintf(out, "note: %s was there and stays as it is: let the group %s enter it\n", f.path, s.Group)
			}
			continue
		}
		changed, err := shareFile(f.path, f.mode, gid)
		if err != nil {
			return err
		}
		if changed {
			fmt.Fprintf(out, "+ %s: readable by group %s\n", f.path, s.Group)
		}
	}
	return nil
}

func shareFile(path string, mode fs.FileMode, gid int) (changed bool, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return false, err
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok && int(stat.Gid) == gid && info.Mode().Perm() == mode {
		return false, nil
	}
	return true, errors.Join(os.Chown(path, -1, gid), os.Chmod(path, mode))
}

// inEtcd sets up users, roles and the first grant, or tells what is left of that.
func (s Setup) inEtcd(ctx context.Context, c Config, people access.People, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, setupTime)
	defer cancel()
	root := c.Etcd
	root.Cert, root.Key = pki.Files(filepath.Dir(c.Etcd.Cert), store.RootUser)
	etcd, err := root.store()
	if err != nil {
		if s.DryRun && errors.Is(err, fs.ErrNotExist) {
			fmt.Fprintf(out, "etcd was not asked: %s is not there yet\n", root.Cert)
			return nil
		}
		return err
	}
	if err := store.Reach(ctx, etcd); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		for line := range strings.Lines(err.Error()) {
			fmt.Fprintf(out, "etcd: %s\n", strings.TrimSpace(line))
		}
		fmt.Fprintf(out, "left to do:\n"+
			"- start the members of etcd that can't be reached, with their certificates and client-cert-auth (docs/etcd.md)\n"+
			"- run this command again: it makes etcd's users and roles, and the grant and the token of %s\n", s.Admin)
		return ErrLeft
	}
	r, err := access.Setup{Config: etcd, Named: people, DryRun: s.DryRun}.Run(ctx)
	if r != nil {
		for _, change := range r.Changes {
			fmt.Fprintln(out, change)
		}
		for _, note := range r.Notes {
			fmt.Fprintln(out, "note:", note)
		}
		if len(r.Changes) == 0 {
			fmt.Fprintln(out, "  etcd's users and roles")
		}
	}
	if err != nil {
		return err
	}
	return s.grant(ctx, c, root, out)
}

// grant allows the first admin everything, unless there is a grant of that name.
func (s Setup) grant(ctx context.Context, c Config, root Etcd, out io.Writer) error {
	if s.DryRun {
		c.Etcd = root // the coordinator may not be a user yet
		there, err := c.granted(ctx, s.Admin)
		if err != nil {
			return err
		}
		sign := '+'
		if there {
			sign = ' '
		}
		_, err = fmt.Fprintf(out, "%c grant %s\n", sign, s.Admin)
		return err
	}
	token, err := allowNew(ctx, c, Permission{Name: s.Admin, Role: "admin", Token: true})
	switch {
	case errors.Is(err, errGranted):
		fmt.Fprintf(out, "  grant %s; a new token: medway-coordinator grant %[1]s --role admin --token\n", s.Admin)
		return nil
	case err != nil:
		return fmt.Errorf("grant of %s: %w", s.Admin, err)
	}
	_, err = fmt.Fprintf(out, "+ grant %s: admin; the token, which is shown this once:\n%s\n", s.Admin, token)
	return err
}
