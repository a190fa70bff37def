// Package readmodel is what was found to be wrong with a read model: rows that
// were changed by another way than the projection. Nothing is decided by such a
// row, and that somebody changed it matters all the same.
package readmodel

import (
	"fmt"
	"maps"

	"postbook.dev/postbook/domain"
)

// Event is a fact about a read model.
//
//sumtype:decl
type Event interface{ isEvent() }

// Drifted is a row that the log does not explain.
type Drifted struct {
	Table  string   `json:"table"`
	Key    string   `json:"key"`
	Kind   string   `json:"kind"`             // "edited", "deleted" or "inserted"
	Fields []string `json:"fields,omitempty"` // that differ; what they hold may be personal
}

// Repaired says that rows were put back as the log makes them.
type Repaired struct {
	Rows int `json:"rows"`
}

func (Drifted) isEvent()  {}
func (Repaired) isEvent() {}

// Catalogue lists the facts about read models.
var Catalogue = domain.Catalogue{
	domain.FactOf[Drifted]("readmodel.drifted", 1, "A row of a read model was changed behind the log's back."),
	domain.FactOf[Repaired]("readmodel.repaired", 1, "Rows of a read model were put back as the log makes them."),
}

// State is what is known of a read model, since it was last repaired.
type State struct {
	Drifted map[string]bool
}

// Stream names the aggregate of a read model.
func Stream(model string) domain.Stream {
	return domain.Stream{Account: domain.Platform, Kind: "readmodel", ID: model}
}

// Command is something that can be asked about a read model.
//
//sumtype:decl
type Command interface {
	domain.Command
	isCommand()
}

// Report says which rows differ. Those that are known are not recorded again.
type Report struct {
	domain.Authority
	Rows []Drifted
}

// Repair says that rows were put back.
type Repair struct {
	domain.Authority
	Rows int
}

func (Report) isCommand() {}
func (Repair) isCommand() {}

// Verb is the command's entry in the authority table.
func (Report) Verb() domain.Verb { return "readmodel.report" }

// Verb is the command's entry in the authority table.
func (Repair) Verb() domain.Verb { return "readmodel.repair" }

// MaxRows is how many rows one report records. A table that was truncated is
// found with fewer.
const MaxRows = 100

// Decider is the aggregate.
var Decider = domain.NewDecider("readmodel", decide, evolve)

func decide(s State, c Command) ([]Event, error) {
	switch c := c.(type) {
	case Report:
		var events []Event
		for _, row := range c.Rows {
			switch {
			case row.Table == "" || row.Kind == "":
				return nil, domain.RefuseField(domain.Missing, "rows", "A row that differs has a table, and something that was done to it.")
			case s.Drifted[row.String()]:
				continue
			}
			events = append(events, row)
		}
		return events[:min(len(events), MaxRows)], nil
	case Repair:
		switch {
		case c.Rows < 1:
			return nil, domain.RefuseField(domain.Invalid, "rows", "A repair puts back one row or more.")
		case len(s.Drifted) == 0:
			return nil, nil // nothing is known to be wrong
		}
		return []Event{Repaired{Rows: c.Rows}}, nil
	}
	return nil, domain.Refuse(domain.Invalid, "Read models do not know %s.", c.Verb())
}

// String says all of it.
func (d Drifted) String() string { return fmt.Sprintf("%s %s %s %q", d.Table, d.Kind, d.Key, d.Fields) }

func evolve(s State, e Event) State {
	switch e := e.(type) {
	case Drifted:
		known := maps.Clone(s.Drifted)
		if known == nil {
			known = map[string]bool{}
		}
		known[e.String()] = true
		s.Drifted = known
	case Repaired:
		s.Drifted = nil
	}
	return s
}
