// Package forensics tells how things were: what an account, an aggregate or the
// whole platform looked like at any point of the log, and what changed between two
// points, because of whom. It replays the log through the folds of the read models
// and looks at no table, so that it answers without a database, and whatever was
// done to one.
package forensics

import (
	"context"
	"fmt"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/access"
	"postbook.dev/postbook/domain/email"
	"postbook.dev/postbook/eventstore"
)

// Replay reads a log back as it was. It may be used from many goroutines.
type Replay struct {
	store     *eventstore.Store
	snapshots *Snapshots // nil reads the log alone
}

// NewReplay replays a log, with the help of snapshots or, with nil, without.
func NewReplay(store *eventstore.Store, snapshots *Snapshots) *Replay {
	return &Replay{store, snapshots}
}

// At is what the read models would have shown at a point: of one account, or with
// an empty name of all.
func (r *Replay) At(ctx context.Context, p Point, account string) (*State, error) {
	s := &State{Point: p, Of: account, store: r.store}
	var mu sync.Mutex
	group, reading := errgroup.WithContext(ctx)
	group.SetLimit(AtOnce())
	group.Go(func() error { return r.readLedger(reading, s) })
	logs := r.foldedLogs()
	folded := make([]*stretch, len(logs))
	for i, log := range logs {
		group.Go(func() error {
			f, work, err := r.foldLog(reading, log, p, account)
			if err != nil {
				return fmt.Errorf("forensics: replay %s: %w", log, err)
			}
			folded[i] = f
			mu.Lock()
			defer mu.Unlock()
			s.Work.add(work)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	for i, f := range folded {
		s.take(logs[i], f)
	}
	s.count()
	return s, nil
}

// AtOnce is how many logs are read at once.
func AtOnce() int { return max(2, runtime.GOMAXPROCS(0)) }

// foldedLogs are the logs that are folded stretch by stretch: all that grow with the
// mails.
func (r *Replay) foldedLogs() []string {
	return append(r.store.MailLogs(), eventstore.Access, eventstore.Asked)
}

// Work says what an answer was made of.
type Work struct {
	Snapshots  int       `json:"snapshots"` // stretches that were not read again
	Entries    uint64    `json:"entries"`   // that were read from the log
	Written    int       `json:"snapshots_written,omitempty"`
	Discarded  int       `json:"snapshots_discarded,omitempty"` // that were not as they were written
	Unreadable []Trouble `json:"unreadable,omitempty"`
}

// Trouble is an entry that cannot be read, and is left out. The read models stop at
// such an entry.
type Trouble struct {
	domain.Position
	Error string `json:"error"`
}

func (w *Work) leaveOut(e eventstore.Entry) {
	w.Unreadable = append(w.Unreadable, Trouble{e.Position, e.Err.Error()})
}

func (w *Work) add(more Work) {
	w.Snapshots += more.Snapshots
	w.Entries += more.Entries
	w.Written += more.Written
	w.Discarded += more.Discarded
	w.Unreadable = append(w.Unreadable, more.Unreadable...)
}

// foldLog folds a log up to a point, from snapshots where they are and from the log
// where they are not. What is read where one could be, becomes one.
func (r *Replay) foldLog(ctx context.Context, log string, p Point, account string) (*stretch, Work, error) {
	total := newStretch(log, account)
	var work Work
	from, last, err := r.readable(ctx, log, p)
	if err != nil || last == 0 {
		return total, work, err
	}
	after := uint64(0)
	if r.snapshots != nil {
		after, err = r.foldSnapshots(ctx, log, p.whole(log), from, total, &work)
		if err != nil {
			return nil, work, err
		}
	}
	err = r.read(ctx, log, max(after, from), last, account, func(e eventstore.Entry) error {
		work.Entries++
		total.take(e, p.eventsOf(e), &work)
		return nil
	})
	return total, work, err
}

// readable is the stretch of a log that can be read and lies before a point: what
// comes after from, up to last; last is 0 if there is nothing.
func (r *Replay) readable(ctx context.Context, log string, p Point) (from, last uint64, err error) {
	stats, err := r.store.Stats(ctx, log)
	if err != nil || stats.Last == 0 {
		return 0, 0, err
	}
	return max(stats.First, 1) - 1, min(p.Heads[log], stats.Last), nil
}

// brief says whose data folding needs.
func brief(eventType string) bool { return eventType == scheduled }

// scheduled is the one event about emails whose data a row shows.
const scheduled = "email.scheduled"

// read hands over the entries after a sequence, up to another, in order: all, or an
// account's.
func (r *Replay) read(ctx context.Context, log string, after, last uint64, account string, each func(eventstore.Entry) error) error {
	f := eventstore.Following{Log: log, After: after, StopAt: last, MaxBatch: 4000, Brief: brief}
	if account != "" {
		f.Subjects = []string{eventstore.AccountSubject(log, account)}
	}
	return follow(ctx, r.store, f, each)
}

// follow hands over what there is up to f.StopAt, one by one. With a filter, the last
// that passes it may come earlier.
func follow(ctx context.Context, store *eventstore.Store, f eventstore.Following, each func(eventstore.Entry) error) error {
	stop := f.StopAt
	if len(f.Subjects) > 0 {
		newest := uint64(0)
		for _, subject := range f.Subjects {
			seq, err := store.Last(ctx, f.Log, subject)
			if err != nil {
				return err
			}
			newest = max(newest, seq)
		}
		f.StopAt = min(f.StopAt, newest)
	}
	if f.StopAt <= f.After {
		return nil
	}
	return store.Follow(ctx, f, func(_ context.Context, entries []eventstore.Entry) error {
		for _, e := range entries {
			if e.Seq > stop {
				break
			}
			if err := each(e); err != nil {
				return err
			}
		}
		return nil
	})
}

// stretch is what a stretch of a log says, by account.
type stretch struct {
	log      string
	only     string // the one account that counts, if not empty
	accounts map[string]*changes
}

func newStretch(log, only string) *stretch {
	return &stretch{log: log, only: only, accounts: map[string]*changes{}}
}

// of finds what is said of an account, and nil if it does not count.
func (s *stretch) of(account string) *changes {
	c := s.accounts[account]
	if c == nil && (s.only == "" || s.only == account) {
		c = newChanges()
		s.accounts[account] = c
	}
	return c
}

// take folds the first events of an entry.
func (s *stretch) take(e eventstore.Entry, events int, work *Work) {
	if e.Err != nil {
		work.leaveOut(e)
		return
	}
	for _, rec := range e.Events[:min(events, len(e.Events))] {
		c := s.of(rec.Stream.Account)
		if c == nil {
			continue
		}
		switch event := rec.Event.(type) {
		case email.Event:
			c.emails.fold(rec, event)
		case access.Answered:
			c.answered(rec)
		case access.Refused:
			c.refusals++
		}
	}
}

// then takes in what the stretch that follows says.
func (s *stretch) then(later *stretch) {
	for account, changed := range later.accounts {
		if c := s.of(account); c != nil {
			c.then(changed)
		}
	}
}
