package eventstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"
)

// A tail is an ordered consumer: what it was asked for, from a place on, each
// message once and none between left out. It ends with an error as soon as that
// may not be so any more, and whoever reads on takes another, from where they are.
//
// The library has an ordered consumer that begins again by itself: after ten
// seconds without a word from its server, by tries of ten seconds each, and, asked
// for what is new, with what is new by then.
type tail struct {
	store    *Store
	log      string
	consumer jetstream.Consumer
	messages jetstream.MessagesContext
	unbroken context.Context //nolint:containedctx // how long its connection has lasted
	release  []func() bool
	handed   uint64 // how many messages, as the consumer counts them
}

// abandoned is how long a server keeps a consumer that nobody reads.
const abandoned = 5 * time.Minute

// tail opens one, which ends with ctx.
func (s *Store) tail(ctx context.Context, log string, of jetstream.ConsumerConfig, pull ...jetstream.PullMessagesOpt) (*tail, error) {
	of.Name = uuid.NewString() // so that a second try finds what the first one made
	of.AckPolicy, of.MemoryStorage, of.Replicas, of.InactiveThreshold = jetstream.AckNonePolicy, true, 1, abandoned
	link := &s.links[followLink]
	t := &tail{store: s, log: log, unbroken: link.unbroken.now()}
	err := s.answered(ctx, func(ctx context.Context) (err error) {
		t.consumer, err = link.js.CreateConsumer(ctx, log, of)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%w: follow %s: %w", ErrUnavailable, log, err)
	}
	pull = append(pull, jetstream.PullHeartbeat(heartbeat), jetstream.WithMessagesErrOnMissingHeartbeat(true))
	if t.messages, err = t.consumer.Messages(pull...); err != nil {
		return nil, fmt.Errorf("%w: follow %s: %w", ErrUnavailable, log, err)
	}
	for _, until := range []context.Context{ctx, t.unbroken} {
		t.release = append(t.release, context.AfterFunc(until, t.messages.Stop))
	}
	return t, nil
}

// next waits for the next message, and says where in the log it is.
func (t *tail) next() (jetstream.Msg, uint64, error) {
	msg, err := t.messages.Next()
	if errors.Is(err, jetstream.ErrMsgIteratorClosed) && t.unbroken.Err() != nil {
		err = errConnectedAnew
	}
	if err != nil {
		return nil, 0, fmt.Errorf("%w: follow %s: %w", ErrUnavailable, t.log, err)
	}
	meta, err := msg.Metadata()
	if err != nil {
		return nil, 0, fmt.Errorf("eventstore: %s: message without a place: %w", t.log, err)
	}
	if t.handed++; meta.Sequence.Consumer != t.handed {
		return nil, 0, fmt.Errorf("%w: follow %s: %w", ErrUnavailable, t.log, errLostOnTheWay)
	}
	return msg, meta.Sequence.Stream, nil
}

// passOn passes messages on until the tail ends, and returns the sequence of the
// last one, or the one that it was given.
func (t *tail) passOn(ctx context.Context, last uint64, to chan<- jetstream.Msg) (uint64, error) {
	for {
		msg, at, err := t.next()
		if err != nil {
			return last, err
		}
		select {
		case to <- msg:
			last = at
		case <-ctx.Done():
			return last, context.Cause(ctx)
		}
	}
}

var (
	errLostOnTheWay  = errors.New("a message was lost on the way from the server")
	errConnectedAnew = errors.New("the connection was made again, and what was under way to the one before may be lost")
)

// close ends the tail, and tells the server, which would keep the consumer for a
// while otherwise.
func (t *tail) close() {
	for _, release := range t.release {
		release()
	}
	t.messages.Stop()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = t.store.js.DeleteConsumer(ctx, t.log, t.consumer.CachedInfo().Name) // without it, the server waits
}

// unbroken is the time since a connection was made, or made again: what was under
// way to the one before may be lost.
type unbroken struct {
	mu  sync.Mutex
	ctx context.Context //nolint:containedctx // it is this time
	end context.CancelFunc
}

func newUnbroken() *unbroken {
	u := &unbroken{end: func() {}}
	u.again()
	return u
}

// now ends when the connection is made again.
func (u *unbroken) now() context.Context {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.ctx
}

// again ends it, and begins another.
func (u *unbroken) again() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.end()
	u.ctx, u.end = context.WithCancel(context.Background())
}
