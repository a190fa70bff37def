package projections_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/access"
	"postbook.dev/postbook/domain/sender"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/projections"
)

// more puts something into the tables that fill leaves empty.
func (w world) more(t *testing.T) {
	t.Helper()
	add := sender.Add{Authority: operator(), Added: sender.Added{Name: "acme.test", Region: "local", Selector: "s", PublicKey: "p", PrivateKey: domain.Sealed("k"), ReturnPath: "send", Settings: sender.Settings{TLS: sender.TLSOpportunistic}}}
	if _, err := eventstore.Execute(t.Context(), w.store, sender.Decider, sender.Stream("acme", "dom1"), sender.Command(add)); err != nil {
		t.Fatal(err)
	}
	by := operator()
	err := w.store.Record(t.Context(), eventstore.Asked, "acme", []eventstore.Commit{{
		Stream: domain.Stream{Account: "acme", Kind: "access", ID: uuid.NewString()}, By: by,
		Events: []domain.Event{access.Refused{Verb: "account.unblock", Code: domain.Forbidden, Message: "No."}},
	}}, true)
	if err != nil {
		t.Fatal(err)
	}
}

// another is an expression for a value that a column does not have.
func another(column, kind string) string {
	c := pgx.Identifier{column}.Sanitize()
	switch kind {
	case "text":
		return c + " || 'x'"
	case "bool", "boolean":
		return "not " + c
	case "integer", "bigint":
		return c + " + 1"
	case "timestamp with time zone":
		return "coalesce(" + c + ", now()) + interval '1 microsecond'"
	case "bytea":
		return c + ` || '\x00'::bytea`
	case "jsonb":
		return `'{"edited": true}'::jsonb`
	case "ARRAY":
		return c + " || 'x'::text"
	}
	panic("no other value is known of the type " + kind)
}

// Whatever is changed in whichever column of whichever read model is found, named,
// and put back. What there is to change is asked of the database.
func TestEveryChangeBehindTheLogIsFound(t *testing.T) {
	w := newWorld(t)
	w.more(t)
	defer w.run(t)()
	want := w.dump(t)
	owner := must(pgxpool.New(t.Context(), w.db.Owner))(t)
	defer owner.Close()
	verifier := w.rebuilder(t)
	tried := 0
	for _, m := range projections.Models {
		if drift := must(verifier.Verify(t.Context(), m, nil))(t); len(drift) > 0 {
			t.Fatalf("before anything was changed: %v", drift)
		}
		check := func(what, statement string, found func(projections.Drift) bool) {
			t.Helper()
			if n := must(owner.Exec(t.Context(), statement))(t).RowsAffected(); n != 1 {
				t.Fatalf("%s: it changes %d rows: %s", what, n, statement)
			}
			drift := must(verifier.Verify(t.Context(), m, nil))(t)
			if len(drift) == 0 || !found(drift[0]) {
				t.Errorf("%s: found %v", what, drift)
			}
			if err := verifier.Repair(t.Context(), m, drift); err != nil {
				t.Fatal(err)
			}
			if drift := must(verifier.Verify(t.Context(), m, nil))(t); len(drift) > 0 {
				t.Fatalf("%s: after the repair: %v", what, drift)
			}
			tried++
		}
		for _, table := range m.Tables {
			rows := must(owner.Query(t.Context(), `
				select c.column_name, c.data_type, exists (
					select from information_schema.key_column_usage k
					where k.table_schema = 'public' and k.table_name = c.table_name and k.column_name = c.column_name)
				from information_schema.columns c where c.table_schema = 'public' and c.table_name = $1 order by c.ordinal_position`, table))(t)
			type column struct {
				Name, Type string
				Key        bool
			}
			columns := must(pgx.CollectRows(rows, pgx.RowToStructByPos[column]))(t)
			if len(columns) < 3 {
				t.Fatalf("%s has %d columns", table, len(columns))
			}
			first := "ctid = (select min(ctid) from " + table + ")"
			for _, c := range columns {
				check(table+"."+c.Name, fmt.Sprintf("update %s set %s = %s where %s", table, pgx.Identifier{c.Name}.Sanitize(), another(c.Name, c.Type), first), func(d projections.Drift) bool {
					if c.Key {
						return d.Kind == projections.Deleted || d.Kind == projections.Inserted
					}
					return d.Kind == projections.Edited && len(d.Fields) == 1 && d.Fields[0].Field == c.Name && d.Table == table
				})
			}
			check(table+", a row deleted", "delete from "+table+" where "+first, func(d projections.Drift) bool { return d.Kind == projections.Deleted && d.Table == table })
			var names, values []string
			for _, c := range columns {
				name := pgx.Identifier{c.Name}.Sanitize()
				names = append(names, name)
				if c.Key {
					name = another(c.Name, c.Type)
				}
				values = append(values, name)
			}
			insert := fmt.Sprintf("insert into %s (%s) select %s from %s where %s", table, strings.Join(names, ", "), strings.Join(values, ", "), table, first)
			check(table+", a row inserted", insert, func(d projections.Drift) bool { return d.Kind == projections.Inserted && d.Table == table })
		}
	}
	if tried < 60 {
		t.Errorf("only %d changes were tried", tried)
	}
	t.Logf("%d changes were found", tried)
	if got := w.dump(t); got != want {
		t.Errorf("after all repairs:\n%.1500s\nwant\n%.1500s", got, want)
	}
}

// A model is verified while it grows, without false alarms; a checkpoint that was
// moved is one.
func TestVerifyWhileTheLogGrows(t *testing.T) {
	w := newWorld(t)
	defer w.run(t)()
	verifier := w.rebuilder(t)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for range 4 {
			w.fill(t)
		}
	}()
	for growing := true; growing; {
		select {
		case <-ended:
			growing = false
		case <-time.After(time.Millisecond):
		}
		for _, m := range projections.Models {
			if drift, err := verifier.Verify(t.Context(), m, nil); err != nil || len(drift) > 0 {
				t.Fatalf("%v, %v", drift, err)
			}
		}
	}
	w.await(t)
	emails := must(projections.Find("emails"))(t)
	if err := verifier.Rebuild(t.Context(), emails, nil); err != nil {
		t.Fatal(err)
	}
	if drift, err := verifier.Verify(t.Context(), emails, nil); err != nil || len(drift) > 0 {
		t.Errorf("after it was built again: %v, %v", drift, err)
	}
	must(w.writer.Exec(t.Context(), "update checkpoints set seq = seq + 1000 where model = 'emails' and log = 'MAIL_00'"))(t)
	if drift, err := verifier.Verify(t.Context(), emails, nil); err != nil || len(drift) != 1 || drift[0].Table != "checkpoints" {
		t.Errorf("after its checkpoint was moved: %v, %v", drift, err)
	}
}
