package workers

import (
	"github.com/ThreeDotsLabs/watermill/message"

	"postbook.dev/postbook/domain/account"
	"postbook.dev/postbook/domain/apikey"
	"postbook.dev/postbook/domain/sender"
	"postbook.dev/postbook/eventstore"
)

// notices tells the operator what people should know soon, one line in the
// program's log each. Names of people and addresses are in none of them.
type notices struct{ RouterConfig }

func (n *notices) event(m *message.Message) error {
	entry, err := n.Store.Entry(m)
	if err != nil {
		return err
	}
	if entry.Err != nil {
		return entry.Err
	}
	for _, rec := range entry.Events {
		log := n.Log.With("event", rec.ID, "account", rec.Stream.Account, "about", rec.Stream.ID, "actor", rec.By.Actor.ID, "actor_kind", rec.By.Actor.Kind, "via", rec.By.Via)
		switch e := rec.Event.(type) {
		case account.Blocked:
			log.Warn("an account was blocked", "policy", e.Policy)
		case account.UnblockRequested:
			log.Warn("somebody asked to unblock an account", "request", e.Request)
		case account.Unblocked:
			log.Warn("an account was unblocked", "asked_by", e.AskedBy.ID, "approved_by", e.ApprovedBy.ID)
		case apikey.Issued:
			log.Info("an API key was made", "permission", e.Permission)
		case apikey.Revoked:
			log.Info("an API key was ended")
		case sender.Verified:
			log.Info("a domain was verified")
		case sender.Lapsed:
			log.Warn("a verified domain's records could not be found")
		case sender.Failed:
			log.Warn("a domain's records were not found in time")
		}
	}
	return nil
}

func (n *notices) deadLetter(m *message.Message) error {
	n.Log.Error("a worker gave up on an event", "at", m.Metadata.Get(eventstore.MetaSubject), "seq", m.Metadata.Get(eventstore.MetaSeq), "reason", m.Metadata.Get("Postbook-reason_poisoned"))
	return nil
}
