package main

import (
	"context"
	"fmt"
)

type serveCommand struct{}

// Run serves until it is told to stop.
func (serveCommand) Run(ctx context.Context, cfg Config) error {
	if err := cfg.settle(false); err != nil {
		return err
	}
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
