package forensics

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/eventstore"
)

// Point is a place in the history of the platform: for each log, the last entry that
// lies before it. An instant is one, by the time at which the server stored an entry:
// what was stored at that very instant, or in the millisecond that it names, has happened. An event is one too: it and what
// comes before it in its log have happened, and of the other logs what was stored up
// to then.
type Point struct {
	Time  time.Time         `json:"time"`
	Heads map[string]uint64 `json:"heads"`
	Event *Event            `json:"event,omitempty"` // the event that it is, if it is one
	after int               // how many events of that event's entry have happened
}

// Event is where an event is, and whose doing.
type Event struct {
	ID     uuid.UUID `json:"id"`
	Log    string    `json:"log"`
	Seq    uint64    `json:"seq"`
	Time   time.Time `json:"time"`
	Type   string    `json:"type"`
	Of     string    `json:"of"`
	Actor  string    `json:"actor"`
	Via    string    `json:"via"`
	Reason string    `json:"reason,omitempty"`
}

func eventOf(rec domain.Recorded) Event {
	return Event{rec.ID, rec.Log, rec.Seq, rec.Time, rec.Type, rec.Stream.String(), rec.By.Actor.String(), string(rec.By.Via), rec.By.Reason}
}

// ErrNoPoint says that a text names no point of the log.
var ErrNoPoint = errors.New("forensics: there is no such point")

// Resolve finds the point that a text names: "now", a time as RFC 3339 writes it,
// LOG/SEQUENCE, or the id of an event.
func (r *Replay) Resolve(ctx context.Context, text string) (Point, error) {
	if text == "now" {
		return r.now(ctx)
	}
	if t, err := time.Parse(time.RFC3339Nano, text); err == nil {
		return r.recordedBy(ctx, AsPrinted(t))
	}
	if log, number, ok := strings.Cut(text, "/"); ok {
		seq, err := strconv.ParseUint(number, 10, 64)
		if err != nil {
			return Point{}, fmt.Errorf("%w: %q is not a sequence", ErrNoPoint, number)
		}
		return r.atEntry(ctx, strings.ToUpper(log), seq, uuid.Nil)
	}
	id, err := uuid.Parse(text)
	if err != nil {
		return Point{}, fmt.Errorf("%w: %q is neither a time such as 2026-01-09T04:47:00Z, nor LOG/SEQUENCE, nor the id of an event", ErrNoPoint, text)
	}
	log, seq, err := r.find(ctx, id)
	if err != nil {
		return Point{}, err
	}
	return r.atEntry(ctx, log, seq, id)
}

// AsPrinted is the end of the millisecond that is meant by a time as events are printed
// with it. A time that is more exact stays what it is.
func AsPrinted(t time.Time) time.Time {
	if t.Nanosecond()%int(time.Millisecond) == 0 {
		t = t.Add(time.Millisecond - 1)
	}
	return t
}

func (r *Replay) now(ctx context.Context) (Point, error) {
	p := Point{Heads: map[string]uint64{}}
	for _, log := range r.store.Logs() {
		stats, err := r.store.Stats(ctx, log)
		if err != nil {
			return Point{}, err
		}
		p.Heads[log] = stats.Last
		if stats.To.After(p.Time) {
			p.Time = stats.To.UTC()
		}
	}
	return p, nil
}

func (r *Replay) atInstant(ctx context.Context, t time.Time) (Point, error) {
	p := Point{Time: t.UTC(), Heads: map[string]uint64{}}
	var mu sync.Mutex
	group, ctx := errgroup.WithContext(ctx)
	for _, log := range r.store.Logs() {
		group.Go(func() error {
			seq, err := r.lastAt(ctx, log, t)
			mu.Lock()
			defer mu.Unlock()
			p.Heads[log] = seq
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return Point{}, fmt.Errorf("forensics: find %s in the log: %w", t.Format(time.RFC3339Nano), err)
	}
	return p, nil
}

// How long, and for how many entries, what was recorded may have been on its way to
// the log.
const (
	underWay        = time.Second
	entriesUnderWay = 500
)

// recordedBy is atInstant, and what was on its way to the log at that time: the time
// that an event carries, and that is printed of it, is that of the process that
// recorded it, which is a moment before the log's.
func (r *Replay) recordedBy(ctx context.Context, t time.Time) (Point, error) {
	p, err := r.atInstant(ctx, t)
	if err != nil {
		return Point{}, err
	}
	for log, last := range p.Heads {
		head, err := r.store.Head(ctx, log)
		if err != nil {
			return Point{}, err
		}
		if head == last {
			continue
		}
		f := eventstore.Following{Log: log, After: last, StopAt: min(head, last+entriesUnderWay)}
		err = r.store.Follow(ctx, f, func(_ context.Context, entries []eventstore.Entry) error {
			for _, e := range entries {
				if e.Time.Sub(t) > underWay {
					return errFound
				}
				if slices.ContainsFunc(e.Events, func(rec domain.Recorded) bool { return !rec.Time.After(t) }) {
					p.Heads[log] = e.Seq
				}
			}
			return nil
		})
		if err != nil && !errors.Is(err, errFound) {
			return Point{}, fmt.Errorf("forensics: find %s in the log: %w", t.Format(time.RFC3339Nano), err)
		}
	}
	return p, nil
}

// lastAt is the last entry of a log that was stored up to a time, 0 if there is none.
// Snapshots say about where it is, so that only a few entries have to be looked at,
// which lie together.
func (r *Replay) lastAt(ctx context.Context, log string, t time.Time) (uint64, error) {
	everywhere := func() (uint64, error) { return r.store.Before(ctx, log, t.Add(1)) }
	if r.snapshots == nil {
		return everywhere()
	}
	stats, err := r.store.Stats(ctx, log)
	if err != nil {
		return 0, err
	}
	after, until, ok := r.snapshots.around(log, t, stats.Last)
	if !ok || after == 0 || after < stats.First {
		return everywhere()
	}
	before := func(seq uint64) (bool, error) {
		e, err := r.store.Read(ctx, log, seq)
		return err == nil && !e.Time.After(t), err
	}
	// What the snapshots say is held against the log at both ends.
	if sound, err := before(after); err != nil || !sound {
		return everywhere()
	}
	for after < until {
		middle := after + (until-after+1)/2
		earlier, err := before(middle)
		if err != nil {
			return 0, err
		}
		if earlier {
			after = middle
		} else {
			until = middle - 1
		}
	}
	if after < stats.Last {
		if next, err := before(after + 1); err != nil || next {
			return everywhere()
		}
	}
	return after, nil
}

// atEntry is the point of one event of an entry, or of the entry's last.
func (r *Replay) atEntry(ctx context.Context, log string, seq uint64, id uuid.UUID) (Point, error) {
	if !slices.Contains(r.store.Logs(), log) {
		return Point{}, fmt.Errorf("%w: no log is called %q; there are %s", ErrNoPoint, log, strings.Join(r.store.Logs(), ", "))
	}
	e, err := r.store.Read(ctx, log, seq)
	if errors.Is(err, eventstore.ErrNoEntry) {
		return Point{}, fmt.Errorf("%w: %s holds nothing at %d", ErrNoPoint, log, seq)
	}
	if err != nil {
		return Point{}, err
	}
	p, err := r.atInstant(ctx, e.Time)
	if err != nil {
		return Point{}, err
	}
	p.Heads[log] = seq
	for i, rec := range e.Events {
		if rec.ID == id || id == uuid.Nil && i == len(e.Events)-1 {
			event := eventOf(rec)
			p.Event, p.after = &event, i+1
		}
	}
	return p, nil
}

// find looks for the event with an id. The ids of most begin with the time, so that
// it is looked for from a little before then on; and if it is not there, everywhere.
func (r *Replay) find(ctx context.Context, id uuid.UUID) (log string, seq uint64, err error) {
	var begin map[string]uint64
	if id.Version() == 7 {
		sec, nsec := id.Time().UnixTime()
		p, err := r.atInstant(ctx, time.Unix(sec, nsec).Add(-time.Minute))
		if err != nil {
			return "", 0, err
		}
		begin = p.Heads
		if log, seq, err = r.search(ctx, id, begin, nil); err != nil || log != "" {
			return log, seq, err
		}
	}
	log, seq, err = r.search(ctx, id, nil, begin)
	if err == nil && log == "" {
		err = fmt.Errorf("%w: no event has the id %s", ErrNoPoint, id)
	}
	return log, seq, err
}

var errFound = errors.New("found")

// search looks for an event in all logs at once: after some sequences, up to others
// or, where there is none, to the end.
func (r *Replay) search(ctx context.Context, id uuid.UUID, after, until map[string]uint64) (log string, seq uint64, err error) {
	needle := []byte(`"id":"` + id.String() + `"`)
	var mu sync.Mutex
	group, ctx := errgroup.WithContext(ctx)
	for _, name := range r.store.Logs() {
		group.Go(func() error {
			end := until[name]
			if until == nil {
				head, err := r.store.Head(ctx, name)
				if err != nil {
					return err
				}
				end = head
			}
			f := eventstore.Following{Log: name, After: after[name], StopAt: end, MaxBatch: 4000, Brief: brief}
			return follow(ctx, r.store, f, func(e eventstore.Entry) error {
				if !bytes.Contains(e.Raw, needle) {
					return nil
				}
				// The data of another event may name it too.
				whole, err := r.store.Read(ctx, name, e.Seq)
				if err != nil || !slices.ContainsFunc(whole.Events, func(rec domain.Recorded) bool { return rec.ID == id }) {
					return err
				}
				mu.Lock()
				defer mu.Unlock()
				log, seq = name, e.Seq
				return errFound
			})
		})
	}
	if err := group.Wait(); err != nil && !errors.Is(err, errFound) {
		return "", 0, fmt.Errorf("forensics: look for the event %s: %w", id, err)
	}
	return log, seq, nil
}

// whole is the last sequence of a log of whose entry every event has happened, and
// all before it.
func (p Point) whole(log string) uint64 {
	if p.Event != nil && p.Event.Log == log {
		return p.Heads[log] - 1
	}
	return p.Heads[log]
}

// eventsOf is how many of an entry's events have happened.
func (p Point) eventsOf(e eventstore.Entry) int {
	if p.Event != nil && p.Event.Log == e.Log && p.Event.Seq == e.Seq {
		return p.after
	}
	return len(e.Events)
}

// Before reports whether nothing that has happened at p had not happened at q.
func (p Point) Before(q Point) bool {
	for log, seq := range p.Heads {
		if seq > q.Heads[log] {
			return false
		}
		if p.Event != nil && q.Event != nil && p.Event.Log == log && q.Event.Log == log && seq == q.Heads[log] && p.after > q.after {
			return false
		}
	}
	return true
}

func (p Point) String() string {
	s := p.Time.Format("2006-01-02T15:04:05.000Z07:00")
	if p.Event != nil {
		s += fmt.Sprintf(" (%s, %s/%d)", p.Event.Type, p.Event.Log, p.Event.Seq)
	}
	return s
}
