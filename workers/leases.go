package workers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"postbook.dev/postbook/eventstore"
)

// Leases share the partitions out among the processes that have the role workers.
// Each process says in a bucket, again and again, that it is alive, and each
// partition's entry there names who works on it. An entry of somebody who has not
// been heard of for a while may be taken, and whoever has more than their share
// gives some back.
//
// They only spare two processes the trouble of claiming the same partition in
// turns. That no email is decided about twice, the claim in the partition's own
// log ensures, whatever the leases say: clocks are not compared, and a process
// that was stopped for an hour and goes on is refused by the log.
type Leases struct {
	bucket     *eventstore.Bucket
	partitions int
	self       string
	log        *slog.Logger

	mu      sync.Mutex
	held    map[int]*lease
	changed chan struct{} // closed whenever one is taken

	seen   map[string]sighting // of processes
	looked time.Time           // when they were looked for last
}

// lease is a partition that this process works on.
type lease struct {
	revision uint64             // of its entry
	end      context.CancelFunc // ends the work; nil while there is none
	giving   bool               // it goes to somebody else once the work has ended
}

type sighting struct {
	revision uint64
	at       time.Time // when this process first saw it
}

const (
	aliveEvery = time.Second
	// silent is how long a process is waited for: what it has is taken by others
	// after that.
	silent = 6 * time.Second
	// alivePrefix begins the keys under which processes say that they are alive.
	alivePrefix = "alive."
)

// NewLeases makes the leases of one process.
func NewLeases(bucket *eventstore.Bucket, partitions int, log *slog.Logger) *Leases {
	return &Leases{
		bucket: bucket, partitions: partitions, self: uuid.Must(uuid.NewV7()).String(), log: log,
		held: map[int]*lease{}, changed: make(chan struct{}), seen: map[string]sighting{},
	}
}

// Run keeps the leases until ctx ends, and then gives them back.
func (l *Leases) Run(ctx context.Context) error {
	tick := time.NewTicker(aliveEvery)
	defer tick.Stop()
	for {
		if err := l.round(ctx); err != nil && ctx.Err() == nil {
			l.log.Warn("the partitions are not shared out anew", "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			l.leave(last)
			return ctx.Err()
		}
	}
}

// round says that this process is alive, and takes or gives back what follows
// from who else is.
func (l *Leases) round(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, silent)
	defer cancel()
	if _, err := l.bucket.Put(ctx, alivePrefix+l.self, nil); err != nil {
		return err
	}
	alive, err := l.alive(ctx)
	if err != nil {
		return err
	}
	share := (l.partitions + len(alive) - 1) / len(alive)
	for n := range l.partitions {
		if err := l.look(ctx, n, share, alive); err != nil {
			return fmt.Errorf("partition %d: %w", n, err)
		}
	}
	return nil
}

// alive are the processes that were heard of lately.
func (l *Leases) alive(ctx context.Context) (map[string]bool, error) {
	keys, err := l.bucket.Keys(ctx)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	// While the log was away, nobody could say that they are alive.
	away := now.Sub(l.looked) > silent/2
	l.looked = now
	alive := map[string]bool{l.self: true}
	seen := map[string]sighting{}
	for _, key := range keys {
		who, is := strings.CutPrefix(key, alivePrefix)
		if !is || who == l.self {
			continue
		}
		_, revision, err := l.bucket.Get(ctx, key)
		if errors.Is(err, eventstore.ErrNoEntry) {
			continue // it has just left
		}
		if err != nil {
			return nil, err
		}
		s := l.seen[who]
		if s.revision != revision || away {
			s = sighting{revision, now}
		}
		seen[who] = s
		switch age := now.Sub(s.at); {
		case age < silent:
			alive[who] = true
		case age > 10*silent:
			_ = l.bucket.Delete(ctx, key, revision) // if it is alive after all, it comes again
		}
	}
	l.seen = seen
	return alive, nil
}

// look takes a partition that nobody works on while this process has less than
// its share, and gives one back that it does not work on any more.
func (l *Leases) look(ctx context.Context, n, share int, alive map[string]bool) error {
	key := fmt.Sprint("partition.", n)
	who, revision, err := l.bucket.Get(ctx, key)
	if err != nil && !errors.Is(err, eventstore.ErrNoEntry) {
		return err
	}
	unowned := len(who) == 0 || !alive[string(who)]
	switch have := l.have(n, string(who) == l.self, share); {
	case have == tooMany && string(who) == l.self:
		_, err = l.bucket.Update(ctx, key, nil, revision)
	case have == tooFew && (unowned || string(who) == l.self):
		var taken uint64
		if taken, err = l.bucket.Update(ctx, key, []byte(l.self), revision); err == nil {
			l.take(n, taken)
		}
	default:
		return nil
	}
	if errors.Is(err, eventstore.ErrConflict) {
		return nil // somebody was faster
	}
	return err
}

// what this process has, beside a partition that it does not work on.
type having int

const (
	enough having = iota
	tooFew
	tooMany
)

// have compares what this process has with its share. It ends the work on a
// partition that is named somebody else's, or is one too many: that is given back
// when the work has ended, so that no outcome of it is lost.
func (l *Leases) have(n int, ours bool, share int) having {
	l.mu.Lock()
	defer l.mu.Unlock()
	count := 0
	for _, held := range l.held {
		if !held.giving {
			count++
		}
	}
	held := l.held[n]
	switch {
	case held == nil && count < share:
		return tooFew
	case held == nil:
		return tooMany
	case !ours:
		delete(l.held, n)
	case held.giving || count <= share:
		return enough
	default:
		held.giving = true
	}
	if held.end != nil {
		held.end()
	} else {
		delete(l.held, n)
	}
	return enough
}

func (l *Leases) take(n int, revision uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held[n] = &lease{revision: revision}
	close(l.changed)
	l.changed = make(chan struct{})
}

// leave gives everything back.
func (l *Leases) leave(ctx context.Context) {
	l.mu.Lock()
	held := l.held
	l.held = map[int]*lease{}
	l.mu.Unlock()
	for n, held := range held {
		_, _ = l.bucket.Update(ctx, fmt.Sprint("partition.", n), nil, held.revision) // or it is taken in a few seconds
	}
	if _, revision, err := l.bucket.Get(ctx, alivePrefix+l.self); err == nil {
		_ = l.bucket.Delete(ctx, alivePrefix+l.self, revision)
	}
}

// hold waits until a partition is this process's to work on. The context that it
// returns ends when it is not any more; end is called when the work has ended.
func (l *Leases) hold(ctx context.Context, n int) (leased context.Context, end func(), err error) {
	for {
		l.mu.Lock()
		held, changed := l.held[n], l.changed
		if held != nil && !held.giving {
			leased, cancel := context.WithCancel(ctx)
			held.end = cancel
			l.mu.Unlock()
			return leased, func() {
				cancel()
				l.ended(n, held)
			}, nil
		}
		l.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
}

// ended notes that the work on a partition has ended. The next round gives the
// partition back, if it is to go.
func (l *Leases) ended(n int, of *lease) {
	l.mu.Lock()
	defer l.mu.Unlock()
	of.end = nil
	if of.giving && l.held[n] == of {
		delete(l.held, n)
	}
}
