package api

import (
	"context"
	"time"

	"github.com/google/uuid"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/access"
	"postbook.dev/postbook/eventstore"
)

// RecordRefusal puts a refused command on record, with who asked and what they
// were told. The answer does not wait for it to be on disk.
func RecordRefusal(ctx context.Context, store *eventstore.Store, of domain.Stream, c domain.Command, r *domain.Refusal, failed func(error)) {
	by := c.By()
	if by.Actor.ID == "" {
		by.Actor = domain.Actor{Kind: domain.Anonymous, ID: "anonymous"}
	}
	if by.Account == "" {
		by.Account = domain.Platform
	}
	by.Causation, by.Command = by.Command, uuid.Must(uuid.NewV7())
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	err := store.Record(ctx, eventstore.Asked, by.Account, []eventstore.Commit{{
		Stream: domain.Stream{Account: by.Account, Kind: "refusal", ID: by.Command.String()},
		By:     by,
		Events: []domain.Event{access.Refused{Verb: c.Verb(), Of: of.String(), Code: r.Code, Field: r.Field, Message: r.Message}},
	}}, false)
	if err != nil {
		failed(err)
	}
}
