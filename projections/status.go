package projections

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postbook.dev/postbook/eventstore"
)

// State of a read model on a log.
type State struct {
	Model string `json:"model"`
	Log   string `json:"log"`
	Seq   uint64 `json:"seq"`   // of the last entry that was applied
	Lag   uint64 `json:"lag"`   // entries that were not
	State string `json:"state"` // "running", or "stopped" by an entry that cannot be applied
	Error string `json:"error,omitempty"`
}

// Status says how far each read model is.
func Status(ctx context.Context, pool *pgxpool.Pool, store *eventstore.Store) ([]State, error) {
	rows, err := pool.Query(ctx, "select model, log, seq, error from checkpoints order by model, log")
	if err != nil {
		return nil, fmt.Errorf("projections: read the checkpoints: %w", err)
	}
	states, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (State, error) {
		s := State{State: "running"}
		err := row.Scan(&s.Model, &s.Log, &s.Seq, &s.Error)
		return s, err
	})
	if err != nil {
		return nil, fmt.Errorf("projections: read the checkpoints: %w", err)
	}
	for i, s := range states {
		head, err := store.Head(ctx, s.Log)
		if err != nil {
			return nil, err
		}
		states[i].Lag = head - min(s.Seq, head)
		if s.Error != "" {
			states[i].State = "stopped"
		}
	}
	return states, nil
}
