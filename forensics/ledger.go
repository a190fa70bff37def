package forensics

import (
	"context"
	"fmt"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/account"
	"postbook.dev/postbook/domain/member"
	"postbook.dev/postbook/domain/retention"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/projections"
)

// Account is an account's row, and whose doing it is that it is as it is.
type Account struct {
	projections.AccountRow
	Blocking *Event `json:"blocking,omitempty"` // the event that blocked it, if it is blocked
	Evidence string `json:"evidence,omitempty"`
	Erasing  *Event `json:"erasing,omitempty"` // the event that asked for its erasure, which nothing takes back
}

// Key is an API key's row, and how it was used.
type Key struct {
	projections.APIKeyRow
	Used *projections.KeyUse `json:"used,omitempty"`
}

// Member is somebody who may use the console for an account.
type Member struct {
	ID      string        `json:"id"`
	Account string        `json:"account_id"`
	Email   domain.Sealed `json:"email"`
	Role    domain.Role   `json:"role"`
	Joined  Event         `json:"joined"`
}

// ledgerRows are the rows that are folded from the ledger, by id.
type ledgerRows struct {
	accounts map[string]*Account
	keys     map[string]*projections.APIKeyRow
	domains  map[string]*projections.Domain
	members  map[string]*Member
}

// ledgerKinds are the kinds of aggregates whose rows there are.
var ledgerKinds = []string{"account", "apikey", "sender", "member", "retention"}

// ledgerSubjects are where these are in the ledger: an account's, or all.
func ledgerSubjects(account string) []string {
	subjects := make([]string, len(ledgerKinds))
	for i, kind := range ledgerKinds {
		subjects[i] = eventstore.LedgerSubject(kind)
		if account != "" {
			subjects[i] = eventstore.AccountKindSubject(account, kind)
		}
	}
	return subjects
}

func (r *Replay) readLedger(ctx context.Context, s *State) error {
	rows := ledgerRows{map[string]*Account{}, map[string]*projections.APIKeyRow{}, map[string]*projections.Domain{}, map[string]*Member{}}
	from, last, err := r.readable(ctx, eventstore.Ledger, s.Point)
	if err != nil || last == 0 {
		return err
	}
	f := eventstore.Following{Log: eventstore.Ledger, After: from, StopAt: last, Subjects: ledgerSubjects(s.Of), MaxBatch: 4000}
	var work Work
	err = follow(ctx, r.store, f, func(e eventstore.Entry) error {
		work.Entries++
		if e.Err != nil {
			work.leaveOut(e)
			return nil //nolint:nilerr // it is told, and the others are read
		}
		for _, rec := range e.Events[:min(s.Point.eventsOf(e), len(e.Events))] {
			rows.fold(rec)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("forensics: replay the ledger: %w", err)
	}
	s.ledger, s.ledgerWork = rows, work
	return nil
}

// fold takes in the next event, as the read models of the ledger do.
func (l *ledgerRows) fold(rec domain.Recorded) {
	id := rec.Stream.ID
	switch rec.Stream.Kind {
	case "account":
		l.foldAccount(rec)
	case "apikey":
		change(l.keys, id, rec, projections.FoldAPIKey)
	case "sender":
		change(l.domains, id, rec, projections.FoldDomain)
	case "member":
		switch e := rec.Event.(type) {
		case member.Joined:
			l.members[id] = &Member{id, rec.Stream.Account, e.Email, e.Role, eventOf(rec)}
		case member.Left:
			delete(l.members, id)
		}
	case "retention":
		a := l.accounts[rec.Stream.Account]
		if e, ok := rec.Event.(retention.Requested); ok && e.Recipient == "" && a != nil {
			by := eventOf(rec)
			a.Erasing = &by
		}
	}
}

func (l *ledgerRows) foldAccount(rec domain.Recorded) {
	a := l.accounts[rec.Stream.ID]
	if a == nil {
		a = &Account{}
		a.AccountRow = *projections.FoldAccount(nil, rec)
		l.accounts[rec.Stream.ID] = a
	} else {
		a.AccountRow = *projections.FoldAccount(&a.AccountRow, rec)
	}
	switch e := rec.Event.(type) {
	case account.Blocked:
		by := eventOf(rec)
		a.Blocking, a.Evidence = &by, e.Evidence
	case account.Unblocked:
		a.Blocking, a.Evidence = nil, ""
	}
}

// change puts what an event makes of a row in its place.
func change[T any](rows map[string]*T, id string, rec domain.Recorded, fold func(*T, domain.Recorded) *T) {
	if row := fold(rows[id], rec); row != nil {
		rows[id] = row
	} else {
		delete(rows, id)
	}
}
