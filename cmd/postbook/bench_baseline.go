package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/account"
	"postbook.dev/postbook/domain/catalogue"
	"postbook.dev/postbook/domain/email"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/internal/pgcluster"
)

type benchBaseline struct {
	For time.Duration `default:"5s" help:"How long each is measured."`
}

// Run measures the log beside a plain events table in PostgreSQL.
func (c benchBaseline) Run(ctx context.Context, out output) error {
	dir, err := benchDir()
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := &bench{benchRun: benchRun{For: c.For}, dir: dir, json: out.json}
	if err := b.baseline(ctx); err != nil {
		return err
	}
	_, err = out.object(b.results)
	return err
}

// baseline measures appends to the log, and the same appends to what somebody
// would take who has PostgreSQL: a table of events with a unique key over stream
// and version, which is the optimistic lock. Both keep the same bytes, answer when
// these are on the disk, run on the same disk, and are asked by the same number of
// goroutines of this process. PostgreSQL commits in groups by itself; statements
// are prepared, and each goroutine has a connection of its own.
//
// A batch is 100 first events of as many emails: with PostgreSQL in one
// transaction and one round trip.
func (b *bench) baseline(ctx context.Context) error {
	tune(ctx, serverShare)
	store, err := eventstore.Open(ctx, eventstore.Config{Dir: filepath.Join(b.dir, "baseline", "log"), Registry: catalogue.Registry(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	defer store.Close()
	table, stop, err := openEventsTable(ctx, filepath.Join(b.dir, "baseline", "postgres"))
	if err != nil {
		return err
	}
	defer stop()
	single, mail, err := sampleBodies(ctx, store)
	if err != nil {
		return err
	}
	for _, load := range []struct {
		name       string
		goroutines int
		log, table func(ctx context.Context) (appender, error)
	}{
		{"one goroutine", 1, ledgerAppender(store), table.appender(single)},
		{"64 goroutines", 64, ledgerAppender(store), table.appender(single)},
		{"batches of 100, one goroutine", 1, mailAppender(store), table.batches(mail)},
		{"batches of 100, 16 goroutines", 16, mailAppender(store), table.batches(mail)},
	} {
		plain, err := b.appends(ctx, load.goroutines, load.table)
		if err != nil {
			return fmt.Errorf("append to PostgreSQL, %s: %w", load.name, err)
		}
		log, err := b.appends(ctx, load.goroutines, load.log)
		if err != nil {
			return fmt.Errorf("append to the log, %s: %w", load.name, err)
		}
		b.tell("append to a table of PostgreSQL, "+load.name, plain, "/s", "", 0)
		b.tell("append to the log, "+load.name, log, "/s", "PostgreSQL", plain)
	}
	return nil
}

// appender appends what is appended at once, and says how many events that was. Each
// goroutine has its own.
type appender func(ctx context.Context) (int, error)

// appends is how many events a second some goroutines append.
func (b *bench) appends(ctx context.Context, goroutines int, open func(context.Context) (appender, error)) (float64, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	all := make([]appender, goroutines)
	for i := range all {
		var err error
		if all[i], err = open(ctx); err != nil {
			return 0, err
		}
		if _, err := all[i](ctx); err != nil { // prepares statements
			return 0, err
		}
	}
	var events atomic.Int64
	var running sync.WaitGroup
	begun := time.Now()
	for _, one := range all {
		running.Go(func() {
			for time.Since(begun) < b.For && ctx.Err() == nil {
				n, err := one(ctx)
				if err != nil {
					cancel(err)
					return
				}
				events.Add(int64(n))
			}
		})
	}
	running.Wait()
	return float64(events.Load()) / time.Since(begun).Seconds(), context.Cause(ctx)
}

// loadedEvent is what is appended to an aggregate over and over: about as long as
// most events of the ledger.
func loadedEvent() domain.Event {
	return account.Blocked{Policy: "complaints", Evidence: "0.4 % of 12,000 recipients complained in the last seven days"}
}

// ledgerAppender appends to an account of its own, and expects it to be as it left
// it.
func ledgerAppender(store *eventstore.Store) func(context.Context) (appender, error) {
	return func(context.Context) (appender, error) {
		of, last := account.Stream(uuid.NewString()), uint64(0)
		return func(ctx context.Context) (int, error) {
			recorded, err := store.Append(ctx, eventstore.Commit{Stream: of, By: operator(time.Now()), Events: []domain.Event{loadedEvent()}}, last)
			if err != nil {
				return 0, err
			}
			last = recorded[0].Seq
			return 1, nil
		}, nil
	}
}

const batchOf = 100

// mailAppender accepts emails.
func mailAppender(store *eventstore.Store) func(context.Context) (appender, error) {
	return func(context.Context) (appender, error) {
		return func(ctx context.Context) (int, error) {
			commits := make([]eventstore.Commit, batchOf)
			for i := range commits {
				commits[i] = acceptedMail()
			}
			_, err := store.Accept(ctx, commits)
			return batchOf, err
		}, nil
	}
}

func acceptedMail() eventstore.Commit {
	id := uuid.Must(uuid.NewV7())
	return eventstore.Commit{Stream: email.Stream("account", id), By: operator(time.Now()), Events: []domain.Event{email.Accepted{
		Sender: "sender", MessageID: id.String() + "@load.test", Envelope: make(domain.Sealed, 230), Expires: time.Now().Add(48 * time.Hour),
		Content:    domain.ContentRef{Parts: []domain.ContentPart{{Seq: 1 << 20, Len: 1500}}, Size: 1500},
		Recipients: []email.Recipient{{Kind: email.To, Index: "0123456789abcdef", Address: make(domain.Sealed, 60)}},
	}}}
}

// sampleBodies are the bytes that the log keeps of one append of each kind.
func sampleBodies(ctx context.Context, store *eventstore.Store) (single, mail []byte, err error) {
	one := account.Stream(uuid.NewString())
	recorded, err := store.Append(ctx, eventstore.Commit{Stream: one, By: operator(time.Now()), Events: []domain.Event{loadedEvent()}}, 0)
	if err != nil {
		return nil, nil, err
	}
	accepted, err := store.Accept(ctx, []eventstore.Commit{acceptedMail()})
	if err != nil {
		return nil, nil, err
	}
	first, err1 := store.Read(ctx, recorded[0].Log, recorded[0].Seq)
	second, err2 := store.Read(ctx, accepted[0][0].Log, accepted[0][0].Seq)
	return first.Raw, second.Raw, errors.Join(err1, err2)
}

// eventsTable is a table of events in a cluster of its own.
type eventsTable struct{ pool *pgxpool.Pool }

func openEventsTable(ctx context.Context, dir string) (eventsTable, func(), error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return eventsTable{}, nil, err
	}
	cluster, err := pgcluster.Start(ctx, pgcluster.Options{Dir: dir, Fsync: true, MaxConnections: 80})
	if err != nil {
		return eventsTable{}, nil, err
	}
	stop := func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		_ = cluster.Stop(ctx) // what it holds is thrown away
	}
	if err := cluster.Provision(ctx, database); err != nil {
		stop()
		return eventsTable{}, nil, err
	}
	cfg, err := pgxpool.ParseConfig(cluster.URL(database, "postbook"))
	if err == nil {
		cfg.MaxConns = 64
	}
	var pool *pgxpool.Pool
	if err == nil {
		pool, err = pgxpool.NewWithConfig(ctx, cfg)
	}
	if err == nil {
		_, err = pool.Exec(ctx, `create table events (
			position bigint generated always as identity primary key, -- readers follow it
			stream   text not null,
			version  bigint not null,
			body     bytea not null,
			unique (stream, version)
		)`)
	}
	if err != nil {
		stop()
		return eventsTable{}, nil, fmt.Errorf("make a table of events: %w", err)
	}
	return eventsTable{pool}, func() { pool.Close(); stop() }, nil
}

const insertEvent = "insert into events (stream, version, body) values ($1, $2, $3) returning position"

func (t eventsTable) appender(body []byte) func(context.Context) (appender, error) {
	return func(context.Context) (appender, error) {
		stream, version := uuid.NewString(), 0
		return func(ctx context.Context) (int, error) {
			version++
			var position int64
			return 1, t.pool.QueryRow(ctx, insertEvent, stream, version, body).Scan(&position)
		}, nil
	}
}

func (t eventsTable) batches(body []byte) func(context.Context) (appender, error) {
	return func(context.Context) (appender, error) {
		return func(ctx context.Context) (int, error) {
			var batch pgx.Batch
			for range batchOf {
				batch.Queue(insertEvent, uuid.Must(uuid.NewV7()).String(), 1, body)
			}
			return batchOf, t.pool.SendBatch(ctx, &batch).Close()
		}, nil
	}
}
