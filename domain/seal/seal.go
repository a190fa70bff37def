// Package seal is what is known of the seal on each log: the keys that sign it,
// and what was found to be wrong with it.
package seal

import (
	"maps"

	"postbook.dev/postbook/domain"
)

// Event is a fact about a log's seal.
//
//sumtype:decl
type Event interface{ isEvent() }

// KeyAdded makes a key one that signs. Whoever trusts the key before it, which
// goes on signing for a while, can trust this one.
type KeyAdded struct {
	Public string `json:"public"` // C2SP signed-note verifier key
}

// Broken is one thing that is wrong with a log.
type Broken struct {
	Log    string `json:"log"`
	Seq    uint64 `json:"seq,omitempty"` // of the first entry that it is about; 0 is the log as a whole
	Kind   string `json:"kind"`
	Detail string `json:"detail"`
}

func (KeyAdded) isEvent() {}
func (Broken) isEvent()   {}

// Catalogue lists the facts about seals.
var Catalogue = domain.Catalogue{
	domain.FactOf[KeyAdded]("seal.key_added", 1, "A key began to sign checkpoints of the logs."),
	domain.FactOf[Broken]("seal.broken", 1, "A log was found not to be as it was sealed."),
}

// State is what is known.
type State struct {
	Keys   map[string]bool
	Broken map[Broken]bool
}

// Stream names the aggregate.
func Stream() domain.Stream {
	return domain.Stream{Account: domain.Platform, Kind: "seal", ID: "logs"}
}

// Command is something that can be asked about a seal.
//
//sumtype:decl
type Command interface {
	domain.Command
	isCommand()
}

// Rotate makes a key one that signs.
type Rotate struct {
	domain.Authority
	Public string
}

// Report says what is wrong. What was reported before is not recorded again.
type Report struct {
	domain.Authority
	Found Broken
}

func (Rotate) isCommand() {}
func (Report) isCommand() {}

// Verb is the command's entry in the authority table.
func (Rotate) Verb() domain.Verb { return "seal.rotate" }

// Verb is the command's entry in the authority table.
func (Report) Verb() domain.Verb { return "seal.report" }

// Decider is the aggregate.
var Decider = domain.NewDecider("seal", decide, evolve)

func decide(s State, c Command) ([]Event, error) {
	switch c := c.(type) {
	case Rotate:
		switch {
		case c.Public == "":
			return nil, domain.RefuseField(domain.Missing, "public", "A key that signs has a public half.")
		case s.Keys[c.Public]:
			return nil, nil
		}
		return []Event{KeyAdded{Public: c.Public}}, nil
	case Report:
		switch {
		case c.Found.Log == "" || c.Found.Kind == "":
			return nil, domain.RefuseField(domain.Missing, "log", "A finding says which log it is about, and of what kind it is.")
		case s.Broken[c.Found]:
			return nil, nil
		}
		return []Event{c.Found}, nil
	}
	return nil, domain.Refuse(domain.Invalid, "Seals do not know %s.", c.Verb())
}

func evolve(s State, e Event) State {
	switch e := e.(type) {
	case KeyAdded:
		s.Keys = with(s.Keys, e.Public)
	case Broken:
		s.Broken = with(s.Broken, e)
	}
	return s
}

// with is a set with one more member. The set that a state holds never changes:
// an earlier state may be held elsewhere.
func with[K comparable](set map[K]bool, member K) map[K]bool {
	larger := map[K]bool{member: true}
	maps.Copy(larger, set)
	return larger
}
