//go:build conformance

// Watermill's suite needs github.com/stretchr/testify in go.mod.

package eventstore

import (
	"context"
	"strings"
	"sync"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"
	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
)

// publisher puts Watermill's messages on the log of dead letters, which takes
// any body. The platform has no such publisher: facts are appended by Append.
type publisher struct {
	t     *testing.T
	store *Store
}

func (p publisher) Publish(topic string, messages ...*message.Message) error {
	for _, m := range messages {
		msg := &nats.Msg{Subject: topic[len(Dead+"/"):], Header: nats.Header{nats.MsgIdHdr: {m.UUID + "@" + topic}}, Data: m.Payload}
		for name, value := range m.Metadata {
			msg.Header[name] = []string{value}
		}
		if out := p.store.publish(p.t.Context(), true, msg); out[0].err != nil {
			return out[0].err
		}
	}
	return nil
}

func (publisher) Close() error { return nil }

// subscriber takes the topic off the ids again. The suite publishes one message
// to many topics, which lie on one log here, and a log takes an id once.
type subscriber struct {
	*Subscriber
	running *sync.WaitGroup
}

func (u subscriber) Close() error {
	defer u.running.Wait() // the channels are closed when it returns
	return u.Subscriber.Close()
}

func (u subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	from, err := u.Subscriber.Subscribe(ctx, topic)
	if err != nil {
		return nil, err
	}
	to := make(chan *message.Message)
	u.running.Go(func() {
		defer close(to)
		for m := range from {
			m.UUID, _, _ = strings.Cut(m.UUID, "@")
			select {
			case to <- m:
			case <-m.Context().Done(): // it is given back
			}
		}
	})
	return to, nil
}

// The subscriber keeps Watermill's contract. It promises no order, because many
// messages are worked on at once, and each at least once.
func TestConformance(t *testing.T) {
	s := open(t)
	inGroup := func(t *testing.T, group string) (message.Publisher, message.Subscriber) {
		return publisher{t, s}, subscriber{s.Subscriber(SubscriberConfig{Group: group, Backoff: 1}), new(sync.WaitGroup)}
	}
	tests.TestPubSub(t, tests.Features{
		ConsumerGroups:    true,
		Persistent:        true,
		GenerateTopicFunc: func(c tests.TestContext) string { return Dead + "/dead." + string(c.TestID) },
	}, func(t *testing.T) (message.Publisher, message.Subscriber) {
		return inGroup(t, groupOf(t))
	}, inGroup)
}

// groupOf is one group for all subscribers of a test.
func groupOf(t *testing.T) string {
	return uuid.NewSHA1(uuid.NameSpaceURL, []byte(t.Name())).String()
}
