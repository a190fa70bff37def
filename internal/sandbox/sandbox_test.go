package sandbox

import (
	"fmt"
	"log/slog"
	"testing"
)

// Page by page, each message is listed once, the newest first.
func TestMessagesAreListedInPages(t *testing.T) {
	b, err := Open(Config{Addr: "127.0.0.1:0", Dir: t.TempDir(), Hostname: "sandbox.test", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for n := range 5 {
		if err := b.keep("client.test", "ada@acme.com", []string{"eve@rcpt.test"}, fmt.Appendf(nil, "Subject: %d\r\n\r\nHello.\r\n", n)); err != nil {
			t.Fatal(err)
		}
	}
	var subjects, before string
	for range 4 {
		page, err := b.List(before, 2)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range page {
			subjects, before = subjects+m.Subject, m.ID
		}
		subjects += " "
	}
	if want := "43 21 0  "; subjects != want {
		t.Errorf("the pages are %q, not %q", subjects, want)
	}
}
