package operation

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"
	"github.com/medway-lb/medway/pkg/store/etcdtest"
)

// TestDrainBackend leaves a pool with one at least, whoever else drains at the same time.
func TestDrainBackend(t *testing.T) {
	url, _ := etcdtest.Start(t, "http")
	client, err := store.Open(store.Config{Endpoints: []string{url}})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	put := func(key, value string) {
		t.Helper()
		if _, _, err := client.Commit(t.Context(), nil, []store.Put{{Key: state.Prefix + key, Value: []byte(value)}}, nil); err != nil {
			t.Fatal(err)
		}
	}
	put("pools/sbc", `{}`)
	for _, b := range []string{"1", "2"} {
		put("backends/sbc/b"+b, `{"site":"dc1","address":"10.1.1.2`+b+`"}`)
	}
	put("backends/other/b1", `{"site":"dc1","address":"10.1.1.31"}`)
	load := func() *Contents {
		t.Helper()
		have, err := Load(t.Context(), client)
		if err != nil {
			t.Fatal(err)
		}
		return have
	}
	b := func(name string) state.BackendKey { return state.BackendKey{Pool: "sbc", Name: name} }
	ada := Author{By: "ada", Reason: "new disk"}
	drain := func(have *Contents, name string, force bool) (*Change, error) {
		return DrainBackend(have, b(name), ada, force, time.Now())
	}
	commit := func(c *Change, err error) (int64, error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return c.Commit(t.Context(), client, ada)
	}
	refused := func(err, kind error, says string) {
		t.Helper()
		if !errors.Is(err, kind) || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, expected %v: %s", err, kind, says)
		}
	}

	_, err = drain(load(), "b3", false)
	refused(err, ErrNotFound, `backend "sbc/b3"`)
	put("nodes/n", `{"machine_id":"m","site":"dc1","group":"g","ipv4":"10.1.0.11","sync_address":"169.254.1.1","schema":3}`)
	_, err = drain(load(), "b1", false)
	refused(err, ErrPrecondition, "node n knows schema 3, expected 4")
	put("nodes/n", `{"machine_id":"m","site":"dc1","group":"g","ipv4":"10.1.0.11","sync_address":"169.254.1.1","schema":4}`)

	have := load()
	if _, err := commit(drain(have, "b1", false)); err != nil {
		t.Fatal(err)
	}
	_, err = commit(drain(have, "b2", false)) // by somebody who has not seen it
	refused(err, ErrConflict, "drains/sbc/")
	_, err = drain(load(), "b2", false)
	refused(err, ErrPrecondition, "the last one of pool sbc")
	c, err := drain(load(), "b2", true)
	if err != nil || len(c.Notes) != 1 || !strings.Contains(c.Notes[0], "no backend of pool sbc is left") {
		t.Errorf("%v %+v", err, c)
	}
	if c, err := drain(load(), "b1", false); err != nil || !strings.Contains(c.Already, "sbc/b1: drained already: since ") || c.Since == 0 {
		t.Errorf("%v %+v", err, c)
	}
	d := load().BackendDrains[b("b1")]
	if d.By != "ada" || d.Reason != "new disk" || d.Since.IsZero() || d.Switchover != "" {
		t.Errorf("%+v", d)
	}

	_, err = UndrainBackend(load(), b("b2"))
	refused(err, ErrPrecondition, `backend "sbc/b2" is not drained`)
	c, err = UndrainBackend(load(), b("b1"))
	if err != nil || !strings.Contains(c.Done(1), "sbc/b1: back in service; it was drained: since ") {
		t.Fatalf("%v %+v", err, c)
	}
	if _, err := commit(c, nil); err != nil {
		t.Fatal(err)
	}
	if load().Backends[b("b1")].Drained {
		t.Error("it is drained still")
	}

	// A person's drain takes the place of a switchover's, which then leaves it.
	put("drains/sbc/b1", `{"since":"2024-11-22T17:00:00Z","switchover":"x"}`)
	if _, err := commit(drain(load(), "b1", false)); err != nil {
		t.Fatal(err)
	}
	if d := load().BackendDrains[b("b1")]; d.Switchover != "" || d.By != "ada" {
		t.Errorf("%+v", d)
	}
	// What can't be read can be taken back.
	put("drains/sbc/b2", "?")
	if c, err := UndrainBackend(load(), b("b2")); err != nil || !strings.Contains(c.Done(1), "why can't be read") {
		t.Errorf("%v %+v", err, c)
	}
}
