package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"time"

	"postbook.dev/postbook/domain/partitioning"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/notary"
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
		if store.Alone() {
			if err := sealNew(cfg); err != nil {
				return fmt.Errorf("the number of partitions is %d, but the new logs have no signed head yet: the next server signs it: %w", c.Number, err)
			}
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

// sealNew signs a head of nothing for each log that has none: without one a log looks
// like one whose head was removed. A data directory that has never been sealed is left
// to the server.
func sealNew(cfg Config) error {
	if _, err := os.Stat(cfg.sealPath(signingKeys)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	lock, err := lockSeal(cfg)
	if err != nil {
		return err
	}
	defer lock.Close()
	keys, err := openSealKeys(cfg)
	if err != nil {
		return err
	}
	logs, err := eventstore.LogsAtRest(cfg.path("log"))
	if err != nil {
		return err
	}
	return notary.Begin(cfg.path(sealFolder), logs, keys)
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
