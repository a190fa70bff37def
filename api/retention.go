package api

import (
	"context"
	"net/http"

	"github.com/google/uuid"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/retention"
	"postbook.dev/postbook/eventstore"
)

// Recipients tells what the log and the keyring know of an account's recipients.
type Recipients interface {
	// Generation is that of the recipient's key which is alive.
	Generation(ctx context.Context, account, recipient string) (int, error)
	// Readable is how many emails to the recipient can be read.
	Readable(ctx context.Context, account, recipient string) (int, error)
}

type retentionRequest struct {
	Recipient string `json:"recipient"` // address; empty for the whole account
	Reason    string `json:"reason"`
}

type retentionBody struct {
	Object    string `json:"object"`
	ID        string `json:"id"`
	Account   string `json:"account"`
	Recipient string `json:"recipient,omitempty"` // blind index
}

// aboutData reads what staff say about the data of which account, and whom of it.
func (a *API) aboutData(ctx context.Context, r *request) (account, recipient string, by domain.Authority, err error) {
	if account, err = pathID(r); err != nil {
		return "", "", by, err
	}
	var m retentionRequest
	if err := a.decode(ctx, r, maxBody, &m); err != nil {
		return "", "", by, err
	}
	by = r.withReason(m.Reason)
	if m.Recipient == "" || !a.opened(account) {
		return account, "", by, nil
	}
	mailbox, err := a.ParseMailbox(m.Recipient)
	if err != nil {
		return "", "", by, invalid("The `recipient` must be an email address.")
	}
	recipient, err = a.Vault.Index(ctx, account, mailbox.Addr())
	return account, recipient, by, err
}

func (a *API) opened(account string) bool {
	_, known := a.Directory.Account(account)
	return known
}

// decideRetention puts a command, and answers with the id of what it began.
func (a *API) decideRetention(ctx context.Context, account, recipient, object string, status int, c retention.Command) (answer, error) {
	recorded, err := eventstore.Execute(ctx, a.Store, retention.Decider, retention.Stream(account), c)
	if err != nil {
		return answer{}, err
	}
	body := retentionBody{Object: object, Account: account, Recipient: recipient}
	if len(recorded) > 0 {
		body.ID = recorded[0].ID.String()
		if lifted, ok := recorded[0].Event.(retention.HoldLifted); ok {
			body.ID = lifted.Hold.String()
		}
	}
	return answer{status: status, body: body, wrote: true}, a.settled(ctx, account, recorded)
}

func (a *API) placeHold(ctx context.Context, r *request) (answer, error) {
	account, recipient, by, err := a.aboutData(ctx, r)
	if err != nil {
		return answer{}, err
	}
	return a.decideRetention(ctx, account, recipient, "hold", http.StatusCreated, retention.PlaceHold{Authority: by, Known: a.opened(account), Recipient: recipient})
}

func (a *API) liftHold(ctx context.Context, r *request) (answer, error) {
	account, _, by, err := a.aboutData(ctx, r)
	if err != nil {
		return answer{}, err
	}
	hold, err := uuid.Parse(r.PathValue("hold"))
	if err != nil {
		return answer{}, notFound("Hold not found")
	}
	return a.decideRetention(ctx, account, "", "hold", http.StatusOK, retention.LiftHold{Authority: by, Hold: hold})
}

func (a *API) proposeErasure(ctx context.Context, r *request) (answer, error) {
	account, _, by, err := a.aboutData(ctx, r)
	if err != nil {
		return answer{}, err
	}
	return a.decideRetention(ctx, account, "", "erasure_proposal", http.StatusCreated, retention.ProposeErasure{Authority: by, Known: a.opened(account)})
}

// erase begins an erasure, of a recipient or, as the second of two, of an account. A
// worker carries it out; what it did is an event.
func (a *API) erase(ctx context.Context, r *request) (answer, error) {
	account, recipient, by, err := a.aboutData(ctx, r)
	if err != nil {
		return answer{}, err
	}
	known := a.opened(account)
	if recipient != "" {
		ask := retention.EraseRecipient{Authority: by, Known: known, Recipient: recipient}
		if ask.Generation, err = a.Recipients.Generation(ctx, account, recipient); err != nil {
			return answer{}, err
		}
		if ask.Emails, err = a.Recipients.Readable(ctx, account, recipient); err != nil {
			return answer{}, err
		}
		return a.decideRetention(ctx, account, recipient, "erasure", http.StatusAccepted, ask)
	}
	state, _, err := eventstore.Load(ctx, a.Store, retention.Decider, retention.Stream(account))
	if err != nil {
		return answer{}, err
	}
	if state.Proposal != nil {
		by.Approvals = []domain.Approval{state.Proposal.Approval()}
	}
	return a.decideRetention(ctx, account, "", "erasure", http.StatusAccepted, retention.EraseAccount{Authority: by, Known: known})
}
