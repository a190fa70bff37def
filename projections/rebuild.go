package projections

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"postbook.dev/postbook/eventstore"
)

// Rebuilder builds read models again beside the ones that are read. A model in the
// making has a schema of its own, with tables that look like the live ones and with
// its own checkpoints; when it has caught up, the two change places in one
// transaction. Whoever reads sees the old one, and then the new one.
//
// What is being built survives a crash: building it again goes on where it was.
type Rebuilder struct {
	pool  *pgxpool.Pool
	store *eventstore.Store
	log   *slog.Logger
}

// NewRebuilder makes a rebuilder. The pool's user owns the tables.
func NewRebuilder(owner *pgxpool.Pool, store *eventstore.Store, log *slog.Logger) *Rebuilder {
	return &Rebuilder{owner, store, log}
}

// ErrUnderWay says that somebody else is building the model.
var ErrUnderWay = errors.New("projections: the model is being built by somebody else")

const (
	live    = "public"
	retired = "retired" // where a model that was replaced is kept until that is confirmed
)

func building(m Model) string { return "building_" + m.Name }

func named(schema, name string) string { return pgx.Identifier{schema, name}.Sanitize() }

// Rebuild builds a model from the log. progress, if not nil, is told how many
// entries are done of how many.
func (b *Rebuilder) Rebuild(ctx context.Context, m Model, progress func(done, total uint64)) error {
	return b.alone(ctx, building(m), func(ctx context.Context) error {
		if err := b.prepare(ctx, m, building(m)); err != nil {
			return fmt.Errorf("projections: prepare to build %s: %w", m.Name, err)
		}
		aside, err := b.aside(ctx, m, building(m))
		if err != nil {
			return err
		}
		defer aside.pool.Close()
		total, err := aside.catchUp(ctx, m, progress)
		if err != nil {
			return err
		}
		if err := b.finish(ctx, m); err != nil {
			return fmt.Errorf("projections: make the indexes of %s: %w", m.Name, err)
		}
		if _, err := aside.catchUp(ctx, m, nil); err != nil {
			return err
		}
		if err := b.whenFree(ctx, m, func() error { return b.swap(ctx, m, aside) }); err != nil {
			return fmt.Errorf("projections: put %s in its place: %w", m.Name, err)
		}
		if progress != nil {
			progress(total, total)
		}
		return nil
	})
}

// Upgrade builds again what another version of the program has built.
func (b *Rebuilder) Upgrade(ctx context.Context, models []Model) error {
	for _, m := range models {
		differs, err := outdated(ctx, b.pool, m)
		if err != nil {
			return err
		}
		if !differs {
			continue
		}
		b.log.Info("a read model has a new version and is built again; until then the old one is read", "model", m.Name)
		if err := b.Rebuild(ctx, m, nil); err != nil {
			return err
		}
	}
	return nil
}

// Confirm deletes the tables that a model had before it was built again.
func (b *Rebuilder) Confirm(ctx context.Context, m Model) error {
	return b.alone(ctx, building(m), func(ctx context.Context) error {
		return pgx.BeginFunc(ctx, b.pool, func(tx pgx.Tx) error { return dropRetired(ctx, tx, m) })
	})
}

// Revert puts back the tables that a model had before. They catch up by
// themselves.
func (b *Rebuilder) Revert(ctx context.Context, m Model) error {
	err := b.alone(ctx, building(m), func(ctx context.Context) error {
		return b.whenFree(ctx, m, func() error {
			return pgx.BeginFunc(ctx, b.pool, func(tx pgx.Tx) error { return revert(ctx, tx, m) })
		})
	})
	if err != nil {
		return fmt.Errorf("projections: go back to the earlier %s: %w", m.Name, err)
	}
	return nil
}

func revert(ctx context.Context, tx pgx.Tx, m Model) error {
	if _, err := tx.Exec(ctx, "set local lock_timeout = '2s'"); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, "select from public.checkpoints where model = $1 order by log for update", m.Name); err != nil {
		return err
	}
	for _, table := range m.Tables {
		var there bool
		if err := tx.QueryRow(ctx, "select to_regclass($1) is not null", named(retired, table)).Scan(&there); err != nil {
			return err
		}
		if !there {
			return errors.New("there is nothing to go back to")
		}
		if _, err := tx.Exec(ctx, "drop table "+named(live, table)+"; alter table "+named(retired, table)+" set schema public"); err != nil {
			return err
		}
	}
	return copyCheckpoints(ctx, tx, m, retired, live)
}

// alone does something in a schema that nobody else may do meanwhile.
func (b *Rebuilder) alone(ctx context.Context, schema string, do func(context.Context) error) error {
	conn, err := b.pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("projections: lock %s: %w", schema, err)
	}
	defer conn.Release()
	h := fnv.New64a()
	h.Write([]byte("postbook " + schema))
	var got bool
	if err := conn.QueryRow(ctx, "select pg_try_advisory_lock($1)", int64(h.Sum64())).Scan(&got); err != nil {
		return fmt.Errorf("projections: lock %s: %w", schema, err)
	}
	if !got {
		return fmt.Errorf("%w: %s", ErrUnderWay, schema)
	}
	defer func() {
		// Without its session the lock ends as well.
		_, _ = conn.Exec(context.WithoutCancel(ctx), "select pg_advisory_unlock($1)", int64(h.Sum64()))
	}()
	return do(ctx)
}

// prepare makes the schema and the tables of a model beside the live one, unless they
// are there from an earlier try.
func (b *Rebuilder) prepare(ctx context.Context, m Model, schema string) error {
	return pgx.BeginFunc(ctx, b.pool, func(tx pgx.Tx) error {
		if begun, err := b.begun(ctx, tx, m, schema); begun || err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "drop schema if exists "+schema+" cascade; create schema "+schema+"; create table "+named(schema, "checkpoints")+" (like public.checkpoints including all)"); err != nil {
			return err
		}
		for _, table := range m.Tables {
			if err := copyShape(ctx, tx, schema, table); err != nil {
				return err
			}
		}
		return nil
	})
}

// begun reports whether a schema has tables that can be gone on with: of this version, and
// of this log, which may have been put back to an earlier state.
func (b *Rebuilder) begun(ctx context.Context, tx pgx.Tx, m Model, schema string) (bool, error) {
	var ok bool
	if err := tx.QueryRow(ctx, "select to_regclass($1) is not null", named(schema, "checkpoints")).Scan(&ok); err != nil || !ok {
		return false, err
	}
	if err := tx.QueryRow(ctx, "select coalesce(bool_and(version = $1), true) from "+named(schema, "checkpoints"), m.Version).Scan(&ok); err != nil || !ok {
		return false, err
	}
	at, err := checkpoints(ctx, tx, schema, m, "")
	if err != nil {
		return false, err
	}
	for log, seq := range at {
		if head, err := b.store.Head(ctx, log); err != nil || seq > head {
			return false, err
		}
	}
	return true, nil
}

// copyShape makes a table like the live one, with its primary key and without its
// other indexes, which are faster made when the rows are there.
func copyShape(ctx context.Context, tx pgx.Tx, schema, table string) error {
	var options string
	err := tx.QueryRow(ctx, "select coalesce(array_to_string(reloptions, ', '), '') from pg_class where oid = $1::regclass", named(live, table)).Scan(&options)
	if err != nil {
		return err
	}
	create := "create table " + named(schema, table) + " (like " + named(live, table) + " including all excluding indexes, primary key (" + keyOf(table) + "))"
	if options != "" {
		create += " with (" + options + ")"
	}
	_, err = tx.Exec(ctx, create)
	return err
}

// finish makes the other indexes, and grants what is granted on the live tables.
func (b *Rebuilder) finish(ctx context.Context, m Model) error {
	for _, table := range m.Tables {
		rows, err := b.pool.Query(ctx, `
			select replace(replace(pg_get_indexdef(i.indexrelid), ' ON public.', ' ON '||$2||'.'), 'INDEX ', 'INDEX IF NOT EXISTS ')
			from pg_index i where i.indrelid = $1::regclass and not i.indisprimary
			union all
			select format('grant %s on %I.%I to %I', privilege_type, $2::text, table_name, grantee)
			from information_schema.role_table_grants where table_schema = 'public' and table_name = $3 and grantee <> current_user`,
			named(live, table), building(m), table)
		if err != nil {
			return err
		}
		statements, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return err
		}
		statements = append(statements, "analyze "+named(building(m), table))
		for _, s := range statements {
			if _, err := b.pool.Exec(ctx, s); err != nil {
				return err
			}
		}
	}
	return nil
}

// aside is a runner whose tables are those of a schema.
func (b *Rebuilder) aside(ctx context.Context, m Model, schema string) (*Runner, error) {
	cfg := b.pool.Config()
	cfg.ConnConfig.RuntimeParams["search_path"] = schema
	// What is lost with the database's last moments is built again.
	cfg.ConnConfig.RuntimeParams["synchronous_commit"] = "off"
	cfg.MaxConns = max(cfg.MaxConns, 8)
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("projections: build %s: %w", m.Name, err)
	}
	return NewRunner(pool, b.store, b.log, m), nil
}

// PostgreSQL's codes for tables that somebody else holds.
const (
	lockNotAvailable = "55P03"
	deadlock         = "40P01"
)

// swapPause is how long readers have the tables to themselves between two tries.
const swapPause = time.Second

// whenFree does something to the live tables as soon as nobody holds them for long, as a
// verification does. Whoever wants to read them waits behind each try, which is short.
func (b *Rebuilder) whenFree(ctx context.Context, m Model, try func() error) error {
	for {
		err := try()
		if fault, ok := errors.AsType[*pgconn.PgError](err); !ok || fault.Code != lockNotAvailable && fault.Code != deadlock {
			return err
		}
		b.log.Info("a change of a read model's tables waits for somebody who reads them", "model", m.Name)
		select {
		case <-time.After(swapPause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// swap puts a model in the place of the live one. Whoever writes the live one
// waits for that, and so it cannot be ahead.
func (b *Rebuilder) swap(ctx context.Context, m Model, aside *Runner) error {
	return pgx.BeginFunc(ctx, b.pool, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, "select log, seq from public.checkpoints where model = $1 order by log for update", m.Name)
		if err != nil {
			return err
		}
		var log string
		var seq uint64
		ahead := map[string]uint64{}
		if _, err := pgx.ForEachRow(rows, []any{&log, &seq}, func() error {
			// One that lies behind the end of its log was not moved by a projection.
			head, err := b.store.Head(ctx, log)
			ahead[log] = min(seq, head)
			return err
		}); err != nil {
			return err
		}
		if err := aside.reach(ctx, m, ahead, nil); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "set local lock_timeout = '2s'; create schema if not exists "+retired); err != nil {
			return err
		}
		if err := dropRetired(ctx, tx, m); err != nil {
			return err
		}
		for _, table := range m.Tables {
			if _, err := tx.Exec(ctx, "alter table "+named(live, table)+" set schema "+retired+"; alter table "+named(building(m), table)+" set schema "+live); err != nil {
				return err
			}
		}
		if _, err := tx.Exec(ctx, "create table if not exists retired.checkpoints (like public.checkpoints including all)"); err != nil {
			return err
		}
		if err := copyCheckpoints(ctx, tx, m, live, retired); err != nil {
			return err
		}
		if err := copyCheckpoints(ctx, tx, m, building(m), live); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, "drop schema "+building(m)+" cascade")
		return err
	})
}

func copyCheckpoints(ctx context.Context, tx pgx.Tx, m Model, from, to string) error {
	_, err := tx.Exec(ctx, `
		insert into `+named(to, "checkpoints")+` (model, log, version, seq, error)
		select model, log, version, seq, error from `+named(from, "checkpoints")+` where model = $1
		on conflict (model, log) do update set version = excluded.version, seq = excluded.seq, error = excluded.error`, m.Name)
	return err
}

func dropRetired(ctx context.Context, tx pgx.Tx, m Model) error {
	tables := make([]string, len(m.Tables))
	for i, table := range m.Tables {
		tables[i] = named(retired, table)
	}
	_, err := tx.Exec(ctx, "drop table if exists "+strings.Join(tables, ", "))
	return err
}

// catchUp applies what the logs hold now, and says how many entries that is.
func (r *Runner) catchUp(ctx context.Context, m Model, progress func(done, total uint64)) (uint64, error) {
	heads := map[string]uint64{}
	var total uint64
	for _, log := range m.Logs(r.store) {
		head, err := r.store.Head(ctx, log)
		if err != nil {
			return 0, err
		}
		heads[log] = head
		total += head
	}
	return total, r.reach(ctx, m, heads, func(done uint64) {
		if progress != nil {
			progress(done, total)
		}
	})
}

// reach applies each log up to a sequence.
func (r *Runner) reach(ctx context.Context, m Model, heads map[string]uint64, progress func(done uint64)) error {
	type step struct {
		log string
		seq uint64
	}
	moved := make(chan step)
	group, ctx := errgroup.WithContext(ctx)
	for log, head := range heads {
		group.Go(func() error {
			if head == 0 {
				_, err := checkpoint(ctx, r.pool, m, log)
				return err
			}
			return r.follow(ctx, m, log, head, func(seq uint64) {
				select {
				case moved <- step{log, seq}:
				case <-ctx.Done():
				}
			})
		})
	}
	ended := make(chan error, 1)
	go func() { ended <- group.Wait() }()
	at := map[string]uint64{}
	for {
		select {
		case s := <-moved:
			at[s.log] = min(s.seq, heads[s.log])
			if progress == nil {
				continue
			}
			var done uint64
			for _, seq := range at {
				done += seq
			}
			progress(done)
		case err := <-ended:
			return err
		}
	}
}
