package forensics

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/account"
	"postbook.dev/postbook/domain/apikey"
	"postbook.dev/postbook/domain/backup"
	"postbook.dev/postbook/domain/email"
	"postbook.dev/postbook/domain/kek"
	"postbook.dev/postbook/domain/member"
	"postbook.dev/postbook/domain/name"
	"postbook.dev/postbook/domain/partitioning"
	"postbook.dev/postbook/domain/readmodel"
	"postbook.dev/postbook/domain/retention"
	"postbook.dev/postbook/domain/seal"
	"postbook.dev/postbook/domain/sender"
	"postbook.dev/postbook/domain/staff"
	"postbook.dev/postbook/eventstore"
)

// History is what had happened to one aggregate at a point, and the state from which
// a decision would have been made there.
type History struct {
	Of     domain.Stream
	Events []domain.Recorded
	State  any
}

// states says how the events of each kind are folded into a state.
var states = map[string]func([]domain.Recorded) any{
	"account":      stateOf(account.Decider),
	"apikey":       stateOf(apikey.Decider),
	"backup":       stateOf(backup.Decider),
	"email":        stateOf(email.Decider),
	"kek":          stateOf(kek.Decider),
	"member":       stateOf(member.Decider),
	"name":         stateOf(name.Decider),
	"partitioning": stateOf(partitioning.Decider),
	"readmodel":    stateOf(readmodel.Decider),
	"retention":    stateOf(retention.Decider),
	"seal":         stateOf(seal.Decider),
	"sender":       stateOf(sender.Decider),
	"staff":        stateOf(staff.Decider),
}

func stateOf[S any, C domain.Command, E domain.Event](d domain.Decider[S, C, E]) func([]domain.Recorded) any {
	return func(history []domain.Recorded) any {
		var state S
		for _, rec := range history {
			if e, ok := rec.Event.(E); ok {
				state = d.Evolve(state, e)
			}
		}
		return state
	}
}

// Aggregate tells the history of an aggregate up to a point. It is empty if there was
// no such aggregate.
func (r *Replay) Aggregate(ctx context.Context, p Point, of domain.Stream) (History, error) {
	if of.Kind == "email" {
		id, err := uuid.Parse(of.ID)
		if err != nil {
			return History{}, fmt.Errorf("%w: an email's id is a UUID, and %q is none", ErrNoPoint, of.ID)
		}
		return r.Email(ctx, p, id)
	}
	all, err := r.store.History(ctx, of)
	if err != nil {
		return History{}, fmt.Errorf("forensics: read the history of %s: %w", of, err)
	}
	return historyOf(p, of, all), nil
}

// historyOf is the part of a history that had happened.
func historyOf(p Point, of domain.Stream, all []domain.Recorded) History {
	h := History{Of: of}
	for _, rec := range all {
		if p.has(rec) {
			h.Events = append(h.Events, rec)
		}
	}
	if fold := states[of.Kind]; fold != nil && len(h.Events) > 0 {
		h.State = fold(h.Events)
	}
	return h
}

// has reports whether an event has happened.
func (p Point) has(rec domain.Recorded) bool {
	if p.Event != nil && p.Event.Log == rec.Log && p.Event.Seq == rec.Seq {
		return rec.Index < p.after
	}
	return rec.Seq <= p.Heads[rec.Log]
}

// Email tells the history of an email up to a point.
func (r *Replay) Email(ctx context.Context, p Point, id uuid.UUID) (History, error) {
	log := eventstore.MailLog(r.store.Partition(id))
	of, err := r.accepted(ctx, log, p, id)
	if err != nil || of == (domain.Stream{}) {
		return History{Of: domain.Stream{Kind: "email", ID: id.String()}}, err
	}
	said, _, err := r.foldLog(ctx, log, p, of.Account)
	if err != nil {
		return History{}, fmt.Errorf("forensics: replay %s: %w", log, err)
	}
	last := said.of(of.Account).emails.row(id).seq
	all, err := r.store.Chain(ctx, log, last, id.String())
	if err != nil {
		return History{}, fmt.Errorf("forensics: read the history of the email %s: %w", id, err)
	}
	return historyOf(p, of, all), nil
}

// accepted finds whose an email is. Its id says about when it was accepted: it is
// looked for from then on, and then before.
func (r *Replay) accepted(ctx context.Context, log string, p Point, id uuid.UUID) (of domain.Stream, err error) {
	from, last, err := r.readable(ctx, log, p)
	if err != nil || last == 0 {
		return of, err
	}
	begin := from
	if id.Version() == 7 {
		sec, nsec := id.Time().UnixTime()
		before, err := r.store.Before(ctx, log, time.Unix(sec, nsec).Add(-time.Minute))
		if err != nil {
			return of, err
		}
		begin = max(begin, before)
	}
	for _, part := range [][2]uint64{{begin, last}, {from, min(begin, last)}} {
		err := r.read(ctx, log, part[0], part[1], "", func(e eventstore.Entry) error {
			for _, rec := range e.Events[:min(p.eventsOf(e), len(e.Events))] {
				if rec.Stream.ID == id.String() {
					of = rec.Stream
					return errFound
				}
			}
			return nil
		})
		if err != nil {
			if of != (domain.Stream{}) {
				return of, nil
			}
			return of, fmt.Errorf("forensics: look for the email %s: %w", id, err)
		}
	}
	return of, nil
}
