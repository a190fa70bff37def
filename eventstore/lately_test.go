package eventstore

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"postbook.dev/postbook/domain"
)

// slow is a log whose entries take a second to read.
type slow struct {
	reads atomic.Int64
	err   error // of the reading
	bad   error // of the entry
}

func (l *slow) read(ctx context.Context, log string, seq uint64) (Entry, error) {
	l.reads.Add(1)
	select {
	case <-time.After(time.Second):
	case <-ctx.Done():
		return Entry{}, ctx.Err()
	}
	return Entry{Position: domain.Position{Log: log, Seq: seq}, Err: l.bad}, l.err
}

func TestManyReadAnEntryOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &slow{}
		l := newLately(2, log.read)
		// The first gives up; who waits with it does not notice.
		ctx, giveUp := context.WithTimeout(t.Context(), time.Millisecond)
		defer giveUp()
		var reading sync.WaitGroup
		reading.Go(func() {
			if _, err := l.at(ctx, Content, 7); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("who gave up got %v", err)
			}
		})
		synctest.Wait()
		for range 20 {
			reading.Go(func() {
				if e, err := l.at(t.Context(), Content, 7); err != nil || e.Seq != 7 {
					t.Errorf("got %d, %v", e.Seq, err)
				}
			})
		}
		reading.Wait()
		if e, err := l.at(t.Context(), Content, 7); err != nil || e.Seq != 7 || log.reads.Load() != 1 {
			t.Errorf("got %d, %v after %d readings, want one", e.Seq, err, log.reads.Load())
		}
		// It is not the entry of another log, and leaves when others come.
		for _, other := range []string{MailLog(0), MailLog(1), Content} {
			if e, err := l.at(t.Context(), other, 7); err != nil || e.Log != other {
				t.Errorf("in %s: %+v, %v", other, e.Position, err)
			}
		}
		if n := log.reads.Load(); n != 4 {
			t.Errorf("%d readings, want 4", n)
		}
	})
}

// What could not be read is tried again.
func TestWhatCannotBeReadIsNotKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, log := range []*slow{{err: ErrUnavailable}, {bad: errSyntax}} {
			l := newLately(2, log.read)
			for range 2 {
				if e, err := l.at(t.Context(), Content, 7); !errors.Is(err, log.err) || !errors.Is(e.Err, log.bad) {
					t.Errorf("got %v, %v", e.Err, err)
				}
			}
			if n := log.reads.Load(); n != 2 {
				t.Errorf("%d readings, want 2", n)
			}
		}
	})
}
