package ipvs

import (
	"context"

	"github.com/medway-lb/medway/pkg/plan"
)

// Counters are 64-bit totals since the object was added. They count real
// traffic only: connections that came by sync are not in Connections. There is
// no outward traffic to count, since in tunnel mode replies don't pass here.
// The kernel adds them up every 2 seconds (linux net/netfilter/ipvs/
// ip_vs_est.c), so they are late by as much.
type Counters struct {
	// Connections is the number of connections scheduled.
	Connections uint64
	// InPackets and InBytes are what clients sent; bytes with IP headers.
	InPackets, InBytes uint64
}

// ServiceStats are the statistics of one virtual service.
type ServiceStats struct {
	Key plan.ServiceKey
	Counters
	Destinations []DestinationStats
}

// DestinationStats are the statistics of one destination.
type DestinationStats struct {
	Key    plan.DestinationKey
	Weight uint32
	// ActiveConns and InactConns are the connections that are now in the
	// table, with those that came by sync.
	ActiveConns, InactConns uint32
	Counters
}

// Stats reads the statistics of all TCP and UDP services. The services are not
// read at the same instant: each is consistent only in itself.
func (k *Kernel) Stats(ctx context.Context) ([]ServiceStats, error) {
	var all []ServiceStats
	err := k.eachService(ctx, func(key plan.ServiceKey, s *service, found []destination) {
		stats := ServiceStats{Key: key, Counters: s.counters}
		for i := range found {
			d := &found[i]
			if dk, ok := destinationKeyToPlan(key, &d.Destination); ok {
				stats.Destinations = append(stats.Destinations, DestinationStats{
					Key:         dk,
					Weight:      uint32(d.Weight),
					ActiveConns: uint32(d.ActiveConnections),
					InactConns:  uint32(d.InactiveConnections),
					Counters:    d.counters,
				})
			}
		}
		all = append(all, stats)
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

// Arrived reads the counters of all TCP and UDP services, without their
// destinations: one request, however many there are.
func (k *Kernel) Arrived(ctx context.Context) (map[plan.ServiceKey]Counters, error) {
	services, err := k.readServices(ctx)
	if err != nil {
		return nil, err
	}
	out := make(map[plan.ServiceKey]Counters, len(services))
	for i := range services {
		if key, ok := serviceKeyToPlan(&services[i].Service); ok {
			out[key] = services[i].counters
		}
	}
	return out, nil
}
