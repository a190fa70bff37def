// Package account is the life of a customer's account: opened, blocked when its
// sending harms others, unblocked when two people have looked into it.
package account

import (
	"slices"
	"time"

	"github.com/google/uuid"

	"postbook.dev/postbook/domain"
)

// State is what decisions about an account need to know.
type State struct {
	Open    bool
	Blocked string // the policy that stopped it, empty while it may send
	Request *UnblockRequested
}

// Stream names the account's aggregate.
func Stream(id string) domain.Stream { return domain.Stream{Account: id, Kind: "account", ID: id} }

// Command is something that can be asked of an account.
//
//sumtype:decl
type Command interface {
	domain.Command
	isCommand()
}

// Open starts an account.
type Open struct {
	domain.Authority
	Name      string
	RateLimit int
}

// Block stops all sending.
type Block struct {
	domain.Authority
	Policy   string
	Evidence string
}

// RequestUnblock asks that sending may go on. Somebody else has to agree.
type RequestUnblock struct{ domain.Authority }

// WithdrawRequest takes an open request back.
type WithdrawRequest struct{ domain.Authority }

// Unblock agrees to the open request. Its authority carries the approval of the
// person who made that request.
type Unblock struct{ domain.Authority }

func (Open) isCommand()            {}
func (Block) isCommand()           {}
func (RequestUnblock) isCommand()  {}
func (WithdrawRequest) isCommand() {}
func (Unblock) isCommand()         {}

// Verb is the command's entry in the authority table.
func (Open) Verb() domain.Verb { return "account.open" }

// Verb is the command's entry in the authority table.
func (Block) Verb() domain.Verb { return "account.block" }

// Verb is the command's entry in the authority table.
func (RequestUnblock) Verb() domain.Verb { return "account.request_unblock" }

// Verb is the command's entry in the authority table.
func (WithdrawRequest) Verb() domain.Verb { return "account.withdraw_request" }

// Verb is the command's entry in the authority table.
func (Unblock) Verb() domain.Verb { return "account.unblock" }

// Decider is the account aggregate.
var Decider = domain.NewDecider("account", decide, evolve)

// RequestMaxAge is how long a request for unblocking can be approved.
const RequestMaxAge = 24 * time.Hour

func decide(s State, c Command) ([]Event, error) {
	if open, ok := c.(Open); ok {
		return decideOpen(s, open)
	}
	if !s.Open {
		return nil, domain.Refuse(domain.NotFound, "There is no such account.")
	}
	switch c := c.(type) {
	case Block:
		return decideBlock(s, c)
	case RequestUnblock:
		return decideRequest(s, c)
	case WithdrawRequest:
		if s.Request == nil {
			return nil, nil
		}
		return []Event{RequestWithdrawn{Request: s.Request.Request}}, nil
	case Unblock:
		return decideUnblock(s, c)
	}
	return nil, domain.Refuse(domain.Invalid, "An account does not know %s.", c.Verb())
}

func decideOpen(s State, c Open) ([]Event, error) {
	switch {
	case s.Open:
		return nil, nil
	case c.Name == "":
		return nil, domain.RefuseField(domain.Missing, "name", "Give the account a name.")
	}
	return []Event{Opened{Name: c.Name, RateLimit: c.RateLimit}}, nil
}

func decideBlock(s State, c Block) ([]Event, error) {
	switch {
	case c.Policy == "":
		return nil, domain.RefuseField(domain.Missing, "policy", "Name the policy that was broken.")
	case c.Evidence == "":
		return nil, domain.RefuseField(domain.Missing, "evidence", "Say what was seen.")
	case s.Blocked == c.Policy:
		return nil, nil
	}
	return []Event{Blocked{Policy: c.Policy, Evidence: c.Evidence}}, nil
}

func decideRequest(s State, c RequestUnblock) ([]Event, error) {
	switch {
	case s.Blocked == "":
		return nil, domain.Refuse(domain.WrongState, "The account is not blocked.")
	case s.Request != nil && s.Request.By == c.Actor && c.At.Sub(s.Request.At) < RequestMaxAge:
		return nil, nil
	}
	return []Event{UnblockRequested{Request: c.Authority.Command, By: c.Actor, At: c.At, Reason: c.Reason}}, nil
}

func decideUnblock(s State, c Unblock) ([]Event, error) {
	switch {
	case s.Blocked == "":
		return nil, nil
	case s.Request == nil:
		return nil, domain.Refuse(domain.WrongState, "Nobody has asked that this account be unblocked.")
	case s.Request.By == c.Actor:
		return nil, domain.Refuse(domain.Forbidden, "Whoever asked for unblocking cannot approve it too.")
	case c.At.Sub(s.Request.At) >= RequestMaxAge:
		return nil, domain.Refuse(domain.WrongState, "The request is more than %d hours old. Ask again.", int(RequestMaxAge.Hours()))
	case !slices.ContainsFunc(c.Approvals, s.Request.grants):
		return nil, domain.Refuse(domain.Forbidden, "The approval does not name the open request %s.", s.Request.Request)
	}
	return []Event{Unblocked{
		Request:    s.Request.Request,
		AskedBy:    s.Request.By,
		AskedWhy:   s.Request.Reason,
		ApprovedBy: c.Actor,
	}}, nil
}

// grants reports whether the approval is the one that this request stands for.
func (r *UnblockRequested) grants(a domain.Approval) bool {
	return a.Actor == r.By && a.Event == r.Request && a.Event != uuid.Nil
}

// Approval is the request, as the approval that Unblock has to carry.
func (r *UnblockRequested) Approval() domain.Approval {
	return domain.Approval{Actor: r.By, Event: r.Request, At: r.At}
}

func evolve(s State, e Event) State {
	switch e := e.(type) {
	case Opened:
		s.Open = true
	case Blocked:
		// A request was made with an earlier block in mind. It does not carry over.
		s.Blocked, s.Request = e.Policy, nil
	case UnblockRequested:
		s.Request = &e
	case RequestWithdrawn:
		s.Request = nil
	case Unblocked:
		s.Blocked, s.Request = "", nil
	}
	return s
}
