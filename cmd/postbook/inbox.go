package main

import (
	"errors"
	"fmt"

	"postbook.dev/postbook/internal/sandbox"
	"postbook.dev/postbook/web"
)

// consoleInbox shows the sandbox to the console.
type consoleInbox struct{ inbox *sandbox.Inbox }

func (c consoleInbox) List(before string, limit int) ([]web.Received, error) {
	all, err := c.inbox.List(before, limit)
	var out []web.Received
	for _, e := range all {
		out = append(out, received(sandbox.Message{Entry: e}))
	}
	return out, err
}

func (c consoleInbox) Get(id string) (web.Received, error) {
	m, err := c.inbox.Get(id)
	if errors.Is(err, sandbox.ErrNotFound) {
		return web.Received{}, web.ErrNotFound
	}
	return received(m), err
}

func received(m sandbox.Message) web.Received {
	out := web.Received{
		ID: m.ID, At: m.At, From: m.HeaderFrom, To: m.Entry.To, Subject: m.Subject, MessageID: m.MessageID,
		Text: m.Text, HTML: m.HTML, Signature: m.Signature, Raw: string(m.Raw), Size: m.Size,
	}
	for _, a := range m.Attachments {
		out.Attachments = append(out.Attachments, fmt.Sprintf("%s (%s, %d bytes)", a.Filename, a.Type, a.Size))
	}
	return out
}
