package delivery

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"mime"
	"mime/quotedprintable"
	"path"
	"strings"
	"time"
	"unicode/utf8"
)

// A Header is one that the sender of a message has added.
type Header struct{ Name, Value string }

// An Attachment is a file that goes with a message; one with a ContentID can be
// shown within the HTML.
type Attachment struct {
	Filename    string
	ContentType string // found by the file's name if empty
	ContentID   string
	Content     []byte
}

// A Message is what is to be sent. It has no blind copies: those are envelopes.
type Message struct {
	From        Address
	To, Cc      []Address
	ReplyTo     []Address
	Subject     string
	HTML, Text  string
	Headers     []Header
	Attachments []Attachment
	MessageID   string // without < and >
	Date        time.Time
	Seed        []byte // boundaries are derived from it, so that building again gives the same bytes
}

// The limits of a line, in octets without its end (RFC 5322, 2.1.1).
const (
	foldAt  = 76
	maxLine = 998
)

// refused headers are written from a message's other fields, change what its
// body means, or vouch for it.
var refusedHeaders = map[string]bool{
	"from": true, "to": true, "cc": true, "bcc": true, "subject": true, "date": true, "message-id": true,
	"reply-to": true, "sender": true, "return-path": true, "received": true, "mime-version": true,
	"authentication-results": true, "delivered-to": true, "errors-to": true, "apparently-to": true,
}

// CheckHeader says why a header of the sender's own is refused, or nil.
func CheckHeader(h Header) error {
	if h.Name == "" || len(h.Name) > 76 {
		return fmt.Errorf("the name of a header has 1 to 76 characters, not %d", len(h.Name))
	}
	for _, c := range []byte(h.Name) {
		if c <= ' ' || c >= 0x7f || c == ':' {
			return fmt.Errorf("%q is not the name of a header", h.Name)
		}
	}
	lower := strings.ToLower(h.Name)
	for _, prefix := range []string{"content-", "dkim-", "arc-", "resent-", "received-"} {
		if strings.HasPrefix(lower, prefix) {
			return fmt.Errorf("the header %s is written here and cannot be set", h.Name)
		}
	}
	if refusedHeaders[lower] {
		return fmt.Errorf("the header %s is written here and cannot be set", h.Name)
	}
	if !utf8.ValidString(h.Value) || strings.ContainsFunc(h.Value, isControl) {
		return fmt.Errorf("the value of the header %s cannot hold line ends or control characters", h.Name)
	}
	return new(writer).header(h.Name, headerText(h.Value))
}

func isControl(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }

// Build writes the message (RFC 5322, 2045). Every line ends in CRLF, has at most
// 998 octets, and all of it is ASCII, so that no server on the way has a reason
// to rewrite it and break its signature.
func (m Message) Build() ([]byte, error) {
	w := &writer{seed: m.Seed}
	w.Grow(1024 + len(m.Text)*5/4 + len(m.HTML)*5/4)
	if err := m.writeHeaders(w); err != nil {
		return nil, fmt.Errorf("build a message: %w", err)
	}
	if err := w.entity(m.body()); err != nil {
		return nil, fmt.Errorf("build a message: %w", err)
	}
	return w.Bytes(), nil
}

func (m Message) writeHeaders(w *writer) error {
	to := addressList(m.To)
	if to == "" && len(m.Cc) == 0 {
		to = "undisclosed-recipients:;"
	}
	if strings.ContainsFunc(m.Subject, isControl) || strings.ContainsFunc(m.MessageID, isControl) {
		return errors.New("the subject and the message id cannot hold line ends or control characters")
	}
	fields := []Header{
		{"Date", m.Date.Format("Mon, 02 Jan 2006 15:04:05 -0700")},
		{"From", m.From.String()},
		{"To", to},
		{"Cc", addressList(m.Cc)},
		{"Reply-To", addressList(m.ReplyTo)},
		{"Subject", subject(m.Subject)},
		{"Message-ID", "<" + m.MessageID + ">"},
		{"MIME-Version", "1.0"},
	}
	for _, f := range fields {
		if f.Value == "" && f.Name != "Subject" {
			continue
		}
		if err := w.header(f.Name, f.Value); err != nil {
			return err
		}
	}
	for _, h := range m.Headers {
		if err := CheckHeader(h); err != nil {
			return err
		}
		if err := w.header(h.Name, headerText(h.Value)); err != nil {
			return err
		}
	}
	return nil
}

func addressList(list []Address) string {
	texts := make([]string, len(list))
	for i, a := range list {
		texts[i] = a.String()
	}
	return strings.Join(texts, ", ")
}

// headerText encodes a value that a header cannot hold as it is (RFC 2047).
func headerText(s string) string {
	plain := !strings.Contains(s, "=?") && s == strings.TrimSpace(s)
	for i := 0; plain && i < len(s); i++ {
		plain = s[i] < 0x7f && s[i] >= ' ' || s[i] == '\t'
	}
	if plain {
		return s
	}
	if words := mime.QEncoding.Encode("utf-8", s); words != s {
		return words
	}
	// mime leaves ASCII as it is, but blanks at the ends would be lost, and "=?"
	// would be read as an encoded word.
	return encodedWords(s)
}

// subject is headerText of what also may have words that are longer than a line.
func subject(s string) string {
	for word := range strings.FieldsSeq(s) {
		if len(word) > maxLine/2 {
			return encodedWords(s)
		}
	}
	return headerText(s)
}

// encodedWords encodes all of a text (RFC 2047, 4.2), each word whole characters.
func encodedWords(s string) string {
	var words []string
	for s != "" {
		n := min(len(s), 20)
		for n > 0 && n < len(s) && !utf8.RuneStart(s[n]) {
			n--
		}
		n = max(n, 1)
		word := "=?utf-8?q?"
		for _, c := range []byte(s[:n]) {
			word += fmt.Sprintf("=%02X", c)
		}
		words, s = append(words, word+"?="), s[n:]
	}
	return strings.Join(words, " ")
}

// part is one entity of a message: a leaf with a body, or a multipart.
type part struct {
	headers  []Header
	encoding string // of a leaf: "quoted-printable" or "base64"
	body     []byte
	multi    string // subtype of a multipart
	parts    []part
}

// body nests the parts as mail programs expect them:
// mixed(related(alternative(text, html), inline…), attachments…).
func (m Message) body() part {
	text := leaf("text/plain; charset=utf-8", m.Text)
	root := text
	if m.HTML != "" {
		root = leaf("text/html; charset=utf-8", m.HTML)
		if m.Text != "" {
			root = part{multi: "alternative", parts: []part{text, root}}
		}
	}
	var inline, attached []part
	for _, a := range m.Attachments {
		if a.ContentID != "" {
			inline = append(inline, a.part())
		} else {
			attached = append(attached, a.part())
		}
	}
	if len(inline) > 0 {
		root = part{multi: "related", parts: append([]part{root}, inline...)}
	}
	if len(attached) > 0 {
		root = part{multi: "mixed", parts: append([]part{root}, attached...)}
	}
	return root
}

func leaf(contentType, text string) part {
	return part{headers: []Header{{"Content-Type", contentType}}, encoding: "quoted-printable", body: []byte(text)}
}

func (a Attachment) part() part {
	p := part{encoding: "base64", body: a.Content}
	kind := a.contentType()
	disposition := "attachment"
	if a.ContentID != "" {
		disposition = "inline"
		p.headers = append(p.headers, Header{"Content-ID", "<" + strings.Trim(strings.Map(idChar, a.ContentID), "<>") + ">"})
	}
	if name := path.Base(strings.ReplaceAll(a.Filename, `\`, "/")); a.Filename != "" && name != "." && name != "/" {
		kind += fileParameter("name", name)
		disposition += fileParameter("filename", name)
	}
	p.headers = append(p.headers, Header{"Content-Type", kind}, Header{"Content-Disposition", disposition})
	return p
}

func idChar(r rune) rune {
	if r <= ' ' || r >= 0x7f {
		return -1
	}
	return r
}

// contentType is what the sender says if it is a type of a single body, else
// what the file's name says.
func (a Attachment) contentType() string {
	kind := a.ContentType
	if kind == "" {
		kind = mime.TypeByExtension(path.Ext(a.Filename))
	}
	parsed, params, err := mime.ParseMediaType(kind)
	if err != nil || !strings.Contains(parsed, "/") || strings.HasPrefix(parsed, "multipart/") || strings.HasPrefix(parsed, "message/") {
		return "application/octet-stream"
	}
	delete(params, "name")
	if formatted := mime.FormatMediaType(parsed, params); formatted != "" {
		return formatted
	}
	return "application/octet-stream"
}

// fileParameter writes a file's name as every mail program can read it: in
// ASCII, and if that is not all, as RFC 2231 says too.
func fileParameter(key, name string) string {
	ascii := strings.Map(func(r rune) rune {
		switch {
		case r < ' ' || r == 0x7f:
			return -1
		case r > 0x7f || r == '"' || r == '\\':
			return '_'
		}
		return r
	}, name)
	out := fmt.Sprintf(`; %s="%s"`, key, ascii)
	if ascii == name {
		return out
	}
	var encoded strings.Builder
	for _, c := range []byte(name) {
		if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '-' || c == '_' {
			encoded.WriteByte(c)
		} else {
			fmt.Fprintf(&encoded, "%%%02X", c)
		}
	}
	return out + fmt.Sprintf("; %s*=utf-8''%s", key, encoded.String())
}

// writer writes entities.
type writer struct {
	bytes.Buffer
	seed       []byte
	boundaries int
}

// header writes a field, folded at blanks.
func (w *writer) header(name, value string) error {
	line := name + ": " + value
	for _, c := range []byte(line) {
		if c != '\t' && (c < ' ' || c > '~') {
			return fmt.Errorf("the header %s cannot hold the byte %#02x", name, c)
		}
	}
	from := len(name) + 2
	if strings.HasPrefix(value, "=?") {
		from-- // a line with encoded words has no more than 76 octets (RFC 2047, 2)
	}
	for len(line) > foldAt {
		at := foldPoint(line, from)
		if at < 0 {
			break
		}
		w.WriteString(line[:at])
		w.WriteString("\r\n")
		line = line[at:]
		from = 2 // the rest begins with a blank
	}
	if len(line) > maxLine {
		return fmt.Errorf("the header %s holds %d characters without a blank; a line can have %d", name, len(line), maxLine)
	}
	w.WriteString(line)
	w.WriteString("\r\n")
	return nil
}

// foldPoint is the last blank before the limit at which a line can be folded,
// else the first after it, else -1.
func foldPoint(line string, from int) int {
	best := -1
	for i := max(from, 1); i < len(line)-1; i++ {
		if blank(line[i]) && !blank(line[i-1]) && !blank(line[i+1]) {
			if i > foldAt && best >= 0 {
				return best
			}
			best = i
			if i > foldAt {
				return best
			}
		}
	}
	return best
}

func blank(c byte) bool { return c == ' ' || c == '\t' }

// boundary cannot occur in a body: quoted-printable never holds "=_".
func (w *writer) boundary() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%x/%d", w.seed, w.boundaries))
	w.boundaries++
	return "=_" + hex.EncodeToString(sum[:16])
}

func (w *writer) entity(p part) error {
	if p.multi == "" {
		for _, h := range p.headers {
			if err := w.header(h.Name, h.Value); err != nil {
				return err
			}
		}
		w.WriteString("Content-Transfer-Encoding: " + p.encoding + "\r\n\r\n")
		if p.encoding == "base64" {
			w.base64(p.body)
			return nil
		}
		return w.quotedPrintable(p.body)
	}
	boundary := w.boundary()
	w.WriteString("Content-Type: multipart/" + p.multi + ";\r\n boundary=\"" + boundary + "\"\r\n\r\n")
	for _, child := range p.parts {
		w.WriteString("--" + boundary + "\r\n")
		if err := w.entity(child); err != nil {
			return err
		}
	}
	w.WriteString("--" + boundary + "--\r\n")
	return nil
}

func (w *writer) quotedPrintable(body []byte) error {
	q := quotedprintable.NewWriter(w)
	if _, err := q.Write(body); err != nil {
		return err
	}
	if err := q.Close(); err != nil {
		return err
	}
	if !bytes.HasSuffix(w.Bytes(), []byte("\r\n")) {
		w.WriteString("\r\n")
	}
	return nil
}

func (w *writer) base64(body []byte) {
	const line = 57 // bytes in 76 characters
	for len(body) > 0 {
		n := min(line, len(body))
		w.Write(base64.StdEncoding.AppendEncode(w.AvailableBuffer(), body[:n]))
		w.WriteString("\r\n")
		body = body[n:]
	}
}
