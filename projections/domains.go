package projections

import (
	"context"
	"encoding/json"
	"time"

	"github.com/jackc/pgx/v5"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/sender"
	"postbook.dev/postbook/eventstore"
)

var domains = Model{
	Name: "domains", Version: 1, Logs: ledgerOnly, Tables: []string{"domains"},
	apply: func(ctx context.Context, tx pgx.Tx, entries []eventstore.Entry) error {
		return fold(ctx, tx, "domains", "sender", entries, FoldDomain)
	},
}

// Domain is a sender domain that has not been removed.
type Domain struct {
	ID         string          `json:"id"`
	AccountID  string          `json:"account_id"`
	Name       string          `json:"name"`
	Status     string          `json:"status"` // a sender.Status
	CreatedAt  time.Time       `json:"created_at"`
	Region     string          `json:"region"`
	ReturnPath string          `json:"return_path"`
	Selector   string          `json:"selector"`
	PublicKey  string          `json:"public_key"`
	Vouched    bool            `json:"vouched"`
	Results    json.RawMessage `json:"results"`  // []sender.Result; null before the first check
	Settings   json.RawMessage `json:"settings"` // sender.Settings
}

// FoldDomain is what an event makes of a domain's row, nil if there is none.
func FoldDomain(row *Domain, rec domain.Recorded) *Domain {
	if added, ok := rec.Event.(sender.Added); ok {
		return &Domain{
			ID: rec.Stream.ID, AccountID: rec.Stream.Account, Name: text(added.Name), Status: string(sender.NotStarted), CreatedAt: rec.Time,
			Region: text(added.Region), ReturnPath: text(added.ReturnPath), Selector: text(added.Selector), PublicKey: text(added.PublicKey),
			Settings: mustJSON(added.Settings),
		}
	}
	if row == nil {
		return nil
	}
	switch e := rec.Event.(type) {
	case sender.Changed:
		row.Settings = mustJSON(e.Settings)
	case sender.Checked:
		row.Results = mustJSON(e.Results)
	case sender.Removed:
		return nil
	case sender.Event:
		state := sender.State{Status: sender.Status(row.Status), Vouched: row.Vouched}
		state = sender.Decider.Evolve(state, e)
		row.Status, row.Vouched = string(state.Status), state.Vouched
	}
	return row
}

// mustJSON writes a struct of plain fields, which cannot fail, as the database can hold it.
func mustJSON(v any) json.RawMessage {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return json.RawMessage(jsonText.Replace(string(data)))
}

// Domains lists an account's domains.
func (t *Tables) Domains(ctx context.Context, account string, p Page) ([]Domain, bool, error) {
	return list[Domain](ctx, t, "domains", account, p)
}

// Domain finds one of an account's domains.
func (t *Tables) Domain(ctx context.Context, account, id string) (Domain, error) {
	return one[Domain](ctx, t, "domains", account, id)
}
