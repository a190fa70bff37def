package eventstore

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"postbook.dev/postbook/domain"
)

// Following says what to follow.
type Following struct {
	Log       string
	After     uint64        // the sequence of the last entry that is known
	Subjects  []string      // only these, in which wildcards are allowed; none is all
	MaxBatch  int           // entries handed over at once; 0 is 1,000
	Linger    time.Duration // how long a batch may wait to fill; 0 hands over what is there
	StopAt    uint64        // end when this sequence was handed over, which has to be on the subjects; 0 follows for ever
	Undecoded bool          // leave the events out, and give the header instead

	// FromDisk reads the files of a log on this machine past its server, which then does
	// nothing for this reader; Linger is how long it waits before it looks again. Entries
	// are undecoded, and valid until apply returns. A log elsewhere is followed as ever.
	FromDisk bool

	// Brief, if it is set, reads of each event its type, time, aggregate and actor
	// alone, and the data of the types that it reports: other events are the zero
	// value of their type. Whoever folds a long log needs no more.
	Brief func(eventType string) bool
}

// Follow hands the entries of a log to apply, strictly in order, from the one
// after f.After on, and goes on as new ones arrive. It ends with the error of the
// context or of apply, or with nil at f.StopAt. It survives the loss of the
// connection. What has left the stream comes from the archive, without a gap or
// a repeat where they meet, wherever that is by then; what was forgotten without one
// is passed over.
func (s *Store) Follow(ctx context.Context, f Following, apply func(context.Context, []Entry) error) error {
	if f.MaxBatch == 0 {
		f.MaxBatch = 1000
	}
	for f.StopAt == 0 || f.After < f.StopAt {
		var err error
		if s.cfg.Archive != nil && Archived(f.Log) {
			if f.After, err = s.followArchive(ctx, f, apply); err != nil {
				return err
			}
		}
		if f.StopAt > 0 && f.After >= f.StopAt {
			return nil
		}
		if f.StopAt > 0 && Aged(f.Log) {
			if state, err := s.state(ctx, f.Log); err != nil || state.FirstSeq > f.StopAt {
				return err
			}
		}
		follow := s.followStream
		if f.FromDisk && s.local != nil {
			follow = s.followDisk
		}
		if f.After, err = follow(ctx, f, apply); !errors.Is(err, errTrimmed) {
			return err
		}
	}
	return nil
}

// What is read ahead is bounded by its bytes as well, and so is what is handed over
// at once: one entry may hold a hundred emails, or be large content. All that follow
// logs share a connection, which a server ends when more than 64 MiB wait in it
// (max_pending): so each has a small part of that. With eight times as much ahead a
// rebuild was no faster.
const (
	maxAhead      = 2 * maxMessage // at least one
	maxBatchBytes = 8 << 20
)

// followStream is Follow in what the server holds. It returns the last sequence
// that was handed over, and errTrimmed if what comes next has left the stream.
func (s *Store) followStream(ctx context.Context, f Following, apply func(context.Context, []Entry) error) (uint64, error) {
	last := f.After
	ctx, cancel := context.WithCancelCause(ctx)
	arrived := make(chan jetstream.Msg, f.MaxBatch)
	batches := make(chan []Entry)
	trimmed := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() { cancel(s.receive(ctx, f, arrived)) })
	running.Go(func() {
		err := s.collect(ctx, f, arrived, batches)
		if errors.Is(err, errTrimmed) {
			close(trimmed) // what was handed over before is still being applied
			return
		}
		cancel(err)
	})
	defer func() {
		cancel(nil)
		running.Wait()
	}()
	for {
		select {
		case batch := <-batches:
			if err := apply(ctx, batch); err != nil {
				return last, err
			}
			last = batch[len(batch)-1].Seq
			if f.StopAt > 0 && last >= f.StopAt {
				return last, nil
			}
		case <-trimmed:
			return last, errTrimmed
		case <-ctx.Done():
			return last, context.Cause(ctx)
		}
	}
}

// beforeAgain is a pause, for a server that ends each tail at once.
const beforeAgain = 100 * time.Millisecond

// receive passes on what a log holds and what comes. When a server is lost it goes
// on at another, for as long as it takes to find one.
func (s *Store) receive(ctx context.Context, f Following, arrived chan<- jetstream.Msg) error {
	var closing sync.WaitGroup
	defer closing.Wait()
	last := f.After
	for begun := false; ; begun = true {
		t, err := s.tail(ctx, f.Log, jetstream.ConsumerConfig{
			FilterSubjects: f.Subjects,
			DeliverPolicy:  jetstream.DeliverByStartSequencePolicy,
			OptStartSeq:    last + 1,
		}, jetstream.PullMaxMessagesWithBytesLimit(max(f.MaxBatch, 500), maxAhead))
		switch {
		case err == nil:
			last, err = t.passOn(ctx, last, arrived)
			closing.Go(t.close)
		case !begun || refusedForGood(err):
			return err
		}
		if s.links[followLink].nc.IsClosed() {
			return err
		}
		select {
		case <-time.After(beforeAgain):
			s.cfg.Log.Debug("follow a log again", "log", f.Log, "after", last, "error", err)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// collect makes batches of what arrives, and reads their events ahead of apply.
func (s *Store) collect(ctx context.Context, f Following, arrived <-chan jetstream.Msg, batches chan<- []Entry) error {
	last := f.After
	for {
		batch, err := gather(ctx, f, arrived)
		if err != nil {
			return err
		}
		entries, err := s.entries(f, batch)
		if err != nil {
			return err
		}
		if entries[0].Seq <= last {
			return fmt.Errorf("eventstore: %s handed over %d after %d", f.Log, entries[0].Seq, last)
		}
		if err := s.overtaken(ctx, f, last, entries); err != nil {
			return err
		}
		last = entries[len(entries)-1].Seq
		select {
		case batches <- entries:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func gather(ctx context.Context, f Following, arrived <-chan jetstream.Msg) ([]jetstream.Msg, error) {
	var batch []jetstream.Msg
	select {
	case msg := <-arrived:
		batch = append(batch, msg)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	var linger <-chan time.Time
	if f.Linger > 0 {
		timer := time.NewTimer(f.Linger)
		defer timer.Stop()
		linger = timer.C
	}
	for bytes := len(batch[0].Data()); len(batch) < f.MaxBatch && bytes < maxBatchBytes; bytes += len(batch[len(batch)-1].Data()) {
		select {
		case msg := <-arrived:
			batch = append(batch, msg)
			continue
		default:
		}
		if linger == nil {
			return batch, nil
		}
		select {
		case msg := <-arrived:
			batch = append(batch, msg)
		case <-linger:
			return batch, nil
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return batch, nil
}

// entries reads the events of messages.
func (s *Store) entries(f Following, msgs []jetstream.Msg) ([]Entry, error) {
	entries := make([]Entry, len(msgs))
	errs := make([]error, len(msgs))
	inParallel(len(msgs), func(i int) {
		meta, err := msgs[i].Metadata()
		if err != nil {
			errs[i] = fmt.Errorf("eventstore: %s: message without a place: %w", f.Log, err)
			return
		}
		if f.Undecoded {
			entries[i] = Entry{
				Position: domain.Position{Log: f.Log, Seq: meta.Sequence.Stream}, Time: meta.Timestamp,
				Subject: msgs[i].Subject(), Header: canonicalHeader(msgs[i].Headers()), Raw: msgs[i].Data(),
			}
			return
		}
		entries[i] = s.decodeAs(f, meta.Sequence.Stream, meta.Timestamp, msgs[i].Subject(), msgs[i].Data())
	})
	return entries, errors.Join(errs...)
}

// inParallel calls work for 0 to n-1, on as many cores as pay.
func inParallel(n int, work func(i int)) {
	const worthIt = 64
	workers := min(runtime.GOMAXPROCS(0), (n+worthIt-1)/worthIt)
	var all sync.WaitGroup
	for w := range workers {
		all.Go(func() {
			for i := n * w / workers; i < n*(w+1)/workers; i++ {
				work(i)
			}
		})
	}
	all.Wait()
}
