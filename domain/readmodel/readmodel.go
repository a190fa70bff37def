// Package readmodel is what was found to be wrong with a read model: rows that
// were changed by another way than the projection. Nothing is decided by such a
// row, and that somebody changed it matters all the same.
package readmodel

import (
	"fmt"
	"maps"
	"slices"

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

// Cleared is a row that had drifted and is as the log makes it again: somebody put it back
// by hand, or the model was built again. If it drifts once more, that is a new finding.
type Cleared struct {
	Table  string   `json:"table"`
	Key    string   `json:"key"`
	Kind   string   `json:"kind"`             // of the drift that is over
	Fields []string `json:"fields,omitempty"` // of the drift that is over
}

// Repaired says that rows were put back as the log makes them.
type Repaired struct {
	Rows int `json:"rows"`
}

func (Drifted) isEvent()  {}
func (Cleared) isEvent()  {}
func (Repaired) isEvent() {}

// Catalogue lists the facts about read models.
var Catalogue = domain.Catalogue{
	domain.FactOf[Drifted]("readmodel.drifted", 1, "A row of a read model was changed behind the log's back."),
	domain.FactOf[Cleared]("readmodel.cleared", 1, "A row of a read model that had drifted is as the log makes it again."),
	domain.FactOf[Repaired]("readmodel.repaired", 1, "Rows of a read model were put back as the log makes them."),
}

// State is what differs from the log, as far as it is known.
type State struct {
	Drifted map[string]Drifted
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
	Some bool // differ beside these
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
		still := map[string]bool{}
		for _, row := range c.Rows {
			if row.Table == "" || row.Kind == "" {
				return nil, domain.RefuseField(domain.Missing, "rows", "A row that differs has a table, and something that was done to it.")
			}
			still[row.String()] = true
			if _, known := s.Drifted[row.String()]; !known {
				events = append(events, row)
			}
		}
		events = events[:min(len(events), MaxRows)]
		if c.Some {
			return events, nil
		}
		for _, name := range slices.Sorted(maps.Keys(s.Drifted)) {
			if !still[name] && len(events) < MaxRows {
				events = append(events, Cleared(s.Drifted[name]))
			}
		}
		return events, nil
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
			known = map[string]Drifted{}
		}
		known[e.String()] = e
		s.Drifted = known
	case Cleared:
		s.Drifted = maps.Clone(s.Drifted)
		delete(s.Drifted, Drifted(e).String())
	case Repaired:
		s.Drifted = nil
	}
	return s
}
