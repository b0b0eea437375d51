package state

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func anyName() *rapid.Generator[string] {
	return rapid.StringMatching(`[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?`)
}

func anyKey() *rapid.Generator[Key] {
	return rapid.Custom(func(t *rapid.T) Key {
		k := Key{Kind: rapid.SampledFrom(slices.Sorted(maps.Keys(names))).Draw(t, "kind")}
		if names[k.Kind] > 0 {
			k.A = anyName().Draw(t, "A")
		}
		if names[k.Kind] > 1 {
			k.B = anyName().Draw(t, "B")
		}
		return k
	})
}

func TestKeyReadsBackAsWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := anyKey().Draw(t, "key")
		got, err := ParseKey(want.String())
		if err != nil || got != want {
			t.Fatalf("%+v became %q, which reads as %+v, %v", want, want, got, err)
		}
	})
}

// TestLayout pins the keys that operators type.
func TestLayout(t *testing.T) {
	for key, want := range map[Key]string{
		{Kind: KindSettings}:                         "/medway/v1/settings",
		{Kind: KindLadder}:                           "/medway/v1/ladder",
		{Kind: KindVIP, A: "sip-1"}:                  "/medway/v1/vips/sip-1",
		{Kind: KindPool, A: "sbc"}:                   "/medway/v1/pools/sbc",
		{Kind: KindBackend, A: "sbc", B: "b1"}:       "/medway/v1/backends/sbc/b1",
		{Kind: KindTarget, A: "sip-1"}:               "/medway/v1/target_state/sip-1",
		{Kind: KindNode, A: "n1"}:                    "/medway/v1/nodes/n1",
		{Kind: KindAlive, A: "n1"}:                   "/medway/v1/alive/n1",
		{Kind: KindLock, A: "sip-1"}:                 "/medway/v1/locks/sip-1",
		{Kind: KindOwner, A: "dc1", B: "sip-1"}:      "/medway/v1/owners/dc1/sip-1",
		{Kind: KindClaim, A: "n1", B: "sip-1"}:       "/medway/v1/claims/n1/sip-1",
		{Kind: KindPool, A: strings.Repeat("a", 63)}: "/medway/v1/pools/" + strings.Repeat("a", 63),
	} {
		if got := key.String(); got != want {
			t.Errorf("%+v: got %q, want %q", key, got, want)
		}
		if got, err := ParseKey(want); err != nil || got != key {
			t.Errorf("%q: got %+v, %v, want %+v", want, got, err, key)
		}
	}
}

func TestBadKeysAreRefused(t *testing.T) {
	for key, want := range map[string]string{
		"":                            "expected a key below /medway/v1/",
		"/medway/v1":                  "expected a key below /medway/v1/",
		"/medway/v2/vips/a":           "expected a key below /medway/v1/",
		"medway/v1/vips/a":            "expected a key below /medway/v1/",
		"/medway/status/n1":           "expected a key below /medway/v1/",
		"/medway/v1/":                 `unknown kind ""`,
		"/medway/v1/vip/a":            `unknown kind "vip"`,
		"/medway/v1/VIPS/a":           `unknown kind "VIPS"`,
		"/medway/v1//vips/a":          `unknown kind ""`,
		"/medway/v1/vips":             `expected 1 names after "vips", found 0`,
		"/medway/v1/vips/a/b":         `expected 1 names after "vips", found 2`,
		"/medway/v1/settings/":        `expected 0 names after "settings", found 1`,
		"/medway/v1/backends/a":       `expected 2 names after "backends", found 1`,
		"/medway/v1/backends/a/b/":    `expected 2 names after "backends", found 3`,
		"/medway/v1/vips/":            `name ""`,
		"/medway/v1/backends//b":      `name ""`,
		"/medway/v1/vips/Sip":         `name "Sip"`,
		"/medway/v1/vips/-a":          `name "-a"`,
		"/medway/v1/vips/a-":          `name "a-"`,
		"/medway/v1/vips/a\n":         `name "a\n"`,
		"/medway/v1/vips/a b":         `name "a b"`,
		"/medway/v1/vips/a.b":         `name "a.b"`,
		"/medway/v1/vips/\xff":        `name "\xff"`,
		"/medway/v1/vips/..":          `name ".."`,
		"/medway/v1/vips/\u00e9":      "1 to 63 of a-z",
		"/medway/v1/vips/" + long(64): "1 to 63 of a-z",
	} {
		k, err := ParseKey(key)
		if err == nil {
			t.Errorf("%q: accepted as %+v", key, k)
			continue
		}
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %q, expected it to contain %q", key, err, want)
		}
	}
}

// TestErrorsStayShort: a fault goes into every node's status.
func TestErrorsStayShort(t *testing.T) {
	if _, err := ParseKey(Prefix + "vips/" + long(1<<20)); err == nil || len(err.Error()) > maxErrorText {
		t.Errorf("an error of %d bytes, expected at most 400", len(err.Error()))
	}
}

func long(n int) string { return strings.Repeat("a", n) }

func FuzzParseKey(f *testing.F) {
	for _, seed := range []string{
		"", Prefix, Prefix + "settings", Prefix + "vips/sip-1", Prefix + "backends/sbc/b1", Prefix + "vips//", Prefix + "owners/dc1/\x00",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, key string) {
		k, err := ParseKey(key)
		switch {
		case err != nil:
			demandPrintable(t, err.Error())
		case k.String() != key:
			t.Errorf("%q reads as %+v, which is %q", key, k, k)
		}
		demandPrintable(t, Printable(key))
	})
}
