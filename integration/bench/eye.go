package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/moby/ipvs"
	"golang.org/x/sys/unix"
)

// eye looks at the kernel's table, one service at a time: the same way whoever
// makes it, and cheaper than starting ipvsadm.
type eye struct{ *ipvs.Handle }

// glance is how often the eye looks at what is not yet there: the resolution of
// its figures.
const glance = 2 * time.Millisecond

func newEye() (*eye, error) {
	h, err := ipvs.New("")
	if err != nil {
		return nil, fmt.Errorf("IPVS: %w", err)
	}
	return &eye{h}, nil
}

// weights are those of a service's destinations by address; none where there is
// no such service yet.
func (e *eye) weights(s service) (map[string]int, error) {
	found, err := e.GetDestinations(&ipvs.Service{
		Address: vipAddress(s.vip).AsSlice(), Port: s.port(), Protocol: unix.IPPROTO_TCP, AddressFamily: unix.AF_INET,
	})
	if err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("destinations of %s: %w", s.address(), err)
	}
	weights := map[string]int{}
	for _, d := range found {
		weights[d.Address.String()] = d.Weight
	}
	return weights, nil
}

// loaded waits until every service has all its destinations, and returns when
// the last one that had to be waited for was complete.
func (e *eye) loaded(ctx context.Context, order []service) (time.Time, error) {
	var at time.Time
	for _, s := range order {
		waited := false
		err := e.await(ctx, func() (bool, error) {
			weights, err := e.weights(s)
			for _, d := range s.destinations() {
				if w, ok := weights[d.ip().String()]; !ok || w != d.weight() {
					waited = true
					return false, err
				}
			}
			return true, err
		})
		if err != nil {
			return at, fmt.Errorf("service %s: %w", s.address(), err)
		}
		if waited || at.IsZero() {
			at = time.Now()
		}
	}
	return at, nil
}

// changed waits until a destination has a weight.
func (e *eye) changed(ctx context.Context, d destination, weight int) (time.Time, error) {
	err := e.await(ctx, func() (bool, error) {
		weights, err := e.weights(d.service)
		return weights[d.ip().String()] == weight, err
	})
	return time.Now(), err
}

func (e *eye) await(ctx context.Context, there func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	for {
		ok, err := there()
		if ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.New("not as expected within 3 minutes")
		case <-time.After(glance):
		}
	}
}
