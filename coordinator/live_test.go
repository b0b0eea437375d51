package coordinator

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestANodeSpeaksForItselfAlone: an answer without a status, or with another node's, is
// none.
func TestANodeSpeaksForItselfAlone(t *testing.T) {
	text := ""
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) }))
	defer server.Close()
	for _, test := range []struct{ answer, wrong string }{
		{`{"status":{"node":"n1"},"in_plan":true,"of_a_newer_agent":1}`, ""},
		{`{}`, `field status.node: value "": expected n1`},
		{`{"status":{"node":"n2"}}`, `field status.node: value "n2": expected n1`},
		{`[]`, "unexpected token"},
	} {
		text = test.answer
		live, err := question(t.Context(), server.Client(), "n1", server.URL)
		if (err == nil) != (test.wrong == "") || err == nil && live.Status.Node != "n1" || err != nil && !strings.Contains(err.Error(), test.wrong) {
			t.Errorf("%s: %v, %v", test.answer, live, err)
		}
	}
}
