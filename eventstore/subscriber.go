package eventstore

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// The metadata of messages that a Subscriber hands over.
const (
	MetaLog       = "log"
	MetaSeq       = "seq"
	MetaSubject   = "subject"
	MetaTime      = "time"
	MetaDelivered = "delivered" // which try this is, from 1
)

// SubscriberConfig says how a group of workers shares a log.
type SubscriberConfig struct {
	Group    string        // whose members share the messages of a topic, and whose place in it is kept
	InFlight int           // messages that are worked on at once; 0 is 16
	AckWait  time.Duration // a member that is silent for so long has died; 0 is 30 s
	Backoff  time.Duration // before a message that failed comes again; doubled each time, at most a minute; 0 is 1 s
}

// Subscriber is Watermill's subscriber over the log. A topic is a log and a
// filter, such as "LEDGER/ledger.*.sender.*". Each message is handed over at
// least once; many are in flight at a time, so their order is not kept.
type Subscriber struct {
	store *Store
	cfg   SubscriberConfig

	mu      sync.Mutex
	closed  bool
	closing chan struct{}
	running sync.WaitGroup
}

// Subscriber makes the subscriber of a group.
func (s *Store) Subscriber(c SubscriberConfig) *Subscriber {
	if c.InFlight == 0 {
		c.InFlight = 16
	}
	if c.AckWait == 0 {
		c.AckWait = 30 * time.Second
	}
	if c.Backoff == 0 {
		c.Backoff = time.Second
	}
	return &Subscriber{store: s, cfg: c, closing: make(chan struct{})}
}

// SubscribeInitialize makes the group's place in the log, so that it misses
// nothing from now on.
func (u *Subscriber) SubscribeInitialize(topic string) error {
	ctx, cancel := context.WithTimeout(context.Background(), ackTimeout)
	defer cancel()
	_, err := u.consumer(ctx, topic)
	return err
}

func (u *Subscriber) consumer(ctx context.Context, topic string) (consumer jetstream.Consumer, err error) {
	log, filter, ok := strings.Cut(topic, "/")
	if !ok || !isToken(u.cfg.Group) {
		return nil, fmt.Errorf("eventstore: subscribe: %q of group %q is not a log and a filter", topic, u.cfg.Group)
	}
	stream, err := u.store.stream(ctx, log)
	if err != nil {
		return nil, err
	}
	err = u.store.answered(ctx, func(ctx context.Context) (err error) {
		consumer, err = stream.CreateOrUpdateConsumer(ctx, jetstream.ConsumerConfig{
			Durable:       durable(u.cfg.Group, filter),
			FilterSubject: filter,
			AckPolicy:     jetstream.AckExplicitPolicy,
			AckWait:       u.cfg.AckWait,
			MaxAckPending: u.cfg.InFlight,
			MaxDeliver:    -1,
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("eventstore: subscribe to %s: %w: %w", topic, ErrUnavailable, err)
	}
	return consumer, nil
}

// durable names a group's place under a filter. A group that shared one place
// between two filters would keep the later one's messages only.
func durable(group, filter string) string {
	h := fnv.New32a()
	_, _ = h.Write([]byte(filter))
	return fmt.Sprintf("%s-%08x", group, h.Sum32())
}

const resubscribeAfter = time.Second

// Subscribe hands over messages until ctx ends or Close is called. It goes on when a
// server is lost, and begins as soon as one answers. It is an error if there is no such
// log, or if the server refuses.
func (u *Subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	iter, err := u.begin(ctx, topic)
	if err != nil && (!errors.Is(err, ErrUnavailable) || refusedForGood(err)) {
		return nil, err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		if err == nil {
			iter.Stop()
		}
		return nil, errors.New("eventstore: subscribe: the subscriber is closed")
	}
	ctx, cancel := context.WithCancel(ctx)
	out := make(chan *message.Message)
	u.running.Go(func() {
		select {
		case <-u.closing:
		case <-ctx.Done():
		}
		cancel()
	})
	u.running.Go(func() {
		defer close(out)
		defer cancel()
		for {
			if err == nil {
				err = u.receive(ctx, iter, out)
			}
			if ctx.Err() != nil {
				return
			}
			u.store.cfg.Log.Warn("a subscription is begun again", "group", u.cfg.Group, "error", err)
			select {
			case <-time.After(resubscribeAfter):
			case <-ctx.Done():
				return
			}
			iter, err = u.begin(ctx, topic)
		}
	})
	return out, nil
}

func (u *Subscriber) begin(ctx context.Context, topic string) (jetstream.MessagesContext, error) {
	consumer, err := u.consumer(ctx, topic)
	if err != nil {
		return nil, err
	}
	iter, err := consumer.Messages(jetstream.PullMaxMessages(u.cfg.InFlight), jetstream.PullHeartbeat(heartbeat))
	if err != nil {
		return nil, fmt.Errorf("eventstore: subscribe to %s: %w: %w", topic, ErrUnavailable, err)
	}
	return iter, nil
}

// receive hands each message over in a goroutine of its own, until ctx or the iterator
// ends. The server sends no more than InFlight that are not settled.
func (u *Subscriber) receive(ctx context.Context, iter jetstream.MessagesContext, out chan<- *message.Message) error {
	var working sync.WaitGroup
	defer working.Wait()
	// What has arrived is given back, rather than held until AckWait is over.
	defer context.AfterFunc(ctx, iter.Drain)()
	for {
		m, err := iter.Next()
		if errors.Is(err, jetstream.ErrNoHeartbeat) {
			continue // the server is away; the iterator asks again
		}
		if err != nil {
			return err
		}
		working.Go(func() { u.handOver(ctx, m, out) })
	}
}

func (u *Subscriber) handOver(ctx context.Context, m jetstream.Msg, out chan<- *message.Message) {
	meta, err := m.Metadata()
	if err != nil {
		u.store.cfg.Log.Error("a message without a place", "group", u.cfg.Group, "error", err)
		return
	}
	msg := message.NewMessage(m.Headers().Get(nats.MsgIdHdr), m.Data())
	msg.Metadata.Set(MetaLog, meta.Stream)
	msg.Metadata.Set(MetaSeq, strconv.FormatUint(meta.Sequence.Stream, 10))
	msg.Metadata.Set(MetaSubject, m.Subject())
	msg.Metadata.Set(MetaTime, meta.Timestamp.UTC().Format(time.RFC3339Nano))
	msg.Metadata.Set(MetaDelivered, strconv.FormatUint(meta.NumDelivered, 10))
	for name, values := range m.Headers() {
		if name != nats.MsgIdHdr && len(values) > 0 {
			msg.Metadata.Set(name, values[0])
		}
	}
	each, cancel := context.WithCancel(ctx)
	defer cancel()
	msg.SetContext(each)

	alive := time.NewTicker(u.cfg.AckWait / 3)
	defer alive.Stop()
	for offer := out; ; {
		select {
		case offer <- msg:
			offer = nil
		case <-msg.Acked():
			u.acknowledge(ctx, m)
			return
		case <-msg.Nacked():
			wait := min(u.cfg.Backoff<<min(meta.NumDelivered-1, 16), time.Minute)
			u.settled(ctx, "nack", m.NakWithDelay(wait))
			return
		case <-alive.C:
			u.settled(ctx, "keep", m.InProgress())
		case <-ctx.Done():
			select {
			case <-msg.Acked(): // at the same time
				u.acknowledge(ctx, m)
			default:
				u.settled(ctx, "give back", m.Nak())
			}
			return
		}
	}
}

// acknowledge waits until the server knows that a message is done with, also if the
// subscription ends.
func (u *Subscriber) acknowledge(ctx context.Context, m jetstream.Msg) {
	patient, stop := context.WithTimeout(context.WithoutCancel(ctx), ackTimeout)
	defer stop()
	u.settled(ctx, "ack", m.DoubleAck(patient))
}

// settled notes an answer that did not reach the server, which will hand the
// message over again.
func (u *Subscriber) settled(ctx context.Context, what string, err error) {
	if err != nil && ctx.Err() == nil {
		u.store.cfg.Log.Warn("settle a message", "group", u.cfg.Group, "as", what, "error", err)
	}
}

// Close ends all subscriptions. Messages that are not settled come again.
func (u *Subscriber) Close() error {
	u.mu.Lock()
	if !u.closed {
		u.closed = true
		close(u.closing)
	}
	u.mu.Unlock()
	u.running.Wait()
	return nil
}

// Entry reads the message that a Subscriber handed over.
func (s *Store) Entry(m *message.Message) (Entry, error) {
	seq, err := strconv.ParseUint(m.Metadata.Get(MetaSeq), 10, 64)
	if err != nil {
		return Entry{}, fmt.Errorf("eventstore: a message without a place: %w", err)
	}
	at, err := time.Parse(time.RFC3339Nano, m.Metadata.Get(MetaTime))
	if err != nil {
		return Entry{}, fmt.Errorf("eventstore: a message without a time: %w", err)
	}
	return s.decodeEntry(m.Metadata.Get(MetaLog), seq, at, m.Metadata.Get(MetaSubject), m.Payload), nil
}

// DeadLetters is Watermill's publisher onto the log of what workers gave up on.
// The topic names the worker.
func (s *Store) DeadLetters() message.Publisher { return deadLetters{s} }

type deadLetters struct{ store *Store }

func (d deadLetters) Publish(topic string, messages ...*message.Message) error {
	for _, m := range messages {
		msg := &nats.Msg{Subject: "dead." + topic, Header: nats.Header{}, Data: m.Payload}
		for name, value := range m.Metadata {
			msg.Header.Set("Postbook-"+name, strings.Map(printable, value))
		}
		if p := d.store.publish(m.Context(), true, msg)[0]; p.err != nil {
			return fmt.Errorf("eventstore: keep a dead letter of %s: %w", topic, p.err)
		}
	}
	return nil
}

// printable keeps line ends out of headers.
func printable(r rune) rune {
	if r < ' ' {
		return ' '
	}
	return r
}

func (deadLetters) Close() error { return nil }
