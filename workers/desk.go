package workers

import (
	"container/heap"
	"context"
	"encoding/json"
	"fmt"

	"github.com/google/uuid"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/email"
)

// serveDesk answers those who want something decided about an email of this
// partition: only its owner can.
func (p *partition) serveDesk(ctx context.Context) (stop func(), err error) {
	return p.d.Store.Serve(ctx, email.Desk(p.n), func(ctx context.Context, question []byte) ([]byte, error) {
		var ask email.DeskRequest
		if err := json.Unmarshal(question, &ask); err != nil {
			return nil, fmt.Errorf("read a question: %w", err)
		}
		answer, err := p.answer(ctx, ask)
		if err != nil {
			return nil, err
		}
		return json.Marshal(answer)
	})
}

func (p *partition) answer(ctx context.Context, ask email.DeskRequest) (email.DeskAnswer, error) {
	switch ask.Verb {
	case email.DeskSettled:
		return email.DeskAnswer{Log: p.name}, p.settled(ctx, ask)
	case email.DeskCancel, email.DeskReschedule:
		return p.decideAsked(ctx, ask, ask.Command())
	}
	return email.DeskAnswer{}, domain.Refuse(domain.Invalid, "The dispatcher does not know %q.", ask.Verb)
}

// settled returns when the ledger is known up to a sequence, and nothing of the
// account is on the wire.
func (p *partition) settled(ctx context.Context, ask email.DeskRequest) error {
	if err := p.d.Directory.Await(ctx, ask.Seq); err != nil {
		return err
	}
	for {
		p.mu.Lock()
		begun, changed := p.wire[ask.Account], p.changed
		p.mu.Unlock()
		if begun == 0 {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// decideAsked decides about an email on somebody's behalf. Whoever asks while an
// attempt is about to begin is answered after it has.
func (p *partition) decideAsked(ctx context.Context, ask email.DeskRequest, c email.Command) (email.DeskAnswer, error) {
	id, err := uuid.Parse(ask.Email)
	if err != nil {
		return email.DeskAnswer{}, domain.Refuse(domain.NotFound, "Email not found")
	}
	m, err := p.find(ctx, id, ask.Seq)
	if err != nil {
		return email.DeskAnswer{}, err
	}
	if m == nil || m.account != ask.Account {
		return p.decideFinal(ctx, ask, id, c)
	}
	m.mu.Lock()
	recorded, err := p.decide(ctx, m, c, 0)
	last := m.last
	m.mu.Unlock()
	if err != nil {
		return email.DeskAnswer{}, err
	}
	if len(recorded) > 0 {
		p.replan(m)
	}
	return email.DeskAnswer{Log: p.name, Seq: last}, nil
}

// find returns an email that is open, or nil, once the log is known up to a
// sequence: whoever asks may have written to it just now.
func (p *partition) find(ctx context.Context, id uuid.UUID, seq uint64) (*mail, error) {
	for {
		p.mu.Lock()
		m, known, changed := p.open[id], p.seq >= seq, p.changed
		p.mu.Unlock()
		if m != nil || known {
			return m, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// replan moves an email on the agenda to its new time. One that is being worked
// on is planned when that has ended.
func (p *partition) replan(m *mail) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.expires = m.state.Expires // also if it waits for its account to be let through
	if m.place >= 0 {
		heap.Remove(&p.agenda.later, m.place)
		p.plan(m)
	} else if m.state.Final() {
		delete(p.open, m.id)
	}
	p.wake()
}

// decideFinal answers about an email that is not open: it is final, or nobody
// knows it. Nothing is recorded for either.
func (p *partition) decideFinal(ctx context.Context, ask email.DeskRequest, id uuid.UUID, c email.Command) (email.DeskAnswer, error) {
	m := &mail{id: id, account: ask.Account}
	if ask.Last > 0 {
		history, err := p.d.Store.Chain(ctx, p.name, ask.Last, id.String())
		if err != nil {
			return email.DeskAnswer{}, err
		}
		if history[0].Stream != email.Stream(ask.Account, id) {
			return email.DeskAnswer{}, domain.Refuse(domain.NotFound, "Email not found")
		}
		for _, rec := range history {
			m.fold(rec)
		}
	}
	events, err := email.Decider.Decide(email.Stream(ask.Account, id), m.state, c)
	if err != nil {
		return email.DeskAnswer{}, err
	}
	if len(events) > 0 {
		return email.DeskAnswer{}, domain.Refuse(domain.Conflicting, "The email has just been accepted. Try again.")
	}
	return email.DeskAnswer{Log: p.name, Seq: m.last}, nil
}
