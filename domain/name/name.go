// Package name is who holds a domain name on this platform. A name is an
// aggregate of its own, so that two accounts that add the same domain at the
// same moment race on one subject of the log, and exactly one wins.
package name

import (
	"strings"

	"postbook.dev/postbook/domain"
)

// Event is a fact about a domain name.
//
//sumtype:decl
type Event interface{ isEvent() }

// Taken gives a name to an account.
type Taken struct {
	Account string `json:"account"`
	Sender  string `json:"sender"` // id of the sender domain that it is for
}

// Released gives a name back.
type Released struct{}

func (Taken) isEvent()    {}
func (Released) isEvent() {}

// Catalogue lists the facts that a domain name can record.
var Catalogue = domain.Catalogue{
	domain.FactOf[Taken]("name.taken", 1, "A domain name was taken by an account."),
	domain.FactOf[Released]("name.released", 1, "A domain name was given back."),
}

// State is who holds the name.
type State struct{ Account, Sender string }

// Stream names the aggregate of a domain name. The dots of a name would be
// tokens of the subject; an underscore is in no domain name.
func Stream(domainName string) domain.Stream {
	return domain.Stream{Account: domain.Platform, Kind: "name", ID: strings.ReplaceAll(domainName, ".", "_")}
}

// Command is something that can be asked of a domain name.
//
//sumtype:decl
type Command interface {
	domain.Command
	isCommand()
}

// Take asks for a name.
type Take struct {
	domain.Authority
	Sender string
}

// Release gives a name back that is held for a sender domain.
type Release struct {
	domain.Authority
	Sender string
}

func (Take) isCommand()    {}
func (Release) isCommand() {}

// Verb is the command's entry in the authority table.
func (Take) Verb() domain.Verb { return "name.take" }

// Verb is the command's entry in the authority table.
func (Release) Verb() domain.Verb { return "name.release" }

// Decider is the name aggregate.
var Decider = domain.NewDecider("name", decide, evolve)

func decide(s State, c Command) ([]Event, error) {
	switch c := c.(type) {
	case Take:
		switch {
		case s.Sender == c.Sender:
			return nil, nil
		case s.Sender != "":
			return nil, domain.RefuseField(domain.Taken, "name", "The domain has been registered already.")
		}
		return []Event{Taken{Account: c.Account, Sender: c.Sender}}, nil
	case Release:
		switch {
		case s.Sender != c.Sender:
			return nil, nil
		case s.Account != c.Account && c.Account != domain.Platform:
			return nil, domain.Refuse(domain.NotFound, "There is no such name.")
		}
		return []Event{Released{}}, nil
	}
	return nil, domain.Refuse(domain.Invalid, "A name does not know %s.", c.Verb())
}

func evolve(s State, e Event) State {
	switch e := e.(type) {
	case Taken:
		s = State{Account: e.Account, Sender: e.Sender}
	case Released:
		s = State{}
	}
	return s
}
