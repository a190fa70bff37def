package web

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/email"
	"postbook.dev/postbook/projections"
)

// step is one event in an email's life.
type step struct {
	At     time.Time
	Type   string
	Tone   string // good, bad, wait or plain
	What   string
	Detail string // what the receiving server said
	By     string
	Via    domain.Via
	Place  string // in the log
}

// addHistory folds the email's events into its recipients and its timeline, and says
// whether it shows what a receiving server said.
func (c *Console) addHistory(ctx context.Context, page *emailPage, row projections.Email, history []domain.Recorded) (bool, error) {
	replies := false
	var addresses, indexes []string
	var state email.State
	for _, rec := range history {
		fact, ok := rec.Event.(email.Event)
		if !ok {
			return false, fmt.Errorf("web: %s is not an event of an email", rec.Type)
		}
		state = email.Decider.Evolve(state, fact)
		if accepted, ok := fact.(email.Accepted); ok {
			for _, r := range accepted.Recipients {
				plain, err := c.openOr(ctx, row.AccountID, r.Index, r.Address, email.ErasedText)
				if err != nil {
					return false, err
				}
				addresses, indexes = append(addresses, string(plain)), append(indexes, r.Index)
				page.Recipients = append(page.Recipients, recipientRow{Kind: string(r.Kind), Address: string(plain)})
			}
		}
		s := step{At: rec.Time, Type: rec.Type, By: string(rec.By.Actor.Kind), Via: rec.By.Via, Place: fmt.Sprintf("%s/%d", rec.Log, rec.Seq)}
		reply, recipient := s.describe(fact, addresses)
		if reply != nil && len(reply.Text) > 0 && recipient < len(indexes) {
			plain, err := c.openOr(ctx, row.AccountID, indexes[recipient], reply.Text, email.ErasedText)
			if err != nil {
				return false, err
			}
			replies = replies || string(plain) != email.ErasedText
			// The text is the server's whole line, which mostly begins with the code.
			text := strings.TrimPrefix(string(plain), reply.Enhanced+" ")
			s.Detail = strings.TrimSpace(fmt.Sprintf("%d %s %s", reply.Code, reply.Enhanced, text))
		}
		if reply != nil && reply.Host != "" {
			s.Detail += fmt.Sprintf(" (%s, %s)", reply.Host, reply.Took.Round(time.Millisecond))
		}
		page.Timeline = append(page.Timeline, s)
	}
	for i, r := range state.Recipients {
		page.Recipients[i].Status = statusWord(r.Status)
	}
	page.Final = state.Final()
	return replies, nil
}

// openOr opens what is sealed about a recipient, or returns what stands there if they
// were erased.
func (c *Console) openOr(ctx context.Context, account, index string, box domain.Sealed, erased string) ([]byte, error) {
	plain, err := c.Vault.Open(ctx, account, "recipient", index, box)
	if errors.Is(err, domain.ErrErased) {
		return []byte(erased), nil
	}
	return plain, err
}

// describe says what an event means, in one sentence.
func (s *step) describe(fact email.Event, to []string) (*email.Reply, int) {
	name := func(i int) string {
		if i < 0 || i >= len(to) {
			return "a recipient"
		}
		return to[i]
	}
	s.Tone = "plain"
	switch e := fact.(type) {
	case email.Accepted:
		s.What = "Accepted for sending, and on disk."
	case email.Scheduled:
		s.What = "Will be sent at " + e.Due.UTC().Format("2 Jan 2006 15:04:05") + " UTC."
		s.Tone = "wait"
	case email.Prepared:
		s.What = fmt.Sprintf("Message built and signed: %d bytes, key %s.", e.Size, e.Selector)
	case email.Attempted:
		s.What = fmt.Sprintf("Attempt %d began.", e.Attempt)
	case email.Delivered:
		s.What, s.Tone = name(e.Recipient)+" has it: the receiving server took responsibility.", "good"
		return &e.Reply, e.Recipient
	case email.Deferred:
		s.What, s.Tone = fmt.Sprintf("The receiving server put %s off. Next try at %s UTC.", name(e.Recipient), e.Next.UTC().Format("15:04:05")), "wait"
		return &e.Reply, e.Recipient
	case email.Unresolved:
		s.What, s.Tone = fmt.Sprintf("No answer for %s after the message was sent: it may have arrived. Tried once more at %s UTC.", name(e.Recipient), e.Next.UTC().Format("15:04:05")), "wait"
		return &e.Reply, e.Recipient
	case email.Bounced:
		s.What, s.Tone = name(e.Recipient)+" bounced: the receiving server will not take it.", "bad"
		return &e.Reply, e.Recipient
	case email.Failed:
		s.What, s.Tone = "Sending to "+name(e.Recipient)+" failed: "+e.Reason, "bad"
	case email.Suppressed:
		s.What, s.Tone = "Not sent to "+name(e.Recipient)+": "+e.Reason, "bad"
	case email.Cancelled:
		s.What, s.Tone = "Cancelled before it was sent.", "bad"
	}
	return nil, 0
}

func statusWord(s email.Status) string {
	switch s {
	case email.Waiting:
		return "waiting"
	case email.Attempting:
		return "sending"
	case email.IsDelivered:
		return "delivered"
	case email.IsBounced:
		return "bounced"
	case email.IsFailed:
		return "failed"
	case email.IsSuppressed:
		return "suppressed"
	case email.IsCancelled:
		return "canceled"
	}
	return "unknown"
}
