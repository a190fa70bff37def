// Package email is the life of one email, from the moment it is accepted to the
// moment nothing more can happen to it.
package email

import (
	"time"

	"github.com/google/uuid"

	"postbook.dev/postbook/domain"
)

// State is what decisions about an email need to know.
type State struct {
	Accepted   bool
	Prepared   bool
	Scheduled  bool // was given a time of its own
	Cancelled  bool
	Due        time.Time // when it was scheduled for; zero is at once
	Expires    time.Time
	Attempts   int
	Recipients []RecipientState
}

// RecipientState is where one recipient stands.
type RecipientState struct {
	Status  Status
	Attempt int       // the latest attempt that includes it
	Tries   int       // attempts so far
	Unknown int       // attempts whose end is unknown
	Next    time.Time // not before this, if Waiting after a try
}

// Status is where a recipient stands.
type Status uint8

// The statuses of a recipient. The last five are final.
const (
	Waiting Status = iota
	Attempting
	IsDelivered
	IsBounced
	IsFailed
	IsSuppressed
	IsCancelled
)

// Final reports whether nothing more can happen to the recipient.
func (s Status) Final() bool { return s >= IsDelivered }

// Started reports whether sending has begun.
func (s State) Started() bool { return s.Attempts > 0 }

// Final reports whether nothing more can happen to the email.
func (s State) Final() bool {
	for _, r := range s.Recipients {
		if !r.Status.Final() {
			return false
		}
	}
	return s.Accepted
}

// Next is when there is something to do, and false if there is nothing to wait
// for: all recipients are final, or in an attempt.
func (s State) Next() (time.Time, bool) {
	var next time.Time
	found := false
	for _, r := range s.Recipients {
		if r.Status != Waiting {
			continue
		}
		at := s.Due
		if r.Next.After(at) {
			at = r.Next
		}
		if !found || at.Before(next) {
			next, found = at, true
		}
	}
	return next, found
}

// Ready lists the recipients that may be tried at now.
func (s State) Ready(now time.Time) []int {
	var ready []int
	for i, r := range s.Recipients {
		if r.Status == Waiting && !s.Due.After(now) && !r.Next.After(now) {
			ready = append(ready, i)
		}
	}
	return ready
}

// Attempting lists the recipients whose attempt has no outcome yet.
func (s State) Attempting() []int {
	var open []int
	for i, r := range s.Recipients {
		if r.Status == Attempting {
			open = append(open, i)
		}
	}
	return open
}

// Stream names the aggregate of an email.
func Stream(account string, id uuid.UUID) domain.Stream {
	return domain.Stream{Account: account, Kind: "email", ID: id.String()}
}

// The limits of an email.
const (
	MaxRecipients = 150                 // of one email, however they are named
	MaxAhead      = 30 * 24 * time.Hour // for scheduling
	MaxAge        = 72 * time.Hour      // of trying, RFC 5321, 4.5.4.1
	MaxUnknown    = 5                   // attempts that may end unknown, before a recipient has failed
)

// Decider is the email aggregate.
var Decider = domain.NewDecider("email", decide, evolve)

func evolve(s State, e Event) State {
	switch e := e.(type) {
	case Accepted:
		if s.Accepted {
			return s // the first counts
		}
		s.Accepted, s.Expires = true, e.Expires
		s.Recipients = make([]RecipientState, len(e.Recipients))
		return s
	case Scheduled:
		s.Scheduled, s.Due, s.Expires = true, e.Due, e.Expires
		return s
	case Prepared:
		s.Prepared = true
		return s
	}
	// States are values. A fold must not reach into one that somebody kept.
	s.Recipients = append([]RecipientState(nil), s.Recipients...)
	switch e := e.(type) {
	case Attempted:
		s.Attempts = e.Attempt
		for _, i := range e.Recipients {
			if r := s.recipient(i); r != nil {
				r.Status, r.Attempt = Attempting, e.Attempt
				r.Tries++
			}
		}
	case Delivered:
		s.settle(e.Recipient, IsDelivered)
	case Bounced:
		s.settle(e.Recipient, IsBounced)
	case Failed:
		s.settle(e.Recipient, IsFailed)
	case Suppressed:
		s.settle(e.Recipient, IsSuppressed)
	case Deferred:
		s.wait(e.Recipient, e.Next)
	case Unresolved:
		if r := s.recipient(e.Recipient); r != nil {
			r.Unknown++
		}
		s.wait(e.Recipient, e.Next)
	case Cancelled:
		s.Cancelled = true
		for i := range s.Recipients {
			s.settle(i, IsCancelled)
		}
	}
	return s
}

func (s State) recipient(i int) *RecipientState {
	if i < 0 || i >= len(s.Recipients) {
		return nil
	}
	return &s.Recipients[i]
}

func (s State) settle(i int, status Status) {
	if r := s.recipient(i); r != nil && !r.Status.Final() {
		r.Status = status
	}
}

func (s State) wait(i int, next time.Time) {
	if r := s.recipient(i); r != nil && !r.Status.Final() {
		r.Status, r.Next = Waiting, next
	}
}
