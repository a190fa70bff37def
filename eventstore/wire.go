package eventstore

// The wire form. A message's body is a JSON array of CloudEvents 1.0 in
// structured form (application/cloudevents-batch+json), so that a dump of
// bodies is a complete log. The envelope is written by hand, which is several
// times faster than reflection over a struct with twenty optional fields.
//
// Headers repeat what filters need without decoding.

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"

	"postbook.dev/postbook/domain"
)

const (
	specVersion  = "1.0"
	source       = "/postbook"
	schemaPrefix = "https://postbook.dev/schemas/"
)

// The headers of a message of the log.
const (
	HeaderID    = "Postbook-Id"    // the aggregate's id
	HeaderKind  = "Postbook-Kind"  // the aggregate's kind
	HeaderType  = "Postbook-Type"  // the first event's type
	HeaderPrev  = "Postbook-Prev"  // sequence of the aggregate's previous commit
	HeaderClaim = "Postbook-Claim" // who claims the partition
	HeaderMark  = "Postbook-Mark"  // shows that this platform wrote it
)

// encode makes the message of some commits, and what will have been recorded
// once it is stored: all but the positions.
func (s *Store) encode(subject string, commits ...Commit) (*nats.Msg, [][]domain.Recorded, error) {
	msg := &nats.Msg{Subject: subject, Header: nats.Header{}, Data: make([]byte, 0, 1024*len(commits))}
	recorded := make([][]domain.Recorded, len(commits))
	msg.Data = append(msg.Data, '[')
	index := 0
	for i, c := range commits {
		if err := c.check(); err != nil {
			return nil, nil, err
		}
		at := c.At
		if at.IsZero() {
			at = s.cfg.Now()
		}
		at = inLog(at)
		by := c.By
		by.At, by.AuthAt = inLog(by.At), inLog(by.AuthAt)
		recorded[i] = make([]domain.Recorded, len(c.Events))
		for n, event := range c.Events {
			name, version, data, err := s.cfg.Registry.Encode(event)
			if err != nil {
				return nil, nil, fmt.Errorf("eventstore: encode a commit of %s: %w", c.Stream, err)
			}
			rec := domain.Recorded{
				ID: domain.EventID(c.By.Command, n), Stream: c.Stream, Type: name, Version: version,
				Index: index, Prev: c.Prev, Time: at, By: by, Event: event,
			}
			if index++; index > 1 {
				msg.Data = append(msg.Data, ',')
			}
			if msg.Data, err = appendEvent(msg.Data, rec, data); err != nil {
				return nil, nil, fmt.Errorf("eventstore: encode %s of %s: %w", name, c.Stream, err)
			}
			recorded[i][n] = rec
		}
	}
	msg.Data = append(msg.Data, ']')
	if index == 0 {
		return nil, nil, errors.New("eventstore: there is nothing to record")
	}
	first := recorded[0][0]
	msg.Header[nats.MsgIdHdr] = []string{first.ID.String()}
	msg.Header[HeaderID] = []string{first.Stream.ID}
	msg.Header[HeaderKind] = []string{first.Stream.Kind}
	msg.Header[HeaderType] = []string{first.Type}
	if first.Prev > 0 {
		msg.Header[HeaderPrev] = []string{strconv.FormatUint(first.Prev, 10)}
	}
	return msg, recorded, nil
}

// inLog is a time as it reads when it comes back from the log.
func inLog(t time.Time) time.Time { return t.Round(0).UTC() }

// check refuses what could not be found again: no events, no identity, or a
// name that is not three tokens of a subject. Headers and subjects can then hold
// no line ends and no wildcards.
func (c Commit) check() error {
	if len(c.Events) == 0 {
		return fmt.Errorf("eventstore: a commit of %s has no events", c.Stream)
	}
	if c.By.Command == uuid.Nil {
		return fmt.Errorf("eventstore: a commit of %s comes from a command without an identity", c.Stream)
	}
	return checkName(c.Stream)
}

func checkName(of domain.Stream) error {
	for _, token := range [...]string{of.Account, of.Kind, of.ID} {
		if !isToken(token) {
			return fmt.Errorf("eventstore: %q does not name an aggregate: %q may hold letters, digits, - and _ only", of.String(), token)
		}
	}
	return nil
}

func isToken(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_':
		default:
			return false
		}
	}
	return s != "" && len(s) <= 255
}

// appendEvent writes one event. Attributes without a value are left out.
func appendEvent(b []byte, r domain.Recorded, data []byte) ([]byte, error) {
	by := r.By
	b = append(b, `{"specversion":"`+specVersion+`","id":"`...)
	b = appendUUID(b, r.ID)
	b = append(b, `","source":"`+source+`","type":`...)
	b = appendString(b, r.Type)
	b = append(b, `,"dataschema":"`+schemaPrefix...)
	b = append(b, r.Type...)
	b = append(b, "/v"...)
	b = strconv.AppendInt(b, int64(r.Version), 10)
	b = append(b, `","time":"`...)
	b = r.Time.AppendFormat(b, time.RFC3339Nano)
	b = append(b, `","subject":"`...)
	b = append(b, r.Stream.Account...)
	b = append(b, '.')
	b = append(b, r.Stream.Kind...)
	b = append(b, '.')
	b = append(b, r.Stream.ID...)
	b = append(b, `","commandid":"`...)
	b = appendUUID(b, by.Command)
	b = append(b, '"')

	b = appendField(b, `,"actor":`, by.Actor.ID)
	b = appendField(b, `,"actorkind":`, string(by.Actor.Kind))
	if by.Account != r.Stream.Account {
		b = append(b, `,"account":`...)
		b = appendString(b, by.Account)
	}
	b = appendField(b, `,"role":`, string(by.Role))
	b = appendField(b, `,"via":`, string(by.Via))
	b = appendField(b, `,"ip":`, by.IP)
	b = appendField(b, `,"auth":`, string(by.Auth))
	b = appendTime(b, `,"authtime":"`, by.AuthAt)
	if !by.At.Equal(r.Time) {
		b = appendTime(b, `,"askedat":"`, by.At)
	}
	if len(by.Approvals) > 0 {
		// CloudEvents allows scalars only, so this is JSON within a string.
		approvals, err := json.Marshal(by.Approvals)
		if err != nil {
			return nil, err
		}
		b = appendField(b, `,"approvals":`, string(approvals))
	}
	b = appendField(b, `,"reason":`, by.Reason)
	if by.Correlation != uuid.Nil {
		b = append(b, `,"correlationid":"`...)
		b = append(appendUUID(b, by.Correlation), '"')
	}
	if by.Causation != uuid.Nil {
		b = append(b, `,"causationid":"`...)
		b = append(appendUUID(b, by.Causation), '"')
	}
	b = appendField(b, `,"traceparent":`, by.Traceparent)
	if r.Prev > 0 {
		// A string: CloudEvents integers have 32 bits.
		b = append(b, `,"prev":"`...)
		b = append(strconv.AppendUint(b, r.Prev, 10), '"')
	}
	if r.Index > 0 {
		b = append(b, `,"commitindex":`...)
		b = strconv.AppendInt(b, int64(r.Index), 10)
	}
	b = append(b, `,"data":`...)
	b = append(b, data...)
	return append(b, '}'), nil
}

func appendField(b []byte, key, value string) []byte {
	if value == "" {
		return b
	}
	return appendString(append(b, key...), value)
}

func appendTime(b []byte, key string, t time.Time) []byte {
	if t.IsZero() {
		return b
	}
	b = append(b, key...)
	return append(t.UTC().AppendFormat(b, time.RFC3339Nano), '"')
}

func appendUUID(b []byte, id uuid.UUID) []byte {
	const digits = "0123456789abcdef"
	for i, c := range id {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			b = append(b, '-')
		}
		b = append(b, digits[c>>4], digits[c&15])
	}
	return b
}

// appendString writes a JSON string. Bytes that are not UTF-8 become U+FFFD, as
// in encoding/json.
func appendString(b []byte, s string) []byte {
	const digits = "0123456789abcdef"
	b = append(b, '"')
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < ' ':
			b = append(b, '\\', 'u', '0', '0', digits[c>>4], digits[c&15])
		case c < utf8.RuneSelf:
			b = append(b, c)
		default:
			r, size := utf8.DecodeRuneInString(s[i:])
			b = utf8.AppendRune(b, r) // RuneError is U+FFFD
			i += size
			continue
		}
		i++
	}
	return append(b, '"')
}

// parseStream reads "account.kind.id".
func parseStream(s string) (domain.Stream, bool) {
	account, rest, ok1 := strings.Cut(s, ".")
	kind, id, ok2 := strings.Cut(rest, ".")
	return domain.Stream{Account: account, Kind: kind, ID: id}, ok1 && ok2 && account != "" && kind != "" && id != ""
}
