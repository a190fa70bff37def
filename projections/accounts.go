package projections

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/account"
	"postbook.dev/postbook/eventstore"
)

// accounts shows accounts to whoever looks at the database. Nothing is decided
// by it: the column blocked stops nobody and lets nobody send.
var accounts = Model{
	Name: "accounts", Version: 1, Logs: ledgerOnly, Tables: []string{"accounts"},
	apply: func(ctx context.Context, tx pgx.Tx, entries []eventstore.Entry) error {
		return fold(ctx, tx, "accounts", "account", entries, FoldAccount)
	},
}

// AccountRow is a row of accounts.
type AccountRow struct {
	ID         string     `json:"id"`
	Name       string     `json:"name"`
	RateLimit  int        `json:"rate_limit"`
	Blocked    bool       `json:"blocked"`
	BlockedFor string     `json:"blocked_for"`
	BlockedAt  *time.Time `json:"blocked_at"`
	OpenedAt   time.Time  `json:"opened_at"`
}

// FoldAccount is what an event makes of an account's row, nil if there was none.
func FoldAccount(row *AccountRow, rec domain.Recorded) *AccountRow {
	if row == nil {
		row = &AccountRow{ID: rec.Stream.ID}
	}
	switch e := rec.Event.(type) {
	case account.Opened:
		row.Name, row.RateLimit, row.OpenedAt = text(e.Name), e.RateLimit, rec.Time
	case account.Blocked:
		at := rec.Time
		row.Blocked, row.BlockedFor, row.BlockedAt = true, text(e.Policy), &at
	case account.Unblocked:
		row.Blocked, row.BlockedFor, row.BlockedAt = false, "", nil
	}
	return row
}
