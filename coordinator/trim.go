package coordinator

import (
	"context"
	"time"

	"go.uber.org/zap"

	"github.com/medway-lb/medway/coordinator/internal/operation"
)

const (
	// trimInterval is how often a coordinator looks for events that are too much.
	trimInterval = time.Hour
	// trimPause lies between two batches: whoever reads changes is told of each.
	trimPause = time.Second
)

// trim keeps the history as small as the file says, until ctx ends.
func (c *Coordinator) trim(ctx context.Context) error {
	trimming, wait := c.config.History.trimming(), trimPause
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
		limited, cancel := context.WithTimeout(ctx, time.Minute)
		deleted, err := trimming.Once(limited, c.client, time.Now())
		cancel()
		wait = trimInterval
		switch {
		case err != nil && ctx.Err() == nil:
			c.log.Warn("can't trim the history", zap.Error(err))
		case deleted > 0:
			c.log.Info("old events are deleted from the history", zap.Int("events", deleted))
			wait = trimPause
		}
	}
}

// trimming is what the file says of the history.
func (h History) trimming() operation.Trimming {
	return operation.Trimming{Newest: h.PerVIP, Age: time.Duration(h.Days) * 24 * time.Hour}
}
