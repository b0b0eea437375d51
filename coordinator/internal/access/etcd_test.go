package access

import (
	"strings"
	"testing"
	"time"

	"github.com/medway-lb/medway/pkg/pki"
	"github.com/medway-lb/medway/pkg/store"
	"github.com/medway-lb/medway/pkg/store/etcdtest"
)

// What could not be enabled, or not for sure, leaves no user with a password.
func TestEnableFails(t *testing.T) {
	authority, _, err := pki.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := authority.Server("etcd1", []string{"127.0.0.1"}, time.Hour); err != nil {
		t.Fatal(err)
	}
	if err := authority.Client("root", time.Hour); err != nil {
		t.Fatal(err)
	}
	cert, key := authority.Files("etcd1")
	url, _ := etcdtest.Start(t, "https", "--client-cert-auth", "--cert-file", cert, "--key-file", key, "--trusted-ca-file", authority.CA(), "--bcrypt-cost", "4")
	cert, key = authority.Files("root")
	tls, err := store.TLS(authority.CA(), cert, key)
	if err != nil {
		t.Fatal(err)
	}
	config := store.Config{Endpoints: []string{url}, TLS: tls}
	client, err := store.Open(config)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Access(t.Context()); err != nil { // it waits until the server is there
		t.Fatal(err)
	}
	err = enable(t.Context(), config, client) // there is no root yet
	if err == nil || !strings.Contains(err.Error(), "root user") || !strings.Contains(err.Error(), "authentication was disabled again") {
		t.Errorf("%v", err)
	}
	if a, err := client.Access(t.Context()); err != nil || a.Enabled || len(a.Users) != 0 {
		t.Errorf("left behind: %+v, %v", a, err)
	}
}
