package operation

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/medway-lb/medway/pkg/intent"
	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"
	"github.com/medway-lb/medway/pkg/store/etcdtest"
)

// TestWhatIsWrittenInPartIsToldSo: of more objects than one transaction takes, somebody
// else has changed the last one since it was read; and of few, one that was only to stay.
func TestWhatIsWrittenInPartIsToldSo(t *testing.T) {
	url, _ := etcdtest.Start(t, "http")
	client, err := store.Open(store.Config{Endpoints: []string{url}})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	text := "kind: Pool\nname: sbc\n"
	for i := range 200 {
		text += fmt.Sprintf("---\nkind: Backend\npool: sbc\nname: b%03d\nsite: dc1\naddress: 10.9.0.%d\n", i, 1+i)
	}
	read := func(text string) *Applying {
		t.Helper()
		objects, err := intent.Parse("test", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		have, err := Load(t.Context(), client)
		if err != nil {
			t.Fatal(err)
		}
		a, err := Apply(have, objects, nil)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	put := func(key, value string) {
		t.Helper()
		if _, _, err := client.Commit(t.Context(), nil, []store.Put{{Key: state.Prefix + key, Value: []byte(value)}}, nil); err != nil {
			t.Fatal(err)
		}
	}
	a := read(text)
	put("backends/sbc/b199", `{"site":"dc2","address":"10.9.0.200"}`)
	if _, err := a.Write(t.Context(), client, Author{By: "alice"}); !errors.Is(err, ErrPartly) || errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), "127 of 201 objects were written") {
		t.Errorf("%v", err)
	}

	few := "kind: Pool\nname: sbc\n---\nkind: Backend\npool: sbc\nname: b000\nsite: dc1\naddress: 10.9.1.1\n"
	a = read(few)
	if err := a.Expect(map[string]int64{"pools/sbc": a.have.Entries[state.Prefix+"pools/sbc"].ModRevision}); err != nil {
		t.Fatal(err)
	}
	put("pools/sbc", `{"scheduler":"rr"}`)
	if _, err := a.Write(t.Context(), client, Author{By: "alice"}); !errors.Is(err, ErrConflict) {
		t.Errorf("a pool that was to stay was changed: %v", err)
	}
	if e, _, err := client.Get(t.Context(), state.Prefix+"backends/sbc/b000"); err != nil || strings.Contains(string(e.Value), "10.9.1.1") {
		t.Errorf("%s, %v", e.Value, err)
	}
}
