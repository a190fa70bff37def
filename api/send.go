package api

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"path"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"postbook.dev/postbook/domain/email"
)

// sendRequest is the body of POST /emails.
type sendRequest struct {
	From        string          `json:"from"`
	To          addresses       `json:"to"`
	Cc          addresses       `json:"cc"`
	Bcc         addresses       `json:"bcc"`
	ReplyTo     addresses       `json:"reply_to"`
	Subject     string          `json:"subject"`
	HTML        *string         `json:"html"`
	Text        *string         `json:"text"`
	Headers     headers         `json:"headers"`
	ScheduledAt string          `json:"scheduled_at"`
	Attachments attachments     `json:"attachments"`
	Tags        tags            `json:"tags"`
	Template    json.RawMessage `json:"template"`
	TopicID     *string         `json:"topic_id"`

	envelope []string // of a submission: who gets it, whoever is named in it; nil is who is named
}

// submitted reports whether a request is a message that came over SMTP. It need not have
// what the contract asks for and a message (RFC 5322, 3.6) does without.
func (m sendRequest) submitted() bool { return m.envelope != nil }

// Lists are read up to one element more than they may hold: a body of a few
// megabytes could name millions, and would take gigabytes before it is refused.

// elements reads a JSON array up to one element beyond most.
func elements[T any](data []byte, most int) ([]T, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	if start, err := d.Token(); err != nil || start == nil {
		return nil, err
	} else if start != json.Delim('[') {
		return nil, unlike[[]T](data)
	}
	all := []T{}
	for d.More() && len(all) <= most {
		var v T
		if err := d.Decode(&v); err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, nil
}

// unlike is the error of a value that is no T. The decoder adds the name of the field
// to it.
func unlike[T any](data []byte) error {
	kind := "something else"
	switch data[0] {
	case '{':
		kind = "object"
	case '"':
		kind = "string"
	case 't', 'f':
		kind = "bool"
	case '-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9':
		kind = "number"
	}
	return &json.UnmarshalTypeError{Value: kind, Type: reflect.TypeFor[T]()}
}

type batch []sendRequest

// UnmarshalJSON implements json.Unmarshaler.
func (b *batch) UnmarshalJSON(data []byte) (err error) {
	*b, err = elements[sendRequest](data, maxBatch)
	return err
}

type attachments []attachment

// UnmarshalJSON implements json.Unmarshaler.
func (a *attachments) UnmarshalJSON(data []byte) (err error) {
	*a, err = elements[attachment](data, maxAttachments)
	return err
}

type tags []email.Tag

// UnmarshalJSON implements json.Unmarshaler.
func (t *tags) UnmarshalJSON(data []byte) (err error) {
	*t, err = elements[email.Tag](data, maxTags)
	return err
}

type headers map[string]string

// UnmarshalJSON implements json.Unmarshaler.
func (h *headers) UnmarshalJSON(data []byte) error {
	d := json.NewDecoder(bytes.NewReader(data))
	if start, err := d.Token(); err != nil || start == nil {
		return err
	} else if start != json.Delim('{') {
		return unlike[map[string]string](data)
	}
	*h = headers{}
	for d.More() && len(*h) <= maxHeaders {
		name, err := d.Token()
		if err != nil {
			return err
		}
		var value string
		if err := d.Decode(&value); err != nil {
			return err
		}
		(*h)[name.(string)] = value //nolint:errcheck // the names of an object are strings
	}
	return nil
}

// addresses is one address, or several.
type addresses []string

// UnmarshalJSON implements json.Unmarshaler.
func (a *addresses) UnmarshalJSON(data []byte) error {
	data = bytes.TrimSpace(data)
	if len(data) > 0 && data[0] == '"' {
		var one string
		if err := json.Unmarshal(data, &one); err != nil {
			return err
		}
		*a = nil
		if one != "" {
			*a = addresses{one}
		}
		return nil
	}
	many, err := elements[string](data, maxAddresses)
	if err != nil {
		return unlike[[]string](data)
	}
	*a = many
	return nil
}

// attachment is a file as the SDKs send it.
type attachment struct {
	Filename    string `json:"filename"`
	Content     file   `json:"content"`
	Path        string `json:"path"`
	ContentType string `json:"content_type"`
	ContentID   string `json:"content_id"`
	InlineID    string `json:"inline_content_id"` // the older name of content_id
}

// file is the content of an attachment. It arrives as base64, as an array of
// bytes, or as what Node makes of a Buffer.
type file []byte

// UnmarshalJSON implements json.Unmarshaler.
func (f *file) UnmarshalJSON(data []byte) error {
	bad := &Error{422, "The `content` of an attachment must be base64, or an array of bytes.", "invalid_attachment"}
	data = bytes.TrimSpace(data)
	if len(data) == 0 || bytes.Equal(data, []byte("null")) {
		return nil
	}
	switch data[0] {
	case '"':
		var text string
		if err := json.Unmarshal(data, &text); err != nil {
			return err
		}
		decoded, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			if decoded, err = base64.RawStdEncoding.DecodeString(text); err != nil {
				return bad
			}
		}
		*f = decoded
		return nil
	case '{':
		var buffer struct {
			Data []uint16 `json:"data"`
		}
		if err := json.Unmarshal(data, &buffer); err != nil {
			return bad
		}
		return f.fromNumbers(buffer.Data, bad)
	default:
		var numbers []uint16
		if err := json.Unmarshal(data, &numbers); err != nil {
			return bad
		}
		return f.fromNumbers(numbers, bad)
	}
}

func (f *file) fromNumbers(numbers []uint16, bad error) error {
	out := make([]byte, len(numbers))
	for i, n := range numbers {
		if n > 255 {
			return bad
		}
		out[i] = byte(n)
	}
	*f = out
	return nil
}

// draft is a request that holds what the contract asks.
type draft struct {
	from       Mailbox
	recipients []recipient
	envelope   email.Envelope
	content    email.Content
	due        time.Time // zero is at once
}

type recipient struct {
	kind    email.RecipientKind
	mailbox Mailbox
}

// The limits of a request.
const (
	maxSubject     = 2000 // characters; a header field holds no more without a line that no server takes
	maxAddresses   = 50   // in each of to, cc, bcc and reply_to
	maxHeaders     = 100
	maxTags        = 75
	maxTag         = 256
	maxEmail       = 40 << 20 // bytes, after base64
	maxAttachments = 100
	maxFilename    = 255 // bytes
	maxContentID   = 128
)

// draft checks a request. The first thing that is wrong is the answer.
func (a *API) draft(m sendRequest, now time.Time, batch bool) (draft, error) {
	var d draft
	if len(m.Template) > 0 && string(m.Template) != "null" {
		return d, invalid("Templates are not supported yet: send `html` or `text`.")
	}
	if m.TopicID != nil && *m.TopicID != "" {
		return d, invalid("Topics are not supported yet: send without `topic_id`, to people who want it.")
	}
	steps := []func() error{
		func() error { return a.draftFrom(&d, m) },
		func() error { return a.draftRecipients(&d, m) },
		func() error { return a.draftSubject(&d, m) },
		func() error { return a.draftBody(&d, m) },
		func() error { return a.draftHeaders(&d, m) },
		func() error { return draftTags(&d, m) },
		func() error { return draftAttachments(&d, m, batch) },
		func() error { return draftDue(&d, m, now) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return d, err
		}
	}
	return d, nil
}

func (a *API) draftFrom(d *draft, m sendRequest) error {
	if m.From == "" {
		return missing("from")
	}
	from, err := a.mailbox("from", m.From)
	d.from, d.envelope.From = from, m.From
	return err
}

func (a *API) mailbox(field, value string) (Mailbox, error) {
	m, err := a.ParseMailbox(value)
	if err != nil {
		return m, invalid("Invalid `%s` field. The email address needs to follow the `email@example.com` or `Name <email@example.com>` format.", field)
	}
	return m, nil
}

// draftRecipients takes each mailbox once, where it is named first.
func (a *API) draftRecipients(d *draft, m sendRequest) error {
	if len(m.To) == 0 && !m.submitted() {
		return missing("to")
	}
	seen := map[string]bool{}
	wanted := map[string]bool{}
	for _, to := range m.envelope {
		wanted[lower(to)] = true
	}
	most := maxAddresses
	if m.submitted() { // whoever gets it is named by the envelope, which was counted
		most = email.MaxRecipients
	}
	for _, field := range []struct {
		kind   email.RecipientKind
		values addresses
	}{{email.To, m.To}, {email.Cc, m.Cc}, {email.Bcc, m.Bcc}} {
		if len(field.values) > most {
			return invalid("The `%s` field holds at most %d addresses.", field.kind, most)
		}
		for _, v := range field.values {
			mailbox, err := a.mailbox(string(field.kind), v)
			if err != nil {
				return err
			}
			if key := strings.ToLower(mailbox.Addr()); !seen[key] && (!m.submitted() || wanted[key]) {
				seen[key] = true
				d.recipients = append(d.recipients, recipient{field.kind, mailbox})
			}
		}
	}
	if len(m.ReplyTo) > most {
		return invalid("The `reply_to` field holds at most %d addresses.", most)
	}
	for _, v := range m.ReplyTo {
		if _, err := a.mailbox("reply_to", v); err != nil {
			return err
		}
	}
	d.envelope.To, d.envelope.Cc, d.envelope.Bcc, d.envelope.ReplyTo = m.To, m.Cc, m.Bcc, m.ReplyTo
	return nil
}

func (a *API) draftSubject(d *draft, m sendRequest) error {
	switch {
	case m.Subject == "" && !m.submitted():
		return missing("subject")
	case strings.ContainsFunc(m.Subject, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }):
		return invalid("The `subject` must not contain line breaks or control characters.")
	case utf8.RuneCountInString(m.Subject) > maxSubject:
		return invalid("The `subject` must be at most %d characters long.", maxSubject)
	}
	d.envelope.Subject = m.Subject
	return nil
}

func (a *API) draftBody(d *draft, m sendRequest) error {
	if m.HTML != nil {
		d.content.HTML = *m.HTML
	}
	switch {
	case m.Text != nil:
		d.content.Text = *m.Text
		d.content.NoText = *m.Text == ""
	}
	if d.content.HTML == "" && d.content.Text == "" && !m.submitted() {
		return missing("html` or `text")
	}
	return nil
}

func (a *API) draftHeaders(d *draft, m sendRequest) error {
	if len(m.Headers) > maxHeaders {
		return invalid("The `headers` field holds at most %d headers.", maxHeaders)
	}
	names := make([]string, 0, len(m.Headers))
	for name := range m.Headers {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := a.CheckHeader(name, m.Headers[name]); err != nil {
			return invalid("Invalid `headers` field. %s", sentence(err.Error()))
		}
	}
	d.envelope.Headers = m.Headers
	return nil
}

var tagWord = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

func draftTags(d *draft, m sendRequest) error {
	if len(m.Tags) > maxTags {
		return invalid("The `tags` field holds at most %d tags.", maxTags)
	}
	for _, t := range m.Tags {
		for _, word := range []string{t.Name, t.Value} {
			if len(word) > maxTag || !tagWord.MatchString(word) {
				return invalid("Tags should only contain ASCII letters, numbers, underscores, or dashes, and be at most %d characters long.", maxTag)
			}
		}
	}
	d.envelope.Tags = m.Tags
	return nil
}

// executable are the kinds of file that large receivers refuse.
var executable = []string{".adp", ".app", ".bat", ".chm", ".cmd", ".com", ".cpl", ".dll", ".exe", ".hta", ".ins", ".isp", ".jar", ".js", ".jse", ".lib", ".lnk", ".mde", ".msc", ".msi", ".msp", ".mst", ".pif", ".ps1", ".reg", ".scr", ".sct", ".shb", ".sys", ".vb", ".vbe", ".vbs", ".vxd", ".wsc", ".wsf", ".wsh"}

func draftAttachments(d *draft, m sendRequest, batch bool) error {
	bad := func(format string, args ...any) error {
		return &Error{422, fmt.Sprintf(format, args...), "invalid_attachment"}
	}
	switch {
	case batch && len(m.Attachments) > 0:
		return invalid("The `attachments` field is not supported in batches.")
	case len(m.Attachments) > maxAttachments:
		return bad("An email holds at most %d attachments.", maxAttachments)
	}
	size := len(d.content.HTML) + len(d.content.Text)
	for _, at := range m.Attachments {
		if at.ContentID == "" {
			at.ContentID = at.InlineID
		}
		switch {
		case at.Path != "":
			return bad("Attachments by `path` are not fetched: send the file in `content`.")
		case at.Content == nil:
			return bad("Attachment must have either a `content` or `path`.")
		case at.Filename == "":
			return bad("Attachment must have a `filename`.")
		case len(at.Filename) > maxFilename || strings.ContainsAny(at.Filename, "\r\n\x00/\\\""):
			return bad("The `filename` of an attachment must be a plain file name of at most %d bytes.", maxFilename)
		case slices.Contains(executable, strings.ToLower(path.Ext(at.Filename))):
			return bad("Attachments of type `%s` are not allowed.", path.Ext(at.Filename))
		case len(at.ContentID) >= maxContentID || strings.ContainsAny(at.ContentID, "\r\n\x00<> "):
			return bad("The `content_id` of an attachment must be shorter than %d characters, without blanks.", maxContentID)
		case !mediaType.MatchString(at.ContentType):
			return bad("The `content_type` of an attachment must be a media type, such as `application/pdf`.")
		}
		size += base64.StdEncoding.EncodedLen(len(at.Content))
		d.content.Attachments = append(d.content.Attachments, email.Attachment{
			Filename: at.Filename, ContentType: at.ContentType, ContentID: at.ContentID, Content: at.Content,
		})
	}
	if size > maxEmail {
		return invalid("The email is larger than 40 MB.")
	}
	return nil
}

// mediaType is a type and a subtype (RFC 6838, 4.2), perhaps with a character
// set; empty leaves it to the file name.
var mediaType = regexp.MustCompile(`^([A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}(; *[a-zA-Z]{1,64}=[A-Za-z0-9_.-]{1,64})?)?$`)

func draftDue(d *draft, m sendRequest, now time.Time) error {
	if m.ScheduledAt == "" {
		return nil
	}
	due, err := parseTime(m.ScheduledAt, now)
	if err != nil {
		return err
	}
	if due.After(now) {
		d.due = due
	}
	return nil
}

// sentence makes an error readable as part of a message.
func sentence(s string) string {
	if i := strings.LastIndex(s, ": "); i >= 0 && i < 20 {
		s = s[i+2:]
	}
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + strings.TrimSuffix(s[1:], ".") + "."
}
