package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/forensics"
)

type benchReplay struct {
	Instants int    `default:"20" help:"Instants that time travel goes to."`
	Rounds   int    `default:"3" help:"How often the whole log is read, by turns raw and replayed."`
	Seed     uint64 `default:"1" help:"Which instants these are."`
}

// Run measures the replay on a data directory that is there, such as one that bench
// load has filled: against reading the same log in order without looking at it, by
// turns in the same run. Then it travels to points of the largest account.
func (c benchReplay) Run(ctx context.Context, cfg Config, out output) error {
	store, err := openLog(ctx, &cfg)
	if err != nil {
		return err
	}
	defer store.Close()
	b := &bench{json: out.json}
	alone := forensics.NewReplay(store, nil)
	now, err := alone.Resolve(ctx, "now")
	if err != nil {
		return err
	}
	var raws, replays, ratios []float64
	for range c.Rounds {
		raw, err := rawRead(ctx, store)
		if err != nil {
			return err
		}
		begun := time.Now()
		state, err := alone.At(ctx, now, "")
		if err != nil {
			return err
		}
		replay := float64(state.Work.Entries) / time.Since(begun).Seconds()
		raws, replays, ratios = append(raws, raw), append(replays, replay), append(ratios, replay/raw)
	}
	b.tell("limit: ordered read of the log, undecoded", median(raws), "/s", "", 0)
	b.tell("replayed without a database, all accounts", median(replays), "/s", "", 0)
	b.tell("  median of the ratios, in percent", 100*median(ratios), "%", "", 0)
	if err := c.travel(ctx, cfg, store, b); err != nil {
		return err
	}
	_, err = out.object(b.results)
	return err
}

// rawRead is how many entries a second are read in order from the logs of the
// emails, as many at once as the replay reads.
func rawRead(ctx context.Context, store *eventstore.Store) (float64, error) {
	counts := make([]int, store.Partitions())
	begun := time.Now()
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(forensics.AtOnce())
	for i, log := range store.MailLogs() {
		head, err := store.Head(ctx, log)
		if err != nil {
			return 0, err
		}
		group.Go(func() error {
			f := eventstore.Following{Log: log, StopAt: head, MaxBatch: 4000, Undecoded: true}
			return store.Follow(ctx, f, func(_ context.Context, entries []eventstore.Entry) error {
				counts[i] += len(entries)
				return nil
			})
		})
	}
	if err := group.Wait(); err != nil {
		return 0, err
	}
	total := 0
	for _, n := range counts {
		total += n
	}
	return float64(total) / time.Since(begun).Seconds(), nil
}

// travel measures how long it takes to see the largest account as of instants that
// nobody has been to, without snapshots and with them.
func (c benchReplay) travel(ctx context.Context, cfg Config, store *eventstore.Store, b *bench) error {
	key, err := markKey(cfg)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(cfg.DataDir, ".bench-replay-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	alone, helped := forensics.NewReplay(store, nil), forensics.NewReplay(store, forensics.OpenSnapshots(dir, key))
	now, err := alone.Resolve(ctx, "now")
	if err != nil {
		return err
	}
	all, err := alone.At(ctx, now, "")
	if err != nil {
		return err
	}
	account, emails := all.Largest()
	if emails == 0 {
		return errors.New("there are no emails: fill a data directory with postbook bench load")
	}
	first, err := store.Stats(ctx, eventstore.MailLog(0))
	if err != nil {
		return err
	}
	begun := time.Now()
	made, err := helped.Extend(ctx)
	if err != nil {
		return err
	}
	b.tell(fmt.Sprintf("making %d snapshots", made.Written), float64(time.Since(begun).Milliseconds()), "ms", "", 0)
	r := rand.New(rand.NewPCG(c.Seed, 0))
	for _, how := range []struct {
		name   string
		replay *forensics.Replay
		times  int
	}{{"without snapshots", alone, 3}, {"with snapshots", helped, c.Instants}} {
		var took []float64
		for range how.times {
			at := first.From.Add(time.Duration(r.Int64N(int64(first.To.Sub(first.From)) + 1)))
			begun := time.Now()
			p, err := how.replay.Resolve(ctx, at.Format(time.RFC3339Nano))
			if err != nil {
				return err
			}
			if _, err := how.replay.At(ctx, p, account); err != nil {
				return err
			}
			took = append(took, float64(time.Since(begun).Milliseconds()))
		}
		b.tell(fmt.Sprintf("an account with %d emails, %s", emails, how.name), median(took), "ms", "", 0)
		b.tell("  at most", slices.Max(took), "ms", "", 0)
	}
	return nil
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}
