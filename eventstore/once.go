package eventstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"postbook.dev/postbook/domain"
)

// A Claim says that a request is being answered, and later that it was: whoever
// repeats the request finds the claim, and repeats nothing. Claims last a day.
type Claim struct {
	Account   string            `json:"account"`
	Key       string            `json:"key"`             // hex; of the endpoint and the client's idempotency key
	Digest    string            `json:"digest"`          // hex; of what was asked
	IDs       []uuid.UUID       `json:"ids"`             // that the request's objects have, or will have
	At        time.Time         `json:"at"`              // of the first try: what was done under it lies after
	Since     time.Time         `json:"since,omitzero"`  // of the newest try, if that is another
	Process   string            `json:"process"`         // that the newest try was made in
	Try       uint64            `json:"try"`             // which of that process's it is
	Ended     bool              `json:"ended,omitempty"` // the newest try met a fault: what it has done, the log says
	Done      bool              `json:"done,omitempty"`
	Positions []domain.Position `json:"positions,omitempty"` // where the objects were recorded
	Refused   map[int]string    `json:"refused,omitempty"`   // why objects were refused, by their place in IDs

	Free bool   `json:"free,omitempty"` // given back: nothing was done under it
	seq  uint64 // where the claim lies
}

func (c Claim) subject() string { return "once." + c.Account + "." + c.Key }

// Claim records a claim if there is none for its key, and returns it with won
// set; otherwise it returns the one that is there. It is on disk then.
func (s *Store) Claim(ctx context.Context, c Claim) (stored Claim, won bool, err error) {
	for range maxTries {
		seq, err := s.claimAfter(ctx, c, 0)
		if errors.Is(err, ErrConflict) {
			var held Claim
			held, err = s.claimed(ctx, c)
			switch {
			case errors.Is(err, ErrNoEntry):
				continue // it has just expired
			case err != nil:
				return Claim{}, false, err
			case !held.Free:
				return held, false, nil
			}
			seq, err = s.claimAfter(ctx, c, held.seq)
		}
		if errors.Is(err, ErrConflict) {
			continue
		}
		if err != nil {
			return Claim{}, false, fmt.Errorf("eventstore: claim a request: %w", err)
		}
		c.seq = seq
		return c, true, nil
	}
	return Claim{}, false, fmt.Errorf("eventstore: claim a request: %w", ErrConflict)
}

// Settle records that a claimed request was answered, and where its objects
// lie. It waits for the disk if any of them was refused: all else can be found in
// the log again if the settlement is lost.
func (s *Store) Settle(ctx context.Context, c Claim) error {
	c.Done = true
	return s.replace(ctx, c, len(c.Refused) > 0)
}

// Unclaim gives a claim back: the request failed before anything was recorded.
func (s *Store) Unclaim(ctx context.Context, c Claim) error {
	return s.replace(ctx, Claim{Account: c.Account, Key: c.Key, At: c.At, Free: true, seq: c.seq}, true)
}

// Abandon says that the request met a fault and will not go on: the next one may
// take it up.
func (s *Store) Abandon(ctx context.Context, c Claim) error {
	c.Ended = true
	return s.replace(ctx, c, false)
}

// TakeUp makes the claim of a request that has ended, or died, the caller's. It is
// ErrConflict if somebody else has just done that.
func (s *Store) TakeUp(ctx context.Context, c Claim, process string, try uint64, now time.Time) (Claim, error) {
	c.Ended, c.Process, c.Try, c.Since = false, process, try, now
	seq, err := s.claimAfter(ctx, c, c.seq)
	if err != nil {
		return Claim{}, fmt.Errorf("eventstore: take a claim up: %w", err)
	}
	c.seq = seq
	return c, nil
}

// Latest is when the newest try began.
func (c Claim) Latest() time.Time {
	if c.Since.IsZero() {
		return c.At
	}
	return c.Since
}

func (s *Store) replace(ctx context.Context, c Claim, wait bool) error {
	msg, err := c.message(c.seq)
	if err != nil {
		return err
	}
	if p := s.publish(ctx, wait, msg)[0]; p.err != nil {
		return fmt.Errorf("eventstore: settle a claim: %w", p.err)
	}
	return nil
}

func (s *Store) claimAfter(ctx context.Context, c Claim, after uint64) (uint64, error) {
	msg, err := c.message(after)
	if err != nil {
		return 0, err
	}
	p := s.publish(ctx, true, msg)[0]
	return p.seq, p.err
}

func (c Claim) message(after uint64) (*nats.Msg, error) {
	if !isToken(c.Account) || !isToken(c.Key) {
		return nil, fmt.Errorf("eventstore: %q of account %q is no key of a claim", c.Key, c.Account)
	}
	body, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("eventstore: encode a claim: %w", err)
	}
	expected := nats.Header{jetstream.ExpectedLastSubjSeqHeader: {strconv.FormatUint(after, 10)}}
	return &nats.Msg{Subject: c.subject(), Header: expected, Data: body}, nil
}

// claimed is the claim that is there.
func (s *Store) claimed(ctx context.Context, of Claim) (Claim, error) {
	e, err := s.lastOn(ctx, Once, of.subject())
	if err != nil {
		return Claim{}, err
	}
	var c Claim
	if err := json.Unmarshal(e.Raw, &c); err != nil {
		return Claim{}, fmt.Errorf("eventstore: read the claim %s %d: %w", Once, e.Seq, err)
	}
	c.seq = e.Seq
	return c, nil
}
