package email_test

import (
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/domaintest"
	"postbook.dev/postbook/domain/email"
)

var (
	now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	of  = email.Stream("acme", uuid.MustParse("01a20b56-8e46-7e6f-82b1-51d6d8687fdd"))
)

func customer() domain.Authority {
	return domain.Authority{Actor: domain.Actor{Kind: domain.APIKey, ID: "k"}, Account: "acme", Role: domain.FullAccess, Via: domain.ViaAPI, Auth: domain.KeyAuth, At: now, Command: uuid.New()}
}

func system() domain.Authority { return systemAt(now) }

func systemAt(at time.Time) domain.Authority {
	return domain.Authority{Actor: domain.Actor{Kind: domain.System, ID: "dispatcher"}, Account: domain.Platform, Via: domain.ViaWorker, Auth: domain.Internal, At: at, Command: uuid.New()}
}

// accepted is an email to two recipients.
func accepted() email.Accepted {
	return email.Accepted{Sender: "s", MessageID: "m@acme.test", Expires: now.Add(email.MaxAge), Recipients: []email.Recipient{{Kind: email.To, Index: "1"}, {Kind: email.Cc, Index: "2"}}}
}

var (
	prepared  = email.Prepared{Digest: "d", Size: 7, Selector: "postbook"}
	scheduled = email.Scheduled{Due: now.Add(time.Hour), Expires: now.Add(time.Hour + email.MaxAge)}
	first     = email.Attempted{Attempt: 1, Recipients: []int{0, 1}}
	reply     = email.Reply{Phase: "dot", Code: 250}
)

func TestEmail(t *testing.T) {
	accept := email.Accept{Authority: customer(), Accepted: accepted(), SenderName: "acme.test", CanSend: true}
	with := func(change func(*email.Accept)) email.Accept {
		c := accept
		change(&c)
		return c
	}
	report := func(outcomes ...email.Outcome) email.Report {
		return email.Report{Authority: system(), Attempt: 1, Outcomes: outcomes}
	}
	sent := []email.Event{accepted(), prepared, first}
	unknown := func(times int) []email.Event { // and under way once more
		history := slices.Clone(sent)
		for n := range times {
			history = append(history, email.Unresolved{0, n + 1, now, email.Reply{}}, email.Attempted{Attempt: n + 2, Recipients: []int{0}})
		}
		return history
	}
	domaintest.Tell(t, email.Decider, of, []domaintest.Story[email.Command, email.Event]{
		{Name: "is accepted", When: accept, Then: []email.Event{accepted()}},
		{
			Name: "is accepted for later", When: with(func(c *email.Accept) { c.Due = scheduled.Due }),
			Then: []email.Event{func() email.Accepted { a := accepted(); a.Expires = scheduled.Expires; return a }(), scheduled},
		},
		{Name: "is accepted already", Given: []email.Event{accepted()}, When: accept},
		{Name: "of a blocked account is refused", When: with(func(c *email.Accept) { c.Blocked = "spam" }), Refused: domain.Blocked},
		{Name: "from a domain that is not verified is refused", When: with(func(c *email.Accept) { c.CanSend = false }), Refused: domain.Unverified, Field: "from"},
		{Name: "to nobody is refused", When: with(func(c *email.Accept) { c.Accepted.Recipients = nil }), Refused: domain.Missing, Field: "to"},
		{Name: "to 151 is refused", When: with(func(c *email.Accept) { c.Accepted.Recipients = make([]email.Recipient, 151) }), Refused: domain.Invalid, Field: "to"},
		{Name: "for next year is refused", When: with(func(c *email.Accept) { c.Due = now.Add(email.MaxAhead + time.Second) }), Refused: domain.Invalid, Field: "scheduled_at"},
		{
			Name: "is moved", Given: []email.Event{accepted(), scheduled}, When: email.Reschedule{customer(), now.Add(2 * time.Hour)},
			Then: []email.Event{email.Scheduled{Due: now.Add(2 * time.Hour), Expires: now.Add(2*time.Hour + email.MaxAge)}},
		},
		{
			Name: "is moved into the past, which is now", Given: []email.Event{accepted(), scheduled}, When: email.Reschedule{customer(), now.Add(-365 * 24 * time.Hour)},
			Then: []email.Event{email.Scheduled{Due: now.Add(-365 * 24 * time.Hour), Expires: now.Add(email.MaxAge)}},
		},
		{Name: "is moved to where it is", Given: []email.Event{accepted(), scheduled}, When: email.Reschedule{customer(), scheduled.Due}},
		{Name: "that was not scheduled is not moved", Given: []email.Event{accepted()}, When: email.Reschedule{customer(), now.Add(time.Hour)}, Refused: domain.WrongState},
		{Name: "that has begun is not moved", Given: []email.Event{accepted(), scheduled, prepared, first}, When: email.Reschedule{customer(), now.Add(2 * time.Hour)}, Refused: domain.WrongState},
		{Name: "is cancelled", Given: []email.Event{accepted(), scheduled}, When: email.Cancel{customer()}, Then: []email.Event{email.Cancelled{}}},
		{Name: "is cancelled already", Given: []email.Event{accepted(), scheduled, email.Cancelled{}}, When: email.Cancel{customer()}},
		{Name: "that has begun is not cancelled", Given: []email.Event{accepted(), scheduled, prepared, first}, When: email.Cancel{customer()}, Refused: domain.WrongState},
		{Name: "that nobody accepted is not cancelled", When: email.Cancel{customer()}, Refused: domain.NotFound},
		{Name: "is started", Given: []email.Event{accepted()}, When: email.Start{Authority: system(), Prepared: &prepared, Recipients: []int{0, 1}}, Then: []email.Event{prepared, first}},
		{Name: "is not started without its message", Given: []email.Event{accepted()}, When: email.Start{Authority: system(), Recipients: []int{0}}, Refused: domain.Missing, Field: "prepared"},
		{Name: "of a blocked account is not started", Given: []email.Event{accepted()}, When: email.Start{Authority: system(), Prepared: &prepared, Recipients: []int{0}, Blocked: "spam"}, Refused: domain.Blocked},
		{Name: "is not started before its time", Given: []email.Event{accepted(), scheduled}, When: email.Start{Authority: system(), Prepared: &prepared, Recipients: []int{0}}, Refused: domain.WrongState},
		{Name: "is not started twice", Given: sent, When: email.Start{Authority: system(), Recipients: []int{0}}, Refused: domain.WrongState},
		{Name: "that was cancelled is not started", Given: []email.Event{accepted(), scheduled, email.Cancelled{}}, When: email.Start{Authority: systemAt(now.Add(2 * time.Hour)), Prepared: &prepared, Recipients: []int{0}}, Refused: domain.WrongState},
		{
			Name: "is not sent to a suppressed recipient", Given: []email.Event{accepted()},
			When: email.Start{Authority: system(), Prepared: &prepared, Recipients: []int{1}, Suppressed: []email.Suppressed{{Recipient: 0, Reason: "previous_bounce"}}},
			Then: []email.Event{email.Suppressed{Recipient: 0, Reason: "previous_bounce"}, prepared, email.Attempted{Attempt: 1, Recipients: []int{1}}},
		},
		{
			Name: "is delivered to one and put off by another", Given: sent,
			When: report(email.Outcome{Recipient: 0, Kind: email.WasDelivered, Reply: reply}, email.Outcome{Recipient: 1, Kind: email.WasDeferred, Next: now.Add(time.Minute), Reply: reply}),
			Then: []email.Event{email.Delivered{0, 1, reply}, email.Deferred{1, 1, now.Add(time.Minute), reply}},
		},
		{Name: "bounces", Given: sent, When: report(email.Outcome{Recipient: 1, Kind: email.WasBounced, Reply: reply}), Then: []email.Event{email.Bounced{1, 1, reply}}},
		{Name: "is of unknown outcome once", Given: sent, When: report(email.Outcome{Recipient: 0, Kind: email.WasUnknown, Next: now.Add(time.Minute)}), Then: []email.Event{email.Unresolved{0, 1, now.Add(time.Minute), email.Reply{}}}},
		{
			Name:  "is of unknown outcome, but for one, as often as it may be",
			Given: unknown(email.MaxUnknown - 2),
			When:  email.Report{Authority: system(), Attempt: email.MaxUnknown - 1, Outcomes: []email.Outcome{{Recipient: 0, Kind: email.WasUnknown, Next: now}}},
			Then:  []email.Event{email.Unresolved{0, email.MaxUnknown - 1, now, email.Reply{}}},
		},
		{
			Name:  "has failed when it is of unknown outcome as often as it may be",
			Given: unknown(email.MaxUnknown - 1),
			When:  email.Report{Authority: system(), Attempt: email.MaxUnknown, Outcomes: []email.Outcome{{Recipient: 0, Kind: email.WasUnknown, Next: now}}},
			Then:  []email.Event{email.Failed{0, email.MaxUnknown, "The outcome of the last attempt is unknown, and a further one risks a duplicate."}},
		},
		{
			Name: "that is put off beyond its time has bounced", Given: sent,
			When: report(email.Outcome{Recipient: 0, Kind: email.WasDeferred, Next: now.Add(email.MaxAge + time.Second), Reply: email.Reply{Phase: "rcpt", Code: 450, Enhanced: "4.2.0"}}),
			Then: []email.Event{email.Bounced{0, 1, email.Reply{Phase: "rcpt", Code: 450, Enhanced: "5.4.7"}}},
		},
		{Name: "is told an outcome of another attempt", Given: sent, When: email.Report{Authority: system(), Attempt: 2, Outcomes: []email.Outcome{{Recipient: 0}}}},
		{Name: "is told an outcome twice", Given: append(sent, email.Delivered{0, 1, reply}), When: report(email.Outcome{Recipient: 0, Kind: email.WasBounced})},
		{
			Name: "is given up", Given: []email.Event{accepted()}, When: email.Abandon{system(), "The domain is gone."},
			Then: []email.Event{email.Failed{Recipient: 0, Reason: "The domain is gone."}, email.Failed{Recipient: 1, Reason: "The domain is gone."}},
		},
		{Name: "that is final is not given up", Given: append(sent, email.Delivered{0, 1, reply}, email.Bounced{1, 1, reply}), When: email.Abandon{system(), "x"}},
	})
}

// Whatever happens in whatever order, a recipient has one end at most, nothing
// happens to it afterwards, and an email that is tried until it expires has one.
func TestEachRecipientEndsOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var events []email.Event
		at := now
		ended := map[int]bool{}
		apply := func(c email.Command) {
			state := email.Decider.Replay(events...)
			then, err := email.Decider.Decide(of, state, c)
			if err != nil {
				return
			}
			for _, e := range then {
				recipient, ends := end(e)
				if recipient >= 0 && ended[recipient] {
					t.Fatalf("%T of recipient %d after its end: %+v", e, recipient, events)
				}
				if ends {
					ended[recipient] = true
				}
				if _, all := e.(email.Cancelled); all {
					ended[0], ended[1] = true, true
				}
			}
			events = append(events, then...)
			after := email.Decider.Replay(events...)
			if after.Final() != (after.Accepted && len(ended) == len(after.Recipients)) {
				t.Fatalf("Final() is %v with %d ends: %+v", after.Final(), len(ended), events)
			}
		}
		accept := email.Accept{Authority: customer(), Accepted: accepted(), SenderName: "acme.test", CanSend: true}
		if rapid.Bool().Draw(t, "scheduled") {
			accept.Due = now.Add(time.Hour)
		}
		apply(accept)
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			at = at.Add(time.Duration(rapid.IntRange(0, 300).Draw(t, "minutes")) * time.Minute)
			state := email.Decider.Replay(events...)
			outcome := func(i int) email.Outcome {
				kind := email.OutcomeKind(rapid.IntRange(0, 3).Draw(t, "outcome"))
				return email.Outcome{Recipient: i, Kind: kind, Next: at.Add(time.Hour)}
			}
			switch rapid.IntRange(0, 5).Draw(t, "command") {
			case 0:
				c := customer()
				c.At = at
				apply(email.Cancel{c})
			case 1:
				c := customer()
				c.At = at
				apply(email.Reschedule{c, at.Add(time.Hour)})
			case 2, 3:
				apply(email.Start{Authority: systemAt(at), Prepared: &prepared, Recipients: state.Ready(at)})
			case 4:
				apply(email.Report{Authority: systemAt(at), Attempt: rapid.IntRange(1, state.Attempts+1).Draw(t, "attempt"), Outcomes: []email.Outcome{outcome(0), outcome(1), outcome(0)}})
			case 5:
				if rapid.IntRange(0, 9).Draw(t, "rarely") == 0 {
					apply(email.Abandon{systemAt(at), "x"})
				}
			}
		}
		for n := 0; !email.Decider.Replay(events...).Final(); n++ {
			if n > 200 {
				t.Fatalf("it has no end: %+v", events)
			}
			at = at.Add(2 * time.Hour)
			state := email.Decider.Replay(events...)
			apply(email.Start{Authority: systemAt(at), Prepared: &prepared, Recipients: state.Ready(at)})
			state = email.Decider.Replay(events...)
			apply(email.Report{Authority: systemAt(at), Attempt: state.Attempts, Outcomes: []email.Outcome{{Recipient: 0, Kind: email.WasDeferred, Next: at.Add(time.Hour)}, {Recipient: 1, Kind: email.WasDeferred, Next: at.Add(time.Hour)}}})
		}
	})
}

func end(e email.Event) (recipient int, ends bool) {
	switch e := e.(type) {
	case email.Delivered:
		return e.Recipient, true
	case email.Bounced:
		return e.Recipient, true
	case email.Failed:
		return e.Recipient, true
	case email.Suppressed:
		return e.Recipient, true
	case email.Deferred:
		return e.Recipient, false
	case email.Unresolved:
		return e.Recipient, false
	}
	return -1, false
}

// States are values: a fold does not reach into one that somebody kept.
func TestFoldsDoNotShare(t *testing.T) {
	before := email.Decider.Replay(accepted(), prepared)
	kept := append([]email.RecipientState{}, before.Recipients...)
	email.Decider.Evolve(before, first)
	if !reflect.DeepEqual(before.Recipients, kept) {
		t.Errorf("the state has changed under its owner: %+v", before.Recipients)
	}
}
