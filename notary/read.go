package notary

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/seal"
)

// Sums hands over the leaves' hashes of a log, in the order in which it is read.
type Sums func(ctx context.Context, each func([]seal.Sum) error) error

func sumOf(e eventstore.Entry, markKey []byte) seal.Sum {
	if errors.Is(e.Err, eventstore.ErrRemoved) {
		return seal.Sum{Seq: e.Seq, Removed: true}
	}
	if e.Err != nil {
		return seal.Sum{Seq: e.Seq, Err: e.Err}
	}
	return seal.Sum{Seq: e.Seq, Time: e.Time, Hash: EntryOf(e).Hash(), Forged: markKey != nil && !e.Marked(markKey)}
}

// Live reads a log from its server, up to what it holds now. Without a key marks
// are not looked at.
func Live(store *eventstore.Store, log string, markKey []byte) Sums {
	return func(ctx context.Context, each func([]seal.Sum) error) error {
		head, err := store.Head(ctx, log)
		if err != nil || head == 0 {
			return err
		}
		f := eventstore.Following{Log: log, Undecoded: true, MaxBatch: 4000, StopAt: head}
		return store.Follow(ctx, f, func(_ context.Context, entries []eventstore.Entry) error {
			sums := make([]seal.Sum, len(entries))
			var all sync.WaitGroup
			part := (len(entries) + runtime.GOMAXPROCS(0) - 1) / runtime.GOMAXPROCS(0)
			for at := 0; at < len(entries); at += part {
				all.Go(func() {
					for i, e := range entries[at:min(at+part, len(entries))] {
						sums[at+i] = sumOf(e, markKey)
					}
				})
			}
			all.Wait()
			return each(sums)
		})
	}
}

// AtRest reads a log from the directory of a server that does not run, without
// changing a byte of it: as many blocks at once as there are cores.
func AtRest(dir, log string, markKey []byte) Sums {
	return func(ctx context.Context, each func([]seal.Sum) error) error {
		blocks, err := eventstore.OpenBlocks(dir, log)
		if err != nil {
			return err
		}
		ahead := make(chan chan []seal.Sum, runtime.GOMAXPROCS(0))
		group, ctx := errgroup.WithContext(ctx)
		group.Go(func() error {
			defer close(ahead)
			for n := range blocks.Count() {
				read := make(chan []seal.Sum, 1)
				select {
				case ahead <- read:
				case <-ctx.Done():
					return ctx.Err()
				}
				group.Go(func() error {
					defer close(read)
					var sums []seal.Sum
					err := blocks.Read(ctx, n, func(e eventstore.Entry) error {
						sums = append(sums, sumOf(e, markKey))
						return nil
					})
					read <- slices.Clip(sums)
					return err
				})
			}
			return nil
		})
		group.Go(func() error {
			var there presence
			for read := range ahead {
				select {
				case sums := <-read:
					if err := each(there.of(sums)); err != nil {
						return err
					}
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			return each(there.dropped())
		})
		return group.Wait()
	}
}

// presence finds what lies in a log and is marked as removed all the same. A server
// marks what is not there: the sequence before the one that a stream begins with, and
// a last one that was lost in a crash.
type presence struct {
	first, last uint64
	gaps        [][2]uint64 // from, to
	removed     []seal.Sum
}

// of takes note of sums, and returns those that are of entries.
func (p *presence) of(sums []seal.Sum) []seal.Sum {
	return slices.DeleteFunc(sums, func(s seal.Sum) bool {
		switch {
		case s.Removed:
			p.removed = append(p.removed, s)
			return true
		case s.Seq > p.last:
			if p.first == 0 {
				p.first = s.Seq
			} else if s.Seq > p.last+1 {
				p.gaps = append(p.gaps, [2]uint64{p.last + 1, s.Seq - 1})
			}
			p.last = s.Seq
		}
		return false
	})
}

// dropped are the marks of entries that are there.
func (p *presence) dropped() []seal.Sum {
	return slices.DeleteFunc(p.removed, func(s seal.Sum) bool {
		return s.Seq < p.first || s.Seq > p.last || slices.ContainsFunc(p.gaps, func(gap [2]uint64) bool { return gap[0] <= s.Seq && s.Seq <= gap[1] })
	})
}
