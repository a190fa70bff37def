package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"postbook.dev/postbook/domain/partitioning"
	"postbook.dev/postbook/eventstore"
)

type partitionsCommand struct {
	Number int `arg:"" optional:"" help:"Spread new emails over so many partitions from now on. Without it: show how many there are."`
}

// Run shows or changes the number of partitions of the emails. A server that keeps
// the log itself has to be stopped first; those of a cluster go on, and open the
// log again by themselves.
func (c partitionsCommand) Run(ctx context.Context, cfg Config, out output) error {
	if r, ok := found(cfg); ok && c.Number > 0 && cfg.NATSURL == "" && !r.External {
		return fmt.Errorf("a server keeps the log in %s: stop it first, then change the number of partitions", cfg.DataDir)
	}
	store, err := openLog(ctx, &cfg)
	if err != nil {
		return err
	}
	defer store.Close()
	epochs := store.Epochs()
	if c.Number > 0 {
		since, err := store.Repartition(ctx, c.Number)
		if err != nil {
			return err
		}
		if newest := epochs[len(epochs)-1]; newest.Partitions != c.Number {
			epochs = append(epochs, eventstore.Epoch{Since: since, Partitions: c.Number})
		}
		if err := tellPartitions(ctx, store, epochs); err != nil {
			return fmt.Errorf("the number of partitions is %d, but the change is not on record yet: the next server puts it there: %w", c.Number, err)
		}
	}
	if printed, err := out.object(epochs); printed {
		return err
	}
	var rows [][]string
	for _, e := range epochs {
		since := "the beginning"
		if !e.Since.IsZero() {
			since = e.Since.UTC().Format(clock)
		}
		rows = append(rows, []string{strconv.Itoa(e.Partitions), since})
	}
	return out.table([]string{"PARTITIONS", "OF EMAILS SINCE"}, rows)
}

// tellPartitions puts on record what of the epochs is not there yet. The command that
// makes one may end before it has.
func tellPartitions(ctx context.Context, store *eventstore.Store, epochs []eventstore.Epoch) error {
	for i, e := range epochs[1:] {
		change := partitioning.Change{Authority: operator(time.Now()), From: epochs[i].Partitions, To: e.Partitions, Since: e.Since}
		_, err := eventstore.Execute(ctx, store, partitioning.Decider, partitioning.Stream(), partitioning.Command(change))
		if err != nil {
			return err
		}
	}
	return nil
}
