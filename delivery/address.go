// Package delivery speaks email: it builds messages, signs them, finds where
// they go, hands them over, and reads what comes back. It knows nothing of the
// program that it is part of.
package delivery

import (
	"errors"
	"fmt"
	"net/mail"
	"strings"

	"golang.org/x/net/idna"
)

// The limits of an address, in octets (RFC 5321, 4.5.3.1).
const (
	maxLocal = 64
	maxPath  = 254
)

// An Address is a mailbox that mail can be sent to from here.
type Address struct {
	Name   string // shown to people; may be empty
	Local  string // a dot-atom
	Domain string // in its ASCII form, lower case
}

// Addr is the address as SMTP wants it: local@domain.
func (a Address) Addr() string { return a.Local + "@" + a.Domain }

// String is the address as a header wants it (RFC 5322, 3.4), with a name that
// is not ASCII encoded (RFC 2047).
func (a Address) String() string {
	if a.Name == "" {
		return a.Addr()
	}
	return (&mail.Address{Name: a.Name, Address: a.Addr()}).String()
}

// ParseAddress reads "a@example.com" or "Name <a@example.com>". A name needs no
// quotes if there is no doubt about it. It refuses what SMTP could not carry
// everywhere or what could be mistaken for something else: quoted local parts,
// address literals, domains of one label, and line ends.
func ParseAddress(text string) (Address, error) {
	if strings.ContainsAny(text, "\r\n\x00") {
		return Address{}, errors.New("an address cannot hold line ends or NUL")
	}
	text = strings.TrimSpace(text)
	name, addr := "", text
	if strings.HasSuffix(text, ">") {
		open := strings.LastIndexByte(text, '<')
		if open < 0 {
			return Address{}, fmt.Errorf("%q has a > without a <", text)
		}
		var err error
		if name, err = parseName(strings.TrimSpace(text[:open])); err != nil {
			return Address{}, err
		}
		addr = text[open+1 : len(text)-1]
	}
	at := strings.LastIndexByte(addr, '@')
	if at < 0 {
		return Address{}, fmt.Errorf("%q is not an email address: use email@example.com or Name <email@example.com>", text)
	}
	local, host := addr[:at], addr[at+1:]
	if err := checkLocal(local); err != nil {
		return Address{}, err
	}
	host, err := parseDomain(host)
	if err != nil {
		return Address{}, err
	}
	a := Address{Name: name, Local: local, Domain: host}
	if len(a.Addr()) > maxPath {
		return Address{}, fmt.Errorf("the address has %d characters; there can be %d", len(a.Addr()), maxPath)
	}
	return a, nil
}

// parseName reads what stands before the <.
func parseName(text string) (string, error) {
	if strings.HasPrefix(text, `"`) {
		if len(text) < 2 || !strings.HasSuffix(text, `"`) {
			return "", fmt.Errorf("the name %s has a quote that is not closed", text)
		}
		var name strings.Builder
		for inner := text[1 : len(text)-1]; inner != ""; inner = inner[1:] {
			switch inner[0] {
			case '"':
				return "", fmt.Errorf("the name %s has a quote inside its quotes; write \\\"", text)
			case '\\':
				if inner = inner[1:]; inner == "" {
					return "", fmt.Errorf("the name %s ends in a backslash", text)
				}
			}
			name.WriteByte(inner[0])
		}
		text = name.String()
	} else if strings.ContainsAny(text, `<>@"`) {
		return "", fmt.Errorf("the name %q holds characters that need quotes", text)
	}
	for _, r := range text {
		if r < ' ' || r == 0x7f || r == '\uFFFD' {
			return "", errors.New("a name cannot hold control characters and must be UTF-8")
		}
	}
	if len(text) > 320 {
		return "", fmt.Errorf("the name has %d bytes; there can be 320", len(text))
	}
	return text, nil
}

// checkLocal holds a local part to a dot-atom of ASCII: anything else changes its
// meaning on the way, or needs SMTPUTF8, which too few receivers have.
func checkLocal(local string) error {
	switch {
	case local == "":
		return errors.New("the part before the @ is empty")
	case len(local) > maxLocal:
		return fmt.Errorf("the part before the @ has %d characters; there can be %d", len(local), maxLocal)
	case local[0] == '.', local[len(local)-1] == '.', strings.Contains(local, ".."):
		return errors.New("the part before the @ cannot begin or end with a dot, nor hold two in a row")
	}
	for _, r := range local {
		if r > 0x7f {
			return errors.New("the part before the @ can hold ASCII characters only")
		}
		if !isAtext(byte(r)) && r != '.' {
			return fmt.Errorf("the part before the @ cannot hold %q", r)
		}
	}
	return nil
}

func isAtext(c byte) bool {
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		return true
	}
	return strings.IndexByte("!#$%&'*+-/=?^_`{|}~", c) >= 0
}

// hostnames is stricter than idna.Lookup, which lets empty labels through.
var hostnames = idna.New(idna.MapForLookup(), idna.Transitional(false), idna.BidiRule(), idna.StrictDomainName(true), idna.VerifyDNSLength(true))

func parseDomain(host string) (string, error) {
	if strings.HasPrefix(host, "[") {
		return "", errors.New("an address literal cannot be sent to; use a domain name")
	}
	ascii, err := hostnames.ToASCII(host)
	if err == nil {
		// What is not UTF-8 gets through once, as a name that nobody has.
		_, err = hostnames.ToASCII(ascii)
	}
	if err != nil {
		return "", fmt.Errorf("%q is not a domain name", host)
	}
	dot := strings.LastIndexByte(ascii, '.')
	if dot < 0 {
		return "", fmt.Errorf("%q is not a full domain name, such as example.com", host)
	}
	if strings.Trim(ascii[dot+1:], "0123456789") == "" {
		return "", fmt.Errorf("%q is not a domain name", host)
	}
	return strings.ToLower(ascii), nil
}
