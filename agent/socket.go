package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/medway-lb/medway/agent/internal/local"
	"github.com/medway-lb/medway/pkg/daemon"
	"github.com/medway-lb/medway/pkg/state"

	medwayv1 "github.com/medway-lb/medway/proto/medway/v1"
)

// localAgent is the agent as people on its host see it.
type localAgent struct{ *Agent }

func (a localAgent) Status(ctx context.Context) (local.Status, error) {
	node := a.statusNow()
	if node == nil {
		node = a.withLive(&medwayv1.Status{Node: a.self.Name, Site: a.self.Site, Version: daemon.Version(), Faults: a.diskFaults(a.view())})
	} else {
		a.count(ctx, node)
	}
	out := local.Status{Node: state.Encode(node), VIPs: []string{}, Routes: []local.Route{}, Withdrawn: []local.Withdrawal{}}
	for _, v := range node.Vips {
		out.VIPs = append(out.VIPs, v.Vip)
	}
	out.Snapshot = a.source()
	a.status.mu.Lock()
	routes := a.status.routes
	a.status.mu.Unlock()
	for vip, routes := range routes {
		for _, r := range routes {
			route := local.Route{VIP: vip, Prefix: r.Prefix, MED: r.MED, Prepend: r.Prepend}
			for _, c := range r.Communities {
				route.Communities = append(route.Communities, fmt.Sprintf("%d:%d", c>>16, c&0xffff))
			}
			out.Routes = append(out.Routes, route)
		}
	}
	slices.SortFunc(out.Routes, func(a, b local.Route) int { return a.Prefix.Compare(b.Prefix) })
	for vip, w := range a.handWithdrawals() {
		out.Withdrawn = append(out.Withdrawn, local.Withdrawal{VIP: vip, Since: w.Since, Reason: w.Reason})
	}
	slices.SortFunc(out.Withdrawn, func(a, b local.Withdrawal) int { return strings.Compare(a.VIP, b.VIP) })
	return out, nil
}

// source says what the node acts on.
func (a *Agent) source() local.Snapshot {
	v := a.view()
	out := local.Snapshot{Source: local.FromNowhere, Fresh: v.from == etcd && v.foreign == nil && a.keeper.Fresh()}
	if v.snapshot != nil {
		out.Revision = v.snapshot.Revision
	}
	switch v.from {
	case etcd:
		out.Source = local.FromEtcd
		if t := a.store.Fresh(); !t.IsZero() {
			out.Confirmed = &t
		}
	case disk:
		out.Source, out.Saved = local.FromDisk, &v.saved
	}
	if v.foreign != nil {
		out.NotTaken = v.foreign.Error()
	}
	return out
}

func (a localAgent) Withdraw(o local.Order) (string, error) {
	return a.withdrawVIP(o.VIP, o.Reason, o.Now)
}

func (a localAgent) Resume(vip string) (string, error) { return a.resumeVIP(vip) }

func (a localAgent) Accept() (string, error) {
	if !a.accept() {
		if !a.source().Fresh {
			return "nothing is waiting to be accepted, and etcd can't be reached", nil
		}
		return "etcd's store is the one that this node knows: nothing to accept", nil
	}
	return "etcd's store is taken as it is now", nil
}
