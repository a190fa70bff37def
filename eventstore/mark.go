package eventstore

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"strings"

	"github.com/nats-io/nats.go"
)

// Whoever holds the log's credentials can publish to it. What this platform
// writes carries a mark that needs a key which is not among them: an HMAC over
// subject, header and body. The header holds what the append expected to find,
// so that a marked entry that is published again, elsewhere or later, is refused
// by the server or no longer marked.

// markSize is how much of the HMAC is kept: 128 bits.
const markSize = 16

// setMark marks a message that is an entry of a log that carries events.
func setMark(key []byte, m *nats.Msg) {
	kind, _, _ := strings.Cut(m.Subject, ".")
	switch kind {
	case "ledger", "mail", "access", "asked":
		delete(m.Header, HeaderMark) // it may be on its second try
		m.Header[HeaderMark] = []string{mark(key, m.Subject, canonicalHeader(m.Header), m.Data)}
	}
}

func mark(key []byte, subject string, header, body []byte) string {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(subject))
	h.Write([]byte{'\n'})
	h.Write(header)
	h.Write([]byte{'\n'})
	h.Write(body)
	return base64.RawStdEncoding.EncodeToString(h.Sum(nil)[:markSize])
}

// Marked reports whether an entry that was read undecoded was written by whoever
// holds the key.
func (e Entry) Marked(key []byte) bool {
	name := []byte(HeaderMark + ": ")
	start := bytes.Index(e.Header, name)
	if start < 0 || start > 0 && e.Header[start-1] != '\n' {
		return false
	}
	length := bytes.IndexByte(e.Header[start:], '\n')
	if length < 0 {
		return false
	}
	held := e.Header[start+len(name) : start+length]
	rest := append(bytes.Clone(e.Header[:start]), e.Header[start+length+1:]...)
	return hmac.Equal(held, []byte(mark(key, e.Subject, rest, e.Raw)))
}
