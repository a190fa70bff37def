package api

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"

	"postbook.dev/postbook/domain/email"
	"postbook.dev/postbook/eventstore"
)

// abandoned is how old the claim of a request is that will not answer any more:
// longer than the server lets a request run.
const abandoned = 4 * time.Minute

// once makes a request with an Idempotency-Key happen at most once. It returns
// the ids under which its emails are to be accepted, without those that are in the
// log already, or, with repeated set, were accepted or refused before. Whoever gets
// the claim settles it or gives it back.
type once struct {
	claim    eventstore.Claim
	there    map[uuid.UUID]bool // accepted by a request that died before it was settled
	held     bool
	repeated bool
}

// tries are the requests with an idempotency key that this process is answering.
type tries struct {
	process string
	mu      sync.Mutex
	last    uint64
	going   map[uint64]bool
}

func newTries() *tries { return &tries{process: rand.Text(), going: map[uint64]bool{}} }

func (t *tries) begin() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last++
	t.going[t.last] = true
	return t.last
}

func (t *tries) end(try uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.going, try)
}

// ended reports whether a claim is that of a try of ours which is over.
func (t *tries) ended(c eventstore.Claim) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return c.Process == t.process && !t.going[c.Try]
}

// claim reserves the request's idempotency key, if it has one, for emails with
// these ids.
func (a *API) claim(ctx context.Context, r *request, route string, payload any, ids []uuid.UUID) (o once, err error) {
	keys, given := r.Header["Idempotency-Key"]
	if !given {
		return once{claim: eventstore.Claim{IDs: ids}}, nil
	}
	if len(keys) != 1 || len(keys[0]) < 1 || len(keys[0]) > 256 {
		return once{}, errBadKey
	}
	body, err := json.Marshal(payload)
	if err != nil {
		return once{}, fmt.Errorf("digest request: %w", err)
	}
	try := a.tries.begin()
	defer func() {
		if !o.held {
			a.tries.end(try)
		}
	}()
	wanted := eventstore.Claim{
		Account: r.by.Account,
		Key:     digest([]byte(route + "\n" + keys[0])),
		Digest:  digest(body),
		IDs:     ids,
		At:      a.Now(),
		Process: a.tries.process,
		Try:     try,
	}
	stored, won, err := a.Store.Claim(ctx, wanted)
	switch {
	case err != nil:
		return once{}, err
	case won:
		return once{claim: stored, held: true}, nil
	case stored.Digest != wanted.Digest:
		return once{}, errReused
	case stored.Done:
		return once{claim: stored, repeated: true}, nil
	case a.goesOn(stored):
		return once{}, errConcurrent
	}
	return a.resume(ctx, stored, try)
}

// goesOn reports whether the newest try of a request may still be at work. What a
// fault kept from being written, the process that met it knows.
func (a *API) goesOn(c eventstore.Claim) bool {
	latest := c.Latest()
	died := a.Alone && latest.Before(a.started)
	return !c.Ended && !died && !a.tries.ended(c) && a.Now().Sub(latest) < abandoned
}

// resume takes up a request that met a fault, or died, before it was settled. Its
// ids say which of its emails are in the log.
func (a *API) resume(ctx context.Context, c eventstore.Claim, try uint64) (once, error) {
	c, err := a.Store.TakeUp(ctx, c, a.tries.process, try, a.Now())
	if errors.Is(err, eventstore.ErrConflict) {
		return once{}, errConcurrent
	}
	if err != nil {
		return once{}, err
	}
	there := map[uuid.UUID]bool{}
	for log, ids := range a.byLog(c.IDs) {
		if err := a.acceptedSince(ctx, log, c, ids, there); err != nil {
			return once{}, err
		}
	}
	if len(there) == len(c.IDs) {
		return once{claim: c, repeated: true}, a.Store.Settle(ctx, c)
	}
	return once{claim: c, there: there, held: true}, nil
}

func (a *API) byLog(ids []uuid.UUID) map[string][]uuid.UUID {
	logs := map[string][]uuid.UUID{}
	for _, id := range ids {
		log := eventstore.MailLog(a.Store.Partition(id))
		logs[log] = append(logs[log], id)
	}
	return logs
}

// clocksDiffer is how much the clocks of this host and of the log's may.
const clocksDiffer = 15 * time.Minute

// acceptedSince notes which of the emails were accepted in a log after the claim.
func (a *API) acceptedSince(ctx context.Context, log string, c eventstore.Claim, ids []uuid.UUID, there map[uuid.UUID]bool) error {
	subject := eventstore.AccountSubject(log, c.Account)
	last, err := a.Store.Last(ctx, log, subject)
	if err != nil || last == 0 {
		return err
	}
	after, err := a.Store.Before(ctx, log, c.At.Add(-clocksDiffer))
	if err != nil || after >= last {
		return err
	}
	wanted := map[string]uuid.UUID{}
	for _, id := range ids {
		wanted[id.String()] = id
	}
	return a.Store.Follow(ctx, eventstore.Following{Log: log, After: after, Subjects: []string{subject}, StopAt: last}, func(_ context.Context, entries []eventstore.Entry) error {
		for _, e := range entries {
			for _, rec := range e.Events {
				id, asked := wanted[rec.Stream.ID]
				if _, ok := rec.Event.(email.Accepted); ok && asked {
					there[id] = true
				}
			}
		}
		return nil
	})
}

// finish settles the claim of a request that was answered, or gives it back if
// all of it was refused. After a fault what happened is unknown: the next try looks.
func (a *API) finish(ctx context.Context, o once, err error) {
	if !o.held {
		return
	}
	defer a.tries.end(o.claim.Try)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	var failed error
	switch {
	case isRefusal(err), err == nil && len(o.claim.Refused) == len(o.claim.IDs):
		failed = a.Store.Unclaim(ctx, o.claim)
	case err == nil:
		failed = a.Store.Settle(ctx, o.claim)
	default:
		failed = a.Store.Abandon(ctx, o.claim)
	}
	if failed != nil {
		a.Log.Warn("idempotency key is not settled", "account", o.claim.Account, "error", failed)
	}
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
