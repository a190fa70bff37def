package api

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"

	"postbook.dev/postbook/domain/email"
	"postbook.dev/postbook/eventstore"
)

// abandoned is how old the claim of a request is that will not answer any more:
// longer than the server lets a request run.
const abandoned = 4 * time.Minute

// once makes a request with an Idempotency-Key happen at most once. It returns
// the ids under which its emails are to be accepted, or, with repeated set, were
// accepted before. Whoever gets the claim settles it or gives it back.
type once struct {
	claim    eventstore.Claim
	held     bool
	repeated bool
}

// claim reserves the request's idempotency key, if it has one, for emails with
// these ids.
func (a *API) claim(ctx context.Context, r *request, route string, payload any, ids []uuid.UUID) (once, error) {
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
	wanted := eventstore.Claim{
		Account: r.by.Account,
		Key:     digest([]byte(route + "\n" + keys[0])),
		Digest:  digest(body),
		IDs:     ids,
		At:      a.Now(),
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
	case a.Now().Sub(stored.At) < abandoned && !(a.Alone && stored.At.Before(a.started)):
		return once{}, errConcurrent
	}
	return a.resume(ctx, stored)
}

// resume decides about a request that died before it was settled. Its ids say
// whether its emails are in the log.
func (a *API) resume(ctx context.Context, c eventstore.Claim) (once, error) {
	missing := map[string]bool{}
	for _, id := range c.IDs {
		missing[id.String()] = true
	}
	for log, ids := range a.byLog(c.IDs) {
		found, err := a.acceptedSince(ctx, log, c, ids)
		if err != nil {
			return once{}, err
		}
		for _, id := range found {
			delete(missing, id)
		}
	}
	if len(missing) == 0 {
		return once{claim: c, repeated: true}, a.Store.Settle(ctx, c)
	}
	// Accepting under the same ids again is safe: what is there already stays the
	// first commit, and a second one of the same id changes nothing.
	return once{claim: c, held: true}, nil
}

func (a *API) byLog(ids []uuid.UUID) map[string][]uuid.UUID {
	logs := map[string][]uuid.UUID{}
	for _, id := range ids {
		log := eventstore.MailLog(a.Store.Partition(id))
		logs[log] = append(logs[log], id)
	}
	return logs
}

// acceptedSince lists which of the emails were accepted in a log after the claim.
func (a *API) acceptedSince(ctx context.Context, log string, c eventstore.Claim, ids []uuid.UUID) ([]string, error) {
	subject := eventstore.AccountSubject(log, c.Account)
	last, err := a.Store.Last(ctx, log, subject)
	if err != nil || last == 0 {
		return nil, err
	}
	after, err := a.Store.Before(ctx, log, c.At.Add(-time.Minute))
	if err != nil || after >= last {
		return nil, err
	}
	wanted := map[string]bool{}
	for _, id := range ids {
		wanted[id.String()] = true
	}
	var found []string
	err = a.Store.Follow(ctx, eventstore.Following{Log: log, After: after, Subjects: []string{subject}, StopAt: last}, func(_ context.Context, entries []eventstore.Entry) error {
		for _, e := range entries {
			for _, rec := range e.Events {
				if _, ok := rec.Event.(email.Accepted); ok && wanted[rec.Stream.ID] {
					found = append(found, rec.Stream.ID)
				}
			}
		}
		return nil
	})
	return found, err
}

// finish settles the claim of a request that was answered, or gives it back if
// it was refused. After a fault it is kept: what happened is unknown, and the
// next try looks.
func (a *API) finish(ctx context.Context, o once, err error) {
	if !o.held {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	var failed error
	switch {
	case err == nil:
		failed = a.Store.Settle(ctx, o.claim)
	case isRefusal(err):
		failed = a.Store.Unclaim(ctx, o.claim)
	}
	if failed != nil {
		a.Log.Warn("idempotency key is not settled", "account", o.claim.Account, "error", failed)
	}
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
