package projections

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/eventstore"
)

// fold is how the models of the ledger are written: the rows that a batch is
// about are read at once, changed in memory, and written at once. change returns
// nil for a row that is to be deleted, and gets nil for one that is not there.
func fold[T any](ctx context.Context, tx pgx.Tx, table, kind string, entries []eventstore.Entry, change func(row *T, rec domain.Recorded) *T) error {
	var about []domain.Recorded
	rows := map[string]*T{}
	for _, e := range entries {
		for _, rec := range e.Events {
			if rec.Stream.Kind == kind {
				about = append(about, rec)
				rows[rec.Stream.ID] = nil
			}
		}
	}
	if len(about) == 0 {
		return nil
	}
	ids := make([]string, 0, len(rows))
	for id := range rows {
		ids = append(ids, id)
	}
	held, err := tx.Query(ctx, "select id, to_jsonb(x) from "+table+" x where id = any($1)", ids)
	if err != nil {
		return err
	}
	var id string
	var data []byte
	_, err = pgx.ForEachRow(held, []any{&id, &data}, func() error {
		row := new(T)
		rows[id] = row
		return json.Unmarshal(data, row)
	})
	if err != nil {
		return fmt.Errorf("read rows of %s: %w", table, err)
	}
	for _, rec := range about {
		rows[rec.Stream.ID] = change(rows[rec.Stream.ID], rec)
	}
	kept := make([]*T, 0, len(rows)) // nil would be written as null, which is no list
	for _, row := range rows {
		if row != nil {
			kept = append(kept, row)
		}
	}
	body, err := json.Marshal(kept)
	if err != nil {
		return fmt.Errorf("write rows of %s: %w", table, err)
	}
	if _, err := tx.Exec(ctx, "delete from "+table+" where id = any($1)", ids); err != nil {
		return err
	}
	_, err = tx.Exec(ctx, "insert into "+table+" select * from jsonb_populate_recordset(null::"+table+", $1::jsonb)", string(body))
	return err
}

// text keeps what a database text can hold: no NUL.
func text(s string) string { return strings.ReplaceAll(s, "\x00", "\uFFFD") }

// jsonText does that with JSON. A backslash before a u stays one.
var jsonText = strings.NewReplacer(`\\`, `\\`, `\u0000`, `\ufffd`)

// texts does it with the texts of a row.
func texts(row ...any) []any {
	for i, v := range row {
		switch v := v.(type) {
		case string:
			row[i] = text(v)
		case []string:
			for n, s := range v {
				v[n] = text(s)
			}
		}
	}
	return row
}
