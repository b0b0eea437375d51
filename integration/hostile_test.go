package integration

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/medway-lb/medway/integration/drill"
	"github.com/medway-lb/medway/integration/hostile"
	"github.com/medway-lb/medway/integration/lab"
	"github.com/medway-lb/medway/pkg/state"
)

// atKey is how many bad values each key gets: one put takes a process start, and
// an emulated processor takes its time for that.
const atKey = 16

// TestLabHostileValues: more than 200 bad values are put into the running lab
// with etcdctl, one by one, under calls. Nothing on the hosts or on the wire
// changes, `medwayctl status` names each key and says what is wrong, and the
// calls can be switched as if nothing had been.
func TestLabHostileValues(t *testing.T) {
	l := up(t)
	report, err := drill.Run(t.Context(), l, drill.Options{
		Calls: 20, Dir: t.TempDir(), Story: t.Output(),
		Before: func(ctx context.Context) error { return spoil(ctx, t, l) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("\n%s", report.Summary())
	for _, fault := range report.Faults() {
		t.Error(fault)
	}
}

// spoil puts the values, and then what was there before.
func spoil(ctx context.Context, t *testing.T, l *lab.Lab) error {
	before, err := stored(ctx, l)
	if err != nil {
		return err
	}
	watching, stop := context.WithCancel(ctx)
	defer stop()
	events, err := l.FollowRoutes(watching)
	if err != nil {
		return err
	}
	kernels, saw := map[string]string{}, map[string]func() []string{}
	for _, node := range hosts {
		kernels[node], saw[node] = kernel(t, l, node), watch(t, l, node)
	}

	count := 0
	for _, round := range rounds() {
		for _, c := range round {
			if err := putHostile(ctx, l, c); err != nil {
				return fmt.Errorf("%s: %w", c.Name, err)
			}
			count++
		}
		if err := drill.Until(ctx, settleTime, func() error { return named(ctx, l, round) }); err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d bad values were put", count)
	if count < 200 {
		t.Errorf("%d bad values were put, expected at least 200", count)
	}

	for node, look := range saw {
		for _, line := range look() {
			t.Errorf("%s: under bad values %s", node, line)
		}
		if now := kernel(t, l, node); now != kernels[node] {
			t.Errorf("%s: bad values changed the kernel:\n%s\nbecame\n%s", node, kernels[node], now)
		}
	}
	stop()
	for e := range events {
		t.Errorf("a route moved under bad values: %+v", e)
	}
	return restore(ctx, t, l, before)
}

// rounds are the cases whose promise is that nothing changes, in rounds that hold
// each key at most once, so that one look at the status tells of all of them.
func rounds() [][]hostile.Case {
	byKey := map[string][]hostile.Case{}
	for _, c := range hostile.Cases() {
		if _, _, ok := c.Etcdctl(); ok && c.Effect == hostile.Nothing {
			byKey[c.Key] = append(byKey[c.Key], c)
		}
	}
	out := make([][]hostile.Case, atKey)
	for _, key := range slices.Sorted(maps.Keys(byKey)) {
		cases := byKey[key]
		n := min(atKey, len(cases))
		for i := range n {
			out[i] = append(out[i], cases[i*len(cases)/n])
		}
	}
	return out
}

func putHostile(ctx context.Context, l *lab.Lab, c hostile.Case) error {
	args, stdin, _ := c.Etcdctl()
	// A megabyte takes emulated servers longer than they give themselves.
	return drill.Until(ctx, settleTime, func() error {
		cmd := l.Command(ctx, lab.Witness, append([]string{filepath.Join(l.BinDir(), "etcdctl"), "--command-timeout=30s"}, args...)...)
		cmd.Stdin = bytes.NewReader(stdin)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("etcdctl put %.100q: %w: %s", c.Key, err, out)
		}
		return nil
	})
}

// agentKeys are kept by the agents themselves: what is put there by hand is
// written anew at once, and its fault is gone before anybody looks.
func agentKeys(key string) bool {
	k, err := state.ParseKey(key)
	return err == nil && (slices.Contains([]state.Kind{state.KindNode, state.KindAlive, state.KindClaim, state.KindOwner}, k.Kind) ||
		k.Kind == state.KindJoined && slices.Contains(hosts, k.A))
}

// named says which case's fault a host does not show with all its words.
func named(ctx context.Context, l *lab.Lab, cases []hostile.Case) error {
	faults, err := shownFaults(ctx, l)
	if err != nil {
		return err
	}
	for _, c := range cases {
		if agentKeys(c.Key) {
			continue
		}
		for _, node := range hosts {
			if !slices.ContainsFunc(faults[node][c.FaultKey()], func(reason string) bool {
				return !slices.ContainsFunc(c.Words, func(word string) bool { return !strings.Contains(reason, word) })
			}) {
				return fmt.Errorf("%s: medwayctl status of %s names %.200q with %q, expected %q", c.Name, node, c.FaultKey(), faults[node][c.FaultKey()], c.Words)
			}
		}
	}
	return nil
}

// shownFaults are the reasons that `medwayctl status` gives, by host and key.
func shownFaults(ctx context.Context, l *lab.Lab) (map[string]map[string][]string, error) {
	out, err := l.Output(ctx, lab.Witness, filepath.Join(l.BinDir(), "medwayctl"), "--command-timeout", "30s", "status", "-o", "json")
	if err != nil {
		return nil, err
	}
	var status struct {
		Nodes []struct {
			Node   string
			Faults []struct{ Subject, Reason string }
		}
	}
	if err := json.Unmarshal([]byte(out), &status); err != nil {
		return nil, fmt.Errorf("medwayctl status -o json: %w\n%.500s", err, out)
	}
	faults := map[string]map[string][]string{}
	for _, n := range status.Nodes {
		faults[n.Node] = map[string][]string{}
		for _, f := range n.Faults {
			faults[n.Node][f.Subject] = append(faults[n.Node][f.Subject], f.Reason)
		}
	}
	return faults, nil
}

// stored is what etcd holds below the agents' prefix.
func stored(ctx context.Context, l *lab.Lab) (map[string][]byte, error) {
	out, err := l.Output(ctx, lab.Witness, filepath.Join(l.BinDir(), "etcdctl"), "--command-timeout=30s", "get", "--prefix", state.Prefix, "-w", "json")
	if err != nil {
		return nil, err
	}
	var answer struct{ Kvs []struct{ Key, Value string } }
	if err := json.Unmarshal([]byte(out), &answer); err != nil {
		return nil, err
	}
	values := map[string][]byte{}
	for _, kv := range answer.Kvs {
		key, errKey := base64.StdEncoding.DecodeString(kv.Key)
		value, errValue := base64.StdEncoding.DecodeString(kv.Value)
		if err := cmp.Or(errKey, errValue); err != nil {
			return nil, err
		}
		values[string(key)] = value
	}
	return values, nil
}

// restore puts every value that is not the agents' own back, and waits until no
// host shows a fault and the agents have put their own right.
func restore(ctx context.Context, t *testing.T, l *lab.Lab, before map[string][]byte) error {
	now, err := stored(ctx, l)
	if err != nil {
		return err
	}
	for key, value := range now {
		old, was := before[key]
		if bytes.Equal(old, value) && was || agentKeys(key) && was {
			continue
		}
		command := []string{"del", "--", key}
		if was {
			command = []string{"put", "--", key, string(old)}
		}
		if _, err := l.Output(ctx, lab.Witness, append([]string{filepath.Join(l.BinDir(), "etcdctl"), "--command-timeout=30s"}, command...)...); err != nil {
			return err
		}
	}
	for key, value := range before {
		if _, there := now[key]; !there {
			t.Errorf("%s is gone, it was %s", key, value)
		}
	}
	return drill.Until(ctx, settleTime, func() error {
		faults, err := shownFaults(ctx, l)
		if err != nil {
			return err
		}
		for node, list := range faults {
			if len(list) > 0 {
				return fmt.Errorf("%s still shows faults: %v", node, list)
			}
		}
		now, err := stored(ctx, l)
		if err != nil {
			return err
		}
		var errs []error
		for key, value := range before {
			// An alive key tells of sessions, which may have changed.
			if !strings.HasPrefix(key, state.Prefix+string(state.KindAlive)) && !bytes.Equal(now[key], value) {
				errs = append(errs, fmt.Errorf("%s is %.200q, it was %.200q", key, now[key], value))
			}
		}
		return errors.Join(errs...)
	})
}
