package api

import (
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"postbook.dev/postbook/delivery"
	"postbook.dev/postbook/workers"
)

// anything is what people put into a field: words, and what breaks mail.
var anything = rapid.Custom(func(t *rapid.T) string {
	return strings.Join(rapid.SliceOfN(rapid.OneOf(
		rapid.SampledFrom([]string{
			"", "Hello", " ", "\t", "\r\n", "\n.\n", "\x00", "\x01", "\x7f", "\u0085", "\u2028", "ä", "=?utf-8?q?x?=", "\"", "\\", "<", ">", "(", "/", ";", ",", "..", "\U0001F600",
			strings.Repeat("x", 70), strings.Repeat("x", 1100), strings.Repeat("ä", 600),
		}),
		rapid.String(),
	), 0, 4).Draw(t, "parts"), "")
})

// An email that was accepted and cannot be built would fail, although nobody did anything
// wrong.
func TestWhatIsAcceptedCanBeBuilt(t *testing.T) {
	a := &API{Config: Config{
		ParseMailbox: func(s string) (Mailbox, error) {
			m, err := delivery.ParseAddress(s)
			return Mailbox{m.Name, m.Local, m.Domain}, err
		},
		CheckHeader: func(name, value string) error {
			return delivery.CheckHeader(delivery.Header{Name: name, Value: value})
		},
	}}
	accepted := 0
	rapid.Check(t, func(t *rapid.T) {
		// One field is anything, and the others are fine: else nothing would be accepted.
		field := rapid.SampledFrom([]string{"from", "to", "subject", "text", "html", "header", "value", "file", "type", "cid"}).Draw(t, "field")
		put := func(name, usual string) string {
			if name == field {
				return anything.Draw(t, name)
			}
			return usual
		}
		html, text := put("html", "<p>Hello"), put("text", "Hello")
		m := sendRequest{
			From: put("from", "Ada") + " <ada@acme.test>", To: addresses{put("to", "One") + " <one@rcpt.test>"}, Subject: put("subject", "Hello"), HTML: &html, Text: &text,
			Headers:     headers{"X-" + put("header", "Note"): put("value", "a note")},
			Attachments: attachments{{Filename: put("file", "a.pdf"), ContentType: put("type", "application/pdf"), ContentID: put("cid", ""), Content: []byte("x")}},
		}
		if field == "type" && rapid.Bool().Draw(t, "parameter") {
			m.Attachments[0].ContentType = "text/plain; charset=" + m.Attachments[0].ContentType
		}
		d, err := a.draft(m, time.Now(), false)
		if err != nil {
			return
		}
		accepted++
		message, err := workers.Compose(d.envelope, d.content)
		if err == nil {
			message.MessageID = "id@acme.test"
			_, err = message.Build()
		}
		if err != nil {
			t.Fatalf("%+v is accepted and cannot be built: %v", m, err)
		}
	})
	if accepted < 20 {
		t.Errorf("%d were accepted: that shows nothing", accepted)
	}
}
