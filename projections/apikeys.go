package projections

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/apikey"
	"postbook.dev/postbook/eventstore"
)

var apiKeys = Model{
	Name: "api_keys", Version: 1, Logs: ledgerOnly, Tables: []string{"api_keys"},
	apply: func(ctx context.Context, tx pgx.Tx, entries []eventstore.Entry) error {
		return fold(ctx, tx, "api_keys", "apikey", entries, FoldAPIKey)
	},
}

// APIKeyRow is a row of api_keys.
type APIKeyRow struct {
	ID         string    `json:"id"`
	AccountID  string    `json:"account_id"`
	Name       string    `json:"name"`
	Permission string    `json:"permission"`
	SenderID   string    `json:"sender_id"`
	Hint       string    `json:"hint"`
	CreatedAt  time.Time `json:"created_at"`
}

// FoldAPIKey is what an event makes of a key's row, nil if there is none.
func FoldAPIKey(row *APIKeyRow, rec domain.Recorded) *APIKeyRow {
	switch e := rec.Event.(type) {
	case apikey.Issued:
		return &APIKeyRow{rec.Stream.ID, rec.Stream.Account, text(e.Name), text(string(e.Permission)), text(e.Sender), text(e.Hint), rec.Time}
	case apikey.Revoked:
		return nil
	}
	return row
}

// APIKey is a key that has not been revoked.
type APIKey struct {
	ID         string
	AccountID  string
	Name       string
	CreatedAt  time.Time
	LastUsedAt *time.Time
}

// APIKeys lists an account's keys.
func (t *Tables) APIKeys(ctx context.Context, account string, p Page) ([]APIKey, bool, error) {
	const used = `(select k.id, k.account_id, k.name, k.created_at, u.last_used_at from api_keys k left join api_key_usage u on u.key_id = k.id)`
	return list[APIKey](ctx, t, used, account, p)
}
