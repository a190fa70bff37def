package api

import (
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/projections"
)

// written remembers how far each account has written each log, so that a read
// can wait for what its caller wrote before.
type written struct {
	mu   sync.Mutex
	last map[string]map[string]uint64 // account, log
}

func newWritten() *written { return &written{last: map[string]map[string]uint64{}} }

func (w *written) note(account string, at domain.Position) {
	w.mu.Lock()
	defer w.mu.Unlock()
	logs := w.last[account]
	if logs == nil {
		logs = map[string]uint64{}
		w.last[account] = logs
	}
	logs[at.Log] = max(logs[at.Log], at.Seq)
}

func (w *written) in(account, log string) (uint64, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	seq, ok := w.last[account][log]
	return seq, ok
}

// patience is how long a read waits for the read models.
const patience = 2 * time.Second

// caughtUp waits until a read model shows what the account has written to the
// logs.
func (a *API) caughtUp(ctx context.Context, account, model string, logs ...string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var all errgroup.Group
	for _, log := range logs {
		all.Go(func() error { return a.caughtUpOn(ctx, account, model, log) })
	}
	return all.Wait()
}

func (a *API) caughtUpOn(ctx context.Context, account, model, log string) error {
	seq, ok := a.written.in(account, log)
	if !ok || !a.Alone {
		// Another process, or an earlier life of this one, may have written.
		last, err := a.Store.Last(ctx, log, eventstore.AccountSubject(log, account))
		if err != nil {
			return err
		}
		seq = max(seq, last)
		a.written.note(account, domain.Position{Log: log, Seq: seq})
	}
	if seq == 0 {
		return nil
	}
	err := a.Tables.Await(ctx, model, log, seq)
	if errors.Is(err, context.DeadlineExceeded) {
		return projections.ErrLagging
	}
	return err
}

// settled waits until what was appended to the ledger is known to this process's
// own decisions, and notes it for reads.
func (a *API) settled(ctx context.Context, account string, recorded []domain.Recorded) error {
	if len(recorded) == 0 {
		return nil
	}
	last := recorded[len(recorded)-1].Position
	a.written.note(account, last)
	if last.Log != eventstore.Ledger {
		return nil
	}
	return a.Directory.Await(ctx, last.Seq)
}
