package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/readmodel"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/projections"
)

// When read models are held against the log. One is looked at as often as that costs
// a fiftieth of one core, which for small ones is every half a minute; and soon after
// its tables were written to by somebody else than the projection. Counters tell of
// that, and whoever owns the database can set them back: so all are looked at daily.
const (
	lookEvery   = 10 * time.Second // for marks of foreign writes
	verifyLeast = 30 * time.Second
	verifyMost  = 24 * time.Hour
	verifyShare = 50 // a verification every fifty times as long as it takes
	afterMarks  = 5  // a tenth of that when there are marks

	afterStart = 10 * time.Minute // where much has to be replayed first, which a start need not wait for
	muchReplay = 100_000          // entries
)

// watched is when a read model was verified last.
type watched struct {
	model projections.Model
	marks projections.Marks // before that
	next  time.Time
	again time.Time // not earlier, even if there are marks
	anew  time.Time // when the whole log is replayed next, not only what has come since
}

// watchReadModels verifies the read models until ctx ends, and puts on record what
// it finds.
func (s *server) watchReadModels(ctx context.Context) error {
	verifier := projections.NewRebuilder(s.maker, s.store, s.log)
	models := make([]*watched, len(projections.Models))
	for i, m := range projections.Models {
		w := &watched{model: m}
		left, all, err := verifier.ToReplay(ctx, m)
		if err != nil || left > muchReplay {
			w.next = time.Now().Add(afterStart)
			w.again = w.next
		}
		if err != nil || all > muchReplay {
			w.anew = time.Now().Add(afterStart)
		}
		models[i] = w
	}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		for _, w := range models {
			err := s.verifyIfDue(ctx, verifier, w)
			switch {
			case ctx.Err() != nil:
				return ctx.Err()
			case err != nil:
				s.log.Warn("a read model was not verified; it is tried again", "model", w.model.Name, "error", err)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *server) verifyIfDue(ctx context.Context, verifier *projections.Rebuilder, w *watched) error {
	begun := time.Now()
	due := !begun.Before(w.next)
	if !due && begun.Before(w.again) {
		return nil
	}
	if due && begun.After(w.anew) {
		if err := errors.Join(verifier.Forget(ctx, w.model), verifier.Anew(ctx, w.model)); err != nil {
			return err
		}
		w.anew = begun.Add(verifyMost)
	}
	// Without marks, the model is still verified when that is due.
	marks, err := verifier.Marks(ctx, w.model)
	if !due && (err != nil || marks == w.marks) {
		return err
	}
	drift, err := verifier.Verify(ctx, w.model, nil)
	if err != nil {
		return err
	}
	took := time.Since(begun)
	w.marks = marks
	w.next = time.Now().Add(min(max(verifyShare*took, verifyLeast), verifyMost))
	w.again = time.Now().Add(afterMarks * took)
	for _, d := range drift[:min(len(drift), 10)] {
		s.log.Error("a row was changed behind the log's back", "table", d.Table, "row", d.Key, "kind", d.Kind)
	}
	if err := reportDrift(ctx, s.store, system(time.Now(), "verifier"), w.model, drift); err != nil {
		s.log.Error("a finding about a read model is not on record", "error", err)
	}
	return nil
}

// reportDrift puts on record which rows differ, but not what is in them, and which no
// longer do.
func reportDrift(ctx context.Context, store *eventstore.Store, by domain.Authority, m projections.Model, drift []projections.Drift) error {
	report := readmodel.Report{Authority: by, Some: len(drift) >= projections.MaxDrift}
	for _, d := range drift {
		row := readmodel.Drifted{Table: d.Table, Key: d.Key, Kind: string(d.Kind)}
		for _, f := range d.Fields {
			row.Fields = append(row.Fields, f.Field)
		}
		report.Rows = append(report.Rows, row)
	}
	_, err := eventstore.Execute(ctx, store, readmodel.Decider, readmodel.Stream(m.Name), readmodel.Command(report))
	return err
}

// verifyReadModels compares the read models with what the log makes of them, and
// reports whether they are the same.
func (c verifyCommand) verifyReadModels(ctx context.Context, cfg Config, out output) (bool, error) {
	for _, name := range c.Model {
		if _, err := projections.Find(name); err != nil {
			return false, err
		}
	}
	store, err := openLog(ctx, &cfg)
	if err != nil {
		return false, err
	}
	defer store.Close()
	pool, done, err := openTables(ctx, cfg)
	if err != nil {
		return false, err
	}
	defer done()
	looking := lookingAtModels{c, out, store, pool, projections.NewRebuilder(pool, store, slog.New(slog.DiscardHandler))}
	sound := true
	for _, m := range projections.Models {
		if len(c.Model) > 0 && !slices.Contains(c.Model, m.Name) {
			continue
		}
		asLogged, err := looking.at(ctx, m)
		if err != nil {
			return false, err
		}
		sound = sound && asLogged
	}
	return sound, nil
}

// lookingAtModels is a verification of read models under way.
type lookingAtModels struct {
	verifyCommand
	out      output
	store    *eventstore.Store
	pool     *pgxpool.Pool
	verifier *projections.Rebuilder
}

// at verifies a model, repairs it if that is asked for, and reports whether it was
// as the log makes it.
func (l lookingAtModels) at(ctx context.Context, m projections.Model) (bool, error) {
	if l.Fresh || l.Repair {
		if err := l.alone(ctx, m, func() error { return l.verifier.Anew(ctx, m) }); err != nil {
			return false, err
		}
	}
	drift, stopped, err := l.look(ctx, m)
	if err != nil {
		return false, err
	}
	sound := len(drift) == 0 && len(stopped) == 0
	for l.Repair && len(drift) > 0 {
		if err := l.alone(ctx, m, func() error { return repair(ctx, l.store, l.verifier, m, drift) }); err != nil {
			return false, err
		}
		if !l.out.json {
			fmt.Printf("  %d rows were put back; once more:\n", len(drift))
		}
		// Not all were listed, if there were many.
		if drift, _, err = l.look(ctx, m); err != nil {
			return false, err
		}
	}
	return sound, nil
}

// alone does something as soon as nobody else verifies the model, which a server
// does now and then.
func (l lookingAtModels) alone(ctx context.Context, m projections.Model, do func() error) error {
	for waited := false; ; waited = true {
		err := do()
		if !errors.Is(err, projections.ErrUnderWay) {
			return err
		}
		if !waited && !l.out.json {
			fmt.Fprintf(os.Stderr, "%s is being verified by the server; this waits for it\n", m.Name)
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// look verifies a model, says what was found, and puts it on record.
func (l lookingAtModels) look(ctx context.Context, m projections.Model) (drift []projections.Drift, stopped []string, err error) {
	begun := time.Now()
	err = l.alone(ctx, m, func() (err error) {
		drift, err = l.verifier.Verify(ctx, m, l.out.progress(m.Name))
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	if stopped, err = stoppedAt(ctx, l.pool, l.store, m); err != nil {
		return nil, nil, err
	}
	if err := l.out.drift(m, drift, stopped, time.Since(begun)); err != nil {
		return nil, nil, err
	}
	if err := reportDrift(ctx, l.store, operator(time.Now()), m, drift); err != nil {
		return nil, nil, fmt.Errorf("put on record what was found: %w", err)
	}
	return drift, stopped, nil
}

// stoppedAt tells where a read model stands still: up to there it may be as the log
// makes it, and what came since is not in it.
func stoppedAt(ctx context.Context, pool *pgxpool.Pool, store *eventstore.Store, m projections.Model) ([]string, error) {
	states, err := projections.Status(ctx, pool, store, time.Now())
	if err != nil {
		return nil, err
	}
	stopped := []string{}
	begun := map[string]bool{}
	for _, s := range states {
		if s.Model != m.Name {
			continue
		}
		begun[s.Log] = true
		if s.State == projections.Stopped {
			stopped = append(stopped, fmt.Sprintf("it stands still after %s %d, %d entries behind: %s", s.Log, s.Seq, s.Lag, s.Error))
		}
	}
	for _, log := range m.Logs(store) {
		head, err := store.Head(ctx, log)
		if err != nil {
			return nil, err
		}
		if head > 0 && !begun[log] {
			stopped = append(stopped, fmt.Sprintf("it has read nothing of %s, %d entries behind: a server that starts reads them", log, head))
		}
	}
	return stopped, nil
}

func repair(ctx context.Context, store *eventstore.Store, verifier *projections.Rebuilder, m projections.Model, drift []projections.Drift) error {
	if drift[0].Table == "checkpoints" {
		return fmt.Errorf("a checkpoint of %s lies behind the end of its log, and no row can be trusted: run postbook projections rebuild %s", m.Name, m.Name)
	}
	if err := verifier.Repair(ctx, m, drift); err != nil {
		return err
	}
	by := readmodel.Repair{Authority: operator(time.Now()), Rows: len(drift)}
	_, err := eventstore.Execute(ctx, store, readmodel.Decider, readmodel.Stream(m.Name), readmodel.Command(by))
	return err
}

func (o output) drift(m projections.Model, drift []projections.Drift, stopped []string, took time.Duration) error {
	if printed, err := o.object(map[string]any{"model": m.Name, "seconds": took.Seconds(), "drift": drift, "stopped": stopped}); printed {
		return err
	}
	verdict := "as the log makes it"
	if len(drift) > 0 {
		verdict = "NOT as the log makes it"
	}
	fmt.Printf("%-8s  %s, in %s\n", m.Name, verdict, took.Round(time.Millisecond))
	for _, s := range stopped {
		fmt.Println("  " + s)
	}
	for _, d := range drift[:min(len(drift), 20)] {
		fmt.Println("  " + d.String())
	}
	if more := len(drift) - 20; more > 0 {
		fmt.Printf("  and %d more\n", more)
	}
	return nil
}
