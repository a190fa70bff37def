package projections

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

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

// EmailChange is what a stretch of a log says about an email's row.
type EmailChange struct {
	Accepted  bool // the row begins in the stretch, at Created
	Created   time.Time
	Last      string // in the API's words; empty if nothing that is shown has happened
	Scheduled *time.Time
	Seq       uint64
}

// Fold takes in the next event of the email.
func (c *EmailChange) Fold(rec domain.Recorded, e email.Event) {
	c.Seq = rec.Seq
	if last := lastEvent(e); last != "" {
		c.Last = last
	}
	switch e := e.(type) {
	case email.Accepted:
		if !c.Accepted { // the first counts
			c.Accepted, c.Created = true, rec.Time
		}
	case email.Scheduled:
		c.Scheduled = &e.Due
	}
}

// Then takes in what a later stretch says, as the statement in updateEmails does.
func (c *EmailChange) Then(later EmailChange) {
	if later.Accepted && !c.Accepted {
		c.Accepted, c.Created = true, later.Created
	}
	if later.Last != "" {
		c.Last = later.Last
	}
	if later.Scheduled != nil {
		c.Scheduled = later.Scheduled
	}
	c.Seq = later.Seq
}

// NewEmail is the row of an email that was accepted, after all that the change says.
func NewEmail(of domain.Stream, log string, accepted email.Accepted, c EmailChange) Email {
	return Email{
		ID: of.ID, AccountID: of.Account, CreatedAt: c.Created, SenderID: accepted.Sender, MessageID: accepted.MessageID,
		Envelope: accepted.Envelope, Content: accepted.Content, LastEvent: c.Last, ScheduledAt: c.Scheduled, Log: log, LastSeq: c.Seq,
	}
}

// emailBatch is what a batch says about an email.
type emailBatch struct {
	EmailChange
	of       domain.Stream
	accepted email.Accepted // if it was accepted in this batch
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
	changes := make(map[string]*emailBatch, len(entries))
	order := make([]string, 0, len(entries))
	for _, entry := range entries {
		for _, rec := range entry.Events {
			e, ok := rec.Event.(email.Event)
			if !ok {
				continue
			}
			c := changes[rec.Stream.ID]
			if c == nil {
				c = &emailBatch{of: rec.Stream}
				changes[rec.Stream.ID] = c
				order = append(order, rec.Stream.ID)
			}
			if accepted, ok := e.(email.Accepted); ok && !c.Accepted {
				c.accepted = accepted
			}
			c.Fold(rec, e)
		}
	}
	return writeEmails(ctx, tx, entries[0].Log, order, changes)
}

func writeEmails(ctx context.Context, tx pgx.Tx, log string, order []string, changes map[string]*emailBatch) error {
	var fresh, known []string
	for _, id := range order {
		if changes[id].Accepted {
			fresh = append(fresh, id)
		} else {
			known = append(known, id)
		}
	}
	twins, err := insertEmails(ctx, tx, log, fresh, changes)
	if err != nil {
		return err
	}
	return updateEmails(ctx, tx, append(known, twins...), changes)
}

// uniqueViolation is PostgreSQL's code for a row whose key is there already.
const uniqueViolation = "23505"

// insertEmails writes rows that begin. It returns those that are there already: an
// email was accepted twice under one id. The first counts, and the second is
// something that happened to it.
func insertEmails(ctx context.Context, tx pgx.Tx, log string, ids []string, changes map[string]*emailBatch) (twins []string, err error) {
	if len(ids) == 0 {
		return nil, nil
	}
	if _, err := tx.Exec(ctx, "savepoint before_insert"); err != nil {
		return nil, err
	}
	err = copyEmails(ctx, tx, log, ids, changes)
	failed, ok := errors.AsType[*pgconn.PgError](err)
	if !ok || failed.Code != uniqueViolation {
		return nil, err
	}
	if _, err := tx.Exec(ctx, "rollback to savepoint before_insert"); err != nil {
		return nil, err
	}
	if twins, err = emailsThere(ctx, tx, ids); err != nil {
		return nil, err
	}
	fresh := slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return slices.Contains(twins, id) })
	return twins, copyEmails(ctx, tx, log, fresh, changes)
}

func copyEmails(ctx context.Context, tx pgx.Tx, log string, ids []string, changes map[string]*emailBatch) error {
	columns := []string{"id", "account_id", "created_at", "sender_id", "message_id", "envelope", "content", "last_event", "scheduled_at", "log", "last_seq"}
	_, err := tx.CopyFrom(ctx, pgx.Identifier{"emails"}, columns, pgx.CopyFromSlice(len(ids), func(i int) ([]any, error) {
		c := changes[ids[i]]
		row := NewEmail(c.of, log, c.accepted, c.EmailChange)
		content, err := json.Marshal(row.Content)
		return []any{
			row.ID, row.AccountID, row.CreatedAt, row.SenderID, row.MessageID, row.Envelope,
			content, row.LastEvent, row.ScheduledAt, row.Log, int64(row.LastSeq),
		}, err
	}))
	return err
}

// emailsThere are those of the ids that have a row.
func emailsThere(ctx context.Context, tx pgx.Tx, ids []string) ([]string, error) {
	rows, err := tx.Query(ctx, "select id from emails where id = any($1)", ids)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

func updateEmails(ctx context.Context, tx pgx.Tx, known []string, changes map[string]*emailBatch) error {
	if len(known) == 0 {
		return nil
	}
	lasts, scheduled, seqs := make([]string, len(known)), make([]*time.Time, len(known)), make([]int64, len(known))
	for i, id := range known {
		c := changes[id]
		lasts[i], scheduled[i], seqs[i] = c.Last, c.Scheduled, int64(c.Seq)
	}
	_, err := tx.Exec(ctx, `
		update emails e
		set last_event = case when c.last = '' then e.last_event else c.last end,
		    scheduled_at = coalesce(c.scheduled, e.scheduled_at),
		    last_seq = c.seq
		from unnest($1::text[], $2::text[], $3::timestamptz[], $4::bigint[]) as c (id, last, scheduled, seq)
		where e.id = c.id`, known, lasts, scheduled, seqs)
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

// EmailsNamed finds those of an account's emails that have one of the ids.
func (t *Tables) EmailsNamed(ctx context.Context, account string, ids []string) ([]Email, error) {
	return collect[Email](ctx, t, "select * from emails x where account_id = $1 and id = any($2)", account, ids)
}
