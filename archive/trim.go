package archive

import (
	"context"
	"fmt"

	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/seal"
)

// trim lets a stream forget what may go: whole segments, each read back once more
// before it.
func (a *Archiver) trim(ctx context.Context, log string) error {
	if log == eventstore.Ledger || a.HotAge == 0 && a.HotBytes == 0 {
		return nil
	}
	stats, err := a.Store.Stats(ctx, log)
	if err != nil {
		return err
	}
	spans, err := a.Archive.list(ctx, log, false)
	if err != nil {
		return err
	}
	going, err := a.going(ctx, log, stats, spans)
	if err != nil || len(going) == 0 {
		return err
	}
	upTo := going[len(going)-1].last
	src, done, err := a.source(ctx, log)
	if err != nil {
		return err
	}
	defer done()
	for _, s := range going {
		if s.last <= a.verified[log] {
			continue
		}
		if err := a.verify(ctx, src, s); err != nil {
			return fmt.Errorf("read %s back before it leaves the stream: %w", s.name(), err)
		}
		a.verified[log] = s.last
	}
	first, err := a.Store.Trim(ctx, log, upTo)
	if err != nil {
		return err
	}
	if first > spans[len(spans)-1].last+1 {
		a.Log.Error("entries have left a stream that were not archived", "log", log, "from", spans[len(spans)-1].last+1, "to", first-1)
	}
	if first > stats.Hot {
		a.Log.Info("archived entries have left the stream", "log", log, "up_to", first-1)
	}
	return nil
}

// going lists the segments whose entries are to leave the stream, oldest first.
func (a *Archiver) going(ctx context.Context, log string, stats eventstore.Stats, spans []span) ([]span, error) {
	for len(spans) > 0 && spans[0].last < stats.Hot {
		spans = spans[1:]
	}
	next := stats.Hot
	for _, s := range spans {
		if s.first > next {
			return nil, fmt.Errorf("%d to %d are between two segments and in none: %w, and nothing leaves the stream", next, s.first-1, ErrMissing)
		}
		next = s.last + 1
	}
	end := 0 // how many may go, for what has to stay
	if len(spans) > 0 {
		last := spans[len(spans)-1].last
		var bytes int64
		for n := len(spans) - 1; n >= 0 && end == 0; n-- {
			if spare := last - spans[n].last; spare >= a.Spare || bytes >= a.SpareBytes && spare >= a.Spare/5 {
				end = n + 1
			}
			m, err := a.Archive.manifest(ctx, log, spans[n])
			if err != nil {
				return nil, err
			}
			bytes += m.Raw
		}
	}
	hot := int64(stats.Bytes)
	for n, s := range spans[:end] {
		m, err := a.Archive.manifest(ctx, log, s)
		if err != nil {
			return nil, err
		}
		old := a.HotAge > 0 && a.Now().Sub(m.To) >= a.HotAge
		large := a.HotBytes > 0 && hot > a.HotBytes
		if !old && !large {
			return spans[:n], nil
		}
		hot -= m.Raw
	}
	return spans[:end], nil
}

// verify holds a listed segment against the seal, or against the stream, where
// its log is not sealed.
func (a *Archiver) verify(ctx context.Context, src *source, s span) error {
	m, err := a.Archive.manifest(ctx, src.log, s)
	if err != nil {
		return err
	}
	var leaves []seal.Hash
	if src.tree != nil {
		leaves, err = src.leaves(s.first, s.last)
	} else {
		leaves, err = a.inStream(ctx, src.log, s)
	}
	if err != nil {
		return err
	}
	return a.Archive.readBack(ctx, m, leaves)
}

// inStream works out the leaves of what is read through the store, which is the
// stream for all that it still holds.
func (a *Archiver) inStream(ctx context.Context, log string, s span) ([]seal.Hash, error) {
	leaves := make([]seal.Hash, 0, s.last-s.first+1)
	f := eventstore.Following{Log: log, After: s.first - 1, StopAt: s.last, Undecoded: true, MaxBatch: 16}
	err := a.Store.Follow(ctx, f, func(_ context.Context, entries []eventstore.Entry) error {
		for _, e := range entries {
			if e.Seq <= s.last {
				leaves = append(leaves, leafOf(e))
			}
		}
		return nil
	})
	if err == nil && uint64(len(leaves)) != s.last-s.first+1 {
		err = fmt.Errorf("the stream has %d of its %d entries", len(leaves), s.last-s.first+1)
	}
	return leaves, err
}
