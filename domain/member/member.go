// Package member is the people of a customer's account who may use the console:
// who joined, which of their sessions are over, and who left. A password is kept only as
// a hash.
package member

import "postbook.dev/postbook/domain"

// Event is a fact about a member.
//
//sumtype:decl
type Event interface{ isEvent() }

// Joined makes somebody a member.
type Joined struct {
	Email    domain.Sealed `json:"email"`
	Index    string        `json:"index"` // blind index of the address
	Role     domain.Role   `json:"role"`
	Password string        `json:"password"` // Argon2id, PHC string
}

// SignedOut ends a session before its time.
type SignedOut struct {
	Session string `json:"session"` // its id
}

// Left ends all authority of a member.
type Left struct{}

func (Joined) isEvent()    {}
func (SignedOut) isEvent() {}
func (Left) isEvent()      {}

// Catalogue lists the facts that a member can record.
var Catalogue = domain.Catalogue{
	domain.FactOf[Joined]("member.joined", 1, "Somebody became a member."),
	domain.FactOf[SignedOut]("member.signed_out", 1, "A member ended a session of theirs."),
	domain.FactOf[Left]("member.left", 1, "Somebody stopped being a member."),
}

// State is whether somebody is a member, and which session they ended last.
type State struct {
	Joined, Left bool
	SignedOut    string
}

// Stream names the aggregate of a member.
func Stream(account, id string) domain.Stream {
	return domain.Stream{Account: account, Kind: "member", ID: id}
}

// Command is something that can be asked about a member.
//
//sumtype:decl
type Command interface {
	domain.Command
	isCommand()
}

// Join makes somebody a member.
type Join struct {
	domain.Authority
	Email    domain.Sealed
	Index    string
	As       domain.Role
	Password string
}

// SignOut ends a session of the member's own.
type SignOut struct {
	domain.Authority
	Session string
}

// Leave ends a member's authority.
type Leave struct{ domain.Authority }

func (Join) isCommand()    {}
func (SignOut) isCommand() {}
func (Leave) isCommand()   {}

// Verb is the command's entry in the authority table.
func (Join) Verb() domain.Verb { return "member.join" }

// Verb is the command's entry in the authority table.
func (SignOut) Verb() domain.Verb { return "member.sign_out" }

// Verb is the command's entry in the authority table.
func (Leave) Verb() domain.Verb { return "member.leave" }

// Decider is the member aggregate.
var Decider = domain.NewDecider("member", decide, evolve)

func decide(s State, c Command) ([]Event, error) {
	switch c := c.(type) {
	case Join:
		switch {
		case s.Joined:
			return nil, nil
		case c.As != domain.MemberAdmin:
			return nil, domain.RefuseField(domain.Invalid, "role", "The role must be %q.", domain.MemberAdmin)
		case len(c.Email) == 0 || c.Index == "":
			return nil, domain.RefuseField(domain.Missing, "email", "A member needs an email address.")
		case c.Password == "":
			return nil, domain.RefuseField(domain.Missing, "password", "A member needs a password.")
		}
		return []Event{Joined{Email: c.Email, Index: c.Index, Role: c.As, Password: c.Password}}, nil
	case SignOut:
		switch {
		case !s.Joined || s.Left:
			return nil, domain.Refuse(domain.NotFound, "There is no such member.")
		case c.Session == "":
			return nil, domain.RefuseField(domain.Missing, "session", "Say which session is to end.")
		case c.Session == s.SignedOut:
			return nil, nil
		}
		return []Event{SignedOut{c.Session}}, nil
	case Leave:
		switch {
		case !s.Joined:
			return nil, domain.Refuse(domain.NotFound, "There is no such member.")
		case s.Left:
			return nil, nil
		}
		return []Event{Left{}}, nil
	}
	return nil, domain.Refuse(domain.Invalid, "A member does not know %s.", c.Verb())
}

func evolve(s State, e Event) State {
	switch e := e.(type) {
	case Joined:
		s.Joined = true
	case SignedOut:
		s.SignedOut = e.Session
	case Left:
		s.Left = true
	}
	return s
}
