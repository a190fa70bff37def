package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/mail"
	"runtime"
	"strings"
	"testing"
)

// allocated is how many bytes something allocates.
func allocated(do func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	do()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// A body of some megabytes that names millions of things takes no more memory than
// itself, and is refused for having more than it may.
func TestLongListsAreNotReadToTheEnd(t *testing.T) {
	const n = 1_000_000
	for name, c := range map[string]struct {
		body string
		into func() (any, func() int)
		most int
	}{
		"emails": {
			"[" + strings.Repeat("{},", n) + "{}]",
			func() (any, func() int) { var b batch; return &b, func() int { return len(b) } }, maxBatch,
		},
		"attachments": {
			`{"attachments":[` + strings.Repeat("{},", n) + `{}]}`,
			func() (any, func() int) { var m sendRequest; return &m, func() int { return len(m.Attachments) } }, maxAttachments,
		},
		"tags": {
			`{"tags":[` + strings.Repeat("{},", n) + `{}]}`,
			func() (any, func() int) { var m sendRequest; return &m, func() int { return len(m.Tags) } }, maxTags,
		},
		"addresses": {
			`{"to":[` + strings.Repeat(`"",`, n) + `""]}`,
			func() (any, func() int) { var m sendRequest; return &m, func() int { return len(m.To) } }, 50,
		},
		"headers": {
			`{"headers":{` + manyHeaders(n) + `"X-Last":""}}`,
			func() (any, func() int) { var m sendRequest; return &m, func() int { return len(m.Headers) } }, maxHeaders,
		},
	} {
		into, count := c.into()
		body := []byte(c.body)
		used := allocated(func() {
			if err := json.Unmarshal(body, into); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
		if count() != c.most+1 {
			t.Errorf("%s: %d were read, and one more than %d had to be", name, count(), c.most)
		}
		if used > 4<<20 {
			t.Errorf("%s: %d bytes of JSON took %d bytes", name, len(body), used)
		}
	}
}

func manyHeaders(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `"X-%d":"",`, i)
	}
	return b.String()
}

// Values of another kind are named, with what they had to be.
func TestAListThatIsNone(t *testing.T) {
	for body, kind := range map[string]string{
		`{"tags":"x"}`: "string", `{"tags":{}}`: "object", `{"attachments":7}`: "number", `{"headers":[]}`: "something else", `{"headers":true}`: "bool",
	} {
		var m sendRequest
		told, ok := errors.AsType[*json.UnmarshalTypeError](json.Unmarshal([]byte(body), &m))
		if !ok || told.Value != kind {
			t.Errorf("%s: %+v", body, told)
		}
	}
	var m sendRequest
	if err := json.Unmarshal([]byte(`{"tags":null,"headers":null,"attachments":null,"to":null}`), &m); err != nil {
		t.Error(err)
	}
}

// Parts within parts come to an end, and so do parts beside parts.
func TestMessagesOfManyPartsAreRefused(t *testing.T) {
	any := func(string, string) error { return nil }
	nested := func(depth int) string {
		var b strings.Builder
		b.WriteString("From: a@b.test\r\nTo: c@d.test\r\nSubject: x\r\n")
		for n := range depth {
			fmt.Fprintf(&b, "Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n", n, n)
		}
		b.WriteString("Content-Type: text/plain\r\n\r\nhello\r\n")
		for n := range depth {
			fmt.Fprintf(&b, "\r\n--b%d--\r\n", depth-1-n)
		}
		return b.String()
	}
	if m, _, err := readMessage(strings.NewReader(nested(5)), []string{"c@d.test"}, any); err != nil || m.Text == nil {
		t.Errorf("five parts within each other: %v", err)
	}
	deep := nested(200_000)
	var err error
	used := allocated(func() { _, _, err = readMessage(strings.NewReader(deep), []string{"c@d.test"}, any) })
	if err == nil || used > 4<<20 {
		t.Errorf("200,000 parts within each other: %v, with %d bytes", err, used)
	}
	wide := "From: a@b.test\r\nTo: c@d.test\r\nSubject: x\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n" + strings.Repeat("--b\r\n\r\nx\r\n", 5000) + "--b--\r\n"
	if _, _, err := readMessage(strings.NewReader(wide), []string{"c@d.test"}, any); err == nil {
		t.Error("5,000 parts beside each other are read")
	}
}

// The envelope says who gets a message, and its headers say what is shown.
func TestTheEnvelopeDecides(t *testing.T) {
	message := "From: a@b.test\r\nTo: One <one@d.test>, two@d.test\r\nCc: three@d.test\r\nSubject: x\r\n\r\nhello\r\n"
	m, _, err := readMessage(strings.NewReader(message), []string{"THREE@d.test", "auditor@d.test"}, func(string, string) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	a := &API{Config: Config{ParseMailbox: func(s string) (Mailbox, error) {
		parsed, err := mail.ParseAddress(s)
		if err != nil {
			return Mailbox{}, err
		}
		local, domain, _ := strings.Cut(parsed.Address, "@")
		return Mailbox{parsed.Name, local, domain}, nil
	}}}
	var d draft
	if err := a.draftRecipients(&d, m); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range d.recipients {
		got = append(got, string(r.kind)+" "+r.mailbox.Addr())
	}
	if fmt.Sprint(got) != "[cc three@d.test bcc auditor@d.test]" {
		t.Errorf("it goes to %v", got)
	}
	if len(d.envelope.To) != 2 || len(d.envelope.Cc) != 1 {
		t.Errorf("it shows %v and %v", d.envelope.To, d.envelope.Cc)
	}
}

// One account has half of the room for large bodies, and leaves the rest to others.
func TestLargeBodiesOfOneAccount(t *testing.T) {
	b := newBodies()
	var release []func()
	for range 3 {
		r, err := b.take(t.Context(), "acme", maxEmailBody)
		if err != nil {
			t.Fatal(err)
		}
		release = append(release, r)
	}
	if _, err := b.take(t.Context(), "acme", maxEmailBody); !errors.Is(err, errTooMuchAtOnce) {
		t.Errorf("a fourth body of the account: %v", err)
	}
	other, err := b.take(t.Context(), "other", maxEmailBody)
	if err != nil {
		t.Errorf("a body of another account: %v", err)
	}
	other()
	for _, r := range release {
		r()
	}
	if _, err := b.take(t.Context(), "acme", maxEmailBody); err != nil {
		t.Errorf("after they have gone: %v", err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	_, _ = b.take(t.Context(), "x", maxBodiesInMemory/2)
	_, _ = b.take(t.Context(), "y", maxBodiesInMemory/2-maxEmailBody)
	if _, err := b.take(gone, "z", maxEmailBody); !errors.Is(err, errUnavailable) || len(b.held) != 3 {
		t.Errorf("a client that has gone: %v, and %v", err, b.held)
	}
}
