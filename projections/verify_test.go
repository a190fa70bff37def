package projections_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/access"
	"postbook.dev/postbook/domain/account"
	"postbook.dev/postbook/domain/apikey"
	"postbook.dev/postbook/domain/sender"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/internal/testenv"
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

// Whoever makes the same edit in the replay that is kept is found by one that begins
// at the first entry; and a replay is begun anew where the live model's checkpoints
// are gone, instead of failing ever after.
func TestAnEditOfTheReplayIsFoundAnew(t *testing.T) {
	w := newWorld(t)
	stop := w.run(t)
	owner := must(pgxpool.New(t.Context(), w.db.Owner))(t)
	defer owner.Close()
	verifier, accounts := w.rebuilder(t), must(projections.Find("accounts"))(t)
	verified := func() []projections.Drift {
		t.Helper()
		return must(verifier.Verify(t.Context(), accounts, nil))(t)
	}
	if drift := verified(); len(drift) > 0 {
		t.Fatalf("before anything was changed: %v", drift)
	}
	for _, schema := range []string{"public", "verifying_accounts"} {
		must(owner.Exec(t.Context(), "update "+schema+".accounts set blocked = not blocked"))(t)
	}
	if drift := verified(); len(drift) > 0 {
		t.Logf("found already: %v", drift)
	}
	if err := verifier.Anew(t.Context(), accounts); err != nil {
		t.Fatal(err)
	}
	drift := verified()
	if len(drift) != 1 || drift[0].Kind != projections.Edited || drift[0].Fields[0].Field != "blocked" {
		t.Fatalf("found anew: %v", drift)
	}
	if err := verifier.Repair(t.Context(), accounts, drift); err != nil {
		t.Fatal(err)
	}

	stop()
	must(owner.Exec(t.Context(), "delete from checkpoints where model = 'accounts'; delete from accounts"))(t)
	if drift := verified(); len(drift) > 0 {
		t.Errorf("with nothing projected: %v", drift)
	}
	defer w.run(t)()
	if drift := verified(); len(drift) > 0 {
		t.Errorf("after it was projected again: %v", drift)
	}
}

// A model that is built again and again while it grows and is verified is never said
// to have been changed, and nobody waits for the other for good.
func TestVerifyWhileAModelIsBuiltAgain(t *testing.T) {
	w := newWorld(t)
	defer w.run(t)()
	emails := must(projections.Find("emails"))(t)
	builder, verifier := w.rebuilder(t), w.rebuilder(t)
	working, stop := context.WithCancel(t.Context())
	var others sync.WaitGroup
	defer others.Wait()
	defer stop()
	others.Go(func() {
		for working.Err() == nil {
			if err := builder.Rebuild(working, emails, nil); err != nil && working.Err() == nil {
				t.Error(err)
				return
			}
		}
	})
	others.Go(func() {
		for working.Err() == nil {
			w.accept(t, uuid.Must(uuid.NewV7()))
		}
	})
	for range 25 {
		if drift, err := verifier.Verify(t.Context(), emails, nil); err != nil || len(drift) > 0 {
			t.Fatalf("%v, %v", drift, err)
		}
	}
}

// Whoever drops a table's primary key, so that rows can no longer be told apart, does not
// escape: that is a finding itself, beside those about rows, and is put back as well.
func TestALostPrimaryKeyHidesNothing(t *testing.T) {
	w := newWorld(t)
	defer w.run(t)()
	want := w.dump(t)
	owner := must(pgxpool.New(t.Context(), w.db.Owner))(t)
	defer owner.Close()
	verifier := w.rebuilder(t)
	for _, m := range projections.Models {
		for _, table := range m.Tables {
			must(owner.Exec(t.Context(), "alter table "+table+" drop constraint "+table+"_pkey; insert into "+table+" select * from "+table+" limit 1"))(t)
		}
		drift := must(verifier.Verify(t.Context(), m, nil))(t)
		for _, table := range m.Tables {
			if !slices.ContainsFunc(drift, func(d projections.Drift) bool {
				return d.Table == table && len(d.Fields) == 1 && d.Fields[0].Field == "primary key"
			}) {
				t.Errorf("%s: found are %v", table, drift)
			}
		}
		if err := verifier.Repair(t.Context(), m, drift); err != nil {
			t.Fatal(err)
		}
		if drift := must(verifier.Verify(t.Context(), m, nil))(t); len(drift) > 0 {
			t.Errorf("%s, after the repair: %v", m.Name, drift)
		}
	}
	if got := w.dump(t); got != want {
		t.Errorf("after all repairs:\n%.1500s\nwant\n%.1500s", got, want)
	}
}

// A log that has forgotten its oldest entries takes their rows with it: they are no drift,
// and go. What came since is held against the log as ever.
func TestRowsOfWhatTheLogHasForgotten(t *testing.T) {
	w := newWorld(t)
	defer w.run(t)()
	requests, verifier := must(projections.Find("requests"))(t), w.rebuilder(t)
	owner := must(pgxpool.New(t.Context(), w.db.Owner))(t)
	defer owner.Close()
	answered := func(key string, at time.Time) {
		t.Helper()
		by := operator()
		by.Actor = domain.Actor{Kind: domain.APIKey, ID: key}
		c := eventstore.Commit{Stream: domain.Stream{Account: "acme", Kind: "access", ID: uuid.NewString()}, By: by, At: at, Events: []domain.Event{
			access.Answered{Route: "GET /emails", Method: "GET", Path: "/" + key, Status: 200},
		}}
		if err := w.store.Record(t.Context(), eventstore.Access, "acme", []eventstore.Commit{c}, true); err != nil {
			t.Fatal(err)
		}
	}
	answered("old", time.Now().Add(-400*24*time.Hour))
	answered("both", time.Now().Add(-400*24*time.Hour))

	js := must(jetstream.New(must(nats.Connect(w.store.URL()))(t)))(t)
	stream := must(js.Stream(t.Context(), eventstore.Access))(t)
	config := stream.CachedInfo().Config
	config.MaxAge, config.Duplicates = 100*time.Millisecond, 100*time.Millisecond
	must(js.UpdateStream(t.Context(), config))(t)
	testenv.Eventually(t, 20*time.Second, func() error {
		if n := must(stream.Info(t.Context()))(t).State.Msgs; n > 0 {
			return fmt.Errorf("%d entries are still there", n)
		}
		return nil
	})
	// Nothing is left, and nobody waits for it.
	if err := w.rebuilder(t).Rebuild(t.Context(), requests, nil); err != nil {
		t.Fatal(err)
	}
	if err := verifier.Anew(t.Context(), requests); err != nil {
		t.Fatal(err)
	}
	if drift := must(verifier.Verify(t.Context(), requests, nil))(t); len(drift) > 0 {
		t.Errorf("with nothing left: %v", drift)
	}
	head := must(w.store.Head(t.Context(), eventstore.Access))(t)
	err := w.store.Follow(t.Context(), eventstore.Following{Log: eventstore.Access, StopAt: head}, func(context.Context, []eventstore.Entry) error { return nil })
	if err != nil {
		t.Error(err)
	}
	if err := w.rebuilder(t).Revert(t.Context(), requests); err != nil {
		t.Fatal(err)
	}
	config.MaxAge, config.Duplicates = 0, 0
	must(js.UpdateStream(t.Context(), config))(t)
	answered("both", time.Now().Add(2*time.Hour)) // a moment after the oldest is not yet held against it
	answered("new", time.Now().Add(2*time.Hour))
	w.await(t, requests)

	verified := func() []projections.Drift {
		t.Helper()
		if err := verifier.Anew(t.Context(), requests); err != nil {
			t.Fatal(err)
		}
		return must(verifier.Verify(t.Context(), requests, nil))(t)
	}
	if drift := verified(); len(drift) > 0 {
		t.Errorf("forgotten rows are taken for %v", drift)
	}
	must(owner.Exec(t.Context(), "update requests set status = 500 where path = '/new'; delete from api_key_usage where key_id = 'both'"))(t)
	drift := verified()
	if len(drift) != 2 || drift[0].Kind != projections.Edited || drift[1].Kind != projections.Deleted {
		t.Errorf("found are %v", drift)
	}
	if err := verifier.Repair(t.Context(), requests, drift); err != nil {
		t.Fatal(err)
	}
	if err := verifier.Forget(t.Context(), requests); err != nil {
		t.Fatal(err)
	}
	left := must(pgx.CollectRows(must(owner.Query(t.Context(), "select path from requests where created_at < now() - interval '1 day' union all select key_id from api_key_usage order by 1"))(t), pgx.RowTo[string]))(t)
	if fmt.Sprint(left) != "[both key1 new]" {
		t.Errorf("left are %v", left)
	}
}
