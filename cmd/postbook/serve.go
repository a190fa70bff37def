package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"postbook.dev/postbook/eventstore"
)

type serveCommand struct{}

// Run serves until it is told to stop.
func (c serveCommand) Run(ctx context.Context, cfg Config) error {
	if err := cfg.settle(false); err != nil {
		return err
	}
	if !strings.Contains(cfg.Hostname, ".") {
		cfg.logger().Warn("set POSTBOOK_HOSTNAME to a name in the DNS: customers are told to publish records that point to it", "hostname", cfg.Hostname)
	}
	return again(ctx, cfg, c.once)
}

// electing is how long a start is tried again while a cluster has no leader.
const electing = 2 * time.Minute

// again calls once, which serves until it is told to stop and says whether it came to
// that: once more when the number of partitions has changed, and when the log's cluster
// had no leader at the start.
func again(ctx context.Context, cfg Config, once func(context.Context, Config) (ready bool, err error)) error {
	for begun := time.Now(); ; {
		ready, err := once(ctx, cfg)
		switch {
		case ctx.Err() != nil:
			return untilStopped(ctx, err)
		case errors.Is(err, eventstore.ErrRepartitioned):
			begun = time.Now()
		case !ready && cfg.NATSURL != "" && eventstore.Electing(err) && time.Since(begun) < electing:
			cfg.logger().Warn("the log's cluster has no leader; the start is tried again", "error", err)
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
		default:
			return err
		}
	}
}

// once serves until it is told to stop, or has to open the log again.
func (serveCommand) once(ctx context.Context, cfg Config) (ready bool, err error) {
	s, err := start(ctx, cfg, cfg.logger())
	if err != nil {
		return false, err
	}
	err = s.run(ctx, func(context.Context) error {
		ready = true
		fmt.Printf("Postbook is serving on %s, delivery is %s.\n", s.baseURL(), cfg.Delivery)
		return nil
	})
	if stopped := s.stop(); err == nil {
		err = stopped
	}
	return ready, err
}
