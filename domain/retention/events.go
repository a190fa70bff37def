package retention

import (
	"time"

	"github.com/google/uuid"

	"postbook.dev/postbook/domain"
)

// Event is a fact about what is kept of an account's data.
//
//sumtype:decl
type Event interface{ isEvent() }

// HoldPlaced keeps data from being erased.
type HoldPlaced struct {
	Hold      uuid.UUID `json:"hold"`
	Recipient string    `json:"recipient,omitempty"` // blind index; empty is the whole account
}

// HoldLifted ends a hold.
type HoldLifted struct {
	Hold      uuid.UUID `json:"hold"`
	Recipient string    `json:"recipient,omitempty"`
}

// Proposed is the first of the two people of staff that erasing an account takes.
type Proposed struct {
	Proposal uuid.UUID    `json:"proposal"` // what the agreement has to name
	By       domain.Actor `json:"by"`
	At       time.Time    `json:"at"`
	Reason   string       `json:"reason"`
}

// Requested is an erasure that will be carried out, whatever is interrupted.
type Requested struct {
	Erasure    uuid.UUID `json:"erasure"`
	Recipient  string    `json:"recipient,omitempty"`  // blind index; empty is the whole account
	Generation int       `json:"generation,omitempty"` // of the recipient's key, up to which they are destroyed
}

// Erased says that keys are destroyed, and what nobody can read any more.
type Erased struct {
	Erasure   uuid.UUID `json:"erasure"`
	Recipient string    `json:"recipient,omitempty"`
	Keys      int       `json:"keys"`            // that this destroyed; an account's keyset counts as one
	Emails    int       `json:"emails"`          // in the log that concern them and that nobody can read
	Inbox     int       `json:"inbox,omitempty"` // messages that were removed from the sandbox
}

func (HoldPlaced) isEvent() {}
func (HoldLifted) isEvent() {}
func (Proposed) isEvent()   {}
func (Requested) isEvent()  {}
func (Erased) isEvent()     {}

// Catalogue lists the facts about what is kept.
var Catalogue = domain.Catalogue{
	domain.FactOf[HoldPlaced]("retention.hold_placed", 1, "A legal hold began to keep an account's or a recipient's data from being erased."),
	domain.FactOf[HoldLifted]("retention.hold_lifted", 1, "A legal hold ended."),
	domain.FactOf[Proposed]("retention.erasure_proposed", 1, "A member of staff proposed that an account be erased."),
	domain.FactOf[Requested]("retention.erasure_requested", 1, "An account or a recipient of it is to be erased: its keys will be destroyed."),
	domain.FactOf[Erased]("retention.erased", 1, "The keys of an account or of a recipient were destroyed, and what they sealed is closed for ever."),
}
