package sandbox

import (
	"bytes"
	"errors"
	"io"
	"strings"

	"github.com/emersion/go-message"
	_ "github.com/emersion/go-message/charset" // names of character sets
	"github.com/emersion/go-message/mail"
)

// Message is a message in full. What it says came from outside: whoever shows it
// has to keep it from doing anything.
type Message struct {
	Entry
	Text, HTML  string
	Attachments []Attachment
	Signature   string // of DKIM, the header field's value
	Raw         []byte
}

// Attachment is a file in a message.
type Attachment struct {
	Filename string
	Type     string
	Size     int
}

// The limits of parsing: a message can hold parts within parts, and bytes that
// unpack to more.
const (
	maxParts    = 100
	maxPartSize = 2 << 20
)

// parse reads what it can. A message that is broken shows as far as it goes.
func parse(raw []byte) Message {
	m := Message{Raw: raw}
	entity, err := message.Read(bytes.NewReader(raw))
	if entity == nil || err != nil && !message.IsUnknownCharset(err) {
		return m
	}
	h := mail.Header{Header: entity.Header}
	m.From, m.To = h.Get("X-Envelope-From"), h.Get("X-Envelope-To")
	m.HeaderFrom, m.HeaderTo = text(h, "From"), text(h, "To")
	m.Subject = text(h, "Subject")
	m.MessageID = h.Get("Message-Id")
	m.Signature = h.Get("Dkim-Signature")
	parts := 0
	stop := errors.New("enough")
	_ = entity.Walk(func(path []int, part *message.Entity, err error) error { // what could be read is shown
		if parts++; parts > maxParts || len(path) > 10 {
			return stop
		}
		if err != nil && !message.IsUnknownCharset(err) || part.MultipartReader() != nil {
			return nil
		}
		m.add(part)
		return nil
	})
	return m
}

func text(h mail.Header, name string) string {
	s, err := h.Text(name)
	if err != nil {
		return h.Get(name)
	}
	return s
}

func (m *Message) add(part *message.Entity) {
	kind, params, _ := part.Header.ContentType()
	disposition, dparams, _ := part.Header.ContentDisposition()
	body, err := io.ReadAll(io.LimitReader(part.Body, maxPartSize))
	if err != nil {
		return
	}
	name := dparams["filename"]
	if name == "" {
		name = params["name"]
	}
	switch {
	case disposition == "attachment" || name != "" || !strings.HasPrefix(kind, "text/"):
		m.Attachments = append(m.Attachments, Attachment{name, kind, len(body)})
	case kind == "text/html" && m.HTML == "":
		m.HTML = string(body)
	case m.Text == "":
		m.Text = string(body)
	}
}
