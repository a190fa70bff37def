package eventstore

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/account"
	"postbook.dev/postbook/domain/apikey"
)

var errReference = errors.New("the reference does not read it")

// reference reads a body with encoding/json alone, attribute by attribute, as
// slowly and plainly as can be.
func reference(body []byte) ([]envelope, error) {
	if !json.Valid(body) {
		return nil, errReference
	}
	d := json.NewDecoder(bytes.NewReader(body))
	if open, err := d.Token(); err != nil || open != json.Delim('[') {
		return nil, errReference
	}
	var events []envelope
	for d.More() {
		if open, err := d.Token(); err != nil || open != json.Delim('{') {
			return nil, errReference
		}
		var e envelope
		for d.More() {
			key, err := d.Token()
			if err != nil {
				return nil, err
			}
			var raw json.RawMessage
			if err := d.Decode(&raw); err != nil {
				return nil, err
			}
			switch key {
			case "data":
				e.data = raw
				continue
			case "commitindex":
				if e.CommitIndex, err = strconv.Atoi(string(raw)); err != nil || e.CommitIndex < 0 {
					return nil, errReference
				}
				continue
			case "account":
				e.hasAccount = true
			}
			to := e.attribute(fmt.Sprint(key))
			if to == nil {
				continue // an extension of a newer program
			}
			if raw[0] != '"' {
				return nil, errReference
			}
			*to = ""
			if err := json.Unmarshal(raw, to); err != nil {
				return nil, err
			}
		}
		if _, err := d.Token(); err != nil {
			return nil, err
		}
		events = append(events, e)
	}
	if len(events) == 0 {
		return nil, errReference
	}
	return events, nil
}

func (e *envelope) attribute(key string) *string {
	return map[string]*string{
		"specversion": &e.SpecVersion, "id": &e.ID, "source": &e.Source, "type": &e.Type, "dataschema": &e.DataSchema,
		"time": &e.Time, "subject": &e.Subject, "actor": &e.Actor, "actorkind": &e.ActorKind, "account": &e.Account,
		"role": &e.Role, "via": &e.Via, "ip": &e.IP, "auth": &e.Auth, "authtime": &e.AuthTime, "askedat": &e.AskedAt,
		"approvals": &e.Approvals, "reason": &e.Reason, "commandid": &e.CommandID, "correlationid": &e.CorrelationID,
		"causationid": &e.CausationID, "traceparent": &e.Traceparent, "prev": &e.Prev,
	}[key]
}

// encoder is a store that can encode and nothing else.
func encoder() *Store {
	return &Store{recent: newRecent(), cfg: Config{Registry: registry, Now: func() time.Time { return at }}}
}

// The decoder that is written by hand and encoding/json read the same from every
// body, and refuse the same ones.
func FuzzDecode(f *testing.F) {
	s := encoder()
	full := opened("acme")
	full.By = trust("ada")
	full.By.IP, full.By.Traceparent, full.By.Causation = "2001:db8::1", "00-4bf9-00f0-01", uuid.New()
	full.By.Approvals = []domain.Approval{{Actor: domain.Actor{Kind: domain.Staff, ID: "bob"}, Event: uuid.New(), At: at}}
	full.By.Reason, full.Prev = "quoted \" \\ \u2028 \x00 \xff é 😀", 1<<63
	full.Events = append(full.Events, account.Blocked{Policy: "spam", Evidence: "]},{["})
	for _, c := range []Commit{full, issued(newKey()), accepted(newEmail())} {
		msg, _, err := s.encode("ledger.x", c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(msg.Data)
		f.Add(bytes.ReplaceAll(msg.Data, []byte(`,"`), []byte(" ,\n\t\"")))
		f.Add(msg.Data[:len(msg.Data)/2])
		f.Add(bytes.Replace(msg.Data, []byte("]"), []byte("}"), 1))
	}
	for _, body := range []string{
		``, `[]`, `[{}]`, `[{},]`, `[{}]x`, `{}`, `null`, `[null]`, `[{"id":1}]`, `[{"id":null}]`, `[{"id":"\u00e9\ud83d\ude00\ud83d"}]`,
		`[{"id":"a","id":"b"}]`, `[{"\u0069d":"a"}]`, `[{"ID":"a"}]`, `[{"x":{"a":[1,2,"]}"]},"id":"a"}]`, `[{"x":[}],"id":"a"}]`,
		`[{"commitindex":1e2}]`, `[{"commitindex":-0}]`, `[{"commitindex":01}]`, `[{"commitindex":"1"}]`, `[{"data":tru}]`, `[{"data":1}]`,
		`[{"id":"\x"}]`, "[{\"id\":\"\n\"}]", "[{\"id\":\"\xff\"}]", "[{\"\xff\":1}]", `[{"id":"a"}{"id":"b"}]`, `[{"id" "a"}]`, `[{"account":""}]`,
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		kept := bytes.Clone(body)
		want, wantErr := reference(body)
		got, err := newDecoder(registry).events(body)
		for _, e := range got {
			if err == nil && e.data != nil && !json.Valid(e.data) {
				err = errors.New("the registry would refuse the data") // the scan leaves that to it
			}
		}
		if (err != nil) != (wantErr != nil) {
			t.Fatalf("the decoder says %v, and encoding/json %v", err, wantErr)
		}
		if err == nil && !reflect.DeepEqual(got, want) {
			t.Fatalf("the decoder reads\n%+v\nand encoding/json\n%+v", got, want)
		}
		// What the envelope's values mean is not compared, but must not panic; and
		// what is read must not change what was read.
		recorded, err := newDecoder(registry).decode(domain.Position{Log: Ledger, Seq: 1}, body)
		if !bytes.Equal(body, kept) {
			t.Fatal("the decoder has changed the body")
		}
		if err != nil {
			return
		}
		for i, r := range recorded {
			if r.ID.String() == "" || r.Event == nil || r.Version < 1 || r.Stream.String() != want[i].Subject {
				t.Fatalf("it reads %+v", r)
			}
		}
		brief, err := newDecoder(registry).decodeBrief(domain.Position{Log: Ledger, Seq: 1}, body, func(eventType string) bool { return eventType != "apikey.issued" })
		if err != nil || len(brief) != len(recorded) {
			t.Fatalf("read briefly there are %d events instead of %d: %v", len(brief), len(recorded), err)
		}
		for i, r := range recorded {
			want := domain.Recorded{
				Stream: r.Stream, Type: r.Type, Version: r.Version, Position: r.Position, Index: r.Index, Time: r.Time,
				By: domain.Authority{Actor: r.By.Actor}, Event: r.Event,
			}
			if r.Type == "apikey.issued" {
				want.Event = apikey.Issued{}
			}
			if !reflect.DeepEqual(brief[i], want) {
				t.Fatalf("read briefly it is\n%+v, want\n%+v", brief[i], want)
			}
		}
	})
}

// Everything that an authority says survives the way to the log and back.
func TestEncodeRoundTrip(t *testing.T) {
	t.Parallel()
	s := encoder()
	// Any text but such as is not UTF-8, which JSON cannot hold.
	text := rapid.Map(rapid.String(), func(s string) string { return strings.ToValidUTF8(s, "?") })
	token := rapid.StringMatching(`[A-Za-z0-9_-]{1,20}`)
	when := rapid.Custom(func(t *rapid.T) time.Time {
		return time.Unix(rapid.Int64Range(1, 4e9).Draw(t, "seconds"), rapid.Int64Range(0, 999_999_999).Draw(t, "nanoseconds")).UTC()
	})
	id := rapid.Custom(func(t *rapid.T) uuid.UUID {
		return uuid.UUID(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "uuid"))
	})
	rapid.Check(t, func(t *rapid.T) {
		commits := make([]Commit, rapid.IntRange(1, 3).Draw(t, "commits"))
		for i := range commits {
			by := domain.Authority{
				Actor:   domain.Actor{Kind: domain.ActorKind(text.Draw(t, "kind")), ID: text.Draw(t, "actor")},
				Account: text.Draw(t, "account"), Role: domain.Role(text.Draw(t, "role")), Via: domain.Via(text.Draw(t, "via")),
				IP: text.Draw(t, "ip"), Auth: domain.Strength(text.Draw(t, "auth")), Reason: text.Draw(t, "reason"),
				At: when.Draw(t, "asked"), Command: id.Filter(func(id uuid.UUID) bool { return id != uuid.Nil }).Draw(t, "command"),
				Correlation: id.Draw(t, "correlation"), Causation: id.Draw(t, "causation"), Traceparent: text.Draw(t, "trace"),
			}
			if rapid.Bool().Draw(t, "second factor") {
				by.AuthAt = when.Draw(t, "shown")
			}
			for range rapid.IntRange(0, 2).Draw(t, "approvals") {
				by.Approvals = append(by.Approvals, domain.Approval{
					Actor: domain.Actor{Kind: domain.Staff, ID: text.Draw(t, "approver")}, Event: id.Draw(t, "request"), At: when.Draw(t, "agreed"),
				})
			}
			commits[i] = Commit{
				Stream: domain.Stream{Account: token.Draw(t, "account"), Kind: token.Draw(t, "kind"), ID: token.Draw(t, "id")},
				By:     by, Prev: rapid.Uint64().Draw(t, "prev"), At: when.Draw(t, "recorded"),
			}
			for range rapid.IntRange(1, 3).Draw(t, "events") {
				commits[i].Events = append(commits[i].Events, rapid.SampledFrom([]domain.Event{
					account.Opened{Name: text.Draw(t, "name"), RateLimit: rapid.Int().Draw(t, "limit")}, apikey.Revoked{},
				}).Draw(t, "event"))
			}
		}
		msg, recorded, err := s.encode("ledger.x", commits...)
		if err != nil {
			t.Fatal(err)
		}
		if !json.Valid(msg.Data) {
			t.Fatalf("the body is no JSON: %s", msg.Data)
		}
		pos := domain.Position{Log: Access, Seq: 9}
		got, err := s.decodeBody(pos, msg.Data)
		if err != nil {
			t.Fatal(err)
		}
		var want []domain.Recorded
		for _, events := range recorded {
			want = append(want, place(events, pos.Log, pos.Seq)...)
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("read\n%+v\nwant\n%+v", got, want)
		}
	})
}
