package delivery

import (
	"bufio"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// reply is an answer of a server (RFC 5321, 4.2).
type reply struct {
	code     int
	enhanced string // RFC 2034; empty if there is none
	text     string // lines joined by line feeds
}

// The limits of a reply: twice what servers send, and no more than one can keep.
const (
	maxReplyLine  = 2048
	maxReplyLines = 100
)

var errReply = errors.New("the server's reply is not SMTP")

// readReply reads one reply.
func readReply(r *bufio.Reader) (reply, error) {
	var got reply
	var text strings.Builder
	for n := 0; ; n++ {
		if n == maxReplyLines {
			return reply{}, fmt.Errorf("%w: it has more than %d lines", errReply, maxReplyLines)
		}
		line, err := r.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) || len(line) > maxReplyLine {
			return reply{}, fmt.Errorf("%w: it has a line of more than %d characters", errReply, maxReplyLine)
		}
		if err != nil {
			return reply{}, err
		}
		code, rest, last, ok := replyLine(strings.TrimRight(string(line), "\r\n"))
		if !ok || n > 0 && code != got.code {
			return reply{}, fmt.Errorf("%w: %q", errReply, clean(string(line[:min(len(line), 80)])))
		}
		if n == 0 {
			got.code = code
			got.enhanced = enhancedOf(code, rest)
		} else {
			text.WriteByte('\n')
		}
		text.WriteString(rest)
		if last {
			got.text = clean(text.String())
			return got, nil
		}
	}
}

func replyLine(line string) (code int, rest string, last, ok bool) {
	if len(line) < 3 {
		return 0, "", false, false
	}
	for _, c := range []byte(line[:3]) {
		if c < '0' || c > '9' {
			return 0, "", false, false
		}
		code = code*10 + int(c-'0')
	}
	if code < 200 || code > 599 {
		return 0, "", false, false
	}
	if len(line) == 3 {
		return code, "", true, true
	}
	switch line[3] {
	case ' ':
		return code, line[4:], true, true
	case '-':
		return code, line[4:], false, true
	}
	return 0, "", false, false
}

// enhancedOf reads the enhanced code that a reply's text begins with. One whose
// class is not that of the code is not believed.
func enhancedOf(code int, text string) string {
	word, _, _ := strings.Cut(text, " ")
	parts := strings.Split(word, ".")
	if len(parts) != 3 || len(word) > 9 || len(parts[0]) != 1 {
		return ""
	}
	for _, p := range parts {
		if p == "" || strings.Trim(p, "0123456789") != "" {
			return ""
		}
	}
	if int(parts[0][0]-'0') != code/100 {
		return ""
	}
	return word
}

// maxText is how much of a server's words is worth keeping, in bytes.
const maxText = 2048

// clip shortens a text to what is worth keeping.
func clip(s string) string {
	if len(s) <= maxText {
		return s
	}
	return strings.ToValidUTF8(s[:maxText-len("…")], "") + "…"
}

// clean keeps what a server says fit for a log: UTF-8 without control characters.
func clean(s string) string {
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, "\uFFFD")
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' || r == 0x7f {
			return -1
		}
		return r
	}, s)
}
