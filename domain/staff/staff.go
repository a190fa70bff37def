// Package staff is the people who run the platform: who joined with which role, who
// signed in, and who left. What they prove themselves with is kept only as a hash or sealed.
package staff

import "postbook.dev/postbook/domain"

// Event is a fact about a member of staff.
//
//sumtype:decl
type Event interface{ isEvent() }

// Joined makes somebody a member of staff.
type Joined struct {
	Email    domain.Sealed `json:"email"`
	Index    string        `json:"index"` // blind index of the address
	Role     domain.Role   `json:"role"`
	Password string        `json:"password"` // Argon2id, PHC string
	TOTP     domain.Sealed `json:"totp"`     // secret of RFC 6238
}

// SignedIn says that somebody has shown their password and a code of their second
// factor.
type SignedIn struct {
	Step int64 `json:"step"` // of time that the code was for (RFC 6238, 4.2)
}

// Left ends all authority of a member of staff.
type Left struct{}

func (Joined) isEvent()   {}
func (SignedIn) isEvent() {}
func (Left) isEvent()     {}

// Catalogue lists the facts that a member of staff can record.
var Catalogue = domain.Catalogue{
	domain.FactOf[Joined]("staff.joined", 1, "Somebody became a member of staff."),
	domain.FactOf[SignedIn]("staff.signed_in", 1, "A member of staff signed in."),
	domain.FactOf[Left]("staff.left", 1, "Somebody stopped being a member of staff."),
}

// State is whether somebody is a member of staff, and which codes of theirs are over.
type State struct {
	Joined, Left bool
	Step         int64 // of the last code that was taken
}

// Stream names the aggregate of a member of staff.
func Stream(id string) domain.Stream {
	return domain.Stream{Account: domain.Platform, Kind: "staff", ID: id}
}

// Command is something that can be asked about a member of staff.
//
//sumtype:decl
type Command interface {
	domain.Command
	isCommand()
}

// Join makes somebody a member of staff.
type Join struct {
	domain.Authority
	Email    domain.Sealed
	Index    string
	As       domain.Role
	Password string
	TOTP     domain.Sealed
}

// SignIn takes a code of a second factor, which is right.
type SignIn struct {
	domain.Authority
	Step int64
}

// Leave ends a member's authority.
type Leave struct{ domain.Authority }

func (Join) isCommand()   {}
func (SignIn) isCommand() {}
func (Leave) isCommand()  {}

// Verb is the command's entry in the authority table.
func (Join) Verb() domain.Verb { return "staff.join" }

// Verb is the command's entry in the authority table.
func (SignIn) Verb() domain.Verb { return "staff.sign_in" }

// Verb is the command's entry in the authority table.
func (Leave) Verb() domain.Verb { return "staff.leave" }

// Decider is the staff aggregate.
var Decider = domain.NewDecider("staff", decide, evolve)

func decide(s State, c Command) ([]Event, error) {
	switch c := c.(type) {
	case Join:
		switch {
		case s.Joined:
			return nil, nil
		case c.As != domain.Trust && c.As != domain.Support:
			return nil, domain.RefuseField(domain.Invalid, "role", "The role must be %q or %q.", domain.Trust, domain.Support)
		case len(c.Email) == 0 || c.Index == "":
			return nil, domain.RefuseField(domain.Missing, "email", "A member of staff needs an email address.")
		case c.Password == "":
			return nil, domain.RefuseField(domain.Missing, "password", "A member of staff needs a password.")
		case len(c.TOTP) == 0:
			return nil, domain.RefuseField(domain.Missing, "totp", "A member of staff needs a second factor.")
		}
		return []Event{Joined{Email: c.Email, Index: c.Index, Role: c.As, Password: c.Password, TOTP: c.TOTP}}, nil
	case SignIn:
		switch {
		case !s.Joined || s.Left:
			return nil, domain.Refuse(domain.NotFound, "There is no such member of staff.")
		case c.Step <= s.Step: // RFC 6238, 5.2
			return nil, domain.RefuseField(domain.Taken, "totp", "This code was used already, and each is good once. Wait for the next: it comes within 30 seconds.")
		}
		return []Event{SignedIn{c.Step}}, nil
	case Leave:
		switch {
		case !s.Joined:
			return nil, domain.Refuse(domain.NotFound, "There is no such member of staff.")
		case s.Left:
			return nil, nil
		}
		return []Event{Left{}}, nil
	}
	return nil, domain.Refuse(domain.Invalid, "Staff do not know %s.", c.Verb())
}

func evolve(s State, e Event) State {
	switch e := e.(type) {
	case Joined:
		s.Joined = true
	case SignedIn:
		s.Step = e.Step
	case Left:
		s.Left = true
	}
	return s
}
