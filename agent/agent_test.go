package agent

import "testing"

const (
	poolValue    = `{"scheduler":"sed"}`
	backendValue = `{"site":"dc1","address":"10.1.1.21"}`
	vipValue     = `{"addresses":["203.0.113.10"],"services":[{"protocol":"tcp","port":5060,"pool":"sbc"}],` +
		`"groups":{"dc1":"dc1-edge1","dc2":"dc2-edge1"}}`
	settingsValue = `{"settle":"200ms","normalise_after":"1s","resync_interval":"1s"}`
)

func TestAnAgentBecomesActiveAndFollowsTheTarget(t *testing.T) {
	etcd := newServer(t)
	c := etcd.open(t)
	put(t, c, "settings", settingsValue, "pools/sbc", poolValue, "backends/sbc/b1", backendValue,
		"vips/v", vipValue, "target_state/v", "dc1")
	f := newFakes()
	_, _ = run(t, testConfig(t, "dc1-lvs-a", "dc1", etcd.client), f.host())
	eventually(t, "active", func() bool { return f.speaker.routes() == "203.0.113.10/32 100" })
	put(t, c, "target_state/v", "dc2")
	// Nobody is there to take over: it stays.
	f2 := newFakes()
	_, _ = run(t, testConfig(t, "dc2-lvs-a", "dc2", etcd.client), f2.host())
	eventually(t, "the new site is active", func() bool { return f2.speaker.routes() == "203.0.113.10/32 100" })
	eventually(t, "the old one is backup", func() bool { return f.speaker.routes() == "203.0.113.10/32 500" })
}
