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
			if err := r.persist(ctx, m.Name, "", func() error { return r.begin(ctx, m) }); err != nil {
				return err
			}
			logs, ctx := errgroup.WithContext(ctx)
			for _, log := range m.Logs(r.store) {
				logs.Go(func() error {
					return r.persist(ctx, m.Name, log, func() error { return r.follow(ctx, m, log, 0, nil) })
				})
			}
			return logs.Wait()
		})
	}
	return group.Wait()
}

// persist tries until it works or the context ends. After an entry that cannot be applied
// it waits until somebody has built the model again.
func (r *Runner) persist(ctx context.Context, model, log string, try func() error) error {
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
			if err := r.released(ctx, model, log); err != nil {
				return err
			}
			r.log.Info("a read model goes on", "model", model, "log", log)
			wait = 0
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

// released waits until a model that has stopped on a log does not stand there any more.
func (r *Runner) released(ctx context.Context, model, log string) error {
	for {
		select {
		case <-time.After(retryMost):
		case <-ctx.Done():
			return ctx.Err()
		}
		var stopped bool
		err := r.pool.QueryRow(ctx, "select exists (select from checkpoints where model = $1 and log = $2 and error <> '')", model, log).Scan(&stopped)
		if err == nil && !stopped {
			return nil
		}
	}
}

var (
	errMoved  = errors.New("projections: the checkpoint was moved back")
	errPoison = errors.New("projections: an entry cannot be applied")

	// Also while it runs: an earlier one can be put back, and an update of the program
	// on another host can put its own in place.
	errOutdated = errors.New("it was built by another version of the program, and has to be built again")
)

// follow applies a log to a model from its checkpoint on, up to stopAt if that is
// not 0.
func (r *Runner) follow(ctx context.Context, m Model, log string, stopAt uint64, progress func(seq uint64)) error {
	at, err := checkpoint(ctx, r.pool, m, log)
	if err != nil {
		return err
	}
	if at, err = r.passOver(ctx, m, log, at, stopAt); err != nil {
		return err
	}
	f := eventstore.Following{Log: log, After: at, MaxBatch: maxBatch, Linger: linger, StopAt: stopAt}
	return r.store.Follow(ctx, f, func(ctx context.Context, entries []eventstore.Entry) error {
		for stopAt > 0 && len(entries) > 0 && entries[len(entries)-1].Seq > stopAt {
			entries = entries[:len(entries)-1]
		}
		if len(entries) == 0 {
			return nil
		}
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

// passOver moves a checkpoint, up to stopAt if that is not 0, over what a log has forgotten:
// nothing may be left that moves it.
func (r *Runner) passOver(ctx context.Context, m Model, log string, at, stopAt uint64) (uint64, error) {
	if len(m.ages) == 0 {
		return at, nil
	}
	stats, err := r.store.Stats(ctx, log)
	if err != nil {
		return at, fmt.Errorf("projections: %s on %s: %w", m.Name, log, err)
	}
	to := max(stats.First, 1) - 1
	if stopAt > 0 {
		to = min(to, stopAt)
	}
	if to <= at {
		return at, nil
	}
	if _, err := r.pool.Exec(ctx, "update checkpoints set seq = $3 where model = $1 and log = $2 and seq < $3", m.Name, log, to); err != nil {
		return at, fmt.Errorf("projections: pass over what %s has forgotten: %w", log, err)
	}
	return to, nil
}

// apply writes the entries that come after the checkpoint, and moves it. Of those
// among which one cannot be applied, the ones before it are, and the error names it.
func (r *Runner) apply(ctx context.Context, m Model, log string, known uint64, entries []eventstore.Entry) error {
	err := r.applyAtOnce(ctx, m, log, known, entries)
	switch {
	case errors.Is(err, errPoison) && len(entries) > 1:
		half := len(entries) / 2
		if err := r.apply(ctx, m, log, known, entries[:half]); err != nil {
			return err
		}
		return r.apply(ctx, m, log, entries[half-1].Seq, entries[half:])
	case errors.Is(err, errPoison):
		err = fmt.Errorf("%s %d: %w", log, entries[0].Seq, err)
		_, noting := r.pool.Exec(ctx, "update checkpoints set error = $3 where model = $1 and log = $2 and seq < $4", m.Name, log, err.Error(), entries[0].Seq)
		return errors.Join(err, noting)
	case err != nil:
		return fmt.Errorf("projections: %s on %s: %w", m.Name, log, err)
	}
	return nil
}

// applyAtOnce writes the entries that come after the checkpoint, and moves it, in
// one transaction.
func (r *Runner) applyAtOnce(ctx context.Context, m Model, log string, known uint64, entries []eventstore.Entry) error {
	err := pgx.BeginFunc(ctx, r.pool, func(tx pgx.Tx) error {
		var at uint64
		var version int
		if err := tx.QueryRow(ctx, "select seq, version from checkpoints where model = $1 and log = $2 for update", m.Name, log).Scan(&at, &version); err != nil {
			return fmt.Errorf("lock the checkpoint: %w", err)
		}
		if version != m.Version {
			return errOutdated
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
		counted := &counting{Tx: tx}
		if err := m.apply(ctx, counted, entries); err != nil {
			return fmt.Errorf("apply %s %d to %d: %w", log, entries[0].Seq, entries[len(entries)-1].Seq, err)
		}
		_, err := tx.Exec(ctx, "update checkpoints set seq = $3, written = written + $4, error = '' where model = $1 and log = $2"+flush(tx.Conn()),
			m.Name, log, entries[len(entries)-1].Seq, counted.rows)
		return err
	})
	if fault, ok := errors.AsType[*pgconn.PgError](err); ok && (fault.Code[:2] == "22" || fault.Code[:2] == "23") {
		err = fmt.Errorf("%w: %w", errPoison, err)
	}
	return err
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

// begin makes the checkpoints of a model. One that was built by another version
// of it has to be built again first.
func (r *Runner) begin(ctx context.Context, m Model) error {
	for _, log := range m.Logs(r.store) {
		if _, err := checkpoint(ctx, r.pool, m, log); err != nil {
			return err
		}
	}
	differs, err := outdated(ctx, r.pool, m)
	if err == nil && differs {
		err = fmt.Errorf("projections: %s: %w", m.Name, errOutdated)
	}
	return err
}

func outdated(ctx context.Context, pool *pgxpool.Pool, m Model) (bool, error) {
	var differs bool
	err := pool.QueryRow(ctx, "select coalesce(bool_or(version <> $2), false) from checkpoints where model = $1", m.Name, m.Version).Scan(&differs)
	if err != nil {
		return false, fmt.Errorf("projections: look for the version of %s: %w", m.Name, err)
	}
	return differs, nil
}
