package projections

import (
	"context"

	"github.com/jackc/pgx/v5"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/access"
	"postbook.dev/postbook/eventstore"
)

// refusals holds every command that was refused.
var refusals = Model{
	Name: "refusals", Version: 1, Tables: []string{"refusals"}, ages: map[string]string{"refusals": "created_at"},
	Logs:  func(*eventstore.Store) []string { return []string{eventstore.Asked} },
	apply: applyRefusals,
}

func applyRefusals(ctx context.Context, tx pgx.Tx, entries []eventstore.Entry) error {
	var refused []domain.Recorded
	for _, entry := range entries {
		for _, rec := range entry.Events {
			if _, ok := rec.Event.(access.Refused); ok {
				refused = append(refused, rec)
			}
		}
	}
	columns := []string{"id", "account_id", "created_at", "actor_kind", "actor_id", "via", "ip", "verb", "subject", "code", "field", "message"}
	_, err := tx.CopyFrom(ctx, pgx.Identifier{"refusals"}, columns, pgx.CopyFromSlice(len(refused), func(i int) ([]any, error) {
		rec := refused[i]
		e := rec.Event.(access.Refused) //nolint:errcheck // only these are in the list
		return texts(
			rec.ID.String(), rec.Stream.Account, rec.Time, string(rec.By.Actor.Kind), rec.By.Actor.ID, string(rec.By.Via), rec.By.IP,
			string(e.Verb), e.Of, string(e.Code), e.Field, e.Message,
		), nil
	}))
	return err
}
