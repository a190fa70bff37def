// Package apikey is the life of an API key: issued, used, revoked.
package apikey

import (
	"unicode/utf8"

	"postbook.dev/postbook/domain"
)

// State is what decisions about a key need to know.
type State struct {
	Issued  bool
	Revoked bool
}

// Stream names the key's aggregate.
func Stream(account, id string) domain.Stream {
	return domain.Stream{Account: account, Kind: "apikey", ID: id}
}

// Command is something that can be asked of an API key.
//
//sumtype:decl
type Command interface {
	domain.Command
	isCommand()
}

// Issue makes a key from a token that the caller has drawn.
type Issue struct {
	domain.Authority
	Name       string
	Permission domain.Role
	Sender     string
	Hash       string
	Hint       string
}

// Revoke ends a key.
type Revoke struct{ domain.Authority }

func (Issue) isCommand()  {}
func (Revoke) isCommand() {}

// Verb is the command's entry in the authority table.
func (Issue) Verb() domain.Verb { return "apikey.issue" }

// Verb is the command's entry in the authority table.
func (Revoke) Verb() domain.Verb { return "apikey.revoke" }

// MaxName is the longest name of a key, in characters.
const MaxName = 50

// Decider is the API key aggregate.
var Decider = domain.NewDecider("apikey", decide, evolve)

func decide(s State, c Command) ([]Event, error) {
	switch c := c.(type) {
	case Issue:
		return decideIssue(s, c)
	case Revoke:
		switch {
		case !s.Issued:
			return nil, domain.Refuse(domain.NotFound, "API key not found")
		case s.Revoked:
			return nil, nil
		}
		return []Event{Revoked{}}, nil
	}
	return nil, domain.Refuse(domain.Invalid, "An API key does not know %s.", c.Verb())
}

func decideIssue(s State, c Issue) ([]Event, error) {
	switch {
	case s.Issued:
		return nil, nil
	case c.Name == "":
		return nil, domain.RefuseField(domain.Missing, "name", "Missing `name` field.")
	case utf8.RuneCountInString(c.Name) > MaxName:
		return nil, domain.RefuseField(domain.Invalid, "name", "The `name` must be at most %d characters long.", MaxName)
	case c.Permission != domain.FullAccess && c.Permission != domain.SendingAccess:
		return nil, domain.RefuseField(domain.Invalid, "permission", "The `permission` must be %q or %q.", domain.FullAccess, domain.SendingAccess)
	case c.Sender != "" && c.Permission != domain.SendingAccess:
		return nil, domain.RefuseField(domain.Invalid, "domain_id", "Only a key with `%s` can be bound to a domain.", domain.SendingAccess)
	case c.Hash == "":
		return nil, domain.RefuseField(domain.Missing, "hash", "A key needs the hash of its token.")
	}
	return []Event{Issued{Name: c.Name, Permission: c.Permission, Sender: c.Sender, Hash: c.Hash, Hint: c.Hint}}, nil
}

func evolve(s State, e Event) State {
	switch e.(type) {
	case Issued:
		s.Issued = true
	case Revoked:
		s.Revoked = true
	}
	return s
}
