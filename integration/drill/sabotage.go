package drill

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/medway-lb/medway/integration/lab"
)

// A Sabotage takes away one thing that switching rests on, behind the agents'
// backs. A drill with one must lose calls: a proof that can't fail proves
// nothing.
type Sabotage struct {
	what string
	// settings are loaded in place of the lab's own.
	settings string
	// commands are run on every LVS host before the calls.
	commands []string
	// forget waits until the other site has forgotten the calls.
	forget bool
}

// Sabotages by the name of what is missing. Agents mend what differs from
// their plan at the next resync, so that is put off; the timeout only serves to
// see the settings arrive in the kernel.
var Sabotages = map[string]Sabotage{
	"tee": {
		what:     "no TEE rules: sync messages stay in their site",
		settings: "resync_interval: 1h\ntimeouts: {udp: 301s}\n",
		commands: []string{"iptables -t mangle -F MEDWAY-SYNC-OUT"},
	},
	"sync": {
		what:     "no sync daemons",
		settings: "resync_interval: 1h\ntimeouts: {udp: 301s}\n",
		commands: []string{"ipvsadm --stop-daemon master", "ipvsadm --stop-daemon backup"},
	},
	"refresh": {
		what: "the kernel's own sync_threshold, 3 50: a quiet connection is not synced again before it runs out",
		settings: "timeouts: {tcp: 12s, udp: 301s}\n" +
			`sysctls: {net.ipv4.vs.sync_threshold: "3 50", net.ipv4.vs.sync_refresh_period: "0"}` + "\n",
		forget: true,
	},
}

// SabotageNames lists them, for help texts.
func SabotageNames() string {
	return strings.Join(slices.Sorted(maps.Keys(Sabotages)), ", ")
}

// prepare strikes before the calls are made.
func (s Sabotage) prepare(ctx context.Context, l *lab.Lab) error {
	if err := ApplySettings(ctx, l, s.settings); err != nil {
		return err
	}
	for _, host := range l.Topology().Role(lab.RoleLVS) {
		for _, command := range s.commands {
			if _, err := l.Output(ctx, host.Name, strings.Fields(command)...); err != nil {
				return err
			}
		}
	}
	return nil
}

// waitForgotten waits until a site has no connection of the calls any more.
func waitForgotten(ctx context.Context, l *lab.Lab, kinds []Traffic, site string) error {
	return Until(ctx, time.Minute, func() error {
		for _, host := range l.Topology().Role(lab.RoleLVS) {
			if host.Site != site {
				continue
			}
			entries, err := connections(ctx, l, host.Name, kinds)
			if err != nil {
				return err
			}
			for i, n := range entries {
				if n > 0 {
					return fmt.Errorf("%s still has %d connections of %s", host.Name, n, kinds[i])
				}
			}
		}
		return nil
	})
}

// ApplySettings loads settings, as YAML without kind, beside the lab's own
// normalise_after and settle, and waits until every agent has brought its
// kernel in line. They must change an IPVS timeout: by that their run is told
// from one of an earlier plan, which may still be under way.
func ApplySettings(ctx context.Context, l *lab.Lab, settings string) error {
	text := "kind: Settings\nnormalise_after: 3s\nsettle: 2s\n" + settings
	if err := os.WriteFile(filepath.Join(l.IntentDir(), "settings.yaml"), []byte(text), 0o644); err != nil {
		return err
	}
	before := map[string]int{}
	hosts := l.Topology().Role(lab.RoleLVS)
	for _, host := range hosts {
		before[host.Name] = timeoutsSet(l, host.Name)
	}
	if err := l.Apply(ctx); err != nil {
		return err
	}
	return Until(ctx, time.Minute, func() error {
		for _, host := range hosts {
			if timeoutsSet(l, host.Name) == before[host.Name] {
				return fmt.Errorf("%s has not taken up the settings", host.Name)
			}
		}
		return nil
	})
}

// timeoutsSet counts the timeouts that an agent has set. Its log tells what a run
// did when all of it is done.
func timeoutsSet(l *lab.Lab, host string) int {
	text, err := os.ReadFile(filepath.Join(l.Dir(), host, "agent.log"))
	if err != nil {
		return 0
	}
	return strings.Count(string(text), "ipvsadm --set ")
}

// Until tries until there is no error, with a deadline; then it returns the
// last error.
func Until(ctx context.Context, limit time.Duration, try func() error) error {
	deadline := time.Now().Add(limit)
	for {
		err := try()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("after %s: %w", limit, err)
		}
		if stopped := wait(ctx, 200*time.Millisecond); stopped != nil {
			return errors.Join(stopped, err)
		}
	}
}
