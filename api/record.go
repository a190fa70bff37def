package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/access"
	"postbook.dev/postbook/eventstore"
)

// A recorder writes access events. Those that arrive while it writes are written
// together, so that the record of a busy account costs little more than that of
// a quiet one. What cannot be written while the log is away is kept, and written
// when it is back.
type recorder struct {
	store *eventstore.Store
	log   *slog.Logger
	queue chan entry
	done  chan struct{}

	mu        sync.Mutex
	strangers int   // records of strangers in this second
	second    int64 //
}

type entry struct {
	account string
	commit  eventstore.Commit
	sync    bool
	written chan<- error // nil if nobody waits
}

// The bounds of a recorder.
const (
	recordQueue     = 4096 // records in memory
	recordBatch     = 256  // records in one message
	recordAgain     = time.Second
	strangersAtMost = 50 // records of requests without a valid key, each second: an attacker may not fill the log
)

func newRecorder(store *eventstore.Store, log *slog.Logger) *recorder {
	r := &recorder{store: store, log: log, queue: make(chan entry, recordQueue), done: make(chan struct{})}
	go r.run()
	return r
}

// close writes what is queued, and ends.
func (r *recorder) close() {
	close(r.queue)
	<-r.done
}

// Record puts what the console answered on record, as record does for the API.
func (a *API) Record(ctx context.Context, by domain.Authority, e access.Answered, wait bool) error {
	return a.recorder.record(ctx, by, e, wait)
}

// record puts an answer on record. If wait is set it returns when the record is
// acknowledged, and for staff when it is on disk.
func (r *recorder) record(ctx context.Context, by domain.Authority, e access.Answered, wait bool) error {
	if by.Actor.Kind == domain.Anonymous && !r.admit(by.At) {
		return nil
	}
	e.Method, e.Path, e.UserAgent = clip(e.Method, 16), clip(e.Path, 256), clip(e.UserAgent, 200)
	id := by.Command.String()
	by.Command = newID()
	in := entry{
		account: by.Account,
		commit: eventstore.Commit{
			Stream: domain.Stream{Account: by.Account, Kind: "access", ID: id},
			By:     by,
			Events: []domain.Event{e},
		},
		sync: by.Actor.Kind == domain.Staff,
	}
	if !wait {
		select {
		case r.queue <- in:
			return nil
		case <-ctx.Done():
		}
		// The caller has gone, their request has not.
		r.queue <- in
		return nil
	}
	written := make(chan error, 1)
	in.written = written
	select {
	case r.queue <- in:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-written:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *recorder) admit(now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := now.Unix(); s != r.second {
		if r.strangers > strangersAtMost {
			r.log.Warn("requests without a valid key were not recorded one by one", "count", r.strangers-strangersAtMost)
		}
		r.second, r.strangers = s, 0
	}
	r.strangers++
	return r.strangers <= strangersAtMost
}

// together is records of one account that are written in one message. It stays as it is
// when it is tried again: the log knows a message by the first record in it.
type together struct {
	account string
	commits []eventstore.Commit
	sync    bool
	waiting []chan<- error // of all of them, or empty
}

func (r *recorder) run() {
	defer close(r.done)
	var left []*together
	for open := true; open; {
		var again <-chan time.Time
		if len(left) > 0 {
			again = time.After(recordAgain)
		}
		select {
		case first, more := <-r.queue:
			if open = more; more {
				left = append(sorted(r.gather(first)), left...)
			}
		case <-again:
		}
		left = r.write(left)
	}
	for _, t := range left {
		r.log.Error("access is not on record", "account", t.account, "count", len(t.commits))
	}
}

// gather takes what is in the queue behind an entry.
func (r *recorder) gather(first entry) []entry {
	batch := []entry{first}
	for len(batch) < recordBatch {
		select {
		case next, ok := <-r.queue:
			if !ok {
				return batch
			}
			batch = append(batch, next)
		default:
			return batch
		}
	}
	return batch
}

// sorted puts entries into messages: those that somebody waits for first, and apart.
func sorted(entries []entry) []*together {
	type kind struct {
		account string
		waited  bool
	}
	known := map[kind]*together{}
	var waited, others []*together
	for _, e := range entries {
		k := kind{e.account, e.written != nil}
		t := known[k]
		if t == nil {
			t = &together{account: e.account}
			known[k] = t
			if k.waited {
				waited = append(waited, t)
			} else {
				others = append(others, t)
			}
		}
		t.commits, t.sync = append(t.commits, e.commit), t.sync || e.sync
		if k.waited {
			t.waiting = append(t.waiting, e.written)
		}
	}
	return append(waited, others...)
}

// write returns what the log was not there to take, and nobody waits for. Whoever waits
// is told, and has not been answered yet.
func (r *recorder) write(all []*together) (left []*together) {
	kept := 0 // records
	for _, t := range all {
		err := eventstore.ErrUnavailable
		if len(left) == 0 || len(t.waiting) > 0 {
			err = r.writeOne(t)
		}
		for _, waiting := range t.waiting {
			waiting <- err
		}
		switch {
		case err == nil:
		case len(t.waiting) == 0 && errors.Is(err, eventstore.ErrUnavailable) && kept+len(t.commits) <= recordQueue:
			if len(left) == 0 {
				r.log.Warn("access is not on record yet; it is tried again", "account", t.account, "error", err)
			}
			left, kept = append(left, t), kept+len(t.commits)
		default:
			r.log.Error("access is not on record", "account", t.account, "count", len(t.commits), "error", err)
		}
	}
	return left
}

func (r *recorder) writeOne(t *together) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := r.store.Record(ctx, eventstore.Access, t.account, t.commits, t.sync); err != nil {
		return fmt.Errorf("put access on record: %w", err)
	}
	return nil
}

func stack() string { return string(debug.Stack()) }

// clip bounds a string from outside, and leaves only what can be printed.
func clip(s string, n int) string { return strings.ToValidUTF8(s[:min(n, len(s))], "?") }
