package eventstore

import (
	"context"
	"reflect"
	"sort"
	"strconv"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"

	"postbook.dev/postbook/domain/apikey"
)

func subscribe(t *testing.T, u *Subscriber, topic string) <-chan *message.Message {
	t.Helper()
	t.Cleanup(func() { _ = u.Close() })
	return must(u.Subscribe(t.Context(), topic))(t)
}

func TestSubscriberHandsOverEvents(t *testing.T) {
	t.Parallel()
	s := open(t)
	topic := Ledger + "/" + LedgerSubject("apikey")
	u := s.Subscriber(SubscriberConfig{Group: "workers"})
	// What happens before the first member works is not missed.
	if err := u.SubscribeInitialize(topic); err != nil {
		t.Fatal(err)
	}
	of := newKey()
	recorded := must(s.Append(t.Context(), issued(of), 0))(t)
	must(s.Append(t.Context(), opened("acme"), 0))(t) // not asked for
	m := soon(t, "the event", subscribe(t, u, topic))
	e := must(s.Entry(m))(t)
	if !reflect.DeepEqual(e.Events, recorded) || e.Err != nil || e.Subject != "ledger."+of.String() {
		t.Errorf("the message reads %+v", e)
	}
	if m.UUID != recorded[0].ID.String() || m.Metadata.Get(MetaDelivered) != "1" {
		t.Errorf("message %s, try %s; want %s, try 1", m.UUID, m.Metadata.Get(MetaDelivered), recorded[0].ID)
	}
	m.Ack()
	if _, err := s.Entry(message.NewMessage("1", nil)); err == nil {
		t.Error("a message from elsewhere was read as an entry")
	}
	for _, bad := range []string{"LEDGER", "NONE/x", ""} {
		if _, err := u.Subscribe(t.Context(), bad); err == nil {
			t.Errorf("subscribed to %q", bad)
		}
	}
}

// A subscription goes on when an administrator has deleted its place in the log.
func TestSubscriptionGoesOn(t *testing.T) {
	t.Parallel()
	s := open(t)
	topic := Ledger + "/" + LedgerSubject("apikey")
	messages := subscribe(t, s.Subscriber(SubscriberConfig{Group: "workers"}), topic)
	must(s.Append(t.Context(), issued(newKey()), 0))(t)
	soon(t, "the first event", messages).Ack()
	must(0, s.js.DeleteConsumer(t.Context(), Ledger, durable("workers", LedgerSubject("apikey"))))(t)
	second := must(s.Append(t.Context(), issued(newKey()), 0))(t)
	for {
		m := soon(t, "the second event", messages)
		m.Ack()
		if m.UUID == second[0].ID.String() {
			return // the first may come again
		}
	}
}

// A message that failed comes again, and says which try it is; one that was
// acknowledged does not, also not to the next process.
func TestRedelivery(t *testing.T) {
	t.Parallel()
	s := open(t)
	topic := Ledger + "/" + LedgerSubject("")
	c := SubscriberConfig{Group: "workers", Backoff: time.Millisecond}
	first := s.Subscriber(c)
	messages := subscribe(t, first, topic)
	appendKeys(t, s, 2)
	tries := map[string][]string{}
	for range 4 {
		m := soon(t, "a message", messages)
		seq := m.Metadata.Get(MetaSeq)
		tries[seq] = append(tries[seq], m.Metadata.Get(MetaDelivered))
		if seq == "1" && len(tries[seq]) < 3 {
			m.Nack()
		} else {
			m.Ack()
		}
	}
	if want := map[string][]string{"1": {"1", "2", "3"}, "2": {"1"}}; !reflect.DeepEqual(tries, want) {
		t.Errorf("the tries were %v, want %v", tries, want)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	appendKeys(t, s, 1)
	again := soon(t, "what is new", subscribe(t, s.Subscriber(c), topic))
	if seq := again.Metadata.Get(MetaSeq); seq != "3" {
		t.Errorf("the next member gets %s, want 3: the others were acknowledged", seq)
	}
	again.Ack()
}

// What a member held when it closed, acknowledged or not at all, comes to
// another: nothing is lost on the way.
func TestNothingIsLostOnClose(t *testing.T) {
	t.Parallel()
	s := open(t)
	topic := Ledger + "/" + LedgerSubject("")
	c := SubscriberConfig{Group: "workers", InFlight: 4}
	appendKeys(t, s, 20)
	done := map[string]bool{}
	for round := range 3 {
		u := s.Subscriber(c)
		messages := subscribe(t, u, topic)
		for n := range 4 {
			m := soon(t, "a message", messages)
			if n%2 == 0 { // the others stay unsettled
				done[m.Metadata.Get(MetaSeq)] = true
				m.Ack()
			}
		}
		if err := u.Close(); err != nil {
			t.Fatal(err)
		}
		if _, ok := <-messages; ok {
			t.Errorf("round %d: a message after the close", round)
		}
		if _, err := u.Subscribe(t.Context(), topic); err == nil {
			t.Error("a closed subscriber took a subscription")
		}
	}
	last := subscribe(t, s.Subscriber(c), topic)
	for len(done) < 20 {
		m := soon(t, "the rest", last)
		done[m.Metadata.Get(MetaSeq)] = true
		m.Ack()
	}
}

// What was acknowledged does not come again, also if the member closes at that moment.
func TestAcknowledgedAtTheEnd(t *testing.T) {
	t.Parallel()
	s := open(t)
	const all = 1500
	appendKeys(t, s, all)
	done := map[string]bool{}
	for len(done) < all {
		u := s.Subscriber(SubscriberConfig{Group: "workers", InFlight: 30})
		messages := subscribe(t, u, Ledger+"/"+LedgerSubject(""))
		for range 20 {
			m := soon(t, "a message", messages)
			if seq := m.Metadata.Get(MetaSeq); done[seq] {
				t.Errorf("%s was acknowledged, and comes again", seq)
			} else {
				done[seq] = true
			}
			m.Ack()
		}
		if err := u.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// No more are handed over than are to be in flight, and one that takes longer
// than AckWait stays with who works on it.
func TestInFlight(t *testing.T) {
	t.Parallel()
	s := open(t)
	appendKeys(t, s, 5)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	u := s.Subscriber(SubscriberConfig{Group: "workers", InFlight: 2, AckWait: 300 * time.Millisecond})
	t.Cleanup(func() { _ = u.Close() })
	messages := must(u.Subscribe(ctx, Ledger+"/"+LedgerSubject("")))(t)
	held := []*message.Message{soon(t, "the first", messages), soon(t, "the second", messages)}
	select {
	case m := <-messages:
		t.Errorf("%s, try %s, was handed over while two are in flight", m.Metadata.Get(MetaSeq), m.Metadata.Get(MetaDelivered))
	case <-time.After(time.Second): // three times AckWait
	}
	for _, m := range held {
		m.Ack()
	}
	seqs := []int{}
	for range 3 {
		m := soon(t, "the rest", messages)
		seqs = append(seqs, must(strconv.Atoi(m.Metadata.Get(MetaSeq)))(t))
		m.Ack()
	}
	if sort.Ints(seqs); !reflect.DeepEqual(seqs, []int{3, 4, 5}) {
		t.Errorf("then came %v, want 3, 4 and 5", seqs)
	}
}

// One group may subscribe to two topics of a log, each with its own place.
func TestGroupWithTwoTopics(t *testing.T) {
	t.Parallel()
	s := open(t)
	u := s.Subscriber(SubscriberConfig{Group: "workers"})
	keys := subscribe(t, u, Ledger+"/"+LedgerSubject("apikey"))
	accounts := subscribe(t, u, Ledger+"/"+LedgerSubject("account"))
	must(s.Append(t.Context(), issued(apikey.Stream("acme", "1")), 0))(t)
	must(s.Append(t.Context(), opened("acme"), 0))(t)
	for subject, from := range map[string]<-chan *message.Message{"ledger.acme.apikey.1": keys, "ledger.acme.account.acme": accounts} {
		m := soon(t, subject, from)
		if got := m.Metadata.Get(MetaSubject); got != subject {
			t.Errorf("got %s, want %s", got, subject)
		}
		m.Ack()
	}
}

func TestDeadLetters(t *testing.T) {
	t.Parallel()
	s := open(t)
	m := message.NewMessage(uuid.NewString(), []byte("the body"))
	m.Metadata.Set("reason_poisoned", "line one\r\nNats-Rollup: all")
	m.Metadata.Set(MetaSeq, "7")
	if err := s.DeadLetters().Publish("verify", m); err != nil {
		t.Fatal(err)
	}
	got := soon(t, "the dead letter", subscribe(t, s.Subscriber(SubscriberConfig{Group: "notices"}), Dead+"/dead.>"))
	got.Ack()
	if string(got.Payload) != "the body" || got.Metadata.Get(MetaSubject) != "dead.verify" {
		t.Errorf("the dead letter is %q on %s", got.Payload, got.Metadata.Get(MetaSubject))
	}
	if got.Metadata.Get("Postbook-seq") != "7" || got.Metadata.Get("Postbook-reason_poisoned") != "line one  Nats-Rollup: all" || got.Metadata.Get("Nats-Rollup") != "" {
		t.Errorf("its metadata is %v", got.Metadata)
	}
}
