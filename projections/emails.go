package projections

import (
	"context"
	"encoding/json"
	"time"

	"github.com/jackc/pgx/v5"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/email"
	"postbook.dev/postbook/eventstore"
)

var emails = Model{
	Name: "emails", Version: 1, Logs: (*eventstore.Store).MailLogs, Tables: []string{"emails"},
	apply: applyEmails,
}

// Email is an email with what happened to it last, to any of its recipients.
type Email struct {
	ID          string
	AccountID   string
	CreatedAt   time.Time
	SenderID    string
	MessageID   string // without angle brackets
	Envelope    []byte // an email.Envelope as JSON, sealed
	Content     domain.ContentRef
	LastEvent   string // in the API's words
	ScheduledAt *time.Time
	Log         string // where its history is
	LastSeq     uint64 // of its last commit
}

// emailChange is what a batch says about an email.
type emailChange struct {
	accepted  *email.Accepted // set if it was accepted in this batch
	account   string
	created   time.Time
	last      string // empty if nothing that is shown has happened
	scheduled *time.Time
	seq       uint64
}

// lastEvent is what the API calls an event, or empty for one that it does not
// show.
func lastEvent(e email.Event) string {
	switch e.(type) {
	case email.Accepted:
		return "queued"
	case email.Scheduled:
		return "scheduled"
	case email.Attempted:
		return "sent"
	case email.Delivered:
		return "delivered"
	case email.Deferred, email.Unresolved:
		return "delivery_delayed"
	case email.Bounced:
		return "bounced"
	case email.Failed:
		return "failed"
	case email.Suppressed:
		return "suppressed"
	case email.Cancelled:
		return "canceled"
	case email.Prepared:
	}
	return ""
}

func applyEmails(ctx context.Context, tx pgx.Tx, entries []eventstore.Entry) error {
	changes := make(map[string]*emailChange, len(entries))
	order := make([]string, 0, len(entries))
	for _, entry := range entries {
		for _, rec := range entry.Events {
			e, ok := rec.Event.(email.Event)
			if !ok {
				continue
			}
			c := changes[rec.Stream.ID]
			if c == nil {
				c = &emailChange{account: rec.Stream.Account}
				changes[rec.Stream.ID] = c
				order = append(order, rec.Stream.ID)
			}
			c.fold(rec, e)
		}
	}
	return writeEmails(ctx, tx, entries[0].Log, order, changes)
}

func (c *emailChange) fold(rec domain.Recorded, e email.Event) {
	c.seq = rec.Seq
	if last := lastEvent(e); last != "" {
		c.last = last
	}
	switch e := e.(type) {
	case email.Accepted:
		c.accepted, c.created = &e, rec.Time
	case email.Scheduled:
		c.scheduled = &e.Due
	}
}

func writeEmails(ctx context.Context, tx pgx.Tx, log string, order []string, changes map[string]*emailChange) error {
	var fresh []string
	var ids, lasts []string
	var scheduled []*time.Time
	var seqs []int64
	for _, id := range order {
		c := changes[id]
		if c.accepted != nil {
			fresh = append(fresh, id)
			continue
		}
		ids, lasts, scheduled = append(ids, id), append(lasts, c.last), append(scheduled, c.scheduled)
		seqs = append(seqs, int64(c.seq))
	}
	if len(fresh) > 0 {
		columns := []string{"id", "account_id", "created_at", "sender_id", "message_id", "envelope", "content", "last_event", "scheduled_at", "log", "last_seq"}
		_, err := tx.CopyFrom(ctx, pgx.Identifier{"emails"}, columns, pgx.CopyFromSlice(len(fresh), func(i int) ([]any, error) {
			c := changes[fresh[i]]
			content, err := json.Marshal(c.accepted.Content)
			return []any{
				fresh[i], c.account, c.created, c.accepted.Sender, c.accepted.MessageID, []byte(c.accepted.Envelope),
				content, c.last, c.scheduled, log, int64(c.seq),
			}, err
		}))
		if err != nil {
			return err
		}
	}
	if len(ids) == 0 {
		return nil
	}
	_, err := tx.Exec(ctx, `
		update emails e
		set last_event = case when c.last = '' then e.last_event else c.last end,
		    scheduled_at = coalesce(c.scheduled, e.scheduled_at),
		    last_seq = c.seq
		from unnest($1::text[], $2::text[], $3::timestamptz[], $4::bigint[]) as c (id, last, scheduled, seq)
		where e.id = c.id`, ids, lasts, scheduled, seqs)
	return err
}

// Emails lists an account's emails.
func (t *Tables) Emails(ctx context.Context, account string, p Page) ([]Email, bool, error) {
	return list[Email](ctx, t, "emails", account, p)
}

// Email finds one of an account's emails.
func (t *Tables) Email(ctx context.Context, account, id string) (Email, error) {
	return one[Email](ctx, t, "emails", account, id)
}
