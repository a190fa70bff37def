package projections

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/access"
	"postbook.dev/postbook/eventstore"
)

// requests holds every request that was answered, and when each API key was used
// last.
var requests = Model{
	Name: "requests", Version: 1, Tables: []string{"requests", "api_key_usage"}, ages: map[string]string{"requests": "created_at", "api_key_usage": "last_used_at"},
	Logs:  func(*eventstore.Store) []string { return []string{eventstore.Access} },
	apply: applyRequests,
}

// Request is one request that was answered.
type Request struct {
	ID        string
	CreatedAt time.Time
	Path      string
	Method    string
	Status    int
	UserAgent string
	AccountID string
}

func applyRequests(ctx context.Context, tx pgx.Tx, entries []eventstore.Entry) error {
	var answered []domain.Recorded
	usage := map[string]*KeyUse{}
	for _, entry := range entries {
		for _, rec := range entry.Events {
			if _, ok := rec.Event.(access.Answered); !ok {
				continue
			}
			answered = append(answered, rec)
			if id, ok := UsedKey(rec); ok {
				u := usage[id]
				if u == nil {
					u = &KeyUse{}
					usage[id] = u
				}
				u.Fold(rec)
			}
		}
	}
	if len(answered) == 0 {
		return nil
	}
	columns := []string{
		"id", "account_id", "created_at", "actor_kind", "actor_id", "via", "ip", "route", "method", "path",
		"status", "error", "fields", "form", "objects", "objects_n", "user_agent", "took_us",
	}
	_, err := tx.CopyFrom(ctx, pgx.Identifier{"requests"}, columns, pgx.CopyFromSlice(len(answered), func(i int) ([]any, error) {
		rec := answered[i]
		e := rec.Event.(access.Answered) //nolint:errcheck // only these are in the list
		fields := make([]string, len(e.Fields))
		for i, f := range e.Fields {
			fields[i] = string(f)
		}
		return texts(
			rec.Stream.ID, rec.Stream.Account, rec.Time, string(rec.By.Actor.Kind), rec.By.Actor.ID, string(rec.By.Via), rec.By.IP,
			e.Route, e.Method, e.Path, e.Status, e.Error, fields, string(e.Form), append([]string{}, e.Objects...), e.Count,
			e.UserAgent, e.Took,
		), nil
	}))
	if err != nil {
		return err
	}
	return writeUsage(ctx, tx, usage)
}

// KeyUse is how an API key was used in a stretch of a log.
type KeyUse struct {
	Account string
	Last    time.Time
	Uses    int64
}

// UsedKey is the key that a request was made with, if it was made with one.
func UsedKey(rec domain.Recorded) (id string, ok bool) {
	return rec.By.Actor.ID, rec.By.Actor.Kind == domain.APIKey
}

// Fold takes in the next request that was made with the key.
func (u *KeyUse) Fold(rec domain.Recorded) {
	if u.Uses == 0 {
		u.Account = rec.Stream.Account
	}
	u.Last, u.Uses = rec.Time, u.Uses+1
}

// Then takes in a later stretch, as the statement in writeUsage does.
func (u *KeyUse) Then(later KeyUse) {
	if u.Uses == 0 {
		u.Account = later.Account
	}
	u.Last, u.Uses = later.Last, u.Uses+later.Uses
}

func writeUsage(ctx context.Context, tx pgx.Tx, usage map[string]*KeyUse) error {
	if len(usage) == 0 {
		return nil
	}
	var ids, accounts []string
	var lasts []time.Time
	for id, u := range usage {
		ids, accounts, lasts = append(ids, id), append(accounts, u.Account), append(lasts, u.Last)
	}
	_, err := tx.Exec(ctx, `
		insert into api_key_usage (key_id, account_id, last_used_at)
		select * from unnest($1::text[], $2::text[], $3::timestamptz[])
		on conflict (key_id) do update set last_used_at = excluded.last_used_at`, ids, accounts, lasts)
	return err
}

const requestColumns = "(select id, account_id, created_at, path, method, status, user_agent from requests)"

// Requests lists an account's requests.
func (t *Tables) Requests(ctx context.Context, account string, p Page) ([]Request, bool, error) {
	return list[Request](ctx, t, requestColumns, account, p)
}

// Request finds one of an account's requests.
func (t *Tables) Request(ctx context.Context, account, id string) (Request, error) {
	return one[Request](ctx, t, requestColumns, account, id)
}
