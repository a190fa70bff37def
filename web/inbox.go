package web

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"postbook.dev/postbook/domain"
)

const (
	inboxSize  = 50
	inboxPages = 20 // that are looked through for mail of one account
)

var (
	errNoInbox   = notFound("Mail leaves this machine: there is no sandbox to look into.")
	errNoMessage = notFound("There is no such message.")
)

// inboxRead is what the visitor may see of the sandbox.
type inboxRead struct {
	newest   string // id of the newest message, whoever's it is
	messages []Received
	emails   []string // ids of those that the messages are of
	state    string
}

// listed is how long it takes until the email is in its read model that a message is of,
// and it is known whose it is.
const listed = 5 * time.Second

// readInbox reads the visitor's messages, each of which is a file, again only while the
// sandbox has got one.
func (c *Console) readInbox(ctx context.Context, v *visit) (inboxRead, string, error) {
	if c.Inbox == nil {
		return inboxRead{}, "", errNoInbox
	}
	newest, err := c.Inbox.List("", 1)
	if err != nil {
		return inboxRead{}, "", err
	}
	if v.inbox.state != "" && (len(newest) == 0 || newest[0].ID == v.inbox.newest && c.Now().Sub(newest[0].At) > listed) {
		return v.inbox, v.inbox.state, nil
	}
	var read inboxRead
	if read.messages, read.emails, err = c.messages(ctx, v); err != nil {
		return inboxRead{}, "", err
	}
	if len(newest) > 0 {
		read.newest = newest[0].ID
	}
	sum := sha256.New()
	for _, m := range read.messages {
		fmt.Fprintln(sum, m.ID)
	}
	read.state = brief(sum)
	v.inbox = read
	return read, read.state, nil
}

func (c *Console) inbox(_ context.Context, _ *visit, read inboxRead) (view, error) {
	fields := []domain.Field{"email.from", "email.to", "email.subject", "email.message_id"}
	return view{page: "inbox", title: "Inbox", data: read.messages, fields: fields, objects: read.emails}, nil
}

// messages are the newest that the visitor may see, and the ids of the emails that
// they are of. The sandbox holds the mail of all accounts: somebody sees a message
// only if it is that of an email of their account.
func (c *Console) messages(ctx context.Context, v *visit) (mine []Received, ids []string, err error) {
	before := ""
	for range inboxPages {
		page, err := c.Inbox.List(before, inboxSize)
		if err != nil {
			return nil, nil, err
		}
		emails, err := c.emailsOf(ctx, v, page)
		if err != nil {
			return nil, nil, err
		}
		for _, m := range page {
			id, ok := emails[m.MessageID]
			if !ok || len(mine) == inboxSize {
				continue
			}
			mine = append(mine, m)
			if !slices.Contains(ids, id) { // each recipient has a message
				ids = append(ids, id)
			}
		}
		if len(page) < inboxSize || len(mine) == inboxSize {
			break
		}
		before = page[len(page)-1].ID
	}
	return mine, ids, nil
}

// emailsOf finds the emails of the visitor's account that messages are of, by the
// messages' Message-ID.
func (c *Console) emailsOf(ctx context.Context, v *visit, messages []Received) (map[string]string, error) {
	var ids []string
	for _, m := range messages {
		id, _, _ := strings.Cut(strings.Trim(m.MessageID, "<> "), "@")
		ids = append(ids, id)
	}
	rows, err := c.Tables.EmailsNamed(ctx, v.by.Account, ids)
	emails := make(map[string]string, len(rows))
	for _, row := range rows {
		emails["<"+row.MessageID+">"] = row.ID
	}
	return emails, err
}

type messagePage struct {
	Received
	Email string // id of the email that it came from
}

func (c *Console) received(ctx context.Context, v *visit) (messagePage, error) {
	if c.Inbox == nil {
		return messagePage{}, errNoInbox
	}
	m, err := c.Inbox.Get(v.PathValue("id"))
	if errors.Is(err, ErrNotFound) {
		return messagePage{}, errNoMessage
	}
	if err != nil {
		return messagePage{}, err
	}
	emails, err := c.emailsOf(ctx, v, []Received{m})
	if err != nil {
		return messagePage{}, err
	}
	id, ok := emails[m.MessageID]
	if !ok {
		return messagePage{}, errNoMessage // it is another account's
	}
	return messagePage{m, id}, nil
}

func (c *Console) message(ctx context.Context, v *visit) (view, error) {
	m, err := c.received(ctx, v)
	if err != nil {
		return view{}, err
	}
	fields := []domain.Field{"email.from", "email.to", "email.subject", "email.message_id", "email.text", "email.raw", "email.attachments"}
	return view{page: "message", title: m.Subject, data: m, fields: fields, objects: []string{m.Email}}, nil
}

// messageHTML is the message's HTML in a document of its own, for a frame that
// lets it do nothing: no script, no form, no image from elsewhere, no origin.
func (c *Console) messageHTML(ctx context.Context, v *visit) (view, error) {
	m, err := c.received(ctx, v)
	if err != nil {
		return view{}, err
	}
	return view{
		raw:    []byte(m.HTML),
		csp:    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox",
		fields: []domain.Field{"email.html"}, objects: []string{m.Email},
	}, nil
}
