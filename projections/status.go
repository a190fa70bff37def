package projections

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postbook.dev/postbook/eventstore"
)

// State of a read model on a log.
type State struct {
	Model  string        `json:"model"`
	Log    string        `json:"log"`
	Seq    uint64        `json:"seq"`    // of the last entry that was applied
	Lag    uint64        `json:"lag"`    // entries that were not
	Behind time.Duration `json:"behind"` // nanoseconds since the first of those was recorded
	State  string        `json:"state"`  // Running, or Stopped by an entry that cannot be applied
	Error  string        `json:"error,omitempty"`
	Kept   bool          `json:"kept,omitempty"` // its tables from before it was built again are there until that is confirmed
}

// What a read model does on a log.
const (
	Running = "running"
	Stopped = "stopped"
)

// Status says how far each read model is.
func Status(ctx context.Context, pool *pgxpool.Pool, store *eventstore.Store, now time.Time) ([]State, error) {
	rows, err := pool.Query(ctx, "select model, log, seq, error from checkpoints order by model, log")
	if err != nil {
		return nil, fmt.Errorf("projections: read the checkpoints: %w", err)
	}
	states, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (State, error) {
		s := State{State: Running}
		err := row.Scan(&s.Model, &s.Log, &s.Seq, &s.Error)
		return s, err
	})
	if err != nil {
		return nil, fmt.Errorf("projections: read the checkpoints: %w", err)
	}
	kept, err := keptTables(ctx, pool)
	if err != nil {
		return nil, err
	}
	for i := range states {
		m, err := Find(states[i].Model)
		states[i].Kept = err == nil && slices.ContainsFunc(m.Tables, func(table string) bool { return slices.Contains(kept, table) })
		if err := states[i].measure(ctx, store, now); err != nil {
			return nil, err
		}
	}
	return states, nil
}

// keptTables names the tables that rebuilt read models had before.
func keptTables(ctx context.Context, pool *pgxpool.Pool) ([]string, error) {
	rows, err := pool.Query(ctx, "select tablename from pg_tables where schemaname = $1", retired)
	if err != nil {
		return nil, fmt.Errorf("projections: look for tables that were replaced: %w", err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("projections: look for tables that were replaced: %w", err)
	}
	return names, nil
}

func (s *State) measure(ctx context.Context, store *eventstore.Store, now time.Time) error {
	if s.Error != "" {
		s.State = Stopped
	}
	head, err := store.Head(ctx, s.Log)
	if err != nil {
		return err
	}
	s.Lag = head - min(s.Seq, head)
	if s.Lag == 0 {
		return nil
	}
	// Where entries have a bounded age, the next one may be gone.
	next, err := store.Read(ctx, s.Log, s.Seq+1)
	if errors.Is(err, eventstore.ErrNoEntry) {
		return nil
	}
	if err != nil {
		return err
	}
	s.Behind = max(now.Sub(next.Time), 0)
	return nil
}
