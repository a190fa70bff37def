// Package partitioning is the record of over how many partitions the emails are
// spread. The log itself says what holds; this says who changed it, and when.
package partitioning

import (
	"time"

	"postbook.dev/postbook/domain"
)

// Event is a fact about the number of partitions.
//
//sumtype:decl
type Event interface{ isEvent() }

// Changed says that emails accepted since a time lie on another number of
// partitions. Those from before stay where they are.
type Changed struct {
	From  int       `json:"from"`
	To    int       `json:"to"`
	Since time.Time `json:"since"`
}

func (Changed) isEvent() {}

// Catalogue lists the facts about the number of partitions.
var Catalogue = domain.Catalogue{
	domain.FactOf[Changed]("partitioning.changed", 1, "Emails accepted since a time lie on another number of partitions."),
}

// State is since when the newest number holds, as far as it is on record.
type State struct{ Since time.Time }

// Stream names the aggregate.
func Stream() domain.Stream {
	return domain.Stream{Account: domain.Platform, Kind: "partitioning", ID: "emails"}
}

// Command is something that can be asked about the number of partitions.
//
//sumtype:decl
type Command interface {
	domain.Command
	isCommand()
}

// Change puts a change on record. Each is put on record once.
type Change struct {
	domain.Authority
	From, To int
	Since    time.Time
}

func (Change) isCommand() {}

// Verb is the command's entry in the authority table.
func (Change) Verb() domain.Verb { return "partitioning.change" }

// Decider is the aggregate.
var Decider = domain.NewDecider("partitioning", decide, evolve)

func decide(s State, c Command) ([]Event, error) {
	change, ok := c.(Change)
	switch {
	case !ok:
		return nil, domain.Refuse(domain.Invalid, "The number of partitions does not know %s.", c.Verb())
	case change.From < 1 || change.To < 1 || change.From == change.To:
		return nil, domain.RefuseField(domain.Invalid, "to", "A change is from one number of partitions to another.")
	case change.Since.IsZero():
		return nil, domain.RefuseField(domain.Invalid, "since", "A change holds since a time.")
	case !change.Since.After(s.Since):
		return nil, nil
	}
	return []Event{Changed{From: change.From, To: change.To, Since: change.Since}}, nil
}

func evolve(s State, e Event) State {
	if changed, ok := e.(Changed); ok {
		s.Since = changed.Since
	}
	return s
}
