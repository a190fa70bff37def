package web

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/email"
	"postbook.dev/postbook/projections"
)

type emailsPage struct {
	Emails []emailRow
	Older  string // cursor
	Newer  bool   // there is a page before this one
	Domain string // for the line that shows how to send
	API    string // where it answers, for whoever looks at the console now
}

type emailRow struct {
	ID        string
	To        []string
	From      string
	Subject   string
	LastEvent string
	CreatedAt time.Time
}

const perPage = 25

// emailsRead is a page of the list.
type emailsRead struct {
	rows []projections.Email
	more bool // there are older ones
}

func (c *Console) readEmails(ctx context.Context, v *visit) (list emailsRead, state string, err error) {
	list.rows, list.more, err = c.Tables.Emails(ctx, v.by.Account, projections.Page{Limit: perPage, After: v.URL.Query().Get("after")})
	if errors.Is(err, projections.ErrBadCursor) {
		err = notFound("There is no such page of the list.")
	}
	sum := sha256.New()
	for _, row := range list.rows {
		fmt.Fprintln(sum, row.ID, row.LastEvent, row.LastSeq)
	}
	fmt.Fprintln(sum, list.more)
	return list, brief(sum), err
}

func (c *Console) emails(ctx context.Context, v *visit, list emailsRead) (view, error) {
	page := emailsPage{Newer: v.URL.Query().Get("after") != "", API: "http://" + v.Host}
	if v.encrypted() {
		page.API = "https://" + v.Host
	}
	var ids []string
	for _, row := range list.rows {
		e, err := c.envelope(ctx, row)
		if err != nil {
			return view{}, err
		}
		page.Emails = append(page.Emails, emailRow{row.ID, e.To, e.From, e.Subject, row.LastEvent, row.CreatedAt})
		ids = append(ids, row.ID)
	}
	if list.more && len(list.rows) > 0 {
		page.Older = list.rows[len(list.rows)-1].ID
	}
	for _, s := range c.Directory.Senders() {
		if s.Account == v.by.Account && s.CanSend {
			page.Domain = s.Name
		}
	}
	fields := []domain.Field{"email.id", "email.to", "email.from", "email.subject", "email.last_event", "email.created_at"}
	return view{page: "emails", title: "Emails", data: page, fields: fields, objects: ids}, nil
}

func (c *Console) envelope(ctx context.Context, row projections.Email) (email.Envelope, error) {
	var e email.Envelope
	plain, err := c.Vault.Open(ctx, row.AccountID, "envelope", row.ID, row.Envelope)
	if errors.Is(err, domain.ErrErased) {
		return email.ErasedEnvelope(), nil
	}
	if err != nil {
		return e, err
	}
	return e, json.Unmarshal(plain, &e)
}

type emailPage struct {
	emailRow
	Cc, Bcc, ReplyTo []string
	MessageID        string
	ScheduledAt      *time.Time
	Recipients       []recipientRow
	Timeline         []step
	Text             string
	HTML             bool
	Log              string
	Final            bool
}

type recipientRow struct {
	Kind, Address, Status string
}

func (c *Console) readEmail(ctx context.Context, v *visit) (row projections.Email, state string, err error) {
	row, err = c.Tables.Email(ctx, v.by.Account, v.PathValue("id"))
	if errors.Is(err, projections.ErrNotFound) {
		err = notFound("There is no such email.")
	}
	return row, fmt.Sprintf("%s-%d", row.Log, row.LastSeq), err
}

func (c *Console) email(ctx context.Context, _ *visit, row projections.Email) (view, error) {
	e, err := c.envelope(ctx, row)
	if err != nil {
		return view{}, err
	}
	history, err := c.Store.Chain(ctx, row.Log, row.LastSeq, row.ID)
	if err != nil {
		return view{}, err
	}
	page := emailPage{
		emailRow: emailRow{row.ID, e.To, e.From, e.Subject, row.LastEvent, row.CreatedAt},
		Cc:       e.Cc, Bcc: e.Bcc, ReplyTo: e.ReplyTo, MessageID: row.MessageID, ScheduledAt: row.ScheduledAt, Log: row.Log,
	}
	fields := []domain.Field{
		"email.id", "email.to", "email.cc", "email.bcc", "email.reply_to", "email.from", "email.subject",
		"email.last_event", "email.created_at", "email.scheduled_at", "email.message_id", "email.timeline",
	}
	replies, err := c.addHistory(ctx, &page, row, history)
	if err != nil {
		return view{}, err
	}
	if replies {
		fields = append(fields, "email.reply")
	}
	content, err := c.addContent(ctx, &page, row)
	if err != nil {
		return view{}, err
	}
	fields = append(fields, content...)
	return view{page: "email", title: e.Subject, data: page, fields: fields, objects: []string{row.ID}}, nil
}

// addContent shows what was written, and says which of it: the text, or the HTML of
// an email that has no text.
func (c *Console) addContent(ctx context.Context, page *emailPage, row projections.Email) ([]domain.Field, error) {
	sealed, err := c.Store.Content(ctx, row.Content)
	if err != nil {
		return nil, err
	}
	plain, err := c.Vault.Open(ctx, row.AccountID, "body", row.ID, sealed)
	if errors.Is(err, domain.ErrErased) {
		page.Text = "The content was erased on request. Nobody can read it any more."
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var content email.Content
	if err := json.Unmarshal(plain, &content); err != nil {
		return nil, err
	}
	page.HTML = content.HTML != ""
	if content.Text == "" && page.HTML {
		page.Text = content.HTML
		return []domain.Field{"email.html"}, nil
	}
	page.Text = content.Text
	return []domain.Field{"email.text"}, nil
}
