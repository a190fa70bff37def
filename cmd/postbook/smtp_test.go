package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/mail"
	"net/smtp"
	"net/textproto"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"postbook.dev/postbook/api"
)

// submit sends a message as a program would that knows SMTP alone.
func (i *instance) submit(password, from string, to []string, message string) error {
	addr := i.facts.SMTP.Addr
	auth := smtp.PlainAuth("", i.facts.SMTP.Username, password, strings.SplitN(addr, ":", 2)[0])
	return smtp.SendMail(addr, auth, from, to, []byte(strings.ReplaceAll(message, "\n", "\r\n")))
}

// A program that speaks SMTP sends through the platform, with the same promises.
func TestSubmission(t *testing.T) {
	t.Parallel()
	i := launch(t)
	message := "From: Ada <ada@" + devDomain + ">\nTo: One <one@rcpt.test>\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\nX-Order: 42\nResend-Idempotency-Key: order-42\n" +
		"Message-ID: <theirs@example.com>\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n" +
		"--b\nContent-Type: text/html; charset=utf-8\n\n<p>Hello</p>\n--b\nContent-Type: text/plain; name=a.txt\nContent-Disposition: attachment; filename=a.txt\nContent-Transfer-Encoding: base64\n\n" +
		base64.StdEncoding.EncodeToString([]byte("the file")) + "\n--b--\n"
	for range 2 { // the second is the same submission, tried again
		if err := i.submit(i.facts.SMTP.Password, "bounce@example.com", []string{"one@rcpt.test", "blind@rcpt.test"}, message); err != nil {
			t.Fatal(err)
		}
	}
	var list struct {
		Data []struct {
			ID, Subject, From string
			To, Bcc           []string
		}
	}
	i.ask("GET", "/emails", nil).decode(t, &list)
	if len(list.Data) != 1 {
		t.Fatalf("%d emails, not one: %+v", len(list.Data), list.Data)
	}
	e := list.Data[0]
	if e.Subject != "Grüße" || len(e.To) != 1 || !strings.Contains(e.To[0], "one@rcpt.test") || len(e.Bcc) != 1 || e.Bcc[0] != "blind@rcpt.test" {
		t.Errorf("%+v", e)
	}
	i.lastEvent(e.ID, "delivered")

	for name, c := range map[string]struct {
		password, message string
		to                []string
		code              int
	}{
		"a wrong key":                    {"re_12345678_123456789012345678901234", message, []string{"one@rcpt.test"}, 535},
		"a domain that is not verified":  {i.facts.SMTP.Password, "From: eve@example.com\nTo: one@rcpt.test\nSubject: x\n\nx\n", []string{"one@rcpt.test"}, 550},
		"no From":                        {i.facts.SMTP.Password, "To: one@rcpt.test\nSubject: x\n\nx\n", []string{"one@rcpt.test"}, 550},
		"151 blind copies":               {i.facts.SMTP.Password, "From: ada@" + devDomain + "\nTo: one@rcpt.test\nSubject: x\n\nx\n", blind(151), 452},
		"151 named, of whom one gets it": {i.facts.SMTP.Password, "From: ada@" + devDomain + "\nTo: " + strings.Join(blind(151), ", ") + "\nSubject: x\n\nx\n", []string{"one@rcpt.test"}, 550},
		"an address that is none":        {i.facts.SMTP.Password, message, []string{"one@localhost"}, 553},
	} {
		err := i.submit(c.password, "ada@"+devDomain, c.to, c.message)
		if told, ok := errors.AsType[*textproto.Error](err); !ok || told.Code != c.code {
			t.Errorf("%s: %v, want %d", name, err, c.code)
		}
	}
	c, err := smtp.Dial(i.facts.SMTP.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Mail("ada@" + devDomain); err == nil || !strings.HasPrefix(err.Error(), "530") {
		t.Errorf("without a key: %v", err)
	}
	i.ask("GET", "/emails", nil).decode(t, &list)
	if len(list.Data) != 1 {
		t.Errorf("something was accepted: %+v", list.Data)
	}
}

// What mail programs send, and the contract's JSON would not say so.
func TestSubmissionsThatAreUnusual(t *testing.T) {
	t.Parallel()
	i := launch(t)
	for name, c := range map[string]struct {
		message string
		to      []string
		shown   string // of To
		files   string
	}{
		"blind copies only": {"To: undisclosed-recipients:;\nSubject: x\n\nhello\n", []string{"one@rcpt.test"}, "[]", ""},
		"many blind copies": {"To: team@rcpt.test\nSubject: x\n\nhello\n", blind(150), "[team@rcpt.test]", ""},
		"nobody named":      {"Subject: x\n\nhello\n", []string{"one@rcpt.test"}, "[]", ""},
		"copies only":       {"Cc: one@rcpt.test\nSubject: x\n\nhello\n", []string{"one@rcpt.test"}, "[]", ""},
		"names":             {"To: =?utf-8?q?Zo=C3=AB?= <one@rcpt.test>, \"Doe, \\\"J\\\"\" <two@rcpt.test>\nSubject: x\n\nhello\n", []string{"one@rcpt.test", "two@rcpt.test"}, `[Zoë <one@rcpt.test> "Doe, \"J\"" <two@rcpt.test>]`, ""},
		"no subject":        {"To: one@rcpt.test\n\nhello\n", []string{"one@rcpt.test"}, "[one@rcpt.test]", ""},
		"a file alone": {
			"To: one@rcpt.test\nSubject: x\nContent-Type: application/pdf\nContent-Disposition: attachment; filename=\"C:\\\\to\\\\a/b \\\"1\\\".pdf\"\n\n%PDF\n",
			[]string{"one@rcpt.test"},
			"[one@rcpt.test]", "b _1_.pdf",
		},
	} {
		t.Run(name, func(t *testing.T) {
			if err := i.submit(i.facts.SMTP.Password, "ada@"+devDomain, c.to, "From: =?utf-8?q?Ad=C3=A4?= <ada@"+devDomain+">\n"+c.message); err != nil {
				t.Fatal(err)
			}
			var list struct {
				Data []struct {
					ID, From string
					To       []string
				}
			}
			i.ask("GET", "/emails?limit=1", nil).decode(t, &list)
			e := list.Data[0]
			if fmt.Sprint(e.To) != c.shown || e.From != "Adä <ada@"+devDomain+">" {
				t.Errorf("%+v", e)
			}
			i.lastEvent(e.ID, "delivered")
			raw := i.received(t, e.ID)
			m, err := mail.ReadMessage(strings.NewReader(raw))
			if err != nil {
				t.Fatal(err)
			}
			if from, err := m.Header.AddressList("From"); err != nil || from[0].Name != "Adä" {
				t.Errorf("From is read as %v, %v", from, err)
			}
			if c.files != "" && !strings.Contains(raw, `filename="`+c.files+`"`) {
				t.Errorf("the file is called otherwise:\n%s", raw)
			}
		})
	}
}

// received is the message of an email as the sandbox got it.
func (i *instance) received(t *testing.T, email string) string {
	t.Helper()
	folder := filepath.Join(i.dir, "sandbox", "new")
	files, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		raw, err := os.ReadFile(filepath.Join(folder, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(raw), "Message-ID: <"+email) {
			return string(raw)
		}
	}
	t.Fatalf("the sandbox did not get %s", email)
	return ""
}

func blind(n int) []string {
	list := make([]string, n)
	for k := range list {
		list[k] = fmt.Sprintf("n%d@rcpt.test", k)
	}
	return list
}

func TestSubmissionsEndBeforeTheyBegan(t *testing.T) {
	for range 200 {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := &server{api: &api.API{Config: api.Config{Log: slog.New(slog.DiscardHandler)}}, smtp: listener}
		ctx, stop := context.WithCancel(t.Context())
		stop()
		group, ctx := errgroup.WithContext(ctx)
		s.serveSMTP(ctx, group)
		if err := group.Wait(); !errors.Is(err, context.Canceled) {
			t.Fatalf("a server that is stopped at once ended with %v", err)
		}
	}
}
