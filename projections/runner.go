package projections

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"postbook.dev/postbook/eventstore"
)

// Runner keeps read models up to date.
type Runner struct {
	pool   *pgxpool.Pool
	store  *eventstore.Store
	log    *slog.Logger
	models []Model
}

// NewRunner makes a runner of models. The pool is one that Connect opened.
func NewRunner(pool *pgxpool.Pool, store *eventstore.Store, log *slog.Logger, models ...Model) *Runner {
	return &Runner{pool, store, log, models}
}

// How entries are put together: what arrives within linger, and at most
// maxBatch. Without a little patience each email under load would have several
// transactions of its own.
const (
	maxBatch   = 4000
	linger     = 10 * time.Millisecond
	retryFirst = 100 * time.Millisecond
	retryMost  = 5 * time.Second
)

// Run follows the logs until ctx ends. A database or a log that is away is tried
// again; an entry that cannot be applied stops its model on its log, and nothing
// else.
func (r *Runner) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, m := range r.models {
		group.Go(func() error {
			if err := r.persist(ctx, m.Name, func() error { return r.settleVersion(ctx, m) }); err != nil {
				return err
			}
			logs, ctx := errgroup.WithContext(ctx)
			for _, log := range m.Logs(r.store) {
				logs.Go(func() error {
					return r.persist(ctx, m.Name, func() error { return r.follow(ctx, m, log, 0, nil) })
				})
			}
			return logs.Wait()
		})
	}
	return group.Wait()
}

// persist tries until it works, the context ends, or an entry cannot be applied.
func (r *Runner) persist(ctx context.Context, model string, try func() error) error {
	for wait := retryFirst; ; wait = min(2*wait, retryMost) {
		err := try()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, errMoved):
			wait = 0 // somebody has built the model again: go on from where it is now
		case errors.Is(err, errPoison):
			r.log.Error("a read model has stopped", "model", model, "error", err)
			<-ctx.Done()
			return ctx.Err()
		default:
			r.log.Warn("a read model waits", "model", model, "error", err)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
		wait = max(wait, retryFirst/2)
	}
}

var (
	errMoved  = errors.New("projections: the checkpoint was moved back")
	errPoison = errors.New("projections: an entry cannot be applied")
)

// follow applies a log to a model from its checkpoint on, up to stopAt if that is
// not 0.
func (r *Runner) follow(ctx context.Context, m Model, log string, stopAt uint64, progress func(seq uint64)) error {
	at, err := checkpoint(ctx, r.pool, m, log)
	if err != nil {
		return err
	}
	f := eventstore.Following{Log: log, After: at, MaxBatch: maxBatch, Linger: linger, StopAt: stopAt}
	return r.store.Follow(ctx, f, func(ctx context.Context, entries []eventstore.Entry) error {
		if err := r.apply(ctx, m, log, at, entries); err != nil {
			return err
		}
		at = entries[len(entries)-1].Seq
		if progress != nil {
			progress(at)
		}
		return nil
	})
}

// apply writes the entries that come after the checkpoint, and moves it, in one
// transaction.
func (r *Runner) apply(ctx context.Context, m Model, log string, known uint64, entries []eventstore.Entry) error {
	err := pgx.BeginFunc(ctx, r.pool, func(tx pgx.Tx) error {
		var at uint64
		if err := tx.QueryRow(ctx, "select seq from checkpoints where model = $1 and log = $2 for update", m.Name, log).Scan(&at); err != nil {
			return fmt.Errorf("lock the checkpoint: %w", err)
		}
		if at < known {
			return errMoved
		}
		for len(entries) > 0 && entries[0].Seq <= at {
			entries = entries[1:]
		}
		if len(entries) == 0 {
			return nil
		}
		for _, e := range entries {
			if e.Err != nil {
				return fmt.Errorf("%w: %w", errPoison, e.Err)
			}
		}
		if err := m.apply(ctx, tx, entries); err != nil {
			return fmt.Errorf("apply %s %d to %d: %w", log, entries[0].Seq, entries[len(entries)-1].Seq, err)
		}
		_, err := tx.Exec(ctx, "update checkpoints set seq = $3, error = '' where model = $1 and log = $2", m.Name, log, entries[len(entries)-1].Seq)
		return err
	})
	if fault, ok := errors.AsType[*pgconn.PgError](err); ok && (fault.Code[:2] == "22" || fault.Code[:2] == "23") {
		err = fmt.Errorf("%w: %w", errPoison, err)
	}
	if errors.Is(err, errPoison) {
		_, noting := r.pool.Exec(ctx, "update checkpoints set error = $3 where model = $1 and log = $2", m.Name, log, err.Error())
		return errors.Join(err, noting)
	}
	if err != nil {
		return fmt.Errorf("projections: %s on %s: %w", m.Name, log, err)
	}
	return nil
}

// checkpoint is how far a model has read a log.
func checkpoint(ctx context.Context, pool *pgxpool.Pool, m Model, log string) (uint64, error) {
	var seq uint64
	err := pool.QueryRow(ctx, `
		insert into checkpoints (model, log, version) values ($1, $2, $3)
		on conflict (model, log) do update set model = excluded.model
		returning seq`, m.Name, log, m.Version).Scan(&seq)
	if err != nil {
		return 0, fmt.Errorf("projections: read the checkpoint of %s on %s: %w", m.Name, log, err)
	}
	return seq, nil
}

// settleVersion empties a model that was built by another version of it.
func (r *Runner) settleVersion(ctx context.Context, m Model) error {
	for _, log := range m.Logs(r.store) {
		if _, err := checkpoint(ctx, r.pool, m, log); err != nil {
			return err
		}
	}
	var differs bool
	err := r.pool.QueryRow(ctx, "select coalesce(bool_or(version <> $2), false) from checkpoints where model = $1", m.Name, m.Version).Scan(&differs)
	if err == nil && differs {
		r.log.Info("a read model has a new version and is built again", "model", m.Name)
		err = r.empty(ctx, m)
	}
	if err != nil {
		return fmt.Errorf("projections: settle the version of %s: %w", m.Name, err)
	}
	return nil
}

// empty deletes a model's rows and sets its checkpoints to the beginning. Whoever
// writes it waits meanwhile, because the checkpoints are locked first.
func (r *Runner) empty(ctx context.Context, m Model) error {
	return pgx.BeginFunc(ctx, r.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "select 1 from checkpoints where model = $1 order by log for update", m.Name); err != nil {
			return err
		}
		for _, table := range m.Tables {
			if _, err := tx.Exec(ctx, "truncate "+pgx.Identifier{table}.Sanitize()); err != nil {
				return err
			}
		}
		_, err := tx.Exec(ctx, "update checkpoints set seq = 0, error = '', version = $2 where model = $1", m.Name, m.Version)
		return err
	})
}

// Rebuild empties a model and builds it again from the log, up to what the log
// holds now; a running server keeps it up to date from there. progress, if not
// nil, is told how many entries are done of how many.
func (r *Runner) Rebuild(ctx context.Context, name string, progress func(done, total uint64)) error {
	for _, m := range r.models {
		if m.Name != name {
			continue
		}
		heads := map[string]uint64{}
		var total uint64
		for _, log := range m.Logs(r.store) {
			head, err := r.store.Head(ctx, log)
			if err != nil {
				return err
			}
			heads[log] = head
			total += head
			if _, err := checkpoint(ctx, r.pool, m, log); err != nil {
				return err
			}
		}
		if err := r.empty(ctx, m); err != nil {
			return fmt.Errorf("projections: empty %s: %w", name, err)
		}
		return r.catchUp(ctx, m, heads, func(done uint64) {
			if progress != nil {
				progress(done, total)
			}
		})
	}
	return fmt.Errorf("projections: there is no read model called %q", name)
}

func (r *Runner) catchUp(ctx context.Context, m Model, heads map[string]uint64, progress func(done uint64)) error {
	moved := make(chan struct {
		log string
		seq uint64
	})
	group, ctx := errgroup.WithContext(ctx)
	for log, head := range heads {
		if head == 0 {
			continue
		}
		group.Go(func() error {
			for {
				err := r.follow(ctx, m, log, head, func(seq uint64) {
					select {
					case moved <- struct {
						log string
						seq uint64
					}{log, seq}:
					case <-ctx.Done():
					}
				})
				if !errors.Is(err, errMoved) {
					return err
				}
			}
		})
	}
	ended := make(chan error, 1)
	go func() { ended <- group.Wait() }()
	at := map[string]uint64{}
	for {
		select {
		case step := <-moved:
			at[step.log] = min(step.seq, heads[step.log])
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
