package projections_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
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
	"postbook.dev/postbook/domain/catalogue"
	"postbook.dev/postbook/domain/email"
	"postbook.dev/postbook/domain/sender"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/internal/testenv"
	"postbook.dev/postbook/migrations"
	"postbook.dev/postbook/projections"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

// world is a log with something in it, and an empty database.
type world struct {
	store  *eventstore.Store
	db     testenv.Database
	writer *pgxpool.Pool
	tables *projections.Tables
}

func newWorld(t *testing.T) world {
	t.Helper()
	store, err := eventstore.Open(t.Context(), eventstore.Config{Dir: t.TempDir(), Registry: catalogue.Registry(), Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	w := world{store: store, db: testenv.Postgres(t)}
	t.Cleanup(func() { store.Close() })
	if err := migrations.Apply(t.Context(), w.db.Owner); err != nil {
		t.Fatal(err)
	}
	if w.writer, err = projections.Connect(t.Context(), w.db.Projector); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.writer.Close)
	reader, err := pgxpool.New(t.Context(), w.db.Reader)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(reader.Close)
	w.tables = projections.NewTables(reader)
	w.fill(t)
	return w
}

var quiet = slog.New(slog.DiscardHandler)

func operator() domain.Authority {
	return domain.Authority{Actor: domain.Actor{Kind: domain.Operator, ID: "root"}, Account: domain.Platform, Via: domain.ViaCLI, Reason: "a test asks for it", Auth: domain.Internal, At: time.Now(), Command: uuid.New()}
}

// admin is a member of an account.
func admin(account string) domain.Authority {
	by := operator()
	by.Actor, by.Account, by.Role, by.Via = domain.Actor{Kind: domain.Member, ID: "ada"}, account, domain.MemberAdmin, domain.ViaConsole
	return by
}

func (w world) fill(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	if _, err := eventstore.Execute(ctx, w.store, account.Decider, account.Stream("acme"), account.Command(account.Open{Authority: operator(), Name: "Acme \x00 Inc"})); err != nil {
		t.Fatal(err)
	}
	for n := range 5 {
		issue := apikey.Issue{Authority: operator(), Name: fmt.Sprint("Key ", n), Permission: domain.FullAccess, Hash: fmt.Sprint("hash", n)}
		if _, err := eventstore.Execute(ctx, w.store, apikey.Decider, apikey.Stream("acme", fmt.Sprint("key", n)), apikey.Command(issue)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := eventstore.Execute(ctx, w.store, apikey.Decider, apikey.Stream("acme", "key0"), apikey.Command(apikey.Revoke{Authority: operator()})); err != nil {
		t.Fatal(err)
	}
	var commits []eventstore.Commit
	for range 300 {
		id := uuid.Must(uuid.NewV7())
		by := domain.Authority{Actor: domain.Actor{Kind: domain.APIKey, ID: "key1"}, Account: "acme", Role: domain.FullAccess, Via: domain.ViaAPI, At: time.Now(), Command: uuid.New()}
		commits = append(commits, eventstore.Commit{Stream: email.Stream("acme", id), By: by, Events: []domain.Event{
			email.Accepted{Sender: "s", MessageID: id.String() + "@acme.test", Envelope: domain.Sealed("sealed"), Recipients: []email.Recipient{{Kind: email.To, Index: "i"}}},
		}})
	}
	if _, err := w.store.Accept(ctx, commits); err != nil {
		t.Fatal(err)
	}
	for n := range w.store.Partitions() {
		owner, err := w.store.Own(ctx, n, "test")
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range commits {
			id := uuid.MustParse(c.Stream.ID)
			if w.store.Partition(id) != n {
				continue
			}
			last, err := owner.Append(ctx, eventstore.Commit{Stream: c.Stream, By: operator(), Prev: 1, Events: []domain.Event{email.Prepared{Digest: "d"}, email.Attempted{Attempt: 1, Recipients: []int{0}}}})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := owner.Append(ctx, eventstore.Commit{Stream: c.Stream, By: operator(), Prev: last[0][0].Seq, Events: []domain.Event{email.Delivered{Recipient: 0, Attempt: 1}}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	var records []eventstore.Commit
	for n := range 40 {
		by := commits[n].By
		by.Command = uuid.New()
		records = append(records, eventstore.Commit{Stream: domain.Stream{Account: "acme", Kind: "access", ID: uuid.NewString()}, By: by, Events: []domain.Event{
			access.Answered{Route: "GET /emails", Method: "GET", Path: "/emails", Status: 200, Fields: []domain.Field{"email.to"}, Objects: []string{"a", "b"}, Count: 2},
		}})
	}
	if err := w.store.Record(ctx, eventstore.Access, "acme", records, true); err != nil {
		t.Fatal(err)
	}
}

func (w world) rebuilder(t *testing.T) *projections.Rebuilder {
	t.Helper()
	owner := must(pgxpool.New(t.Context(), w.db.Owner))(t)
	t.Cleanup(owner.Close)
	return projections.NewRebuilder(owner, w.store, quiet)
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// run projects until everything that is in the log is there.
func (w world) run(t *testing.T) (stop func()) {
	t.Helper()
	stop = w.runAgain(t)
	w.await(t)
	return stop
}

// runAgain projects, and waits for nothing.
func (w world) runAgain(t *testing.T) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = projections.NewRunner(w.writer, w.store, quiet, projections.Models...).Run(ctx)
	}()
	return func() { cancel(); <-done }
}

// accept records a new email.
func (w world) accept(t *testing.T, id uuid.UUID) {
	t.Helper()
	commit := eventstore.Commit{Stream: email.Stream("acme", id), By: operator(), Events: []domain.Event{
		email.Accepted{Sender: "s", MessageID: id.String() + "@acme.test", Envelope: domain.Sealed("sealed"), Recipients: []email.Recipient{{Kind: email.To, Index: "i"}}},
	}}
	must(w.store.Accept(t.Context(), []eventstore.Commit{commit}))(t)
}

// await waits until models, or all, have read their logs to the end.
func (w world) await(t *testing.T, models ...projections.Model) {
	t.Helper()
	if len(models) == 0 {
		models = projections.Models
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for _, m := range models {
		for _, log := range m.Logs(w.store) {
			head, err := w.store.Head(ctx, log)
			if err != nil {
				t.Fatal(err)
			}
			if head > 0 {
				if err := w.tables.Await(ctx, m.Name, log, head); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

// dump is every row of every read model, in order.
func (w world) dump(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, m := range projections.Models {
		for _, table := range m.Tables {
			rows, err := w.writer.Query(t.Context(), "select to_jsonb(x)::text from "+table+" x order by 1")
			if err != nil {
				t.Fatal(err)
			}
			lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&all, "%s: %d\n%s\n", table, len(lines), strings.Join(lines, "\n"))
		}
	}
	return all.String()
}

// A batch in which rows only go writes none.
func TestTheLastRowsOfABatchMayGo(t *testing.T) {
	w := newWorld(t)
	w.more(t)
	defer w.run(t)()
	revoke := apikey.Command(apikey.Revoke{Authority: operator()})
	if _, err := eventstore.Execute(t.Context(), w.store, apikey.Decider, apikey.Stream("acme", "key1"), revoke); err != nil {
		t.Fatal(err)
	}
	w.await(t)
	remove := sender.Command(sender.Remove{Authority: admin("more0")})
	if _, err := eventstore.Execute(t.Context(), w.store, sender.Decider, sender.Stream("more0", "dom-more0"), remove); err != nil {
		t.Fatal(err)
	}
	w.await(t)
	got := w.dump(t)
	for _, gone := range []string{`"id": "key1"`, `"id": "dom-more0"`} {
		if strings.Contains(got, gone) {
			t.Errorf("%s is still there: %s", gone, got)
		}
	}
}

// An email that is in the log twice under one id, as an earlier version could leave
// it, has one row, as it was accepted first. No model stops at it, also when it is
// built again.
func TestAnEmailThatWasAcceptedTwiceHasOneRow(t *testing.T) {
	w := newWorld(t)
	defer w.run(t)()
	twin, other := uuid.Must(uuid.NewV7()), uuid.Must(uuid.NewV7())
	w.accept(t, twin)
	w.await(t)
	first := must(w.tables.Email(t.Context(), "acme", twin.String()))(t)
	w.accept(t, twin)
	w.accept(t, other)
	w.await(t)
	row := must(w.tables.Email(t.Context(), "acme", twin.String()))(t)
	if !row.CreatedAt.Equal(first.CreatedAt) || row.LastSeq <= first.LastSeq {
		t.Errorf("accepted again, it is %+v, and was %+v", row, first)
	}
	must(w.tables.Email(t.Context(), "acme", other.String()))(t)
	if err := w.rebuilder(t).Rebuild(t.Context(), must(projections.Find("emails"))(t), nil); err != nil {
		t.Fatal(err)
	}
	w.await(t)
	if again := must(w.tables.Email(t.Context(), "acme", twin.String()))(t); !again.CreatedAt.Equal(row.CreatedAt) || again.LastSeq != row.LastSeq {
		t.Errorf("built again, it is %+v, and was %+v", again, row)
	}
}

// However often the models are built, and however they are interrupted, the rows
// are the same.
func TestBuildingAgainGivesTheSameRows(t *testing.T) {
	w := newWorld(t)
	w.run(t)()
	want := w.dump(t)
	for _, part := range []string{"emails: 300", "api_keys: 4", "accounts: 1", "requests: 40", "api_key_usage: 1"} {
		if !strings.Contains(want, part+"\n") {
			t.Fatalf("there is no %q in\n%.2000s", part, want)
		}
	}

	// Somebody edits rows behind our back, and the model is built again.
	if _, err := w.writer.Exec(t.Context(), "update accounts set blocked = true; delete from emails where last_event = 'delivered'"); err != nil {
		t.Fatal(err)
	}
	rebuilder := w.rebuilder(t)
	for _, m := range projections.Models {
		var done, total uint64
		if err := rebuilder.Rebuild(t.Context(), m, func(d, n uint64) { done, total = d, n }); err != nil {
			t.Fatal(err)
		}
		if done != total {
			t.Errorf("%s: progress ended at %d of %d", m.Name, done, total)
		}
	}
	if got := w.dump(t); got != want {
		t.Errorf("built again, the rows differ:\n%.1500s\nwant\n%.1500s", got, want)
	}

	// Connections are cut while a server builds and another one builds as well.
	stop := w.run(t)
	defer stop()
	conn, err := pgx.Connect(t.Context(), w.db.Owner)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	for range 5 {
		_ = rebuilder.Rebuild(t.Context(), must(projections.Find("emails"))(t), nil) // which may meet a connection that was cut
		testenv.CutDatabase(t, w.db)()
	}
	testenv.Eventually(t, 20*time.Second, func() error { return rebuilder.Rebuild(t.Context(), must(projections.Find("emails"))(t), nil) })
	testenv.Eventually(t, 20*time.Second, func() error {
		return w.tables.Ping(t.Context())
	})
	w.await(t)
	w.writer.Reset() // its connections were cut
	if got := w.dump(t); got != want {
		t.Errorf("after cut connections, the rows differ:\n%.1500s", got)
	}
}

// The reader reads, the projector writes read models, and neither does more.
func TestRolesMayDoNoMore(t *testing.T) {
	w := newWorld(t)
	w.run(t)()
	for user, c := range map[string]struct {
		url       string
		forbidden []string
	}{
		"reader":    {w.db.Reader, []string{"update accounts set blocked = false", "delete from emails", "insert into checkpoints values ('a', 'b', 1)", "create table mine (a int)", "truncate emails"}},
		"projector": {w.db.Projector, []string{"create table mine (a int)", "drop table emails", "alter table accounts add column x int", "create role me"}},
	} {
		conn, err := pgx.Connect(t.Context(), c.url)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(t.Context())
		for _, statement := range c.forbidden {
			if _, err := conn.Exec(t.Context(), statement); err == nil || !strings.Contains(err.Error(), "42501") {
				t.Errorf("%s: %s: %v, want that it is not permitted", user, statement, err)
			}
		}
	}
}

// Pages cover a list without gaps, forwards and backwards.
func TestPages(t *testing.T) {
	w := newWorld(t)
	w.run(t)()
	all, more, err := w.tables.Emails(t.Context(), "acme", projections.Page{})
	if err != nil || more || len(all) != 300 {
		t.Fatalf("%d, %v, %v", len(all), more, err)
	}
	var forwards []projections.Email
	for p := (projections.Page{Limit: 7}); ; {
		page, more, err := w.tables.Emails(t.Context(), "acme", p)
		if err != nil {
			t.Fatal(err)
		}
		forwards = append(forwards, page...)
		if !more {
			break
		}
		p.After = page[len(page)-1].ID
	}
	var backwards []projections.Email
	for p := (projections.Page{Limit: 7, Before: all[299].ID}); ; {
		page, more, err := w.tables.Emails(t.Context(), "acme", p)
		if err != nil {
			t.Fatal(err)
		}
		backwards = append(page, backwards...)
		if !more {
			break
		}
		p.Before = page[0].ID
	}
	for n := range all {
		if forwards[n].ID != all[n].ID || n < 299 && backwards[n].ID != all[n].ID {
			t.Fatalf("place %d differs", n)
		}
	}
	if _, _, err := w.tables.Emails(t.Context(), "evil", projections.Page{After: all[0].ID}); err != projections.ErrBadCursor {
		t.Errorf("another account's cursor: %v", err)
	}
	if _, err := w.tables.Email(t.Context(), "evil", all[0].ID); err != projections.ErrNotFound {
		t.Errorf("another account's email: %v", err)
	}
}
