package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"postbook.dev/postbook/internal/pgcluster"
	"postbook.dev/postbook/migrations"
	"postbook.dev/postbook/projections"
)

type projectionsCommand struct {
	List    projectionsList    `cmd:"" help:"Say how far each read model is."`
	Lag     projectionsLag     `cmd:"" help:"Say which read models are behind, and for how long. Exits 1 if one is too far behind, or has stopped."`
	Rebuild projectionsRebuild `cmd:"" help:"Build read models again from the log, beside the ones that are read, and put them in their place."`
	Confirm projectionsConfirm `cmd:"" help:"Delete the tables that a read model had before it was built again."`
	Revert  projectionsRevert  `cmd:"" help:"Go back to the tables that a read model had before it was built again."`
}

type projectionsList struct{}

// Run prints how far each read model is.
func (projectionsList) Run(ctx context.Context, cfg Config, out output) error {
	all, err := projectionStates(ctx, cfg)
	if err != nil {
		return err
	}
	return out.states(all, func(s projections.State) bool { return s.State == projections.Running })
}

type projectionsLag struct {
	Within time.Duration `default:"1m" help:"How far behind is not too far."`
}

// Run prints the read models that are behind, the furthest first.
func (c projectionsLag) Run(ctx context.Context, cfg Config, out output) error {
	all, err := projectionStates(ctx, cfg)
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(s projections.State) bool { return s.Lag == 0 && s.State == projections.Running })
	slices.SortStableFunc(all, func(a, b projections.State) int { return cmp.Compare(b.Behind, a.Behind) })
	if len(all) == 0 && !out.json {
		fmt.Println("No read model is behind.")
		return nil
	}
	return out.states(all, func(s projections.State) bool { return s.State == projections.Running && s.Behind <= c.Within })
}

func projectionStates(ctx context.Context, cfg Config) ([]projections.State, error) {
	store, err := openLog(ctx, &cfg)
	if err != nil {
		return nil, err
	}
	defer store.Close()
	pool, done, err := openTables(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer done()
	return projections.Status(ctx, pool, store, time.Now())
}

// states prints where read models are; all of them have to be well.
func (o output) states(all []projections.State, well func(projections.State) bool) error {
	sound := true
	rows := make([][]string, 0, len(all))
	for _, s := range all {
		sound = sound && well(s)
		state := s.State
		if s.Kept {
			state += ", to confirm"
		}
		rows = append(rows, []string{s.Model, s.Log, strconv.FormatUint(s.Seq, 10), strconv.FormatUint(s.Lag, 10), s.Behind.Round(time.Millisecond).String(), state, s.Error})
	}
	if printed, err := o.object(all); err != nil {
		return err
	} else if !printed {
		if err := o.table([]string{"MODEL", "LOG", "AT", "LAG", "BEHIND", "STATE", "ERROR"}, rows); err != nil {
			return err
		}
	}
	if !sound {
		return errUnsound
	}
	return nil
}

type projectionsRebuild struct {
	Models []string `arg:"" optional:"" help:"Names of read models."`
	All    bool     `help:"All of them."`
}

// Run builds read models again, and shows how it goes.
func (c projectionsRebuild) Run(ctx context.Context, cfg Config, out output) error {
	names := c.Models
	if c.All {
		names = nil
		for _, m := range projections.Models {
			names = append(names, m.Name)
		}
	}
	if len(names) == 0 {
		return errors.New("name the read models to rebuild, or say --all")
	}
	store, err := openLog(ctx, &cfg)
	if err != nil {
		return err
	}
	defer store.Close()
	pool, done, err := openTables(ctx, cfg)
	if err != nil {
		return err
	}
	defer done()
	rebuilder := projections.NewRebuilder(pool, store, slog.New(slog.DiscardHandler))
	for _, name := range names {
		m, err := projections.Find(name)
		if err != nil {
			return err
		}
		start := time.Now()
		var events uint64
		progress := out.progress(name)
		err = rebuilder.Rebuild(ctx, m, func(done, total uint64) {
			events = total
			progress(done, total)
		})
		if err != nil {
			return fmt.Errorf("rebuild %s: %w", name, err)
		}
		if printed, err := out.object(map[string]any{"model": name, "entries": events, "seconds": time.Since(start).Seconds()}); err != nil {
			return err
		} else if !printed {
			fmt.Printf("%s: %d entries in %s\n", name, events, time.Since(start).Round(time.Millisecond))
		}
	}
	return nil
}

type projectionsConfirm struct {
	Model string `arg:"" help:"Name of the read model."`
}

// Run deletes what a read model had before.
func (c projectionsConfirm) Run(ctx context.Context, cfg Config) error {
	return withModel(ctx, cfg, c.Model, (*projections.Rebuilder).Confirm)
}

type projectionsRevert struct {
	Model string `arg:"" help:"Name of the read model."`
}

// Run goes back to what a read model had before.
func (c projectionsRevert) Run(ctx context.Context, cfg Config) error {
	return withModel(ctx, cfg, c.Model, (*projections.Rebuilder).Revert)
}

func withModel(ctx context.Context, cfg Config, name string, do func(*projections.Rebuilder, context.Context, projections.Model) error) error {
	m, err := projections.Find(name)
	if err != nil {
		return err
	}
	if err := cfg.settle(false); err != nil {
		return err
	}
	pool, done, err := openTables(ctx, cfg)
	if err != nil {
		return err
	}
	defer done()
	return do(projections.NewRebuilder(pool, nil, slog.New(slog.DiscardHandler)), ctx, m)
}

// progress tells people at a terminal how far something is, five times a second.
func (o output) progress(what string) func(done, total uint64) {
	info, err := os.Stderr.Stat()
	if o.json || err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return func(_, _ uint64) {}
	}
	begun, told := time.Now(), time.Time{}
	return func(done, total uint64) {
		if time.Since(told) < 200*time.Millisecond && done < total {
			return
		}
		told = time.Now()
		rate := float64(done) / max(time.Since(begun).Seconds(), 0.001)
		left := time.Duration(float64(total-min(done, total)) / max(rate, 1) * float64(time.Second))
		fmt.Fprintf(os.Stderr, "\r\033[K%s: %d of %d, %.0f a second, %s left", what, done, total, rate, left.Round(time.Second))
		if done >= total {
			fmt.Fprint(os.Stderr, "\r\033[K")
		}
	}
}

// openTables connects to the read models as the one who writes them: those of
// the running server, or a private cluster that is started for the command.
func openTables(ctx context.Context, cfg Config) (*pgxpool.Pool, func(), error) {
	url, stop := cfg.DatabaseURL, func() {}
	if r, ok := found(cfg); ok {
		url = r.DatabaseURL
	}
	if url == "" {
		cluster, err := pgcluster.Start(ctx, pgcluster.Options{Dir: cfg.path("postgres"), Fsync: true, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			return nil, nil, err
		}
		if err := cluster.Provision(ctx, database); err != nil {
			return nil, nil, errors.Join(err, cluster.Stop(ctx))
		}
		url = cluster.URL(database, "postbook")
		stop = func() {
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			_ = cluster.Stop(ctx) // it stops with this process anyway
		}
	}
	pool, err := pgxpool.New(ctx, url)
	if err == nil {
		err = migrations.Apply(ctx, url)
	}
	if err != nil {
		stop()
		return nil, nil, fmt.Errorf("open the database: %w", err)
	}
	return pool, func() { pool.Close(); stop() }, nil
}
