package projections_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postbook.dev/postbook/internal/testenv"
	"postbook.dev/postbook/projections"
)

// Whoever reads while a model is built again sees all of it, all the time, and
// what is recorded meanwhile.
func TestReadersNeverSeeHalf(t *testing.T) {
	w := newWorld(t)
	defer w.run(t)()
	shape := w.shape(t)
	rebuilder, emails := w.rebuilder(t), must(projections.Find("emails"))(t)

	reading, stop := context.WithCancel(t.Context())
	defer stop()
	least := make(chan int, 1)
	go func() {
		fewest := 1 << 30
		for reading.Err() == nil {
			if all, _, err := w.tables.Emails(reading, "acme", projections.Page{}); err == nil {
				fewest = min(fewest, len(all))
			} else if reading.Err() == nil {
				t.Error(err)
			}
		}
		least <- fewest
	}()
	for range 5 {
		if err := rebuilder.Rebuild(t.Context(), emails, nil); err != nil {
			t.Fatal(err)
		}
		w.fill(t)
		w.await(t)
	}
	stop()
	if fewest := <-least; fewest < 300 {
		t.Errorf("a reader saw %d of 300 emails", fewest)
	}
	if all, _, err := w.tables.Emails(t.Context(), "acme", projections.Page{}); err != nil || len(all) != 6*300 {
		t.Errorf("in the end there are %d emails, %v", len(all), err)
	}
	if got := w.shape(t); got != shape {
		t.Errorf("the tables are not what they were:\n%s\nwant\n%s", got, shape)
	}
}

// shape is what the database says of the live tables: columns, indexes,
// constraints, options and grants.
func (w world) shape(t *testing.T) string {
	t.Helper()
	conn := must(pgx.Connect(t.Context(), w.db.Owner))(t)
	defer conn.Close(t.Context())
	rows := must(conn.Query(t.Context(), `
		select indexdef from pg_indexes where schemaname = 'public'
		union all select format('%s %s', conrelid::regclass, pg_get_constraintdef(oid)) from pg_constraint where connamespace = 'public'::regnamespace
		union all select format('%s %s', relname, reloptions) from pg_class where relnamespace = 'public'::regnamespace
		union all select format('%s %s %s', table_name, grantee, privilege_type) from information_schema.role_table_grants where table_schema = 'public'
		union all select format('%s %s %s %s %s', table_name, column_name, data_type, is_nullable, ordinal_position) from information_schema.columns where table_schema = 'public'
		order by 1`))(t)
	return strings.Join(must(pgx.CollectRows(rows, pgx.RowTo[string]))(t), "\n")
}

// What was built before a crash is not built again.
func TestBuildingGoesOnAfterACrash(t *testing.T) {
	w := newWorld(t)
	w.run(t)()
	want := w.dump(t)
	rebuilder, emails := w.rebuilder(t), must(projections.Find("emails"))(t)
	ctx, crash := context.WithCancel(t.Context())
	err := rebuilder.Rebuild(ctx, emails, func(done, total uint64) {
		if done > 0 && done < total {
			crash()
		}
	})
	if err == nil || ctx.Err() == nil { // which error it is, depends on what it was doing
		t.Fatalf("it ended with %v", err)
	}
	if got := w.dump(t); got != want {
		t.Error("what is read has changed although nothing was finished")
	}
	var kept, rows int
	owner := must(pgxpool.New(t.Context(), w.db.Owner))(t)
	defer owner.Close()
	count := "select (select sum(seq) from building_emails.checkpoints), (select count(*) from building_emails.emails)"
	if err := owner.QueryRow(t.Context(), count).Scan(&kept, &rows); err != nil || kept == 0 || rows == 0 {
		t.Fatalf("of what was built %d entries and %d rows were kept, %v", kept, rows, err)
	}
	// A mark on a row that was built shows that it stays.
	if _, err := owner.Exec(t.Context(), "update building_emails.emails set sender_id = 'built before the crash'"); err != nil {
		t.Fatal(err)
	}
	if err := rebuilder.Rebuild(t.Context(), emails, nil); err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(w.dump(t), "built before the crash"); got != rows {
		t.Errorf("%d rows of %d were built before the crash", got, rows)
	}
}

// What was replaced is there until somebody says that it is not needed.
func TestWhatWasReplacedIsKept(t *testing.T) {
	w := newWorld(t)
	w.run(t)()
	rebuilder, accounts := w.rebuilder(t), must(projections.Find("accounts"))(t)
	kept := func() (names []string) {
		for _, s := range must(projections.Status(t.Context(), w.writer, w.store, time.Now()))(t) {
			if s.Kept {
				names = append(names, s.Model)
			}
		}
		return names
	}
	if err := rebuilder.Revert(t.Context(), accounts); err == nil {
		t.Error("there is something to go back to before anything was built")
	}
	must(w.writer.Exec(t.Context(), "update accounts set name = 'edited'"))(t)
	edited := w.dump(t)
	if err := rebuilder.Rebuild(t.Context(), accounts, nil); err != nil {
		t.Fatal(err)
	}
	if names := kept(); !slices.Equal(names, []string{"accounts"}) {
		t.Errorf("to be confirmed: %v", names)
	}
	rebuilt := w.dump(t)
	if rebuilt == edited {
		t.Fatal("an edited row was built again as it was edited")
	}
	// Somebody reads for long: going back waits, and others can read meanwhile.
	reading := must(w.writer.Begin(t.Context()))(t)
	must(reading.Exec(t.Context(), "select from accounts"))(t)
	reverted := make(chan error, 1)
	go func() { reverted <- rebuilder.Revert(t.Context(), accounts) }()
	testenv.Eventually(t, 20*time.Second, func() error {
		var waiting bool
		if err := w.writer.QueryRow(t.Context(), "select exists (select from pg_locks where not granted)").Scan(&waiting); err != nil || !waiting {
			return fmt.Errorf("it does not wait: %v", err)
		}
		return nil
	})
	must(w.writer.Exec(t.Context(), "select from accounts"))(t)
	if err := errors.Join(reading.Rollback(t.Context()), <-reverted); err != nil {
		t.Fatal(err)
	}
	if got := w.dump(t); got != edited {
		t.Errorf("after going back:\n%s\nwant\n%s", got, edited)
	}
	if err := rebuilder.Rebuild(t.Context(), accounts, nil); err != nil {
		t.Fatal(err)
	}
	if err := rebuilder.Confirm(t.Context(), accounts); err != nil {
		t.Fatal(err)
	}
	if err := rebuilder.Revert(t.Context(), accounts); err == nil {
		t.Error("there is something to go back to after it was confirmed")
	}
	if names := kept(); len(names) > 0 {
		t.Errorf("to be confirmed after that: %v", names)
	}
	if got := w.dump(t); got != rebuilt {
		t.Errorf("after it was confirmed:\n%s", got)
	}
}

// A model of another version is built again; until then the old one is read.
func TestANewVersionIsBuiltBesideTheOld(t *testing.T) {
	w := newWorld(t)
	w.run(t)()
	must(w.writer.Exec(t.Context(), "update checkpoints set version = 99 where model = 'accounts'"))(t)
	must(w.writer.Exec(t.Context(), "update accounts set name = 'of another version'"))(t)
	stop := w.run(t)
	defer stop()
	if got := w.dump(t); !strings.Contains(got, "of another version") {
		t.Fatalf("the old one is not read any more:\n%s", got)
	}
	if err := w.rebuilder(t).Upgrade(t.Context(), projections.Models); err != nil {
		t.Fatal(err)
	}
	if got := w.dump(t); strings.Contains(got, "of another version") {
		t.Errorf("the old one is still read:\n%s", got)
	}
}

// Two do not build one model at once.
func TestOnlyOneBuilds(t *testing.T) {
	w := newWorld(t)
	w.run(t)()
	emails := must(projections.Find("emails"))(t)
	var second error
	err := w.rebuilder(t).Rebuild(t.Context(), emails, func(done, total uint64) {
		if done < total {
			second = w.rebuilder(t).Rebuild(t.Context(), emails, nil)
		}
	})
	if err != nil || !errors.Is(second, projections.ErrUnderWay) {
		t.Errorf("the first %v, the second %v", err, second)
	}
}

// Tables of another version that come into the place of the live ones while a
// projection runs are left alone: rows of two versions are not mixed.
func TestAnotherVersionIsNotWrittenTo(t *testing.T) {
	w := newWorld(t)
	w.run(t)()
	emails := must(projections.Find("emails"))(t)
	said := make(lines, 100)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = projections.NewRunner(w.writer, w.store, slog.New(slog.NewTextHandler(said, nil)), emails).Run(ctx) // ends with ctx
	}()
	w.accept(t, uuid.Must(uuid.NewV7()))
	w.await(t, emails)
	before := w.dump(t)
	must(w.writer.Exec(t.Context(), "update checkpoints set version = 99 where model = 'emails'"))(t)
	w.accept(t, uuid.Must(uuid.NewV7()))
	for !strings.Contains(<-said, "another version") {
	}
	if now := w.dump(t); now != before {
		t.Errorf("among rows of another version there are now\n%s", now)
	}
	if err := w.rebuilder(t).Upgrade(t.Context(), projections.Models); err != nil {
		t.Fatal(err)
	}
	w.await(t, emails)
	stop()
	<-ended
	if all, _, err := w.tables.Emails(t.Context(), "acme", projections.Page{}); err != nil || len(all) != 302 {
		t.Errorf("after it was built again there are %d emails, %v", len(all), err)
	}
}

// lines takes what a logger writes.
type lines chan string

func (l lines) Write(line []byte) (int, error) {
	select {
	case l <- string(line):
	default: // nobody reads
	}
	return len(line), nil
}

// What was being built when the log was put back to an earlier state is not gone on with.
func TestBuildingBeginsAnewAfterTheLogWasPutBack(t *testing.T) {
	w := newWorld(t)
	w.run(t)()
	want := w.dump(t)
	rebuilder, emails := w.rebuilder(t), must(projections.Find("emails"))(t)
	ctx, crash := context.WithCancel(t.Context())
	if err := rebuilder.Rebuild(ctx, emails, func(uint64, uint64) { crash() }); err == nil {
		t.Fatal("it was built")
	}
	owner := must(pgxpool.New(t.Context(), w.db.Owner))(t)
	defer owner.Close()
	must(owner.Exec(t.Context(), "update building_emails.checkpoints set seq = 1000000"))(t)
	if err := rebuilder.Rebuild(t.Context(), emails, nil); err != nil {
		t.Fatal(err)
	}
	if got := w.dump(t); got != want {
		t.Error("it is not what it was")
	}
}

// A checkpoint that somebody has moved behind the end of its log does not keep its
// model from being built again.
func TestAMovedCheckpointIsNotWaitedFor(t *testing.T) {
	w := newWorld(t)
	w.run(t)()
	want := w.dump(t)
	must(w.writer.Exec(t.Context(), "update checkpoints set seq = seq + 1000 where model = 'emails'"))(t)
	if err := w.rebuilder(t).Rebuild(t.Context(), must(projections.Find("emails"))(t), nil); err != nil {
		t.Fatal(err)
	}
	if got := w.dump(t); got != want {
		t.Error("it is not what it was")
	}
	w.await(t)
}
