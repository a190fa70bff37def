package delivery

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/mail"
	"strings"
	"testing"
	"time"
)

var noon = time.Date(2026, time.March, 4, 12, 0, 5, 0, time.FixedZone("", 3600))

func plain() Message {
	return Message{
		From: Address{"Acme", "hello", "acme.test"}, To: []Address{{"", "jane", "rcpt.test"}},
		Subject: "Hello", Text: "Hi Jane", MessageID: "018f@send.acme.test", Date: noon, Seed: []byte("seed"),
	}
}

// entity is a part of a message as a mail program reads it.
type entity struct {
	header mail.Header
	kind   string
	params map[string]string
	body   string
	parts  []entity
}

// shape is the nesting of the types alone.
func (e entity) shape() string {
	kind := strings.TrimPrefix(e.kind, "multipart/")
	if e.parts == nil {
		return e.kind
	}
	inner := make([]string, len(e.parts))
	for i, p := range e.parts {
		inner[i] = p.shape()
	}
	return kind + "(" + strings.Join(inner, " ") + ")"
}

func read(raw []byte) (entity, error) {
	m, err := mail.ReadMessage(bytes.NewReader(raw))
	if err != nil {
		return entity{}, err
	}
	return readEntity(m.Header, m.Body)
}

func readEntity(header mail.Header, body io.Reader) (entity, error) {
	kind, params, err := mime.ParseMediaType(header.Get("Content-Type"))
	if err != nil {
		return entity{}, fmt.Errorf("%q: %w", header.Get("Content-Type"), err)
	}
	e := entity{header: header, kind: kind, params: params}
	if strings.HasPrefix(kind, "multipart/") {
		r := multipart.NewReader(body, params["boundary"])
		for {
			p, err := r.NextRawPart()
			if err == io.EOF {
				return e, nil
			}
			if err != nil {
				return e, err
			}
			child, err := readEntity(mail.Header(p.Header), p)
			if err != nil {
				return e, err
			}
			e.parts = append(e.parts, child)
		}
	}
	switch encoding := header.Get("Content-Transfer-Encoding"); encoding {
	case "quoted-printable":
		body = quotedprintable.NewReader(body)
	case "base64":
		body = base64.NewDecoder(base64.StdEncoding, body)
	default:
		return e, fmt.Errorf("the encoding is %q", encoding)
	}
	b, err := io.ReadAll(body)
	e.body = string(b)
	return e, err
}

// onWire checks what every server on the way takes without a change.
func onWire(raw []byte) error {
	if !bytes.HasSuffix(raw, []byte("\r\n")) {
		return fmt.Errorf("the end is not CRLF: %q", raw[max(0, len(raw)-20):])
	}
	for i, line := range strings.Split(strings.TrimSuffix(string(raw), "\r\n"), "\r\n") {
		if len(line) > 998 {
			return fmt.Errorf("line %d has %d octets", i, len(line))
		}
		for _, c := range []byte(line) {
			if c != '\t' && (c < ' ' || c > '~') {
				return fmt.Errorf("line %d holds %q: %q", i, c, line)
			}
		}
	}
	return nil
}

func build(t testing.TB, m Message) ([]byte, entity) {
	t.Helper()
	raw, err := m.Build()
	if err != nil {
		t.Fatal(err)
	}
	if err := onWire(raw); err != nil {
		t.Fatalf("%v\n%s", err, raw)
	}
	e, err := read(raw)
	if err != nil {
		t.Fatalf("%v\n%s", err, raw)
	}
	return raw, e
}

func decoded(t testing.TB, e entity, header string) string {
	t.Helper()
	text, err := new(mime.WordDecoder).DecodeHeader(e.header.Get(header))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestMessagesAreNestedAsMailProgramsExpect(t *testing.T) {
	inline := Attachment{Filename: "logo.png", ContentType: "image/png", ContentID: "logo", Content: []byte{0x89, 'P', 0, 0xff}}
	file := Attachment{Filename: "a.pdf", ContentType: "application/pdf", Content: bytes.Repeat([]byte("pdf\r\n.\r\n\x00"), 100)}
	for _, c := range []struct {
		text, html string
		files      []Attachment
		want       string
	}{
		{"", "", nil, "text/plain"},
		{"t", "", nil, "text/plain"},
		{"", "h", nil, "text/html"},
		{"t", "h", nil, "alternative(text/plain text/html)"},
		{"t", "", []Attachment{file}, "mixed(text/plain application/pdf)"},
		{"", "h", []Attachment{file}, "mixed(text/html application/pdf)"},
		{"t", "h", []Attachment{file}, "mixed(alternative(text/plain text/html) application/pdf)"},
		{"t", "", []Attachment{inline}, "related(text/plain image/png)"},
		{"", "h", []Attachment{inline}, "related(text/html image/png)"},
		{"t", "h", []Attachment{inline}, "related(alternative(text/plain text/html) image/png)"},
		{"t", "h", []Attachment{file, inline, file}, "mixed(related(alternative(text/plain text/html) image/png) application/pdf application/pdf)"},
		{"", "", []Attachment{file}, "mixed(text/plain application/pdf)"},
	} {
		m := plain()
		m.Text, m.HTML, m.Attachments = c.text, c.html, c.files
		_, e := build(t, m)
		if e.shape() != c.want {
			t.Errorf("text %q, html %q, %d files: %s and not %s", c.text, c.html, len(c.files), e.shape(), c.want)
		}
		var texts, files []entity
		var walk func(entity)
		walk = func(e entity) {
			switch {
			case e.parts != nil:
			case e.header.Get("Content-Disposition") != "":
				files = append(files, e)
			default:
				texts = append(texts, e)
			}
			for _, p := range e.parts {
				walk(p)
			}
		}
		walk(e)
		bodies := ""
		for _, p := range texts {
			bodies += p.body
			if p.params["charset"] != "utf-8" {
				t.Errorf("%s has charset %q", p.kind, p.params["charset"])
			}
		}
		if strings.ReplaceAll(bodies, "\r\n", "") != c.text+c.html || len(files) != len(c.files) {
			t.Errorf("%s holds the texts %q and %d files", c.want, bodies, len(files))
		}
		for _, p := range files {
			want, disposition := file, "attachment"
			if p.kind == "image/png" {
				want, disposition = inline, "inline"
				if p.header.Get("Content-Id") != "<logo>" {
					t.Errorf("the content id is %q", p.header.Get("Content-Id"))
				}
			}
			got, params, err := mime.ParseMediaType(p.header.Get("Content-Disposition"))
			if err != nil || got != disposition || params["filename"] != want.Filename || p.params["name"] != want.Filename || p.body != string(want.Content) {
				t.Errorf("%s came as %s %v %q, %v", want.Filename, got, params, p.body, err)
			}
		}
	}
}

func TestHeadersOfAMessage(t *testing.T) {
	m := plain()
	m.To = append(m.To, Address{"Zoë, \"Z\"", "zoe", "rcpt.test"})
	m.Cc = []Address{{"", "carl", "rcpt.test"}}
	m.ReplyTo = []Address{{"Desk", "desk", "acme.test"}}
	m.Headers = []Header{{"X-Entity-Ref-ID", "42"}, {"List-Unsubscribe", "<https://acme.test/u/1>, <mailto:u@acme.test>"}}
	raw, e := build(t, m)
	for name, want := range map[string]string{
		"From": `"Acme" <hello@acme.test>`, "Cc": "carl@rcpt.test", "Reply-To": `"Desk" <desk@acme.test>`, "Subject": "Hello",
		"Message-ID": "<018f@send.acme.test>", "MIME-Version": "1.0", "Date": "Wed, 04 Mar 2026 12:00:05 +0100",
		"X-Entity-Ref-ID": "42", "List-Unsubscribe": "<https://acme.test/u/1>, <mailto:u@acme.test>",
	} {
		if got := e.header.Get(name); got != want {
			t.Errorf("%s is %q and not %q", name, got, want)
		}
	}
	to, err := e.header.AddressList("To")
	if err != nil || len(to) != 2 || to[0].Address != "jane@rcpt.test" || to[1].Name != "Zoë, \"Z\"" {
		t.Errorf("To is %v, %v", to, err)
	}
	if date, err := e.header.Date(); err != nil || !date.Equal(noon) {
		t.Errorf("Date is %v, %v", date, err)
	}
	for name, values := range e.header {
		if len(values) != 1 {
			t.Errorf("%s is there %d times", name, len(values))
		}
	}
	if again, _ := m.Build(); !bytes.Equal(raw, again) {
		t.Error("built again it has other bytes, so that a retry would not match its signature")
	}
	m.Seed, m.HTML = []byte("other"), "<p>x"
	one, _ := m.Build()
	m.Seed = []byte("seed")
	if two, _ := m.Build(); bytes.Equal(one, two) {
		t.Error("the boundaries of different emails are the same")
	}
}

func TestBlindCopiesLeaveNoTrace(t *testing.T) {
	m := plain()
	m.To = nil
	raw, e := build(t, m)
	if e.header.Get("To") != "undisclosed-recipients:;" {
		t.Errorf("To is %q", e.header.Get("To"))
	}
	if bytes.Contains(bytes.ToLower(raw), []byte("bcc")) {
		t.Error("there is a Bcc header")
	}
	// With a copy in sight To may be absent (RFC 5322, 3.6.3).
	m.Cc = []Address{{"", "carl", "rcpt.test"}}
	if _, e = build(t, m); e.header.Get("To") != "" || e.header.Get("Cc") != "carl@rcpt.test" {
		t.Errorf("To is %q, Cc %q", e.header.Get("To"), e.header.Get("Cc"))
	}
	m.Headers = []Header{{"BCC", "secret@rcpt.test"}}
	if _, err := m.Build(); err == nil {
		t.Error("a Bcc header is taken")
	}
}

func TestASubjectMayBeOneLongWord(t *testing.T) {
	for _, text := range []string{strings.Repeat("x", 2000), "a " + strings.Repeat("=?x?=", 390) + " b", strings.Repeat("x", 999) + "ö"} {
		m := plain()
		m.Subject = text
		if _, e := build(t, m); decoded(t, e, "Subject") != text {
			t.Errorf("%q is read as %q", text, decoded(t, e, "Subject"))
		}
	}
}

func TestTextsInHeadersAreReadAsTheyWereWritten(t *testing.T) {
	for _, text := range []string{
		"", "Hello", "Grüße aus Köln", "日本語の件名がとても長いので、幾つかの語に分けて書かなければなりません。そうしないと行が長すぎます。",
		"👩‍👩‍👧 family", "tab\there", "two  blanks", "=?utf-8?q?not_encoded?=", "a =?x", " begins with a blank", "ends with one ", "\u00a0", " ",
		strings.Repeat("many words ", 80) + "end", strings.Repeat("ö", 500), "a=b_c?d", "50% off: \"now\" (really) <here> @ home, \\o/",
	} {
		m := plain()
		m.Subject = text
		m.Headers = []Header{{"X-Note", text}, {"X-A-Longer-Name-Than-Most-Of-Them", text}}
		raw, e := build(t, m)
		for _, name := range []string{"Subject", "X-Note", "X-A-Longer-Name-Than-Most-Of-Them"} {
			if got := decoded(t, e, name); strings.ReplaceAll(got, "\t", " ") != strings.ReplaceAll(text, "\t", " ") {
				t.Errorf("%s %q is read as %q", name, text, got)
			}
		}
		head, _, _ := strings.Cut(string(raw), "\r\n\r\n")
		for line := range strings.SplitSeq(head, "\r\n") {
			if len(line) > 76 && strings.Contains(line, "=?utf-8?") {
				t.Errorf("a line with encoded words has %d octets, and RFC 2047 allows 76: %q", len(line), line)
			}
			if strings.TrimSpace(line) == "" {
				t.Errorf("%q makes a line of blanks alone", text)
			}
		}
	}
}

func TestTextsOfABodyAreReadAsTheyWereWritten(t *testing.T) {
	for _, text := range []string{
		"plain", "Grüße\nline two\n", "cr\rlf\nboth\r\n", ".\n..\n.dot\n", "From me\n>From", "trailing blank \nand tab\t\n", "=3D =", "--=_boundary\n--",
		strings.Repeat("x", 5000), strings.Repeat("é", 3000), "\x00\x01\xff", "\n\n\n",
	} {
		m := plain()
		m.Text = text
		m.HTML = "<p>" + text
		_, e := build(t, m)
		for i, want := range []string{text, "<p>" + text} {
			// The end of the last line belongs to the boundary after it.
			if got := lines(e.parts[i].body); got != strings.TrimSuffix(lines(want), "\n") {
				t.Errorf("%q is read as %q", want, got)
			}
		}
	}
}

// lines has all ends of lines in one form.
func lines(s string) string {
	return strings.ReplaceAll(strings.ReplaceAll(s, "\r\n", "\n"), "\r", "\n")
}

func TestFileNames(t *testing.T) {
	for _, c := range []struct{ name, want string }{
		{"report.pdf", "report.pdf"},
		{"my report.pdf", "my report.pdf"},
		{"Rechnung März.pdf", "Rechnung März.pdf"},
		{"請求書.pdf", "請求書.pdf"},
		{`a"b;c=d'e%.pdf`, `a"b;c=d'e%.pdf`},
		{"../../etc/passwd", "passwd"},
		{`C:\Users\me\a.pdf`, "a.pdf"},
		{strings.Repeat("long name ", 20) + ".pdf", strings.Repeat("long name ", 20) + ".pdf"},
		{strings.Repeat("ä", 127) + ".pdf", strings.Repeat("ä", 127) + ".pdf"}, // the most that file systems take
	} {
		m := plain()
		m.Attachments = []Attachment{{Filename: c.name, Content: []byte("x")}}
		_, e := build(t, m)
		_, params, err := mime.ParseMediaType(e.parts[1].header.Get("Content-Disposition"))
		if err == nil && params["filename"] == "" {
			t.Errorf("%q is lost", c.name)
		}
		// Go prefers the ASCII form where both are there, and calls it an error.
		if !isASCII(c.want) || strings.ContainsAny(c.want, `"\`) {
			got := e.parts[1].header.Get("Content-Disposition")
			_, encoded, _ := strings.Cut(got, "filename*=")
			_, params, err = mime.ParseMediaType("attachment; filename*=" + encoded)
		}
		if err != nil || params["filename"] != c.want {
			t.Errorf("%q is read as %q, %v", c.name, params["filename"], err)
		}
	}
}

func isASCII(s string) bool { return !strings.ContainsFunc(s, func(r rune) bool { return r > 0x7e }) }

func TestTypesOfFiles(t *testing.T) {
	for _, c := range []struct{ name, kind, want string }{
		{"a.png", "", "image/png"},
		{"a.unheard-of", "", "application/octet-stream"},
		{"", "", "application/octet-stream"},
		{"a.ics", "text/calendar; method=REQUEST; charset=utf-8", "text/calendar"},
		{"a.png", "not a type", "application/octet-stream"},
		{"a.png", "text", "application/octet-stream"},
		// These would be read as parts of the message itself.
		{"a.eml", "multipart/mixed; boundary=x", "application/octet-stream"},
		{"a.eml", "message/rfc822", "application/octet-stream"},
		{"a.eml", "Message/Partial; id=x", "application/octet-stream"},
		{"a.png", "image/png\r\nBcc: x@y.test", "application/octet-stream"},
		{"a.png", "image/png; x=\"\r\n\r\nbody\"", "application/octet-stream"},
	} {
		m := plain()
		m.Attachments = []Attachment{{Filename: c.name, ContentType: c.kind, Content: []byte("x")}}
		_, e := build(t, m)
		if got := e.parts[1]; got.kind != c.want || got.body != "x" {
			t.Errorf("%q of type %q is %q with %q", c.name, c.kind, got.kind, got.body)
		}
	}
}

func TestEmptyAndLargeFiles(t *testing.T) {
	for _, size := range []int{0, 1, 56, 57, 58, 114, 1 << 20} {
		m := plain()
		content := bytes.Repeat([]byte{0xfe}, size)
		m.Attachments = []Attachment{{Filename: "a.bin", Content: content}, {Filename: "b.bin", Content: content}}
		_, e := build(t, m)
		if len(e.parts) != 3 || e.parts[1].body != string(content) || e.parts[2].body != string(content) {
			t.Errorf("files of %d bytes do not come back", size)
		}
	}
}

// No text that a customer chooses becomes a header, a part or a body of its own.
func TestNothingIsInjected(t *testing.T) {
	const evil = "x\r\nX-Evil: yes\r\n\r\nevil"
	for name, change := range map[string]func(*Message, string){
		"subject":      func(m *Message, s string) { m.Subject = s },
		"name":         func(m *Message, s string) { m.From.Name = s },
		"to name":      func(m *Message, s string) { m.To[0].Name = s },
		"local":        func(m *Message, s string) { m.To[0].Local = s },
		"domain":       func(m *Message, s string) { m.From.Domain = s },
		"message id":   func(m *Message, s string) { m.MessageID = s },
		"header name":  func(m *Message, s string) { m.Headers = []Header{{s, "v"}} },
		"header value": func(m *Message, s string) { m.Headers = []Header{{"X-Ok", s}} },
		"file name":    func(m *Message, s string) { m.Attachments = []Attachment{{Filename: s}} },
		"content type": func(m *Message, s string) { m.Attachments = []Attachment{{ContentType: s}} },
		"type's value": func(m *Message, s string) { m.Attachments = []Attachment{{ContentType: "text/x; a=\"" + s + `"`}} },
		"content id":   func(m *Message, s string) { m.Attachments = []Attachment{{ContentID: s}} },
	} {
		for _, s := range []string{evil, strings.ReplaceAll(evil, "\r\n", "\n"), strings.ReplaceAll(evil, "\r\n", "\r"), evil + "é", "a\x00b", "a\x7fb"} {
			m := plain()
			change(&m, s)
			raw, err := m.Build()
			if err != nil {
				continue // refused
			}
			if err := onWire(raw); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			e, err := read(raw)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			for _, p := range append([]entity{e}, e.parts...) {
				if p.header.Get("X-Evil") != "" || strings.Contains(p.body, "evil") {
					t.Errorf("%s %q gets through:\n%s", name, s, raw)
				}
			}
		}
	}
}

func TestCheckHeader(t *testing.T) {
	for _, h := range []Header{
		{"X-Entity-Ref-ID", "1"},
		{"List-Unsubscribe", "<https://a.test>"},
		{"List-Unsubscribe-Post", "List-Unsubscribe=One-Click"},
		{"In-Reply-To", "<a@b>"},
		{"References", "<a@b> <c@d>"},
		{"X-Empty", ""},
		{"X-Text", "Grüße"},
		{"Feedback-ID", "a:b:c:d"},
		{"x!y", "odd, and legal"},
		{"X-Long", strings.Repeat("word ", 500) + "end"},
		{"X-Long", strings.Repeat("ö", 3000)},
	} {
		if err := CheckHeader(h); err != nil {
			t.Error(err)
		}
	}
	for _, h := range []Header{
		{"From", "a@b.test"},
		{"TO", "a@b.test"},
		{"cc", "a@b.test"},
		{"Bcc", "a@b.test"},
		{"Subject", "x"},
		{"Date", "x"},
		{"Message-ID", "<x>"},
		{"Reply-To", "x"},
		{"Sender", "x"},
		{"Return-Path", "x"},
		{"Received", "x"},
		{"MIME-Version", "1.0"},
		{"Content-Type", "text/html"},
		{"content-transfer-encoding", "8bit"},
		{"DKIM-Signature", "x"},
		{"ARC-Seal", "x"},
		{"Resent-To", "x"},
		{"Authentication-Results", "x"},
		{"X Space", "x"},
		{"X:Colon", "x"},
		{"X-Ünicode", "x"},
		{"X-End\r\n", "x"},
		{"X-\x00", "x"},
		{"X-\x7f", "x"},
		{"X-Value", "a\r\nb"},
		{"X-Value", "a\nb"},
		{"X-Value", "a\x00"},
		{"X-Value", "\xff"},
		{"X-Value", strings.Repeat("x", 1000)},
		{"X-Value", "a " + strings.Repeat("x", 1000)},
	} {
		if err := CheckHeader(h); err == nil {
			t.Errorf("%q is taken", h)
		} else if name := strings.TrimSpace(h.Name); isASCII(name) && !strings.ContainsAny(name, "\x00\x7f") && !strings.Contains(err.Error(), name) {
			t.Errorf("%q does not name %s", err, name)
		}
	}
	if CheckHeader(Header{"", "x"}) == nil || CheckHeader(Header{strings.Repeat("x", 77), "x"}) == nil {
		t.Error("a name without or with too many characters is taken")
	}
}
