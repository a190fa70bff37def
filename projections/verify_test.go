package projections_test

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/access"
	"postbook.dev/postbook/domain/account"
	"postbook.dev/postbook/domain/apikey"
	"postbook.dev/postbook/domain/sender"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/projections"
)

// enough is as many rows as the widest table has columns, and two more.
const enough = 20

// more makes every table hold enough rows for each of its columns to be changed in
// a row of its own.
func (w world) more(t *testing.T) {
	t.Helper()
	for n := range enough {
		id := fmt.Sprint("more", n)
		if _, err := eventstore.Execute(t.Context(), w.store, account.Decider, account.Stream(id), account.Command(account.Open{Authority: operator(), Name: id})); err != nil {
			t.Fatal(err)
		}
		issue := apikey.Issue{Authority: operator(), Name: id, Permission: domain.FullAccess, Hash: id}
		if _, err := eventstore.Execute(t.Context(), w.store, apikey.Decider, apikey.Stream(id, "key-"+id), apikey.Command(issue)); err != nil {
			t.Fatal(err)
		}
		add := sender.Add{Authority: operator(), Added: sender.Added{Name: id + ".test", Region: "local", Selector: "s", PublicKey: "p", PrivateKey: domain.Sealed("k"), ReturnPath: "send", Settings: sender.Settings{TLS: sender.TLSOpportunistic}}}
		if _, err := eventstore.Execute(t.Context(), w.store, sender.Decider, sender.Stream(id, "dom-"+id), sender.Command(add)); err != nil {
			t.Fatal(err)
		}
		w.record(t, eventstore.Asked, operator(), access.Refused{Verb: "account.unblock", Code: domain.Forbidden, Message: "No."})
		by := operator()
		by.Actor = domain.Actor{Kind: domain.APIKey, ID: "key-" + id}
		w.record(t, eventstore.Access, by, access.Answered{Route: "GET /emails", Method: "GET", Path: "/emails", Status: 200})
	}
}

func (w world) record(t *testing.T, log string, by domain.Authority, e domain.Event) {
	t.Helper()
	err := w.store.Record(t.Context(), log, "acme", []eventstore.Commit{{
		Stream: domain.Stream{Account: "acme", Kind: "access", ID: uuid.NewString()}, By: by, Events: []domain.Event{e},
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
// and put back. What there is to change is asked of the database; each column is
// changed in a row of its own, so that one look has to tell them all apart.
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
		expected := map[string]int{}
		for _, table := range m.Tables {
			for _, what := range w.change(t, owner, table) {
				expected[what]++
				tried++
			}
		}
		drift := must(verifier.Verify(t.Context(), m, nil))(t)
		found := map[string]int{}
		for _, d := range drift {
			what := fmt.Sprintf("a row of %s %s", d.Table, d.Kind)
			for _, f := range d.Fields {
				what += " " + f.Field
			}
			found[what]++
		}
		if !maps.Equal(found, expected) {
			t.Errorf("%s: found\n%v\nof\n%v", m.Name, found, expected)
		}
		if err := verifier.Repair(t.Context(), m, drift); err != nil {
			t.Fatal(err)
		}
		if drift := must(verifier.Verify(t.Context(), m, nil))(t); len(drift) > 0 {
			t.Fatalf("%s, after the repair: %v", m.Name, drift)
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

// change changes each column of a table in a row of its own, deletes a row and
// inserts one, and says what is to be found of that.
func (w world) change(t *testing.T, owner *pgxpool.Pool, table string) (expected []string) {
	t.Helper()
	type column struct {
		Name, Type string
		Key        bool
	}
	rows := must(owner.Query(t.Context(), `
		select c.column_name, c.data_type, exists (
			select from information_schema.key_column_usage k
			where k.table_schema = 'public' and k.table_name = c.table_name and k.column_name = c.column_name)
		from information_schema.columns c where c.table_schema = 'public' and c.table_name = $1 order by c.ordinal_position`, table))(t)
	columns := must(pgx.CollectRows(rows, pgx.RowToStructByPos[column]))(t)
	if len(columns) < 3 || len(columns)+2 > enough {
		t.Fatalf("%s has %d columns", table, len(columns))
	}
	places := must(pgx.CollectRows(must(owner.Query(t.Context(), "select ctid::text from "+table+" order by ctid limit $1", enough))(t), pgx.RowTo[string]))(t)
	if len(places) < enough {
		t.Fatalf("%s has only %d rows", table, len(places))
	}
	one := func(statement, place string) {
		t.Helper()
		if n := must(owner.Exec(t.Context(), statement+" where ctid = $1::tid", place))(t).RowsAffected(); n != 1 {
			t.Fatalf("it changes %d rows: %s", n, statement)
		}
	}
	var names, values []string
	for n, c := range columns {
		name := pgx.Identifier{c.Name}.Sanitize()
		names = append(names, name)
		one(fmt.Sprintf("update %s set %s = %s", table, name, another(c.Name, c.Type)), places[n])
		if c.Key {
			expected = append(expected, fmt.Sprintf("a row of %s %s", table, projections.Deleted), fmt.Sprintf("a row of %s %s", table, projections.Inserted))
			name = another(c.Name, c.Type)
		} else {
			expected = append(expected, fmt.Sprintf("a row of %s %s %s", table, projections.Edited, c.Name))
		}
		values = append(values, name)
	}
	one("delete from "+table, places[len(columns)])
	one(fmt.Sprintf("insert into %s (%s) select %s from %s", table, strings.Join(names, ", "), strings.Join(values, ", "), table), places[len(columns)+1])
	return append(expected, fmt.Sprintf("a row of %s %s", table, projections.Deleted), fmt.Sprintf("a row of %s %s", table, projections.Inserted))
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
