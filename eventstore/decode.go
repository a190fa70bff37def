package eventstore

// Reading the wire form back. Projections read every event there ever was, so
// the envelope is scanned by hand: it accepts what encoding/json accepts, and a
// fuzz test holds the two together.

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"postbook.dev/postbook/domain"
)

// maxEvents bounds what one message may hold.
const maxEvents = 100_000

// decoder reads bodies. It keeps the short strings that come again and again,
// and is not for concurrent use.
type decoder struct {
	registry *domain.Registry
	held     map[string]string
	body     []byte
	at       int
	brief    bool // pass over what a brief reading leaves out
}

// maxHeld bounds the strings that a decoder keeps.
const maxHeld = 4096

func newDecoder(r *domain.Registry) *decoder {
	return &decoder{registry: r, held: map[string]string{}}
}

// decoders are at hand for single reads.
var decoders sync.Pool

// decodeBody reads the events of one message.
func (s *Store) decodeBody(pos domain.Position, body []byte) ([]domain.Recorded, error) {
	d := s.decoder()
	defer decoders.Put(d)
	return d.decode(pos, body)
}

func (s *Store) decoder() *decoder {
	d, _ := decoders.Get().(*decoder)
	if d == nil || d.registry != s.cfg.Registry {
		d = newDecoder(s.cfg.Registry)
	}
	return d
}

// decodeEntry reads a message as it was delivered. An entry that cannot be read
// says so in Err.
func (s *Store) decodeEntry(log string, seq uint64, at time.Time, subject string, body []byte) Entry {
	e := Entry{Position: domain.Position{Log: log, Seq: seq}, Time: at, Subject: subject, Raw: body}
	if !carriesEvents(log) || isClaim(subject) {
		return e
	}
	if e.Events = s.recent.find(e.Position, body); e.Events == nil {
		e.Events, e.Err = s.decodeBody(e.Position, body)
	}
	return e
}

// decodeAs reads a message as far as a follower wants it read.
func (s *Store) decodeAs(f Following, seq uint64, at time.Time, subject string, body []byte) Entry {
	if f.Brief != nil {
		return s.decodeEntryBrief(f.Log, seq, at, subject, body, f.Brief)
	}
	return s.decodeEntry(f.Log, seq, at, subject, body)
}

// decodeEntryBrief is decodeEntry, as far as decodeBrief reads.
func (s *Store) decodeEntryBrief(log string, seq uint64, at time.Time, subject string, body []byte, whole func(string) bool) Entry {
	e := Entry{Position: domain.Position{Log: log, Seq: seq}, Time: at, Subject: subject, Raw: body}
	if !carriesEvents(log) || isClaim(subject) {
		return e
	}
	d := s.decoder()
	defer decoders.Put(d)
	e.Events, e.Err = d.decodeBrief(e.Position, body, whole)
	return e
}

// carriesEvents reports whether the messages of a stream are commits.
func carriesEvents(log string) bool {
	return log == Ledger || log == Asked || log == Access || strings.HasPrefix(log, "MAIL_")
}

// isClaim reports whether the subject is one of the claims to a partition.
func isClaim(subject string) bool {
	return strings.HasPrefix(subject, "mail.") && strings.HasSuffix(subject, ".owner")
}

// decode reads the events of the message at pos.
func (d *decoder) decode(pos domain.Position, body []byte) ([]domain.Recorded, error) {
	events, err := d.events(body)
	if err != nil {
		return nil, fmt.Errorf("eventstore: %s %d: %w", pos.Log, pos.Seq, err)
	}
	recorded := make([]domain.Recorded, len(events))
	for i, e := range events {
		if recorded[i], err = e.recorded(); err == nil {
			recorded[i].Event, err = d.registry.Decode(e.Type, recorded[i].Version, e.data)
		}
		if err != nil {
			return nil, fmt.Errorf("eventstore: %s %d, event %d: %w", pos.Log, pos.Seq, i, err)
		}
		recorded[i].Position = pos
	}
	return recorded, nil
}

// decodeBrief reads of each event what it is, when it was recorded, what it is about
// and who is its actor. Of the other attributes nothing is read, and data only of
// the types that whole names: other events are the zero value of their type. It is
// several times as fast as decode.
func (d *decoder) decodeBrief(pos domain.Position, body []byte, whole func(eventType string) bool) ([]domain.Recorded, error) {
	d.brief = true
	events, err := d.events(body)
	d.brief = false
	if err != nil {
		return nil, fmt.Errorf("eventstore: %s %d: %w", pos.Log, pos.Seq, err)
	}
	recorded := make([]domain.Recorded, len(events))
	for i, e := range events {
		r, err := e.recordedBrief()
		switch {
		case err != nil:
		case whole(e.Type):
			r.Event, err = d.registry.Decode(e.Type, r.Version, e.data)
		default:
			r.Event, err = d.registry.Zero(e.Type, r.Version)
		}
		if err != nil {
			return nil, fmt.Errorf("eventstore: %s %d, event %d: %w", pos.Log, pos.Seq, i, err)
		}
		r.Position = pos
		recorded[i] = r
	}
	return recorded, nil
}

// envelope is one event as it is written, before its values are understood.
type envelope struct {
	SpecVersion, ID, Source, Type, DataSchema, Time, Subject string

	Actor, ActorKind, Role, Via, IP, Auth, AuthTime, AskedAt, Approvals, Reason string
	CommandID, CorrelationID, CausationID, Traceparent, Prev                    string

	Account     string
	hasAccount  bool
	CommitIndex int
	data        []byte
}

// recorded understands an envelope: all but its data.
func (e *envelope) recorded() (domain.Recorded, error) {
	var r domain.Recorded
	var p parsing
	e.what(&r, &p)
	r.ID = p.uuid("id", e.ID)
	if e.Prev != "" {
		var err error
		if r.Prev, err = strconv.ParseUint(e.Prev, 10, 64); err != nil {
			p.failed("prev", err)
		}
	}
	r.By = domain.Authority{
		Actor:       domain.Actor{Kind: domain.ActorKind(e.ActorKind), ID: e.Actor},
		Account:     e.Account,
		Role:        domain.Role(e.Role),
		Via:         domain.Via(e.Via),
		IP:          e.IP,
		Auth:        domain.Strength(e.Auth),
		Reason:      e.Reason,
		At:          r.Time,
		Command:     p.uuid("commandid", e.CommandID),
		Traceparent: e.Traceparent,
	}
	if !e.hasAccount {
		r.By.Account = r.Stream.Account
	}
	if e.AuthTime != "" {
		r.By.AuthAt = p.time("authtime", e.AuthTime)
	}
	if e.AskedAt != "" {
		r.By.At = p.time("askedat", e.AskedAt)
	}
	if e.CorrelationID != "" {
		r.By.Correlation = p.uuid("correlationid", e.CorrelationID)
	}
	if e.CausationID != "" {
		r.By.Causation = p.uuid("causationid", e.CausationID)
	}
	if e.Approvals != "" {
		p.failed("approvals", json.Unmarshal([]byte(e.Approvals), &r.By.Approvals))
	}
	return r, p.err
}

// recordedBrief understands the attributes that are in a brief reading.
func (e *envelope) recordedBrief() (domain.Recorded, error) {
	var r domain.Recorded
	var p parsing
	e.what(&r, &p)
	r.By.Actor = domain.Actor{Kind: domain.ActorKind(e.ActorKind), ID: e.Actor}
	return r, p.err
}

// what understands what happened, to what, and when.
func (e *envelope) what(r *domain.Recorded, p *parsing) {
	if e.SpecVersion != specVersion {
		p.failed("specversion", fmt.Errorf("it is %q", e.SpecVersion))
	}
	schema, ok := strings.CutPrefix(e.DataSchema, schemaPrefix)
	if ok {
		schema, ok = strings.CutPrefix(schema, e.Type)
	}
	if ok {
		schema, ok = strings.CutPrefix(schema, "/v")
	}
	version, err := strconv.Atoi(schema)
	if !ok || err != nil || version < 1 {
		p.failed("dataschema", fmt.Errorf("%q is not a version of %q", e.DataSchema, e.Type))
	}
	if r.Stream, ok = parseStream(e.Subject); !ok {
		p.failed("subject", fmt.Errorf("%q does not name an aggregate", e.Subject))
	}
	r.Type, r.Version, r.Index = e.Type, version, e.CommitIndex
	r.Time = p.time("time", e.Time)
}

// parsing keeps the first error, with the attribute that it is about.
type parsing struct{ err error }

func (p *parsing) failed(attribute string, err error) {
	if err != nil && p.err == nil {
		p.err = fmt.Errorf("attribute %s: %w", attribute, err)
	}
}

func (p *parsing) uuid(attribute, s string) uuid.UUID {
	id, err := uuid.Parse(s)
	if err == nil && len(s) != 36 {
		err = fmt.Errorf("%q is not in canonical form", s)
	}
	p.failed(attribute, err)
	return id
}

func (p *parsing) time(attribute, s string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, s)
	p.failed(attribute, err)
	return t.UTC()
}

var errSyntax = errors.New("the body is not a JSON array of events")

// events scans a body into its envelopes.
func (d *decoder) events(body []byte) ([]envelope, error) {
	d.body, d.at = body, 0
	defer func() { d.body = nil }()
	if len(d.held) > maxHeld {
		clear(d.held)
	}
	if !d.skip('[') {
		return nil, errSyntax
	}
	events := make([]envelope, 0, 2)
	for {
		events = append(events, envelope{})
		if err := d.event(&events[len(events)-1]); err != nil {
			return nil, err
		}
		if !d.skip(',') {
			break
		}
		if len(events) == maxEvents {
			return nil, fmt.Errorf("there are more than %d events in one body", maxEvents)
		}
	}
	if !d.skip(']') {
		return nil, errSyntax
	}
	if d.space(); d.at != len(d.body) {
		return nil, errSyntax
	}
	return events, nil
}

func (d *decoder) event(e *envelope) error {
	if !d.skip('{') {
		return errSyntax
	}
	if d.skip('}') {
		return nil
	}
	for {
		d.space()
		key, err := d.text()
		if err != nil {
			return err
		}
		if !d.skip(':') {
			return errSyntax
		}
		d.space()
		if err := d.attribute(e, key); err != nil {
			return err
		}
		if d.skip('}') {
			return nil
		}
		if !d.skip(',') {
			return errSyntax
		}
	}
}

// attribute reads the value of one key. Extensions that this program does not
// know are passed over: a newer one wrote them.
func (d *decoder) attribute(e *envelope, key []byte) error {
	if d.brief && !inBrief(key) {
		_, err := d.span()
		return err
	}
	var to *string
	keep := false // whether the value is one of few
	switch string(key) {
	case "specversion":
		to, keep = &e.SpecVersion, true
	case "id":
		to = &e.ID
	case "source":
		to, keep = &e.Source, true
	case "type":
		to, keep = &e.Type, true
	case "dataschema":
		to, keep = &e.DataSchema, true
	case "time":
		to = &e.Time
	case "subject":
		to = &e.Subject
	case "actor":
		to, keep = &e.Actor, true
	case "actorkind":
		to, keep = &e.ActorKind, true
	case "account":
		to, keep, e.hasAccount = &e.Account, true, true
	case "role":
		to, keep = &e.Role, true
	case "via":
		to, keep = &e.Via, true
	case "ip":
		to, keep = &e.IP, true
	case "auth":
		to, keep = &e.Auth, true
	case "authtime":
		to = &e.AuthTime
	case "askedat":
		to = &e.AskedAt
	case "approvals":
		to = &e.Approvals
	case "reason":
		to = &e.Reason
	case "commandid":
		to = &e.CommandID
	case "correlationid":
		to = &e.CorrelationID
	case "causationid":
		to = &e.CausationID
	case "traceparent":
		to = &e.Traceparent
	case "prev":
		to = &e.Prev
	case "commitindex":
		raw, err := d.value()
		if err != nil {
			return err
		}
		if e.CommitIndex, err = strconv.Atoi(string(raw)); err != nil || e.CommitIndex < 0 {
			return fmt.Errorf("attribute commitindex: %q is not a place", raw)
		}
		return nil
	case "data":
		var err error
		e.data, err = d.span() // the registry checks it as it reads it
		return err
	default:
		_, err := d.value()
		return err
	}
	text, err := d.text()
	if err != nil {
		return fmt.Errorf("attribute %s: %w", key, err)
	}
	if !keep {
		*to = string(text)
		return nil
	}
	held, ok := d.held[string(text)]
	if !ok {
		held = string(text)
		d.held[held] = held
	}
	*to = held
	return nil
}

// inBrief reports whether an attribute is in a brief reading.
func inBrief(key []byte) bool {
	switch string(key) {
	case "specversion", "type", "dataschema", "time", "subject", "actor", "actorkind", "commitindex", "data":
		return true
	}
	return false
}

var errString = errors.New("it is not a JSON string")

// text reads a string. The bytes are the body's own unless it has escapes.
func (d *decoder) text() ([]byte, error) {
	if d.at >= len(d.body) || d.body[d.at] != '"' {
		return nil, errString
	}
	start := d.at
	plain, ascii := true, true
	for i := start + 1; i < len(d.body); i++ {
		switch c := d.body[i]; {
		case c == '"':
			d.at = i + 1
			text := d.body[start+1 : i]
			if plain && (ascii || utf8.Valid(text)) {
				return text, nil
			}
			var s string
			if err := json.Unmarshal(d.body[start:i+1], &s); err != nil {
				return nil, errString
			}
			return []byte(s), nil
		case c == '\\':
			plain = false
			i++
		case c < ' ':
			return nil, errString
		case c >= utf8.RuneSelf:
			ascii = false
		}
	}
	return nil, errString
}

// value passes over one value of any kind and returns it.
func (d *decoder) value() ([]byte, error) {
	raw, err := d.span()
	if err == nil && !json.Valid(raw) {
		return nil, errSyntax
	}
	return raw, err
}

// span finds where a value ends if it is one, which it does not find out.
func (d *decoder) span() ([]byte, error) {
	start := d.at
	if d.at < len(d.body) && d.body[d.at] != '{' && d.body[d.at] != '[' && d.body[d.at] != '"' {
		end := bytes.IndexAny(d.body[d.at:], ",}] \t\r\n")
		if end <= 0 {
			return nil, errSyntax
		}
		d.at += end
		return d.body[start:d.at], nil
	}
	depth := 0
	for d.at < len(d.body) {
		switch d.body[d.at] {
		case '"':
			if err := d.passString(); err != nil {
				return nil, err
			}
			if depth == 0 {
				return d.body[start:d.at], nil
			}
			continue
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth == 0 {
				d.at++
				return d.body[start:d.at], nil
			}
		}
		d.at++
	}
	return nil, errSyntax
}

func (d *decoder) passString() error {
	for from := d.at + 1; ; {
		quote := bytes.IndexByte(d.body[from:], '"')
		if quote < 0 {
			return errString
		}
		end := from + quote
		escapes := end
		for escapes > d.at+1 && d.body[escapes-1] == '\\' {
			escapes--
		}
		from = end + 1
		if (end-escapes)%2 == 0 {
			d.at = from
			return nil
		}
	}
}

func (d *decoder) space() {
	for d.at < len(d.body) {
		switch d.body[d.at] {
		case ' ', '\t', '\r', '\n':
			d.at++
		default:
			return
		}
	}
}

// skip passes over space and the byte c, if that is what comes next.
func (d *decoder) skip(c byte) bool {
	d.space()
	if d.at < len(d.body) && d.body[d.at] == c {
		d.at++
		return true
	}
	return false
}
