package email

import (
	"fmt"
	"time"

	"postbook.dev/postbook/domain"
)

// Desk is where the owner of a partition answers.
func Desk(partition int) string { return fmt.Sprintf("postbook.desk.%d", partition) }

// The verbs of a DeskRequest.
const (
	DeskCancel     = "cancel"
	DeskReschedule = "reschedule"
	DeskSettled    = "settled" // answered once nothing of the account is on the wire, and ledger sequence Seq is known
)

// DeskRequest asks the owner of a partition to decide about an email, or to say
// when an account's mail has come to rest.
type DeskRequest struct {
	Verb    string           `json:"verb"`
	Account string           `json:"account"`
	Email   string           `json:"email,omitempty"`
	Due     time.Time        `json:"due,omitzero"`
	By      domain.Authority `json:"by"`
	Seq     uint64           `json:"seq,omitempty"`  // what the one who asks has seen: of the ledger to settle, else of the partition's log
	Last    uint64           `json:"last,omitempty"` // of the email's last commit, if it is known to be there
}

// Command is what is to be decided about the email.
func (r DeskRequest) Command() Command {
	if r.Verb == DeskReschedule {
		return Reschedule{Authority: r.By, Due: r.Due}
	}
	return Cancel{Authority: r.By}
}

// DeskAnswer says where what was decided is in the log.
type DeskAnswer struct {
	Log string `json:"log"`
	Seq uint64 `json:"seq"`
}
