package workers

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/email"
	"postbook.dev/postbook/eventstore"
)

// CheckOptions says what Check complains about.
type CheckOptions struct {
	OlderThan time.Duration // an email that should have been final for so long is a problem; 0 is an hour
	Now       time.Time
}

// Report is what Check found.
type Report struct {
	Emails   int       `json:"emails"`
	Final    int       `json:"final"`
	Open     int       `json:"open"`
	Unknown  int       `json:"unknown"` // attempts whose outcome nobody knows: each may have made a duplicate
	Problems []Problem `json:"problems"`
}

// Problem is an email that breaks a promise.
type Problem struct {
	Email string `json:"email"`
	What  string `json:"what"`
}

// Check reads the logs of all emails and holds them to the promises: an accepted
// email is accepted once, its history has no gaps, and each of its recipients
// ends in exactly one final state. It keeps the open emails and eight bytes for
// each final one in memory.
func Check(ctx context.Context, store *eventstore.Store, o CheckOptions) (Report, error) {
	if o.OlderThan == 0 {
		o.OlderThan = time.Hour
	}
	c := &check{CheckOptions: o, open: map[uuid.UUID]*checked{}, final: map[uint64]bool{}}
	for _, log := range store.MailLogs() {
		head, err := store.Head(ctx, log)
		if err != nil {
			return Report{}, err
		}
		if head == 0 {
			continue // a partition in which nothing lies yet: there is nothing to wait for
		}
		err = store.Follow(ctx, eventstore.Following{Log: log, StopAt: head, MaxBatch: 5000}, func(_ context.Context, entries []eventstore.Entry) error {
			for _, e := range entries {
				c.entry(e)
			}
			return nil
		})
		if err != nil {
			return Report{}, fmt.Errorf("check %s: %w", log, err)
		}
	}
	return c.report(), nil
}

type check struct {
	CheckOptions
	open  map[uuid.UUID]*checked
	final map[uint64]bool
	found Report
}

type checked struct {
	state email.State
	last  uint64
}

func (c *check) problem(id, format string, args ...any) {
	c.found.Problems = append(c.found.Problems, Problem{id, fmt.Sprintf(format, args...)})
}

func (c *check) entry(e eventstore.Entry) {
	if e.Err != nil {
		c.problem("", "%s %d cannot be read: %v", e.Log, e.Seq, e.Err)
		return
	}
	for _, commit := range e.Commits() { // a claim to the partition has none
		c.commit(commit)
	}
}

func (c *check) commit(events []domain.Recorded) {
	first := events[0]
	id, err := uuid.Parse(first.Stream.ID)
	if err != nil {
		c.problem(first.Stream.ID, "%s %d is about something that is no email", first.Log, first.Seq)
		return
	}
	m := c.open[id]
	if _, accepted := first.Event.(email.Accepted); accepted {
		c.found.Emails++
		if m != nil || c.final[short(id)] {
			c.problem(first.Stream.ID, "it was accepted twice, the second time at %s %d", first.Log, first.Seq)
			return
		}
		m = &checked{}
		c.open[id] = m
	}
	switch {
	case m == nil && c.final[short(id)]:
		c.problem(first.Stream.ID, "something happened after its end, at %s %d: %s", first.Log, first.Seq, first.Type)
		return
	case m == nil:
		c.problem(first.Stream.ID, "it was never accepted, and has %s at %s %d", first.Type, first.Log, first.Seq)
		return
	case first.Prev != m.last:
		c.problem(first.Stream.ID, "%s %d follows %d, and the last before it is %d", first.Log, first.Seq, first.Prev, m.last)
	}
	for _, rec := range events {
		event, ok := rec.Event.(email.Event)
		if !ok {
			c.problem(first.Stream.ID, "%s at %s %d is no event of an email", rec.Type, first.Log, first.Seq)
			continue
		}
		if _, unresolved := event.(email.Unresolved); unresolved {
			c.found.Unknown++
		}
		c.ends(first.Stream.ID, m, event)
		m.state = email.Decider.Evolve(m.state, event)
	}
	m.last = first.Seq
	if m.state.Final() {
		c.found.Final++
		c.final[short(id)] = true
		delete(c.open, id)
	}
}

// ends complains about a recipient that ends twice.
func (c *check) ends(id string, m *checked, e email.Event) {
	var recipient int
	switch e := e.(type) {
	case email.Delivered:
		recipient = e.Recipient
	case email.Bounced:
		recipient = e.Recipient
	case email.Failed:
		recipient = e.Recipient
	case email.Suppressed:
		recipient = e.Recipient
	default:
		return
	}
	if recipient < 0 || recipient >= len(m.state.Recipients) {
		c.problem(id, "recipient %d is none of its", recipient)
	} else if m.state.Recipients[recipient].Status.Final() {
		c.problem(id, "recipient %d ends twice", recipient)
	}
}

func (c *check) report() Report {
	c.found.Open = len(c.open)
	for id, m := range c.open {
		if c.Now.Sub(m.state.Expires) > c.OlderThan {
			c.problem(id.String(), "it has no final state, and expired at %s", m.state.Expires.UTC().Format(time.RFC3339))
		}
	}
	slices.SortStableFunc(c.found.Problems, func(a, b Problem) int { return strings.Compare(a.Email, b.Email) })
	return c.found
}

// short is eight bytes that tell emails apart: the random ones of a UUIDv7.
func short(id uuid.UUID) uint64 {
	var n uint64
	for _, b := range id[8:] {
		n = n<<8 | uint64(b)
	}
	return n
}
