package delivery

import (
	"bytes"
	"mime"
	"net/textproto"
	"strings"
	"testing"
	"unicode/utf8"
)

// Whatever is built is a message that every server carries and every mail program
// reads: with the headers and parts that were asked for and no others.
func FuzzBuild(f *testing.F) {
	f.Add("Hello", "Ann", "text", "<p>html", "X-Note", "value", "a.pdf", "application/pdf", "cid", []byte("content"))
	f.Add("Grüße", "Zoë, \"Z\"", "é\n.\n", "", "List-Unsubscribe", "<https://a.test/?a=b>, <mailto:x@a.test>", "März 1.pdf", "", "", []byte{0})
	f.Add("a\r\nBcc: x@y.test", "n\r\nBcc: x", "\r\n.\r\n", "<!--\r\n-->", "Bcc", "x\r\n\r\nbody", "f\r\n\".pdf", "text/html; charset=\"\r\n\"", "c\r\nid>", []byte("--=_"))
	f.Add(strings.Repeat("word ", 300), strings.Repeat("ä", 100), "", "", "X-"+strings.Repeat("n", 60), strings.Repeat("ö ", 600), strings.Repeat("ä", 127), "a/b; c=d; e*=utf-8''%c3%a4", "=?x", []byte(nil))
	f.Add(" =?utf-8?q?x?= ", "=?utf-8?b?eA==?=", "t", "h", "X", "\t", "..", "multipart/mixed; boundary=x", "<>", []byte("x"))
	f.Fuzz(func(t *testing.T, subject, name, text, html, headerName, headerValue, file, kind, cid string, content []byte) {
		m := plain()
		m.Subject, m.To[0].Name, m.Text, m.HTML = subject, name, text, html
		m.ReplyTo = []Address{{name, "desk", "acme.test"}}
		m.Headers = []Header{{headerName, headerValue}}
		m.Attachments = []Attachment{{Filename: file, ContentType: kind, ContentID: cid, Content: content}, {Filename: file, ContentType: kind, Content: content}}
		m.Seed = content
		raw, err := m.Build()
		if err != nil {
			return
		}
		if err := onWire(raw); err != nil {
			t.Fatal(err)
		}
		if again, err := m.Build(); err != nil || !bytes.Equal(raw, again) {
			t.Fatalf("the second time: %v\n%s\n%s", err, raw, again)
		}
		e, err := read(raw)
		if err != nil {
			t.Fatalf("%v\n%s", err, raw)
		}

		want := map[string]bool{
			"Date": true, "From": true, "To": true, "Reply-To": true, "Subject": true, "Message-Id": true, "Mime-Version": true, "Content-Type": true,
			textproto.CanonicalMIMEHeaderKey(headerName): true,
		}
		for key, values := range e.header {
			if !want[key] || len(values) != 1 {
				t.Fatalf("%s is there %d times:\n%s", key, len(values), raw)
			}
		}
		if len(e.header) != len(want) {
			t.Fatalf("there are the headers %v", e.header)
		}
		// A blank at which a line was folded may be another one when it is read.
		same := strings.NewReplacer("\t", " ")
		if got := decoded(t, e, "Subject"); utf8.ValidString(subject) && same.Replace(got) != same.Replace(subject) {
			t.Fatalf("the subject %q is read as %q", subject, got)
		}
		for key, values := range e.header {
			if key != textproto.CanonicalMIMEHeaderKey(headerName) {
				continue
			}
			got, err := new(mime.WordDecoder).DecodeHeader(values[0])
			if err != nil || same.Replace(got) != same.Replace(headerValue) {
				t.Fatalf("%s %q is read as %q, %v", headerName, headerValue, got, err)
			}
		}
		for _, h := range []string{"From", "To", "Reply-To"} {
			if list, err := e.header.AddressList(h); err != nil || len(list) != 1 {
				t.Fatalf("%s is read as %v, %v:\n%s", h, list, err, raw)
			}
		}

		texts := "text/plain"
		switch {
		case text != "" && html != "":
			texts = "alternative(text/plain text/html)"
		case html != "":
			texts = "text/html"
		}
		files := e.parts[1:]
		if shape := e.parts[0].shape(); strings.HasPrefix(shape, "related("+texts+" ") {
			files = append([]entity{e.parts[0].parts[1]}, files...)
		} else if shape != texts {
			t.Fatalf("the texts are %s and not %s", shape, texts)
		}
		if len(files) != 2 {
			t.Fatalf("there are %d files:\n%s", len(files), raw)
		}
		for _, p := range files {
			if p.parts != nil || p.body != string(content) {
				t.Fatalf("a file is read as %q:\n%s", p.body, raw)
			}
			if _, _, err := mime.ParseMediaType(p.header.Get("Content-Disposition")); err != nil && !strings.Contains(err.Error(), "duplicate parameter") {
				t.Fatalf("%v:\n%s", err, raw)
			}
		}
	})
}
