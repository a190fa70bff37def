package projections

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

var (
	// ErrNotFound says that there is no such row, or that it is another account's.
	ErrNotFound = errors.New("projections: not found")
	// ErrBadCursor says that a page begins at a row that is not there.
	ErrBadCursor = errors.New("projections: the cursor names no item of this list")
	// ErrUnavailable says that the database cannot be asked.
	ErrUnavailable = errors.New("projections: the database is not available")
	// ErrLagging says that the read models do not show yet what was waited for.
	ErrLagging = errors.New("projections: the read models are behind")
)

// Tables reads the read models. It may be used from many goroutines.
type Tables struct{ pool *pgxpool.Pool }

// NewTables reads through a pool, whose user needs no more than to read.
func NewTables(pool *pgxpool.Pool) *Tables { return &Tables{pool} }

// Ping asks the database for a sign of life.
func (t *Tables) Ping(ctx context.Context) error {
	if err := t.pool.Ping(ctx); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return nil
}

// Await returns when a read model has read a log up to a sequence, or ErrLagging
// at the context's deadline.
func (t *Tables) Await(ctx context.Context, model, log string, seq uint64) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 20*time.Millisecond) {
		var behind bool
		err := t.pool.QueryRow(ctx, "select count(*) = 0 or min(seq) < $3 from checkpoints where model = $1 and log = $2", model, log, seq).Scan(&behind)
		switch {
		case errors.Is(ctx.Err(), context.DeadlineExceeded):
			return fmt.Errorf("%w: %s has not read %s up to %d", ErrLagging, model, log, seq)
		case err != nil:
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		case !behind:
			return nil
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}

// Page is a stretch of a list, which has the newest items first.
type Page struct {
	Limit         int    // 0 is all
	After, Before string // the id of the item that it comes after or before; at most one of the two
}

// list reads a page of an account's rows from one table, or from a query in
// parentheses that has the columns id, account_id and created_at.
func list[T any](ctx context.Context, t *Tables, from, account string, p Page) (items []T, more bool, err error) {
	cursor, compare, order := p.After, "<", "desc"
	if p.Before != "" {
		cursor, compare, order = p.Before, ">", "asc"
	}
	query := "select * from " + from + " x where account_id = $1"
	args := []any{account}
	if cursor != "" {
		var known bool
		if err := t.pool.QueryRow(ctx, "select exists (select from "+from+" x where account_id = $1 and id = $2)", account, cursor).Scan(&known); err != nil {
			return nil, false, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		if !known {
			return nil, false, ErrBadCursor
		}
		query += " and (created_at, id) " + compare + " (select created_at, id from " + from + " y where account_id = $1 and id = $2)"
		args = append(args, cursor)
	}
	query += " order by created_at " + order + ", id " + order
	if p.Limit > 0 {
		query += fmt.Sprintf(" limit %d", p.Limit+1)
	}
	items, err = collect[T](ctx, t, query, args...)
	if p.Limit > 0 && len(items) > p.Limit {
		items, more = items[:p.Limit], true
	}
	if p.Before != "" {
		slices.Reverse(items)
	}
	return items, more, err
}

// one reads an account's row by its id.
func one[T any](ctx context.Context, t *Tables, from, account, id string) (T, error) {
	var item T
	items, err := collect[T](ctx, t, "select * from "+from+" x where account_id = $1 and id = $2", account, id)
	if err != nil {
		return item, err
	}
	if len(items) == 0 {
		return item, ErrNotFound
	}
	return items[0], nil
}

func collect[T any](ctx context.Context, t *Tables, query string, args ...any) ([]T, error) {
	rows, err := t.pool.Query(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	items, err := pgx.CollectRows(rows, pgx.RowToStructByName[T])
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return items, nil
}
