package eventstore

import (
	"context"
	"errors"
	"fmt"

	"postbook.dev/postbook/domain"
)

// maxTries is how often Execute decides anew when others keep winning.
const maxTries = 10

// Load folds the history of an aggregate of the ledger into its state. last is
// the sequence of its last commit, 0 if it has none.
func Load[S any, C domain.Command, E domain.Event](ctx context.Context, s *Store, d domain.Decider[S, C, E], of domain.Stream) (state S, last uint64, err error) {
	history, err := s.History(ctx, of)
	if err != nil {
		return state, 0, err
	}
	return fold(d, history)
}

func fold[S any, C domain.Command, E domain.Event](d domain.Decider[S, C, E], history []domain.Recorded) (state S, last uint64, err error) {
	for _, r := range history {
		e, ok := r.Event.(E)
		if !ok {
			return state, 0, fmt.Errorf("eventstore: %s %d: %s is not an event of a %s", r.Log, r.Seq, r.Type, d.Kind)
		}
		state, last = d.Evolve(state, e), r.Seq
	}
	return state, last, nil
}

// Execute puts a command to an aggregate of the ledger and records what follows
// from it. It returns no events if what was asked is already so, and a
// domain.Refusal if it may not be. A command that has been recorded before, by
// an earlier try, is answered with what was recorded then.
func Execute[S any, C domain.Command, E domain.Event](ctx context.Context, s *Store, d domain.Decider[S, C, E], of domain.Stream, c C) ([]domain.Recorded, error) {
	recorded, err := execute(ctx, s, d, of, c)
	if refusal := domain.Refused(err); refusal != nil && s.cfg.Refused != nil {
		s.cfg.Refused(ctx, of, c, refusal)
	}
	return recorded, err
}

func execute[S any, C domain.Command, E domain.Event](ctx context.Context, s *Store, d domain.Decider[S, C, E], of domain.Stream, c C) ([]domain.Recorded, error) {
	for range maxTries {
		history, err := s.History(ctx, of)
		if err != nil {
			return nil, err
		}
		if before := recordedFor(history, c); before != nil {
			return before, nil
		}
		state, last, err := fold(d, history)
		if err != nil {
			return nil, err
		}
		events, err := d.Decide(of, state, c)
		if err != nil || len(events) == 0 {
			return nil, err
		}
		commit := Commit{Stream: of, By: c.By(), Events: make([]domain.Event, len(events))}
		for i, e := range events {
			commit.Events[i] = e
		}
		recorded, err := s.Append(ctx, commit, last)
		if !errors.Is(err, ErrConflict) {
			return recorded, err
		}
	}
	return nil, domain.Refuse(domain.Conflicting, "Others are changing this %s at the same time. Try again.", of.Kind)
}

// recordedFor is the commit that the command has led to, or nil.
func recordedFor(history []domain.Recorded, c domain.Command) []domain.Recorded {
	id := domain.EventID(c.By().Command, 0)
	for i, r := range history {
		if r.ID != id {
			continue
		}
		end := i
		for end < len(history) && history[end].Seq == r.Seq {
			end++
		}
		return history[i:end]
	}
	return nil
}
