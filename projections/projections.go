// Package projections keeps the read models: tables that are folded from the
// log, and that answer what the API and the console ask. They decide nothing, and
// can be deleted at any time.
package projections

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postbook.dev/postbook/eventstore"
)

// A Model is a read model: tables that are written from some logs.
type Model struct {
	Name    string
	Version int // a model that has another version than its tables is built again
	Logs    func(*eventstore.Store) []string
	Tables  []string

	// ages are the columns that say of when a row is, of tables whose logs forget their
	// oldest entries.
	ages map[string]string

	// apply writes the entries, each of which it gets once and in its log's
	// order. What it writes comes from the entries alone, never from a clock, so
	// that building a model again gives the same rows.
	apply func(ctx context.Context, tx pgx.Tx, entries []eventstore.Entry) error
}

// Models are all read models.
var Models = []Model{accounts, domains, apiKeys, emails, requests, refusals}

// Find returns the read model of a name.
func Find(name string) (Model, error) {
	for _, m := range Models {
		if m.Name == name {
			return m, nil
		}
	}
	return Model{}, fmt.Errorf("projections: there is no read model called %q", name)
}

func ledgerOnly(*eventstore.Store) []string { return []string{eventstore.Ledger} }

// Connect opens a pool for writing read models. A commit does not wait for the
// disk: the checkpoint is lost with the rows, and the log has both.
func Connect(ctx context.Context, url string, with ...func(*pgxpool.Config)) (*pgxpool.Pool, error) {
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		// pgx's own error repeats the URL, which holds a password.
		return nil, errors.New("projections: the database URL cannot be read")
	}
	cfg.ConnConfig.RuntimeParams["synchronous_commit"] = "off"
	cfg.ConnConfig.RuntimeParams["application_name"] = "postbook projections"
	cfg.MaxConns = max(cfg.MaxConns, 8)
	for _, change := range with {
		change(cfg)
	}
	return pgxpool.NewWithConfig(ctx, cfg)
}
