package email

import (
	"time"

	"postbook.dev/postbook/domain"
)

// Command is something that can be asked of an email.
//
//sumtype:decl
type Command interface {
	domain.Command
	isCommand()
}

// Accept asks for an email to be sent. What the account may do was looked up in
// the log by the caller and comes along as plain fields.
type Accept struct {
	domain.Authority
	Accepted Accepted
	Due      time.Time // zero is at once

	Blocked    string // the policy that stopped the account's sending
	SenderName string // the domain of the From address
	CanSend    bool   // the domain is verified and the key may use it
}

// Reschedule moves an email that is still waiting for its time.
type Reschedule struct {
	domain.Authority
	Due time.Time
}

// Cancel ends an email that is still waiting for its time.
type Cancel struct{ domain.Authority }

// Start begins an attempt. Nothing may go out before its events are on disk.
type Start struct {
	domain.Authority
	Prepared   *Prepared // with the first attempt
	Recipients []int
	Suppressed []Suppressed // recipients whom the account does not write to, found as it was about to start
	Blocked    string
}

// Report tells what became of an attempt.
type Report struct {
	domain.Authority
	Attempt  int
	Outcomes []Outcome
}

// Outcome is what became of one recipient in one attempt.
type Outcome struct {
	Recipient int
	Kind      OutcomeKind
	Reply     Reply
	Next      time.Time // when to try again, for WasDeferred and WasUnknown
}

// OutcomeKind sorts outcomes.
type OutcomeKind uint8

// The kinds of outcome.
const (
	WasDelivered OutcomeKind = iota
	WasDeferred
	WasBounced
	WasUnknown
)

// Abandon gives up on the recipients that are left, for a reason that lies with
// this platform.
type Abandon struct {
	domain.Authority
	Reason string
}

func (Accept) isCommand()     {}
func (Reschedule) isCommand() {}
func (Cancel) isCommand()     {}
func (Start) isCommand()      {}
func (Report) isCommand()     {}
func (Abandon) isCommand()    {}

// Verb is the command's entry in the authority table.
func (Accept) Verb() domain.Verb { return "email.accept" }

// Verb is the command's entry in the authority table.
func (Reschedule) Verb() domain.Verb { return "email.reschedule" }

// Verb is the command's entry in the authority table.
func (Cancel) Verb() domain.Verb { return "email.cancel" }

// Verb is the command's entry in the authority table.
func (Start) Verb() domain.Verb { return "email.start" }

// Verb is the command's entry in the authority table.
func (Report) Verb() domain.Verb { return "email.report" }

// Verb is the command's entry in the authority table.
func (Abandon) Verb() domain.Verb { return "email.abandon" }

func decide(s State, c Command) ([]Event, error) {
	if accept, ok := c.(Accept); ok {
		return decideAccept(s, accept)
	}
	if !s.Accepted {
		return nil, domain.Refuse(domain.NotFound, "Email not found")
	}
	switch c := c.(type) {
	case Reschedule:
		return decideReschedule(s, c)
	case Cancel:
		return decideCancel(s)
	case Start:
		return decideStart(s, c)
	case Report:
		return decideReport(s, c), nil
	case Abandon:
		return decideAbandon(s, c), nil
	}
	return nil, domain.Refuse(domain.Invalid, "An email does not know %s.", c.Verb())
}

func decideAccept(s State, c Accept) ([]Event, error) {
	switch {
	case s.Accepted:
		return nil, nil
	case c.Blocked != "":
		return nil, domain.Refuse(domain.Blocked, "Sending is stopped for this account. Policy: %s.", c.Blocked)
	case !c.CanSend:
		return nil, domain.RefuseField(domain.Unverified, "from", "The `%s` domain is not verified. Please, add and verify your domain.", c.SenderName)
	case len(c.Accepted.Recipients) == 0:
		return nil, domain.RefuseField(domain.Missing, "to", "Missing `to` field.")
	}
	if err := checkRecipients(c.Accepted.Recipients); err != nil {
		return nil, err
	}
	if err := checkDue(c.Due, c.At); err != nil {
		return nil, err
	}
	accepted := c.Accepted
	if c.Due.IsZero() {
		accepted.Expires = c.At.Add(MaxAge)
		return []Event{accepted}, nil
	}
	accepted.Expires = expiry(c.Due, c.At)
	return []Event{accepted, Scheduled{Due: c.Due, Expires: accepted.Expires}}, nil
}

func checkRecipients(recipients []Recipient) error {
	if len(recipients) > MaxRecipients {
		return domain.RefuseField(domain.Invalid, "to", "An email has at most %d recipients.", MaxRecipients)
	}
	return nil
}

func checkDue(due, now time.Time) error {
	if due.After(now.Add(MaxAhead)) {
		return domain.RefuseField(domain.Invalid, "scheduled_at", "The `scheduled_at` must be at most %d days ahead.", int(MaxAhead.Hours()/24))
	}
	return nil
}

// expiry is when an email is given up. One that was due in the past is due now.
func expiry(due, now time.Time) time.Time {
	if due.Before(now) {
		due = now
	}
	return due.Add(MaxAge)
}

func decideReschedule(s State, c Reschedule) ([]Event, error) {
	switch {
	case s.Cancelled:
		return nil, domain.Refuse(domain.WrongState, "A canceled email cannot be rescheduled.")
	case !s.Scheduled || s.Started() || s.Final():
		return nil, domain.Refuse(domain.WrongState, "Only a scheduled email can be updated.")
	case c.Due.IsZero():
		return nil, domain.RefuseField(domain.Missing, "scheduled_at", "Missing `scheduled_at` field.")
	case c.Due.Equal(s.Due):
		return nil, nil
	}
	if err := checkDue(c.Due, c.At); err != nil {
		return nil, err
	}
	return []Event{Scheduled{Due: c.Due, Expires: expiry(c.Due, c.At)}}, nil
}

func decideCancel(s State) ([]Event, error) {
	switch {
	case s.Cancelled:
		return nil, nil
	case !s.Scheduled || s.Started() || s.Final():
		return nil, domain.Refuse(domain.WrongState, "Only a scheduled email can be canceled.")
	}
	return []Event{Cancelled{}}, nil
}

func decideStart(s State, c Start) ([]Event, error) {
	switch {
	case c.Blocked != "":
		return nil, domain.Refuse(domain.Blocked, "Sending is stopped for this account. Policy: %s.", c.Blocked)
	case len(c.Recipients) > 0 && !s.Prepared && c.Prepared == nil:
		return nil, domain.RefuseField(domain.Missing, "prepared", "The first attempt needs the message that it sends.")
	}
	var events []Event
	for _, e := range c.Suppressed {
		if r := s.recipient(e.Recipient); r != nil && r.Status == Waiting {
			events = append(events, e)
		}
	}
	if len(c.Recipients) == 0 {
		return events, nil
	}
	for _, i := range c.Recipients {
		r := s.recipient(i)
		if r == nil || r.Status != Waiting || s.Due.After(c.At) || r.Next.After(c.At) {
			return nil, domain.Refuse(domain.WrongState, "Recipient %d is not waiting to be tried now.", i)
		}
	}
	if !s.Prepared {
		events = append(events, *c.Prepared)
	}
	return append(events, Attempted{Attempt: s.Attempts + 1, Recipients: c.Recipients}), nil
}

// decideReport leaves out recipients that are not in this attempt, so telling
// an outcome twice changes nothing.
func decideReport(s State, c Report) []Event {
	var events []Event
	told := map[int]bool{}
	for _, o := range c.Outcomes {
		r := s.recipient(o.Recipient)
		if r == nil || r.Status != Attempting || r.Attempt != c.Attempt || told[o.Recipient] {
			continue
		}
		told[o.Recipient] = true
		events = append(events, outcome(s, *r, c, o))
	}
	return events
}

// outcome holds the rule of the end: a recipient whom the receiving server
// keeps putting off bounces when the email expires, and one whose attempts ended
// unknown MaxUnknown times has failed, because a further try risks one more
// copy. The same bytes and Message-ID go out each time, so that receivers can
// tell a copy.
func outcome(s State, r RecipientState, c Report, o Outcome) Event {
	switch o.Kind {
	case WasDelivered:
		return Delivered{o.Recipient, c.Attempt, o.Reply}
	case WasBounced:
		return Bounced{o.Recipient, c.Attempt, o.Reply}
	case WasUnknown:
		if r.Unknown+1 >= MaxUnknown || o.Next.After(s.Expires) {
			return Failed{o.Recipient, c.Attempt, "The outcome of the last attempt is unknown, and a further one risks a duplicate."}
		}
		return Unresolved{o.Recipient, c.Attempt, o.Next, o.Reply}
	case WasDeferred:
	}
	if o.Next.After(s.Expires) {
		reply := o.Reply
		reply.Enhanced = "5.4.7" // delivery time expired, RFC 3463, 3.5
		return Bounced{o.Recipient, c.Attempt, reply}
	}
	return Deferred{o.Recipient, c.Attempt, o.Next, o.Reply}
}

func decideAbandon(s State, c Abandon) []Event {
	var events []Event
	for i, r := range s.Recipients {
		if !r.Status.Final() {
			events = append(events, Failed{Recipient: i, Attempt: r.Attempt, Reason: c.Reason})
		}
	}
	return events
}
