package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

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
	for {
		err := c.once(ctx, cfg)
		if !errors.Is(err, eventstore.ErrRepartitioned) || ctx.Err() != nil {
			return untilStopped(ctx, err)
		}
	}
}

// once serves until it is told to stop, or has to open the log again.
func (serveCommand) once(ctx context.Context, cfg Config) error {
	s, err := start(ctx, cfg, cfg.logger())
	if err != nil {
		return err
	}
	err = s.run(ctx, func(context.Context) error {
		fmt.Printf("Postbook is serving on %s, delivery is %s.\n", s.baseURL(), cfg.Delivery)
		return nil
	})
	if stopped := s.stop(); err == nil {
		err = stopped
	}
	return err
}
