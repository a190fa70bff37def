package api

import (
	"context"
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
// a quiet one.
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
	strangersAtMost = 50   // records of requests without a valid key, each second: an attacker may not fill the log
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

func (r *recorder) run() {
	defer close(r.done)
	for first := range r.queue {
		batch := []entry{first}
		for len(batch) < recordBatch {
			select {
			case next, ok := <-r.queue:
				if ok {
					batch = append(batch, next)
					continue
				}
			default:
			}
			break
		}
		r.write(batch)
	}
}

func (r *recorder) write(batch []entry) {
	accounts := map[string][]entry{}
	for _, e := range batch {
		accounts[e.account] = append(accounts[e.account], e)
	}
	for account, entries := range accounts {
		commits := make([]eventstore.Commit, len(entries))
		sync := false
		for i, e := range entries {
			commits[i] = e.commit
			sync = sync || e.sync
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		err := r.store.Record(ctx, eventstore.Access, account, commits, sync)
		cancel()
		if err != nil {
			r.log.Error("access is not on record", "account", account, "count", len(entries), "error", err)
			err = fmt.Errorf("put access on record: %w", err)
		}
		for _, e := range entries {
			if e.written != nil {
				e.written <- err
			}
		}
	}
}

func stack() string { return string(debug.Stack()) }

// clip bounds a string from outside, and leaves only what can be printed.
func clip(s string, n int) string { return strings.ToValidUTF8(s[:min(n, len(s))], "?") }
