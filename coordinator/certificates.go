package coordinator

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/medway-lb/medway/pkg/pki"
	"github.com/medway-lb/medway/pkg/state"
)

const (
	// endsSoon is how long before its end a certificate is called to mind.
	endsSoon = 30 * 24 * time.Hour
	// remindInterval is how often the log tells of it.
	remindInterval = 24 * time.Hour
)

// expiring are the certificates that the file names and that end soon, as notices, or
// have ended.
func (c Config) expiring(now time.Time) (found []state.Fault) {
	type named struct {
		field, file string
		authority   bool
	}
	var all []named
	if !c.TLS.Insecure {
		all = append(all, named{"tls.cert", c.TLS.Cert, false}, named{"tls.client_ca", c.TLS.ClientCA, true})
	}
	if !c.Etcd.Insecure {
		all = append(all, named{"etcd.cert", c.Etcd.Cert, false}, named{"etcd.ca", c.Etcd.CA, true})
	}
	seen := map[string]bool{"": true}
	for _, n := range all {
		if seen[n.file] {
			continue
		}
		seen[n.file] = true
		fault := func(notice bool, format string, args ...any) {
			found = append(found, state.Fault{Key: "coordinator", Notice: notice, Reason: fmt.Sprintf("field %s: value %q: ", n.field, n.file) + fmt.Sprintf(format, args...)})
		}
		end, err := endOf(n.file, n.authority)
		switch date := end.UTC().Format(time.RFC3339); {
		case err != nil:
			fault(false, "%v", err)
		case !now.Before(end):
			fault(false, "it has ended at %s: renew it", date)
		case end.Sub(now) < endsSoon:
			fault(true, "it ends at %s: renew it", date)
		}
	}
	return found
}

// endOf is when a certificate ends; of authorities the last one: others are there to be
// replaced by it.
func endOf(file string, authority bool) (end time.Time, err error) {
	all, err := pki.ReadCertificates(file)
	if err != nil {
		return end, err
	}
	end = all[0].NotAfter
	for _, cert := range all {
		if authority && cert.NotAfter.After(end) {
			end = cert.NotAfter
		}
	}
	return end, nil
}

// watchCertificates reminds of what ends, until ctx ends.
func (c *Coordinator) watchCertificates(ctx context.Context) error {
	ticker := time.NewTicker(remindInterval)
	defer ticker.Stop()
	for {
		for _, f := range c.config.expiring(time.Now()) {
			if f.Notice {
				c.log.Warn("a certificate ends soon", zap.String("which", f.Reason))
			} else {
				c.log.Error("a certificate can't be used", zap.String("which", f.Reason))
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
}
