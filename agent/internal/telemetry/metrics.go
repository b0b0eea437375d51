package telemetry

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"
)

// The metrics of a node; docs/telemetry.md explains them.
var (
	vipConnections = describe("vip_connections", "Connections in the node's table, those that it knows by sync among them.", "vip", "state")
	vipPackets     = describe("vip_packets_per_second", "Packets a second of established connections that came to the VIP on this node.", "vip")
	vipMED         = describe("vip_med", "MED announced; absent where the VIP is not announced.", "vip")
	vipRole        = describe("vip_role", "1 for the role that the node has for the VIP.", "vip", "role", "target")
	bgpSession     = describe("bgp_session_established", "1 while the BGP session is established.", "neighbor")
	nodeFaults     = describe("faults", "Things that are wrong and that a person should see.", "subject")
	nodeInPlan     = describe("kernel_in_plan", "1 while the kernel is as planned.")
	nodeCold       = describe("cold", "1 while the connection table has not caught up.")
	nodeReady      = describe("ready", "1 once other nodes can count on this one.")
	nodeRevision   = describe("revision", "Revision of etcd that the node acts on.")
	nodeDrift      = describe("drift_mended_total", "Changes of others in the kernel that the agent has put right.")
	nodeInfo       = describe("agent_info", "Always 1.", "node", "site", "version")
)

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("medway_"+name, help, labels, nil)
}

// collector makes metrics of the source's live numbers when they are asked for.
type collector struct{ source Source }

// Describe tells nothing in advance: which metrics there are depends on the VIPs.
func (c collector) Describe(chan<- *prometheus.Desc) {}

func (c collector) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), requestTime)
	defer cancel()
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	live := c.source.Live(ctx)
	gauge(nodeInPlan, number(live.InPlan))
	gauge(nodeCold, number(live.Cold != ""))
	gauge(nodeReady, number(c.source.Unready() == ""))
	out <- prometheus.MustNewConstMetric(nodeDrift, prometheus.CounterValue, float64(live.GetStatus().GetDrift().GetMended()))
	s := live.GetStatus()
	gauge(nodeRevision, float64(s.GetRevision()))
	gauge(nodeInfo, 1, s.GetNode(), s.GetSite(), s.GetVersion())
	for _, v := range s.GetVips() {
		gauge(vipConnections, float64(v.ActiveConnections), v.Vip, "active")
		gauge(vipConnections, float64(v.InactiveConnections), v.Vip, "inactive")
		gauge(vipRole, 1, v.Vip, v.Role, v.Target)
		if v.PacketsPerSecond != nil {
			gauge(vipPackets, float64(*v.PacketsPerSecond), v.Vip)
		}
		if v.Med != nil {
			gauge(vipMED, float64(*v.Med), v.Vip)
		}
	}
	for _, session := range s.GetSessions() {
		gauge(bgpSession, number(session.Established), session.Neighbor)
	}
	faults := map[string]float64{}
	for _, f := range s.GetFaults() {
		faults[f.Subject]++
	}
	for subject, n := range faults {
		gauge(nodeFaults, n, subject)
	}
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
