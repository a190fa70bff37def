// Package kek is the life of the root key, the key-encryption key that every
// keyset is wrapped with: which one it is, and which one takes its place. Keys are
// named by their fingerprints.
package kek

import "postbook.dev/postbook/domain"

// Event is a fact about the root key.
//
//sumtype:decl
type Event interface{ isEvent() }

// RotationStarted says which key will take the place of which.
type RotationStarted struct {
	From string `json:"from"`
	To   string `json:"to"`
}

// RotationFinished says that every keyset is wrapped with the newer key, and that
// the older one is destroyed.
type RotationFinished struct {
	From    string `json:"from"`
	To      string `json:"to"`
	Keysets int    `json:"keysets"`
}

func (RotationStarted) isEvent()  {}
func (RotationFinished) isEvent() {}

// Catalogue lists the facts about the root key.
var Catalogue = domain.Catalogue{
	domain.FactOf[RotationStarted]("kek.rotation_started", 1, "The root key began to be replaced."),
	domain.FactOf[RotationFinished]("kek.rotation_finished", 1, "Every keyset is wrapped with the newer root key, and the older one was destroyed."),
}

// State is the rotation that is not finished, if there is one.
type State struct{ Open *RotationStarted }

// Stream names the aggregate.
func Stream() domain.Stream {
	return domain.Stream{Account: domain.Platform, Kind: "kek", ID: "root"}
}

// Command is something that can be asked about the root key.
//
//sumtype:decl
type Command interface {
	domain.Command
	isCommand()
}

// Start begins a rotation.
type Start struct {
	domain.Authority
	From, To string
}

// Finish ends the one that is open.
type Finish struct {
	domain.Authority
	To      string
	Keysets int
}

func (Start) isCommand()  {}
func (Finish) isCommand() {}

// Verb is the command's entry in the authority table.
func (Start) Verb() domain.Verb { return "kek.start_rotation" }

// Verb is the command's entry in the authority table.
func (Finish) Verb() domain.Verb { return "kek.finish_rotation" }

// Decider is the aggregate.
var Decider = domain.NewDecider("kek", decide, evolve)

func decide(s State, c Command) ([]Event, error) {
	switch c := c.(type) {
	case Start:
		switch {
		case c.From == "" || c.To == "" || c.From == c.To:
			return nil, domain.RefuseField(domain.Invalid, "to", "A rotation is from one key to another.")
		case s.Open != nil && s.Open.To == c.To:
			return nil, nil
		case s.Open != nil:
			return nil, domain.Refuse(domain.WrongState, "The rotation to %s is not finished.", s.Open.To)
		}
		return []Event{RotationStarted{From: c.From, To: c.To}}, nil
	case Finish:
		if s.Open == nil || s.Open.To != c.To {
			return nil, nil // it is finished
		}
		return []Event{RotationFinished{From: s.Open.From, To: c.To, Keysets: c.Keysets}}, nil
	}
	return nil, domain.Refuse(domain.Invalid, "The root key does not know %s.", c.Verb())
}

func evolve(s State, e Event) State {
	switch e := e.(type) {
	case RotationStarted:
		s.Open = &e
	case RotationFinished:
		s.Open = nil
	}
	return s
}
