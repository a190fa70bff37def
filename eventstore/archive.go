package eventstore

// Entries that have left their stream. An archive holds what is old; the stream
// holds what is new, and for a while both hold the same. Whoever reads need not
// know which of them answers.

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Archive holds a log's older entries, as Follow gives them undecoded.
type Archive interface {
	// Extent is the first and the last entry of a log that is held, and 0 and 0 if
	// none is.
	Extent(ctx context.Context, log string) (first, last uint64, err error)
	// Entry returns one, or ErrNoEntry.
	Entry(ctx context.Context, log string, seq uint64) (Entry, error)
	// Scan hands over the entries after one up to another, in order and without a
	// gap. It is an error if one of them is not held.
	Scan(ctx context.Context, log string, after, upTo uint64, each func([]Entry) error) error
}

// Archived reports whether a log's entries can be archived. The others hold what
// is due, or answers of the last day.
func Archived(log string) bool { return carriesEvents(log) || log == Content || log == Dead }

// Aged reports whether a log forgets what is old, where nothing archives it.
func Aged(log string) bool { return log == Asked || log == Access }

// fromArchive reads an entry that its stream does not hold.
func (s *Store) fromArchive(ctx context.Context, log string, seq uint64, missing error) (Entry, error) {
	if s.cfg.Archive == nil || !Archived(log) {
		return Entry{}, missing
	}
	e, err := s.cfg.Archive.Entry(ctx, log, seq)
	switch {
	case errors.Is(err, ErrNoEntry) && Aged(log):
		return Entry{}, missing
	case errors.Is(err, ErrNoEntry):
		// What has left this stream is in the archive. If that does not list it, the
		// archive is not all there: a folder that is not mounted, say.
		state, err := s.state(ctx, log)
		if err != nil {
			return Entry{}, err
		}
		if seq < state.FirstSeq {
			return Entry{}, fmt.Errorf("eventstore: %s %d has left the stream, and the archive does not list it: %w", log, seq, ErrUnavailable)
		}
		return Entry{}, missing
	case err != nil:
		return Entry{}, fmt.Errorf("eventstore: read %s %d from the archive: %w: %w", log, seq, ErrUnavailable, err)
	}
	return s.decodeEntry(log, e.Seq, e.Time, e.Subject, e.Raw), nil
}

// errTrimmed says that entries which a follower has not seen have left the stream.
var errTrimmed = errors.New("eventstore: entries have left the stream")

// followArchive hands over what has left the stream, until what comes next is in
// the stream or f.StopAt was reached. It returns the last sequence that is dealt
// with.
func (s *Store) followArchive(ctx context.Context, f Following, apply func(context.Context, []Entry) error) (uint64, error) {
	for {
		state, err := s.state(ctx, f.Log)
		if err != nil {
			return f.After, err
		}
		if f.After+1 >= state.FirstSeq || f.StopAt > 0 && f.After >= f.StopAt {
			return f.After, nil
		}
		upTo := state.FirstSeq - 1
		if f.StopAt > 0 {
			upTo = min(upTo, f.StopAt)
		}
		if Aged(f.Log) {
			// What had been forgotten before there was an archive is not in it.
			first, _, err := s.cfg.Archive.Extent(ctx, f.Log)
			if err != nil {
				return f.After, fmt.Errorf("eventstore: follow %s in the archive: %w", f.Log, err)
			}
			if first == 0 || first > upTo {
				return upTo, nil
			}
			f.After = max(f.After, first-1)
		}
		if err := s.scanArchive(ctx, f, upTo, apply); err != nil {
			return f.After, err
		}
		f.After = upTo
	}
}

// scanArchive applies the archive's entries after f.After up to another. Events
// are read ahead of apply.
func (s *Store) scanArchive(ctx context.Context, f Following, upTo uint64, apply func(context.Context, []Entry) error) error {
	scanning, stop := context.WithCancel(ctx)
	batches := make(chan []Entry, 1)
	scanned := make(chan error, 1)
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	running.Go(func() {
		defer close(batches)
		last := f.After
		scanned <- s.cfg.Archive.Scan(scanning, f.Log, f.After, upTo, func(entries []Entry) error {
			for _, e := range entries {
				if e.Seq != last+1 {
					return fmt.Errorf("%d comes after %d", e.Seq, last)
				}
				last = e.Seq
			}
			entries = chosen(f.Subjects, entries)
			for len(entries) > 0 {
				batch := entries[:min(len(entries), f.MaxBatch)]
				entries = entries[len(batch):]
				if !f.Undecoded {
					batch = s.decoded(f, batch)
				}
				select {
				case batches <- batch:
				case <-scanning.Done():
					return scanning.Err()
				}
			}
			return nil
		})
	})
	for batch := range batches {
		if err := apply(ctx, batch); err != nil {
			return err
		}
	}
	if err := <-scanned; err != nil {
		return fmt.Errorf("eventstore: follow %s in the archive: %w", f.Log, err)
	}
	return nil
}

// decoded reads the events of entries.
func (s *Store) decoded(f Following, entries []Entry) []Entry {
	read := make([]Entry, len(entries))
	inParallel(len(entries), func(i int) {
		e := entries[i]
		read[i] = s.decodeAs(f, e.Seq, e.Time, e.Subject, e.Raw)
	})
	return read
}

// chosen is those of the entries that lie on one of the subjects; none is all.
func chosen(filters []string, entries []Entry) []Entry {
	if len(filters) == 0 {
		return entries
	}
	var fit []Entry
	for _, e := range entries {
		for _, f := range filters {
			if subjectFits(f, e.Subject) {
				fit = append(fit, e)
				break
			}
		}
	}
	return fit
}

// subjectFits reports whether a subject is one that a filter stands for.
func subjectFits(filter, subject string) bool {
	for {
		want, wants, moreWanted := strings.Cut(filter, ".")
		token, tokens, more := strings.Cut(subject, ".")
		switch {
		case want == ">":
			return true
		case want != "*" && want != token:
			return false
		case !moreWanted || !more:
			return moreWanted == more
		}
		filter, subject = wants, tokens
	}
}

// overtaken returns errTrimmed if entries between the last one that was handed
// over and these have left the stream, before they were delivered.
func (s *Store) overtaken(ctx context.Context, f Following, last uint64, entries []Entry) error {
	if s.cfg.Archive == nil || !Archived(f.Log) {
		return nil
	}
	newest := entries[len(entries)-1].Seq
	if newest-last == uint64(len(entries)) {
		return nil // none is missing
	}
	state, err := s.state(ctx, f.Log)
	if err == nil && state.FirstSeq > last+1 {
		err = errTrimmed
	}
	return err
}

// Trim removes the entries of a log up to one from its stream, for good: the
// archive has them. It returns the sequence of the first that is left.
//
// The stream denies deletion and purging. What it allows is to be bounded, for a
// moment, by the number of entries that are to stay. Entries that are appended in
// that moment push out as many old ones. This process appends none meanwhile; for
// others, whoever asks keeps a good number of archived entries behind upTo. If the
// process ends in that moment, whoever has the log open takes the bound away within
// seconds (keepLearning), and whoever opens it before anything is appended
// (createStreams).
//
// The ledger is never trimmed, because the last sequences of its subjects are
// locks; nor is a partition's last claim, which is its owner's.
func (s *Store) Trim(ctx context.Context, log string, upTo uint64) (first uint64, err error) {
	if s.cfg.Archive == nil || !Archived(log) || log == Ledger {
		return 0, fmt.Errorf("eventstore: trim %s: this log is not trimmed", log)
	}
	if strings.HasPrefix(log, "MAIL_") {
		claim, err := s.lastOn(ctx, log, AccountSubject(log, "owner"))
		if err != nil && !errors.Is(err, ErrNoEntry) {
			return 0, err
		}
		if err == nil {
			upTo = min(upTo, claim.Seq-1)
		}
	}
	s.trimming.Lock()
	defer s.trimming.Unlock()
	held, err := s.js.Stream(ctx, log)
	if err != nil {
		return 0, fmt.Errorf("eventstore: look at %s: %w: %w", log, ErrUnavailable, err)
	}
	state := held.CachedInfo().State
	if upTo < state.FirstSeq {
		return state.FirstSeq, nil
	}
	if upTo >= state.LastSeq {
		return state.FirstSeq, fmt.Errorf("eventstore: trim %s up to %d: that is all of it", log, upTo)
	}
	var settled jetstream.StreamConfig
	for _, c := range s.streamConfigs() {
		if c.Name == log {
			settled = c
		}
	}
	settled.Replicas = max(settled.Replicas, held.CachedInfo().Config.Replicas) // copies are never taken away
	bounded := settled
	bounded.Discard, bounded.MaxMsgs, bounded.MaxBytes = jetstream.DiscardOld, int64(state.LastSeq-upTo), -1
	// The server works on requests of one connection side by side: the second has to
	// wait for the answer to the first, and is made whatever becomes of that.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	_, err = s.js.UpdateStream(ctx, bounded)
	if err := errors.Join(err, s.unbound(ctx, settled)); err != nil {
		return state.FirstSeq, fmt.Errorf("eventstore: trim %s up to %d: %w: %w", log, upTo, ErrUnavailable, err)
	}
	state, err = s.state(ctx, log)
	return state.FirstSeq, err
}

// unbound takes the bound of a stream away. It does not give up soon: with the
// bound, each entry that is appended pushes one out.
func (s *Store) unbound(ctx context.Context, settled jetstream.StreamConfig) error {
	for {
		_, err := s.js.UpdateStream(ctx, settled)
		if err == nil {
			return nil
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("the stream is still bounded, and the next start has to put that right: %w", err)
		}
	}
}

// unboundOthers takes bounds away that another process has put on a stream to trim
// it, and perhaps did not live to take away. That process is done with a bound as
// soon as it holds, so that no moment is too early.
func (s *Store) unboundOthers(ctx context.Context) {
	for _, c := range s.streamConfigs() {
		if !Archived(c.Name) {
			continue
		}
		held, err := s.js.Stream(ctx, c.Name)
		if err != nil || held.CachedInfo().Config.Discard == c.Discard {
			continue // one that cannot be asked is asked again
		}
		if err := errors.Join(s.keepAge(ctx, &c), s.createStream(ctx, c)); err != nil {
			s.cfg.Log.Error("a stream is still bounded: what is appended pushes entries out", "log", c.Name, "error", err)
		}
	}
}
