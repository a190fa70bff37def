package workers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"

	"postbook.dev/postbook/delivery"
	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/directory"
	"postbook.dev/postbook/domain/sender"
	"postbook.dev/postbook/eventstore"
)

// verifier looks the records of sender domains up in DNS: at once when somebody
// asks, and then again and again.
type verifier struct{ RouterConfig }

// timerKind is the kind of the timers that have a domain looked at again.
const timerKind = "sender"

// lookAgain is a timer's body.
type lookAgain struct {
	Account     string    `json:"account"`
	Sender      string    `json:"sender"`
	Cause       uuid.UUID `json:"cause"` // the request to verify
	Correlation uuid.UUID `json:"correlation"`
	Looks       int       `json:"looks"` // so far
}

// requested looks at a domain because somebody asked.
func (v *verifier) requested(m *message.Message) error {
	entry, err := v.Store.Entry(m)
	if err != nil {
		return err
	}
	if entry.Err != nil {
		return entry.Err
	}
	for _, rec := range entry.Events {
		if _, ok := rec.Event.(sender.VerificationRequested); !ok {
			continue
		}
		if err := v.Directory.Await(m.Context(), rec.Seq); err != nil {
			return err
		}
		again := lookAgain{Account: rec.Stream.Account, Sender: rec.Stream.ID, Cause: rec.ID, Correlation: rec.By.Correlation}
		if err := v.look(m.Context(), again); err != nil {
			return err
		}
	}
	return nil
}

// due looks at a domain because its time has come.
func (v *verifier) due(m *message.Message) error {
	var again lookAgain
	if err := json.Unmarshal(m.Payload, &again); err != nil {
		return fmt.Errorf("read a timer: %w", err)
	}
	return v.look(m.Context(), again)
}

// look asks DNS, reports what it says, and sets the time of the next look.
func (v *verifier) look(ctx context.Context, again lookAgain) error {
	from, ok := v.Directory.Sender(again.Sender)
	if !ok || from.Vouched {
		return nil
	}
	now := v.Now()
	cause := domain.Recorded{ID: again.Cause, By: domain.Authority{Correlation: again.Correlation}}
	report := sender.Report{
		Authority: domain.Following(cause, "verifier", fmt.Sprintf("look %d", again.Looks), now),
		Results:   v.results(ctx, from),
	}
	of := sender.Stream(again.Account, again.Sender)
	if _, err := eventstore.Execute(ctx, v.Store, sender.Decider, of, sender.Command(report)); err != nil {
		if refusal := domain.Refused(err); refusal != nil && refusal.Code == domain.NotFound {
			return nil // it was removed meanwhile
		}
		return err
	}
	state, _, err := eventstore.Load(ctx, v.Store, sender.Decider, of)
	if err != nil {
		return err
	}
	again.Looks++
	wait, ok := nextLook(state, now)
	if !ok {
		return nil
	}
	body, err := json.Marshal(again)
	if err != nil {
		return fmt.Errorf("write a timer: %w", err)
	}
	return v.Store.Schedule(ctx, timerKind, again.Sender, now.Add(wait), body)
}

// The waits between looks at a domain that is pending. The last is repeated.
var looks = []struct{ until, every time.Duration }{
	{time.Minute, 10 * time.Second},
	{10 * time.Minute, time.Minute},
	{time.Hour, 5 * time.Minute},
	{6 * time.Hour, 15 * time.Minute},
	{sender.Patience, time.Hour},
}

// nextLook is how long to wait before a domain is looked at again, and false if
// it is not.
func nextLook(s sender.State, now time.Time) (time.Duration, bool) {
	switch {
	case s.Removed || s.Vouched:
		return 0, false
	case s.Status == sender.Found && s.Since.IsZero():
		return 6 * time.Hour, true
	case s.Status == sender.Found:
		return time.Hour, true // it lapsed
	case s.Status != sender.Pending:
		return 0, false // somebody has to ask again
	}
	age := now.Sub(s.Requested)
	for _, l := range looks {
		if age < l.until {
			return l.every, true
		}
	}
	return time.Hour, true
}

// results asks DNS for each record that the domain was asked to publish.
func (v *verifier) results(ctx context.Context, from directory.Sender) []sender.Result {
	resolver := v.Resolver.Fresh()
	published := sender.Published{Name: from.Name, ReturnPath: from.ReturnPath, Selector: from.Selector, PublicKey: from.PublicKey}
	var results []sender.Result
	for _, record := range sender.Records(published, v.Expected) {
		result := sender.Result{Record: record.Check, Name: record.FullName}
		var found []string
		var err error
		if record.Type == "MX" {
			var mx []*net.MX
			mx, err = resolver.MX(ctx, record.FullName)
			for _, m := range mx {
				found = append(found, strings.ToLower(strings.TrimSuffix(m.Host, ".")))
			}
		} else {
			found, err = resolver.TXT(ctx, record.FullName)
		}
		switch {
		case errors.Is(err, delivery.ErrNoAnswer):
			result.Status, result.Error = sender.NotFound, "There is no such record."
		case err != nil:
			result.Status, result.Error = sender.TemporaryFailure, "DNS gave no answer."
		default:
			result.Status = sender.Found
			if result.Error = mismatch(record, from, v.Expected, found); result.Error != "" {
				result.Status = sender.NotFound
			}
		}
		slices.Sort(found) // DNS gives them in any order
		for _, txt := range found[:min(len(found), sender.MaxFound)] {
			result.Found = append(result.Found, kept(txt))
		}
		results = append(results, result)
	}
	return results
}

// kept is what the log keeps of a record, in which anybody may have put anything.
func kept(txt string) string {
	const most = 2048 // bytes; a key of 4,096 bits has 800
	txt = strings.ReplaceAll(txt[:min(len(txt), most)], "\x00", "\uFFFD")
	return strings.ToValidUTF8(txt, "\uFFFD")
}

// mismatch says why what was found is not what was asked for, or nothing.
func mismatch(record sender.Record, from directory.Sender, expected sender.Expected, found []string) string {
	switch record.Check {
	case sender.RecordDKIM:
		for _, txt := range found {
			if key, ok := delivery.KeyRecord(txt); ok && key == from.PublicKey {
				return ""
			}
		}
		return "The record holds another key."
	case sender.RecordSPF:
		return spfMismatch(expected.SPF, found)
	case sender.RecordMX:
		ours := strings.ToLower(strings.TrimSuffix(expected.MX, "."))
		if !slices.Contains(found, ours) {
			return "The record names another host."
		}
		if len(found) > 1 {
			return "There are other MX records beside it, and bounces would go there."
		}
	case sender.RecordDMARC:
		for _, txt := range found {
			if strings.HasPrefix(strings.ToLower(txt), "v=dmarc1") {
				return ""
			}
		}
		return "The record is no DMARC policy."
	}
	return ""
}

// spfMismatch holds a domain's one SPF record (RFC 7208, 3.2) to the mechanisms
// that were asked for.
func spfMismatch(expected string, found []string) string {
	var policies []string
	for _, txt := range found {
		if lower := strings.ToLower(strings.TrimSpace(txt)); lower == "v=spf1" || strings.HasPrefix(lower, "v=spf1 ") {
			policies = append(policies, lower)
		}
	}
	switch len(policies) {
	case 0:
		return "There is no SPF policy."
	case 1:
	default:
		return "There are several SPF policies, which makes all of them void."
	}
	have := strings.Fields(policies[0])
	for _, mechanism := range strings.Fields(strings.ToLower(expected))[1:] {
		if !strings.HasSuffix(mechanism, "all") && !slices.Contains(have, mechanism) {
			return "The SPF policy does not contain " + mechanism + "."
		}
	}
	return ""
}
