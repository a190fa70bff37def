package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"postbook.dev/postbook/internal/pgcluster"
	"postbook.dev/postbook/migrations"
	"postbook.dev/postbook/projections"
)

func (s *server) openDatabase(ctx context.Context) error {
	s.owner = s.cfg.DatabaseURL
	writerURL, readerURL := s.owner, s.owner
	if s.owner == "" {
		if err := s.startCluster(ctx); err != nil {
			return err
		}
		s.atEnd(func(ctx context.Context) error { return s.cluster.Stop(ctx) })
		if err := s.cluster.Provision(ctx, database); err != nil {
			return err
		}
		s.owner = s.cluster.URL(database, "postbook")
		writerURL, readerURL = s.cluster.URL(database, "postbook_projector"), s.cluster.URL(database, "postbook_reader")
	}
	if err := s.migrate(ctx); err != nil {
		if _, away := errors.AsType[*pgconn.ConnectError](err); !away {
			return err
		}
		// A database that is away does not keep mail from being accepted.
		s.log.Warn("the database is away; mail is accepted, and nothing can be read", "error", err)
	}
	var err error
	if s.writer, err = projections.Connect(ctx, writerURL, s.as("postbook_projector")); err != nil {
		return err
	}
	reader, err := pgxpool.ParseConfig(readerURL)
	if err != nil {
		return errors.New("POSTBOOK_DATABASE_URL is not a PostgreSQL URL")
	}
	s.as("postbook_reader")(reader)
	if s.reader, err = pgxpool.NewWithConfig(ctx, reader); err != nil {
		return err
	}
	if s.maker, err = pgxpool.New(ctx, s.owner); err != nil {
		return errors.New("POSTBOOK_DATABASE_URL is not a PostgreSQL URL")
	}
	s.atEnd(func(context.Context) error {
		s.writer.Close()
		s.reader.Close()
		s.maker.Close()
		return nil
	})
	return nil
}

// as has the connections of a pool to a database elsewhere give up the rights of the
// database's owner for those of a role. In the private one, users have these rights
// alone.
func (s *server) as(role string) func(*pgxpool.Config) {
	if s.cfg.DatabaseURL == "" {
		return func(*pgxpool.Config) {}
	}
	var told sync.Once
	return func(c *pgxpool.Config) {
		c.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
			_, err := conn.Exec(ctx, "set role "+role)
			if failed, ok := errors.AsType[*pgconn.PgError](err); ok && failed.Code == "42501" { // insufficient_privilege
				told.Do(func() {
					s.log.Warn("the database is used with all rights of its owner: grant the role to that user", "role", role, "error", err)
				})
				return nil
			}
			return err
		}
	}
}

func (s *server) migrate(ctx context.Context) error {
	if err := migrations.Apply(ctx, s.owner); err != nil {
		return fmt.Errorf("bring the database schema up to date: %w", err)
	}
	if s.cfg.DatabaseURL == "" {
		return nil
	}
	owner, err := pgx.Connect(ctx, s.owner)
	if err != nil {
		return fmt.Errorf("grant the narrower roles: %w", err)
	}
	// Whoever has made the roles may grant them; as says so if nobody has.
	_, _ = owner.Exec(ctx, "grant postbook_projector, postbook_reader to current_user")
	return owner.Close(ctx)
}

func (s *server) startCluster(ctx context.Context) error {
	cluster, err := pgcluster.Start(ctx, pgcluster.Options{Dir: s.cfg.path("postgres"), Fsync: true, Log: s.log})
	if err == nil {
		s.cluster = cluster
	}
	return err
}

// keepCluster starts the private database again when it has ended by itself.
func (s *server) keepCluster(ctx context.Context) error {
	for {
		select {
		case <-s.cluster.Done():
		case <-ctx.Done():
			return ctx.Err()
		}
		s.log.Error("the database server has ended; it is started again")
		for err := s.startCluster(ctx); err != nil; err = s.startCluster(ctx) {
			s.log.Error("the database server does not start; it is tried again", "error", err)
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

// project keeps the read models up to date, once the database has their tables.
func (s *server) project(ctx context.Context) error {
	for {
		err := s.migrate(ctx)
		if err == nil {
			break
		}
		if _, away := errors.AsType[*pgconn.ConnectError](err); !away {
			return err
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.upgrade(ctx) })
	group.Go(func() error { return s.watchReadModels(ctx) })
	group.Go(func() error { return projections.NewRunner(s.writer, s.store, s.log, projections.Models...).Run(ctx) })
	return group.Wait()
}

// upgrade builds read models again that an earlier version of the program built.
// The program itself has no right to make tables.
func (s *server) upgrade(ctx context.Context) error {
	for {
		err := projections.NewRebuilder(s.maker, s.store, s.log).Upgrade(ctx, projections.Models)
		if err == nil || ctx.Err() != nil {
			return ctx.Err()
		}
		s.log.Warn("a read model was not built again; it is tried later", "error", err)
		select {
		case <-time.After(10 * time.Second):
		case <-ctx.Done():
		}
	}
}

// database is the name of the read models' database.
const database = "postbook"
