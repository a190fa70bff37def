package web

import (
	"context"
	"errors"
	"strings"

	"postbook.dev/postbook/domain"
)

const inboxSize = 50

var errNoInbox = notFound("Mail leaves this machine: there is no sandbox to look into.")

func (c *Console) inbox(_ context.Context, _ *visit) (view, error) {
	if c.Inbox == nil {
		return view{}, errNoInbox
	}
	all, err := c.Inbox.List(inboxSize)
	if err != nil {
		return view{}, err
	}
	var ids []string
	for _, m := range all {
		ids = append(ids, m.ID)
	}
	fields := []domain.Field{"email.from", "email.to", "email.subject", "email.message_id"}
	return view{page: "inbox", title: "Inbox", data: all, fields: fields, objects: ids}, nil
}

type messagePage struct {
	Received
	Email string // id of the email that it came from
}

func (c *Console) received(v *visit) (Received, error) {
	if c.Inbox == nil {
		return Received{}, errNoInbox
	}
	m, err := c.Inbox.Get(v.PathValue("id"))
	if errors.Is(err, ErrNotFound) {
		return m, notFound("There is no such message.")
	}
	return m, err
}

func (c *Console) message(_ context.Context, v *visit) (view, error) {
	m, err := c.received(v)
	if err != nil {
		return view{}, err
	}
	id, _, _ := strings.Cut(strings.Trim(m.MessageID, "<> "), "@")
	fields := []domain.Field{"email.from", "email.to", "email.subject", "email.message_id", "email.text", "email.raw", "email.attachments"}
	return view{page: "message", title: m.Subject, data: messagePage{m, id}, fields: fields, objects: []string{m.ID}}, nil
}

// messageHTML is the message's HTML in a document of its own, for a frame that
// lets it do nothing: no script, no form, no image from elsewhere, no origin.
func (c *Console) messageHTML(_ context.Context, v *visit) (view, error) {
	m, err := c.received(v)
	if err != nil {
		return view{}, err
	}
	return view{
		raw:    []byte(m.HTML),
		csp:    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox",
		fields: []domain.Field{"email.html"}, objects: []string{m.ID},
	}, nil
}
