// Package retention is what is kept of an account's personal data, and what is
// not: legal holds, which keep it, and erasures, which destroy the keys that it is
// sealed with.
package retention

import (
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"

	"postbook.dev/postbook/domain"
)

// State is what decisions about an account's data need to know.
type State struct {
	Holds    map[uuid.UUID]string    // by id: the recipient who is held, empty for the whole account
	Open     map[uuid.UUID]Requested // erasures that were requested and are not finished
	Erased   map[string]bool         // recipients who were erased at least once
	Gone     bool                    // the account's own erasure was requested
	Proposal *Proposed               // that the account be erased, by one of the two people that this takes
}

// Stream names the aggregate of an account's data.
func Stream(account string) domain.Stream {
	return domain.Stream{Account: account, Kind: "retention", ID: account}
}

// Command is something that can be asked about an account's data. Recipients are
// named by the blind index of their address.
//
//sumtype:decl
type Command interface {
	domain.Command
	isCommand()
}

// PlaceHold keeps the data of an account, or of one recipient, from being erased.
type PlaceHold struct {
	domain.Authority
	Known     bool   // the ledger knows the account
	Recipient string // empty for the whole account
}

// LiftHold ends a hold.
type LiftHold struct {
	domain.Authority
	Hold uuid.UUID
}

// EraseRecipient asks that a recipient of an account be forgotten.
type EraseRecipient struct {
	domain.Authority
	Known      bool
	Recipient  string
	Generation int // of the recipient's key that is alive
	Emails     int // to the recipient that can be read, as the log has them
}

// ProposeErasure asks that a whole account be erased. Somebody else has to agree.
type ProposeErasure struct {
	domain.Authority
	Known bool
}

// EraseAccount asks that a whole account be forgotten. From a member of staff it
// agrees to what another has proposed.
type EraseAccount struct {
	domain.Authority
	Known bool
}

// FinishErasure says that the keys were destroyed.
type FinishErasure struct {
	domain.Authority
	Erasure uuid.UUID
	Keys    int
	Emails  int
	Inbox   int
}

func (PlaceHold) isCommand()      {}
func (LiftHold) isCommand()       {}
func (EraseRecipient) isCommand() {}
func (ProposeErasure) isCommand() {}
func (EraseAccount) isCommand()   {}
func (FinishErasure) isCommand()  {}

// Verb is the command's entry in the authority table.
func (PlaceHold) Verb() domain.Verb { return "retention.place_hold" }

// Verb is the command's entry in the authority table.
func (LiftHold) Verb() domain.Verb { return "retention.lift_hold" }

// Verb is the command's entry in the authority table.
func (EraseRecipient) Verb() domain.Verb { return "retention.erase_recipient" }

// Verb is the command's entry in the authority table.
func (ProposeErasure) Verb() domain.Verb { return "retention.propose_erasure" }

// Verb is the command's entry in the authority table.
func (EraseAccount) Verb() domain.Verb { return "retention.erase_account" }

// Verb is the command's entry in the authority table.
func (FinishErasure) Verb() domain.Verb { return "retention.finish_erasure" }

// Decider is the aggregate.
var Decider = domain.NewDecider("retention", decide, evolve)

// ProposalMaxAge is how long a proposal to erase an account can be agreed to.
const ProposalMaxAge = 24 * time.Hour

func decide(s State, c Command) ([]Event, error) {
	switch c := c.(type) {
	case PlaceHold:
		return decidePlace(s, c)
	case LiftHold:
		recipient, ok := s.Holds[c.Hold]
		if !ok {
			return nil, domain.Refuse(domain.NotFound, "There is no such hold.")
		}
		return []Event{HoldLifted{Hold: c.Hold, Recipient: recipient}}, nil
	case EraseRecipient:
		return decideRecipient(s, c)
	case ProposeErasure:
		return decidePropose(s, c)
	case EraseAccount:
		return decideAccount(s, c)
	case FinishErasure:
		open, ok := s.Open[c.Erasure]
		if !ok {
			return nil, nil // it is finished, or nobody asked for it
		}
		return []Event{Erased{Erasure: c.Erasure, Recipient: open.Recipient, Keys: c.Keys, Emails: c.Emails, Inbox: c.Inbox}}, nil
	}
	return nil, domain.Refuse(domain.Invalid, "Retention does not know %s.", c.Verb())
}

func decidePlace(s State, c PlaceHold) ([]Event, error) {
	_, placed := s.Holds[c.Authority.Command]
	switch {
	case !c.Known:
		return nil, errNoAccount
	case s.Gone, c.Recipient != "" && s.pending(c.Recipient):
		return nil, domain.Refuse(domain.Erased, "What the hold would keep is erased already, or is being erased.")
	case placed:
		return nil, nil
	}
	return []Event{HoldPlaced{Hold: c.Authority.Command, Recipient: c.Recipient}}, nil
}

var errNoAccount = domain.Refuse(domain.NotFound, "There is no such account.")

func decideRecipient(s State, c EraseRecipient) ([]Event, error) {
	switch {
	case !c.Known:
		return nil, errNoAccount
	case c.Recipient == "":
		return nil, domain.RefuseField(domain.Missing, "recipient", "Say who is to be erased.")
	case s.Gone, s.pending(c.Recipient), s.Erased[c.Recipient] && c.Emails == 0:
		return nil, nil // it is so, or it is under way
	case s.held(c.Recipient):
		return nil, errHeld
	case c.Emails == 0:
		return nil, domain.Refuse(domain.NotFound, "The account has sent no email to this recipient.")
	}
	return []Event{Requested{Erasure: c.Authority.Command, Recipient: c.Recipient, Generation: c.Generation}}, nil
}

var errHeld = domain.Refuse(domain.Held, "A legal hold keeps this from being erased. It has to be lifted first.")

func decidePropose(s State, c ProposeErasure) ([]Event, error) {
	switch {
	case !c.Known:
		return nil, errNoAccount
	case s.Gone:
		return nil, nil
	case len(s.Holds) > 0:
		return nil, errHeld
	case s.Proposal != nil && s.Proposal.By == c.Actor && c.At.Sub(s.Proposal.At) < ProposalMaxAge:
		return nil, nil
	}
	return []Event{Proposed{Proposal: c.Authority.Command, By: c.Actor, At: c.At, Reason: c.Reason}}, nil
}

func decideAccount(s State, c EraseAccount) ([]Event, error) {
	switch {
	case !c.Known:
		return nil, errNoAccount
	case s.Gone:
		return nil, nil
	case len(s.Holds) > 0:
		return nil, errHeld
	}
	if c.Actor.Kind == domain.Operator { // who could destroy the keys with their hands
		return []Event{Requested{Erasure: c.Authority.Command}}, nil
	}
	switch p := s.Proposal; {
	case p == nil:
		return nil, domain.Refuse(domain.WrongState, "Nobody has proposed that this account be erased.")
	case p.By == c.Actor:
		return nil, domain.Refuse(domain.Forbidden, "Whoever proposed the erasure cannot agree to it too.")
	case c.At.Sub(p.At) >= ProposalMaxAge:
		return nil, domain.Refuse(domain.WrongState, "The proposal is more than %d hours old. Propose it again.", int(ProposalMaxAge.Hours()))
	case !slices.ContainsFunc(c.Approvals, func(a domain.Approval) bool { return a.Actor == p.By && a.Event == p.Proposal }):
		return nil, domain.Refuse(domain.Forbidden, "The approval does not name the open proposal %s.", p.Proposal)
	}
	return []Event{Requested{Erasure: c.Authority.Command}}, nil
}

// pending reports whether a recipient is being erased.
func (s State) pending(recipient string) bool {
	for _, open := range s.Open {
		if open.Recipient == recipient {
			return true
		}
	}
	return false
}

// held reports whether a hold keeps a recipient's data.
func (s State) held(recipient string) bool {
	for _, held := range s.Holds {
		if held == "" || held == recipient {
			return true
		}
	}
	return false
}

// Approval is the proposal, as the approval that EraseAccount has to carry.
func (p *Proposed) Approval() domain.Approval {
	return domain.Approval{Actor: p.By, Event: p.Proposal, At: p.At}
}

// evolve copies the maps that it changes: an earlier state may be held elsewhere.
func evolve(s State, e Event) State {
	switch e := e.(type) {
	case HoldPlaced:
		s.Holds = with(s.Holds, e.Hold, e.Recipient)
	case HoldLifted:
		s.Holds = without(s.Holds, e.Hold)
	case Proposed:
		s.Proposal = &e
	case Requested:
		s.Open = with(s.Open, e.Erasure, e)
		if e.Recipient == "" {
			s.Gone, s.Proposal = true, nil
		}
	case Erased:
		s.Open = without(s.Open, e.Erasure)
		s.Erased = with(s.Erased, e.Recipient, true)
	}
	return s
}

func with[K comparable, V any](m map[K]V, key K, value V) map[K]V {
	larger := map[K]V{}
	maps.Copy(larger, m)
	larger[key] = value
	return larger
}

func without[K comparable, V any](m map[K]V, key K) map[K]V {
	smaller := maps.Clone(m)
	delete(smaller, key)
	return smaller
}
