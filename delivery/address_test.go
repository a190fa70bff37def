package delivery

import (
	"net/mail"
	"strings"
	"testing"
)

func TestParseAddress(t *testing.T) {
	local64 := strings.Repeat("l", 64)
	label := strings.Repeat("d", 60)
	for _, c := range []struct {
		text               string
		name, addr, header string
	}{
		{"a@example.com", "", "a@example.com", "a@example.com"},
		{"  a@example.com\t", "", "a@example.com", "a@example.com"},
		{"<a@example.com>", "", "a@example.com", "a@example.com"},
		{"Ann <a@example.com>", "Ann", "a@example.com", `"Ann" <a@example.com>`},
		{"Ann<a@example.com>", "Ann", "a@example.com", `"Ann" <a@example.com>`},
		// Real clients forget the quotes.
		{"Acme, Inc. <a@example.com>", "Acme, Inc.", "a@example.com", `"Acme, Inc." <a@example.com>`},
		{`"Acme, Inc." <a@example.com>`, "Acme, Inc.", "a@example.com", `"Acme, Inc." <a@example.com>`},
		{`"A \"B\" \\ C" <a@example.com>`, `A "B" \ C`, "a@example.com", `"A \"B\" \\ C" <a@example.com>`},
		{`"evil@other.test" <a@example.com>`, "evil@other.test", "a@example.com", `"evil@other.test" <a@example.com>`},
		{"Zoë <a@example.com>", "Zoë", "a@example.com", "=?utf-8?q?Zo=C3=AB?= <a@example.com>"},
		{"A.b+C@Example.COM", "", "A.b+C@example.com", "A.b+C@example.com"},
		{"!#$%&'*+-/=?^_`{|}~@example.com", "", "!#$%&'*+-/=?^_`{|}~@example.com", "!#$%&'*+-/=?^_`{|}~@example.com"},
		{"a@bücher.example", "", "a@xn--bcher-kva.example", "a@xn--bcher-kva.example"},
		{"a@faß.de", "", "a@xn--fa-hia.de", "a@xn--fa-hia.de"},
		{local64 + "@example.com", "", local64 + "@example.com", local64 + "@example.com"},
	} {
		got, err := ParseAddress(c.text)
		if err != nil {
			t.Errorf("%q: %v", c.text, err)
			continue
		}
		if got.Name != c.name || got.Addr() != c.addr || got.String() != c.header {
			t.Errorf("%q is %q, %q, %q", c.text, got.Name, got.Addr(), got.String())
		}
	}

	for _, text := range []string{
		"", "@", "a", "a@", "@example.com", "a@b@example.com", "a@localhost", "a@[127.0.0.1]", "a@1.2.3.4",
		"a..b@example.com", ".a@example.com", "a.@example.com", "a b@example.com", `"a b"@example.com`, `"a"@example.com`,
		"a@exa mple.com", "a@example..com", "a@.example.com", "a@example.com.", "a@-bad-.example", "a@x_y.example", "a@\x81.example", "a@\uFFFD.example", "a@xn--zn7c.example", "a@example.com>",
		"a@example.com>, <b@example.com>", "a@example.com, b@example.com", "a>@example.com", "A <B <a@example.com>", "b@example.com <a@example.com>",
		`"A" B" <a@example.com>`, `"A <a@example.com>`, `"A\" <a@example.com>`, `" <a@example.com>`, `A "B" <a@example.com>`,
		"ü@example.com", "a@example.com\r\nRCPT TO:<b@example.com>", "A\r\nBcc: b@example.com <a@example.com>", "a\x00@example.com",
		"A\x01 <a@example.com>", "A\xff <a@example.com>", "A\x7f <a@example.com>",
		strings.Repeat("n", 321) + " <a@example.com>",
		local64 + "l@example.com", "a@" + strings.Repeat("d", 64) + ".com",
		"abcdefghij@" + label + "." + label + "." + label + "." + label + ".com", // 258 in all
	} {
		if got, err := ParseAddress(text); err == nil {
			t.Errorf("%q is taken for %q", text, got.String())
		}
	}
}

// Whatever is accepted is safe inside MAIL FROM:<…> and RCPT TO:<…>, and every
// mail program reads it from a header as it was meant.
func FuzzParseAddress(f *testing.F) {
	for _, s := range []string{
		"a@example.com", "Acme, Inc. <a@example.com>", `"A \"B\"" <a@b.example>`, "Zoë <a@bücher.example>", "a@xn--bcher-kva.example",
		"=?utf-8?q?x?= <a@b.example>", "a@b。example", "<@a.test:b@c.test>", "a@b.example\r\n", " \u200b <a@b.example>", "(c) <a@b.example>",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		a, err := ParseAddress(text)
		if err != nil {
			return
		}
		if strings.ContainsAny(a.Local+a.Domain, "\r\n\x00<> \t\"(),:;[]\\@") {
			t.Fatalf("%q holds what an envelope cannot: %q", text, a.Addr())
		}
		for _, c := range []byte(a.Addr() + a.String()) {
			if c < ' ' || c > '~' {
				t.Fatalf("%q is not printable ASCII: %q", text, a.String())
			}
		}
		if len(a.Local) > 64 || len(a.Addr()) > 254 || !strings.Contains(a.Domain, ".") {
			t.Fatalf("%q is beyond the limits: %q", text, a.Addr())
		}
		read, err := mail.ParseAddress(a.String())
		if err != nil {
			t.Fatalf("%q is written as %q: %v", text, a.String(), err)
		}
		if read.Address != a.Addr() || read.Name != a.Name {
			t.Fatalf("%q is written as %q and read as %q %q", text, a.String(), read.Name, read.Address)
		}
		again, err := ParseAddress(a.Addr())
		if err != nil || again.Addr() != a.Addr() {
			t.Fatalf("%q becomes %q, and that %q, %v", text, a.Addr(), again.Addr(), err)
		}
	})
}
