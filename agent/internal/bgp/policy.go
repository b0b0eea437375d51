package bgp

import (
	"context"
	"fmt"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/server"
)

// localPref is what internal neighbours get (the usual default), and what our
// own routes bear inside GoBGP, with the number of prepends added.
const localPref = 100

// setPolicies makes GoBGP refuse every route that isn't our own, and prepend
// towards external neighbours only.
func (c Config) setPolicies(ctx context.Context, srv *server.BgpServer) error {
	accept := api.RouteAction_ROUTE_ACTION_ACCEPT
	internal := &api.DefinedSet{DefinedType: api.DefinedType_DEFINED_TYPE_NEIGHBOR, Name: "internal"}
	for _, n := range c.Neighbors {
		if c.internal(n) {
			internal.List = append(internal.List, n.Address.String()+"/"+fmt.Sprint(n.Address.BitLen()))
		}
	}
	export := &api.Policy{Name: "prepend"}
	if len(internal.List) > 0 {
		if err := srv.AddDefinedSet(ctx, &api.AddDefinedSetRequest{DefinedSet: internal}); err != nil {
			return fmt.Errorf("bgp: export policy: %w", err)
		}
		export.Statements = append(export.Statements, &api.Statement{
			Name: "internal",
			Conditions: &api.Conditions{
				NeighborSet: &api.MatchSet{Type: api.MatchSet_TYPE_ANY, Name: internal.Name},
			},
			Actions: &api.Actions{RouteAction: accept, LocalPref: &api.LocalPrefAction{Value: localPref}},
		})
	}
	for n := uint32(1); n <= maxPrepend; n++ {
		export.Statements = append(export.Statements, &api.Statement{
			Name:       fmt.Sprintf("prepend-%d", n),
			Conditions: &api.Conditions{LocalPrefEq: &api.LocalPrefEq{Value: localPref + n}},
			Actions:    &api.Actions{RouteAction: accept, AsPrepend: &api.AsPrependAction{Asn: c.AS, Repeat: n}},
		})
	}
	if err := assign(ctx, srv, api.PolicyDirection_POLICY_DIRECTION_EXPORT, export, accept); err != nil {
		return fmt.Errorf("bgp: export policy: %w", err)
	}
	// The import policy is applied to our own routes too.
	own := &api.Policy{Name: "local-only", Statements: []*api.Statement{{
		Name:       "local",
		Conditions: &api.Conditions{RouteType: api.Conditions_ROUTE_TYPE_LOCAL},
		Actions:    &api.Actions{RouteAction: accept},
	}}}
	err := assign(ctx, srv, api.PolicyDirection_POLICY_DIRECTION_IMPORT, own, api.RouteAction_ROUTE_ACTION_REJECT)
	if err != nil {
		return fmt.Errorf("bgp: import policy: %w", err)
	}
	return nil
}

func assign(ctx context.Context, srv *server.BgpServer, direction api.PolicyDirection, p *api.Policy, otherwise api.RouteAction) error {
	if err := srv.AddPolicy(ctx, &api.AddPolicyRequest{Policy: p}); err != nil {
		return err
	}
	return srv.SetPolicyAssignment(ctx, &api.SetPolicyAssignmentRequest{Assignment: &api.PolicyAssignment{
		Name: "global", Direction: direction, Policies: []*api.Policy{{Name: p.Name}}, DefaultAction: otherwise,
	}})
}
