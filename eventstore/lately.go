package eventstore

import (
	"context"
	"strconv"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/singleflight"

	"postbook.dev/postbook/domain"
)

// lately keeps the entries that were read last, which never change. One holds what up
// to a hundred emails share, that are worked on one by one within moments, or all at
// once: then one of them reads it.
type lately struct {
	held    *lru.Cache[domain.Position, Entry]
	reading singleflight.Group
	read    reader
}

// reader is Store.Read, or stands before it.
type reader func(ctx context.Context, log string, seq uint64) (Entry, error)

func newLately(size int, read reader) *lately {
	held, err := lru.New[domain.Position, Entry](size)
	if err != nil {
		panic(err) // a size below one
	}
	return &lately{held: held, read: read}
}

// keep takes an entry that was just written.
func (l *lately) keep(e Entry) { l.held.Add(e.Position, e) }

// at is Store.Read. What it returns is shared, and not to be changed.
func (l *lately) at(ctx context.Context, log string, seq uint64) (Entry, error) {
	at := domain.Position{Log: log, Seq: seq}
	if e, ok := l.held.Get(at); ok {
		return e, nil
	}
	answer := l.reading.DoChan(log+" "+strconv.FormatUint(seq, 10), func() (any, error) {
		// Others may wait for it when the one who came first has given up.
		e, err := l.read(context.WithoutCancel(ctx), log, seq)
		if err == nil && e.Err == nil {
			l.held.Add(at, e)
		}
		return e, err
	})
	select {
	case got := <-answer:
		e, _ := got.Val.(Entry)
		return e, got.Err
	case <-ctx.Done():
		return Entry{}, ctx.Err()
	}
}
