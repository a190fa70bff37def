package workers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/uuid"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/email"
	"postbook.dev/postbook/domain/retention"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/keyring"
)

// Eraser carries out the erasures that were requested. Each step can be repeated,
// so that whoever finds one that is not finished, after a crash or beside another
// process that works on it, carries it out from the beginning.
type Eraser struct {
	Store *eventstore.Store
	Ring  *keyring.Keyring
	Inbox func(emails map[string]bool) (int, error) // removes messages from the sandbox; nil if there is none
	By    func() domain.Authority                   // on whose behalf it is finished
	Log   *slog.Logger
}

// Run carries out what is requested, and what earlier processes have left, until
// ctx ends.
func (e *Eraser) Run(ctx context.Context) error {
	open := map[uuid.UUID]string{} // account, by erasure
	for {
		err := e.Store.Follow(ctx, eventstore.Following{Log: eventstore.Ledger, Subjects: []string{eventstore.LedgerSubject("retention")}}, func(ctx context.Context, entries []eventstore.Entry) error {
			for _, entry := range entries {
				for _, rec := range entry.Events {
					switch fact := rec.Event.(type) {
					case retention.Requested:
						open[fact.Erasure] = rec.Stream.Account
					case retention.Erased:
						delete(open, fact.Erasure)
					}
				}
			}
			for erasure, account := range open {
				if err := e.Erase(ctx, account, erasure); err != nil {
					return err
				}
				delete(open, erasure)
			}
			return nil
		})
		if ctx.Err() != nil {
			return ctx.Err()
		}
		e.Log.Error("an erasure was interrupted; it is carried out again", "error", err)
		select {
		case <-time.After(5 * time.Second):
		case <-ctx.Done():
		}
	}
}

// Erase carries out one erasure, unless it is finished.
func (e *Eraser) Erase(ctx context.Context, account string, erasure uuid.UUID) error {
	state, _, err := eventstore.Load(ctx, e.Store, retention.Decider, retention.Stream(account))
	if err != nil {
		return err
	}
	open, ok := state.Open[erasure]
	if !ok {
		return nil
	}
	finish := retention.FinishErasure{Authority: e.By(), Erasure: erasure, Keys: 1}
	// The keys first: from here on nothing of it can be read, whatever else goes wrong.
	if open.Recipient == "" {
		_, err = e.Ring.ForgetAccount(ctx, account)
	} else {
		_, err = e.Ring.ForgetRecipient(ctx, account, open.Recipient, open.Generation)
	}
	if err != nil && !errors.Is(err, keyring.ErrErased) {
		return fmt.Errorf("destroy keys of account %s: %w", account, err)
	}
	emails, err := e.concerned(ctx, account, open.Recipient)
	if err != nil {
		return fmt.Errorf("find the emails that an erasure concerns: %w", err)
	}
	finish.Emails = len(emails.ids)
	if open.Recipient != "" && len(emails.plain) > 0 {
		for _, class := range []keyring.Class{keyring.Envelope, keyring.Body} {
			if _, err := e.Ring.Forget(ctx, account, class, emails.plain...); err != nil && !errors.Is(err, keyring.ErrErased) {
				return fmt.Errorf("destroy keys of account %s: %w", account, err)
			}
			finish.Keys += len(emails.plain)
		}
	}
	if e.Inbox != nil {
		if finish.Inbox, err = e.Inbox(emails.ids); err != nil {
			return fmt.Errorf("remove messages from the sandbox: %w", err)
		}
	}
	_, err = eventstore.Execute(ctx, e.Store, retention.Decider, retention.Stream(account), retention.Command(finish))
	if err != nil {
		return err
	}
	e.Log.Info("erased", "account", account, "recipient", open.Recipient, "emails", finish.Emails)
	return nil
}

// Readable counts the emails of an account to a recipient that can still be read.
func (e *Eraser) Readable(ctx context.Context, account, recipient string) (int, error) {
	emails, err := e.concerned(ctx, account, recipient)
	return emails.readable, err
}

// concern is which emails an erasure is about.
type concern struct {
	ids      map[string]bool // that nobody can read
	plain    []string        // of those, the ones whose own keys have to be destroyed, because their boxes are about nobody
	readable int
}

// concerned reads the account's part of the logs. Without a recipient, all of its
// emails are concerned.
func (e *Eraser) concerned(ctx context.Context, account, recipient string) (concern, error) {
	c := concern{ids: map[string]bool{}}
	keys, err := e.Ring.Account(ctx, account)
	if err != nil && !errors.Is(err, keyring.ErrErased) {
		return c, err
	}
	for _, log := range e.Store.MailLogs() {
		subject := eventstore.AccountSubject(log, account)
		last, err := e.Store.Last(ctx, log, subject)
		if err != nil {
			return c, err
		}
		if last == 0 {
			continue
		}
		err = e.Store.Follow(ctx, eventstore.Following{Log: log, Subjects: []string{subject}, StopAt: last}, func(_ context.Context, entries []eventstore.Entry) error {
			for _, entry := range entries {
				if entry.Err != nil {
					return entry.Err
				}
				for _, rec := range entry.Events {
					if accepted, ok := rec.Event.(email.Accepted); ok {
						c.add(keys, rec.Stream.ID, recipient, accepted)
					}
				}
			}
			return nil
		})
		if err != nil {
			return c, err
		}
	}
	return c, nil
}

// add sorts one email in. keys is nil if the account's were destroyed.
func (c *concern) add(keys *keyring.Account, id, recipient string, accepted email.Accepted) {
	for _, r := range accepted.Recipients {
		if recipient != "" && r.Index != recipient {
			continue
		}
		if keys != nil && keys.Check(keyring.Recipient, r.Index, r.Address) == nil {
			c.readable++
			return
		}
		c.ids[id] = true
		if keyring.Plain(accepted.Envelope) {
			c.plain = append(c.plain, id)
		}
		return
	}
}
