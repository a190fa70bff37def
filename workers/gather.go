package workers

import (
	"context"
	"sync"
	"time"
)

// gather puts what many attempts ask for within a short time into one request. To the
// log a message costs as much with one commit in it as with fifty, and so it does to
// everybody who reads it.
type gather[T, R any] struct {
	// do answers all, each in its place. It is called with a context that ends when the
	// one who asked does, if nobody else can have joined.
	do func(ctx context.Context, items []T) ([]R, error)

	mu   sync.Mutex
	open *gathered[T, R] // that others can still join, or nil
}

type gathered[T, R any] struct {
	items   []T
	done    chan struct{} // closed when there are answers, or an error for all
	answers []R
	err     error
}

// ask returns the answer to one item, which may wait for others within a time: that of
// the one who came first. If ctx ends before the answer comes, the item may have been
// done, or may still be.
func (g *gather[T, R]) ask(ctx context.Context, within time.Duration, item T) (answer R, err error) {
	if within == 0 {
		answers, err := g.do(ctx, []T{item})
		if err != nil {
			return answer, err
		}
		return answers[0], nil
	}
	g.mu.Lock()
	with := g.open
	if with == nil {
		with = &gathered[T, R]{done: make(chan struct{})}
		g.open = with
		time.AfterFunc(within, func() { g.close(context.WithoutCancel(ctx), with) })
	}
	place := len(with.items)
	with.items = append(with.items, item)
	g.mu.Unlock()
	select {
	case <-with.done:
	case <-ctx.Done():
		return answer, ctx.Err()
	}
	if with.err != nil {
		return answer, with.err
	}
	return with.answers[place], nil
}

// close asks for what has gathered.
func (g *gather[T, R]) close(ctx context.Context, with *gathered[T, R]) {
	g.mu.Lock()
	g.open = nil
	g.mu.Unlock()
	with.answers, with.err = g.do(ctx, with.items)
	close(with.done)
}
