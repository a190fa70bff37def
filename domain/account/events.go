package account

import (
	"time"

	"github.com/google/uuid"

	"postbook.dev/postbook/domain"
)

// Event is a fact about an account.
//
//sumtype:decl
type Event interface{ isEvent() }

// Opened starts an account.
type Opened struct {
	Name      string `json:"name"`
	RateLimit int    `json:"rate_limit,omitempty"` // requests a second; 0 leaves it to the platform
}

// Blocked stops all sending of an account, at once.
type Blocked struct {
	Policy   string `json:"policy"`   // the rule that was broken, "spam"
	Evidence string `json:"evidence"` // what was seen, with its numbers
}

// UnblockRequested is the first of the two people that unblocking takes.
type UnblockRequested struct {
	Request uuid.UUID    `json:"request"` // what the approval has to name
	By      domain.Actor `json:"by"`
	At      time.Time    `json:"at"`
	Reason  string       `json:"reason"`
}

// RequestWithdrawn takes a request for unblocking back.
type RequestWithdrawn struct {
	Request uuid.UUID `json:"request"`
}

// Unblocked lets an account send again.
type Unblocked struct {
	Request    uuid.UUID    `json:"request"`
	AskedBy    domain.Actor `json:"asked_by"`
	AskedWhy   string       `json:"asked_why"`
	ApprovedBy domain.Actor `json:"approved_by"`
}

func (Opened) isEvent()           {}
func (Blocked) isEvent()          {}
func (UnblockRequested) isEvent() {}
func (RequestWithdrawn) isEvent() {}
func (Unblocked) isEvent()        {}

// Catalogue lists the facts that an account can record.
var Catalogue = domain.Catalogue{
	domain.FactOf[Opened]("account.opened", 1, "An account was opened."),
	domain.FactOf[Blocked]("account.blocked", 1, "All sending of an account was stopped."),
	domain.FactOf[UnblockRequested]("account.unblock_requested", 1, "A member of staff asked that an account may send again."),
	domain.FactOf[RequestWithdrawn]("account.request_withdrawn", 1, "A request to unblock an account was taken back."),
	domain.FactOf[Unblocked]("account.unblocked", 1, "A second member of staff approved a request, and the account may send again."),
}
