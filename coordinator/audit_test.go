package coordinator

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/proto/medway/v1/medwayv1connect"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// TestAudit: what was done, refused, granted and revoked is in the history with who, when,
// from where and why; by pages and as a whole.
func TestAudit(t *testing.T) {
	w := newWorld(t)
	ctx := w.context()
	c := w.with(w.allow(Permission{Name: "alice", Role: "admin"}))
	w.node("n1", "dc1", "10.1.0.11", 1)
	w.node("n2", "dc2", "10.2.0.11", 2)
	intent := apply(intentText)
	intent.Msg.Reason = "first set-up"
	if _, err := c.Apply(ctx, intent); err != nil {
		t.Fatal(err)
	}
	w.write("/medway/v1/target_state/sip-1", "dc1")
	w.refused("the preflight", connect.CodeFailedPrecondition, "refused, nothing was written: sip-1: ", func() error {
		_, err := c.Switch(ctx, connect.NewRequest(&medwayv1.SwitchRequest{Vip: "sip-1", From: "dc1", To: "dc2", Reason: "power work"}))
		return err
	})
	w.refused("an evacuation's preflight", connect.CodeFailedPrecondition, "refused, nothing was written: sip-1: ", func() error {
		_, err := c.Evacuate(ctx, connect.NewRequest(&medwayv1.EvacuateRequest{Site: "dc1", Reason: "power work"}))
		return err
	})
	if _, err := Allow(ctx, w.config, Permission{Name: "bob", Role: "operator", VIPs: []string{"sip-1"}}); err != nil {
		t.Fatal(err)
	}
	if err := Revoke(ctx, w.config, "bob"); err != nil {
		t.Fatal(err)
	}
	all, err := c.GetHistory(ctx, connect.NewRequest(&medwayv1.GetHistoryRequest{Vip: "sip-1"}))
	if err != nil || all.Msg.NextPageToken != "" {
		t.Fatal(all, err)
	}
	lines := func(events []*medwayv1.PastEvent) (out []string) {
		for _, e := range events {
			if at, err := time.Parse(time.RFC3339Nano, e.Event.At); err != nil || time.Since(at) > patience {
				t.Errorf("%v: %v", e, err)
			}
			out = append(out, fmt.Sprintf("%s %s|%s|%s|%s|%.40s", e.Vip, e.Event.What, e.Event.By, e.Event.FromAddress, e.Event.Reason, e.Event.Result))
		}
		return out
	}
	me := whoami()
	want := []string{
		" grant alice: admin, with a token|" + me + "|||",
		" apply Pool sbc, Backend sbc/b1, VIP sip-1|alice|127.0.0.1|first set-up|",
		"sip-1 switch|alice|127.0.0.1|power work|refused, nothing was written: sip-1: ",
		" evacuate dc1|alice|127.0.0.1|power work|refused, nothing was written: sip-1: ",
		" grant bob: operator of sip-1|" + me + "|||",
		" revoke bob|" + me + "|||",
	}
	for i, line := range lines(all.Msg.Events) {
		if i >= len(want) || !strings.HasPrefix(line, want[i]) {
			t.Errorf("event %d is %q", i, line)
		}
	}
	if len(all.Msg.Events) != len(want) {
		t.Errorf("%d events", len(all.Msg.Events))
	}

	// Page by page, and as a stream.
	var paged []*medwayv1.PastEvent
	request := &medwayv1.GetHistoryRequest{Last: 4}
	for {
		page, err := c.GetHistory(ctx, connect.NewRequest(request))
		if err != nil || len(page.Msg.Events) > 4 {
			t.Fatal(page, err)
		}
		paged = append(page.Msg.Events, paged...)
		if request.PageToken = page.Msg.NextPageToken; request.PageToken == "" {
			break
		}
	}
	if !slices.Equal(lines(paged), lines(all.Msg.Events)) {
		t.Errorf("the pages are %q", lines(paged))
	}
	if got := lines(w.exported(c, &medwayv1.ExportHistoryRequest{})); !slices.Equal(got, lines(all.Msg.Events)) {
		t.Errorf("the export is %q", got)
	}
	if got := w.exported(c, &medwayv1.ExportHistoryRequest{Vip: "sip-1", Since: all.Msg.Events[4].Event.At}); len(got) != 2 {
		t.Errorf("the export since bob is %q", lines(got))
	}
	w.refused("a page token", connect.CodeInvalidArgument, "field page_token", func() error {
		_, err := c.GetHistory(ctx, connect.NewRequest(&medwayv1.GetHistoryRequest{PageToken: "x"}))
		return err
	})
	// What of it can't be read is told all the same.
	w.write(state.HistoryOf("sip-1")+"2026-11-25T02:00:00.000000000Z", "garbage")
	if got := w.exported(c, &medwayv1.ExportHistoryRequest{Vip: "sip-1"}); len(got) != 7 || !strings.HasPrefix(got[0].Event.What, "can't be read: ") || got[0].Event.At != "2026-11-25T02:00:00.000000000Z" {
		t.Errorf("garbage: %q", lines(got))
	}
}

// exported is the history as a stream.
func (w *world) exported(c medwayv1connect.CoordinatorClient, r *medwayv1.ExportHistoryRequest) (out []*medwayv1.PastEvent) {
	w.t.Helper()
	stream, err := c.ExportHistory(w.context(), connect.NewRequest(r))
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = stream.Close() }()
	for stream.Receive() {
		out = append(out, stream.Msg())
	}
	if err := stream.Err(); err != nil {
		w.t.Fatal(err)
	}
	return out
}

// TestWhatDoesNotExist: every method that names a VIP, a site or a node says not_found,
// and which field it was.
func TestWhatDoesNotExist(t *testing.T) {
	w := newWorld(t)
	ctx := w.context()
	c := w.with(w.allow(Permission{Name: "alice", Role: "admin"}))
	if _, err := c.Apply(ctx, apply(intentText)); err != nil {
		t.Fatal(err)
	}
	w.write("/medway/v1/target_state/sip-1", "dc1")
	vip := func() *connect.Request[medwayv1.VIPRequest] {
		return connect.NewRequest(&medwayv1.VIPRequest{Vip: "sip-9", Reason: "x"})
	}
	node := func() *connect.Request[medwayv1.NodeRequest] {
		return connect.NewRequest(&medwayv1.NodeRequest{Node: "n9", Reason: "x"})
	}
	order := func(vip, from, to string) *connect.Request[medwayv1.SwitchRequest] {
		return connect.NewRequest(&medwayv1.SwitchRequest{Vip: vip, From: from, To: to})
	}
	tested := map[string]bool{}
	for _, test := range []struct {
		method, field, value string
		call                 func() error
	}{
		{"GetHistory", "vip", "sip-9", func() error {
			_, err := c.GetHistory(ctx, connect.NewRequest(&medwayv1.GetHistoryRequest{Vip: "sip-9"}))
			return err
		}},
		{"GetHistory", "vip", "../x", func() error {
			_, err := c.GetHistory(ctx, connect.NewRequest(&medwayv1.GetHistoryRequest{Vip: "../x"}))
			return err
		}},
		{"ExportHistory", "vip", "sip-9", func() error {
			stream, err := c.ExportHistory(ctx, connect.NewRequest(&medwayv1.ExportHistoryRequest{Vip: "sip-9"}))
			if err != nil {
				return err
			}
			defer func() { _ = stream.Close() }()
			for stream.Receive() {
			}
			return stream.Err()
		}},
		{"Preflight", "vip", "sip-9", func() error { _, err := c.Preflight(ctx, order("sip-9", "dc1", "dc2")); return err }},
		{"Preflight", "from", "dc9", func() error { _, err := c.Preflight(ctx, order("sip-1", "dc9", "dc2")); return err }},
		{"Switch", "vip", "sip-9", func() error { _, err := c.Switch(ctx, order("sip-9", "dc1", "dc2")); return err }},
		{"Switch", "to", "dc9", func() error { _, err := c.Switch(ctx, order("sip-1", "dc1", "dc9")); return err }},
		{"Cancel", "vip", "sip-9", func() error {
			_, err := c.Cancel(ctx, connect.NewRequest(&medwayv1.CancelRequest{Vip: "sip-9"}))
			return err
		}},
		{"Evacuate", "site", "dc9", func() error {
			_, err := c.Evacuate(ctx, connect.NewRequest(&medwayv1.EvacuateRequest{Site: "dc9"}))
			return err
		}},
		{"Evacuate", "to", "dc9", func() error {
			_, err := c.Evacuate(ctx, connect.NewRequest(&medwayv1.EvacuateRequest{Site: "dc1", To: "dc9"}))
			return err
		}},
		{"CancelEvacuation", "site", "dc9", func() error {
			_, err := c.CancelEvacuation(ctx, connect.NewRequest(&medwayv1.CancelEvacuationRequest{Site: "dc9"}))
			return err
		}},
		{"Unlock", "vip", "sip-9", func() error { _, err := c.Unlock(ctx, vip()); return err }},
		{"Pause", "vip", "sip-9", func() error { _, err := c.Pause(ctx, vip()); return err }},
		{"Resume", "vip", "sip-9", func() error { _, err := c.Resume(ctx, vip()); return err }},
		{"Drain", "node", "n9", func() error { _, err := c.Drain(ctx, node()); return err }},
		{"Undrain", "node", "n9", func() error { _, err := c.Undrain(ctx, node()); return err }},
		{"Forget", "node", "n9", func() error {
			return forgotten(ctx, c, &medwayv1.ForgetRequest{Node: "n9", Reason: "x", RoutersChecked: true, RoutersKeep: "1s"})
		}},
	} {
		tested[test.method] = true
		what := test.method + " " + test.value
		w.refused(what, connect.CodeNotFound, test.value, func() error {
			err := test.call()
			if f := detailOf[*medwayv1.FieldViolation](err); f.GetField() != test.field || f.GetFound() != fmt.Sprintf("value %q", test.value) {
				t.Errorf("%s: the detail of %v is %v", what, err, f)
			}
			return err
		})
	}
	methods := medwayv1.File_medway_v1_api_proto.Services().ByName("Coordinator").Methods()
	for i := range methods.Len() {
		name := string(methods.Get(i).Name())
		fields := methods.Get(i).Input().Fields()
		names := fields.ByName("vip") != nil || fields.ByName("site") != nil || fields.ByName("node") != nil
		if names != tested[name] {
			t.Errorf("%s names something: %v, and is tested: %v", name, names, tested[name])
		}
	}
}
