// Package backup is what is known of the copies that were made of the whole
// platform, and of those that were put back: a copy leaves the places where access
// is on record, and one that was put back ends whatever came after it.
package backup

import (
	"time"

	"postbook.dev/postbook/domain"
)

// Event is a fact about backups.
//
//sumtype:decl
type Event interface{ isEvent() }

// Made says that everything was copied.
type Made struct {
	Name     string `json:"name"`
	Manifest string `json:"manifest"` // SHA-256 of what lists the backup's files, hex
	Heads    []Head `json:"heads"`
	Entries  uint64 `json:"entries"`
	Bytes    uint64 `json:"bytes"` // of the backup's files
	Keys     bool   `json:"keys"`  // whether it holds the keys that open it
}

// Head is how far the seal of a log went.
type Head struct {
	Log  string `json:"log"`
	Size int64  `json:"size"`
	Root string `json:"root"` // base64
}

// Restored says that the log was put back from a backup. What was recorded after
// that one was made is not in it.
type Restored struct {
	Name     string    `json:"name"`
	Manifest string    `json:"manifest"`
	Made     time.Time `json:"made"`
}

func (Made) isEvent()     {}
func (Restored) isEvent() {}

// Catalogue lists the facts about backups.
var Catalogue = domain.Catalogue{
	domain.FactOf[Made]("backup.made", 1, "Everything was copied into a backup."),
	domain.FactOf[Restored]("backup.restored", 1, "The log was put back from a backup; what came after that was made is not in it."),
}

// State is the manifests of the backup that was made last, and of the one that was
// put back last.
type State struct{ Made, Restored string }

// Stream names the aggregate.
func Stream() domain.Stream {
	return domain.Stream{Account: domain.Platform, Kind: "backup", ID: "all"}
}

// Command is something that can be asked about backups.
//
//sumtype:decl
type Command interface {
	domain.Command
	isCommand()
}

// Record puts on record that a backup was made.
type Record struct {
	domain.Authority
	Made Made
}

// Restore puts on record that one was put back.
type Restore struct {
	domain.Authority
	Restored Restored
}

func (Record) isCommand()  {}
func (Restore) isCommand() {}

// Verb is the command's entry in the authority table.
func (Record) Verb() domain.Verb { return "backup.record" }

// Verb is the command's entry in the authority table.
func (Restore) Verb() domain.Verb { return "backup.restore" }

// Decider is the aggregate.
var Decider = domain.NewDecider("backup", decide, evolve)

func decide(s State, c Command) ([]Event, error) {
	switch c := c.(type) {
	case Record:
		switch {
		case c.Made.Name == "" || c.Made.Manifest == "":
			return nil, domain.RefuseField(domain.Missing, "name", "A backup has a name, and a list of its files.")
		case s.Made == c.Made.Manifest:
			return nil, nil
		}
		return []Event{c.Made}, nil
	case Restore:
		switch {
		case c.Restored.Name == "" || c.Restored.Manifest == "":
			return nil, domain.RefuseField(domain.Missing, "name", "A backup has a name, and a list of its files.")
		case s.Restored == c.Restored.Manifest:
			return nil, nil
		}
		return []Event{c.Restored}, nil
	}
	return nil, domain.Refuse(domain.Invalid, "Backups do not know %s.", c.Verb())
}

func evolve(s State, e Event) State {
	switch e := e.(type) {
	case Made:
		s.Made = e.Manifest
	case Restored:
		s.Restored = e.Manifest
	}
	return s
}
