package eventstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"postbook.dev/postbook/domain"
)

// deskReply is what a desk says. Exactly one of its fields is set.
type deskReply struct {
	Answer  json.RawMessage `json:"answer,omitempty"`
	Refusal *domain.Refusal `json:"refusal,omitempty"`
	Error   string          `json:"error,omitempty"`
}

// Serve answers what is asked on a subject, each question in a goroutine of its
// own, until stop is called, which waits for the last. A refusal reaches the one
// who asked as itself. Answers are JSON.
func (s *Store) Serve(ctx context.Context, subject string, answer func(ctx context.Context, question []byte) ([]byte, error)) (stop func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	var busy sync.WaitGroup
	reply := func(m *nats.Msg) {
		var r deskReply
		said, err := answer(ctx, m.Data)
		if refusal := domain.Refused(err); refusal != nil {
			r.Refusal = refusal
		} else if err != nil {
			r.Error = err.Error()
		} else {
			r.Answer = said
		}
		body, err := json.Marshal(r)
		if err == nil {
			err = m.Respond(body)
		}
		if err != nil && ctx.Err() == nil {
			s.cfg.Log.Error("answer at a desk", "subject", subject, "error", err)
		}
	}
	sub, err := s.nc.Subscribe(subject, func(m *nats.Msg) {
		if m.Reply != "" {
			busy.Go(func() { reply(m) })
		}
	})
	if err != nil {
		cancel()
		return nil, fmt.Errorf("eventstore: serve %s: %w: %w", subject, ErrUnavailable, err)
	}
	if err := s.nc.FlushTimeout(ackTimeout); err != nil {
		cancel()
		return nil, fmt.Errorf("eventstore: serve %s: %w: %w", subject, ErrUnavailable, err)
	}
	return func() {
		_ = sub.Unsubscribe() // fails only when the connection is gone, and with it the subscription
		cancel()
		busy.Wait()
	}, nil
}

// Ask puts a question to whoever serves a subject, and returns the answer or a
// domain.Refusal. It returns ErrUnavailable if nobody serves it, or nobody
// answers in time.
func (s *Store) Ask(ctx context.Context, subject string, question []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, ackTimeout)
	defer cancel()
	m, err := s.nc.RequestWithContext(ctx, subject, question)
	if err != nil {
		return nil, fmt.Errorf("eventstore: ask %s: %w: %w", subject, ErrUnavailable, err)
	}
	return readReply(subject, m)
}

// AskAll puts a question to everybody who serves a subject, and returns the answers
// that come within a time: none if nobody serves it. An error of one is an error.
func (s *Store) AskAll(ctx context.Context, subject string, question []byte, within time.Duration) ([][]byte, error) {
	waiting, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	inbox := nats.NewInbox()
	sub, err := s.nc.SubscribeSync(inbox)
	if err != nil {
		return nil, fmt.Errorf("eventstore: ask all of %s: %w: %w", subject, ErrUnavailable, err)
	}
	defer func() { _ = sub.Unsubscribe() }() // fails only when the connection is gone, and with it the subscription
	if err := s.nc.PublishRequest(subject, inbox, question); err != nil {
		return nil, fmt.Errorf("eventstore: ask all of %s: %w: %w", subject, ErrUnavailable, err)
	}
	var answers [][]byte
	for {
		m, err := sub.NextMsgWithContext(waiting)
		switch {
		case errors.Is(err, nats.ErrNoResponders), errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
			return answers, nil
		case err != nil:
			return nil, fmt.Errorf("eventstore: ask all of %s: %w: %w", subject, ErrUnavailable, err)
		}
		answer, err := readReply(subject, m)
		if err != nil {
			return nil, err
		}
		answers = append(answers, answer)
	}
}

func readReply(subject string, m *nats.Msg) ([]byte, error) {
	var r deskReply
	if err := json.Unmarshal(m.Data, &r); err != nil {
		return nil, fmt.Errorf("eventstore: ask %s: %w: %w", subject, ErrUnavailable, err)
	}
	switch {
	case r.Refusal != nil:
		return nil, r.Refusal
	case r.Error != "":
		return nil, fmt.Errorf("eventstore: ask %s: %w", subject, errors.New(r.Error))
	}
	return r.Answer, nil
}
