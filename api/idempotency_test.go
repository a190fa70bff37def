package api

import (
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/catalogue"
	"postbook.dev/postbook/domain/email"
	"postbook.dev/postbook/eventstore"
)

func openStore(t *testing.T) *eventstore.Store {
	t.Helper()
	return storeOf(t, eventstore.Config{Dir: t.TempDir()})
}

func storeOf(t *testing.T, c eventstore.Config) *eventstore.Store {
	t.Helper()
	c.Registry, c.Log = catalogue.Registry(), slog.New(slog.DiscardHandler)
	store, err := eventstore.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	return store
}

// A request that died after some of its emails were accepted is taken up where it
// ended: what is in the log is not accepted again, however long ago that was.
func TestARequestThatDiedIsTakenUp(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	store := openStore(t)
	// The clock of the host that took the request was ahead of the log's.
	a := &API{Config: Config{Store: store, Now: time.Now}, tries: newTries()}
	claim := eventstore.Claim{Account: "acme", Key: "c0ffee", Digest: "d1", IDs: []uuid.UUID{newID(), newID(), newID()}, At: time.Now().Add(10 * time.Minute)}
	claim, _, err := store.Claim(ctx, claim)
	if err != nil {
		t.Fatal(err)
	}
	accept := func(id uuid.UUID) {
		t.Helper()
		by := domain.Authority{Actor: domain.Actor{Kind: domain.APIKey, ID: "k"}, Account: "acme", Via: domain.ViaAPI, At: time.Now(), Command: uuid.New()}
		_, err := store.Accept(ctx, []eventstore.Commit{{Stream: email.Stream("acme", id), By: by, Events: []domain.Event{email.Accepted{Sender: "s"}}}})
		if err != nil {
			t.Fatal(err)
		}
	}
	accept(claim.IDs[1])
	o, err := a.resume(ctx, claim, 1)
	if err != nil || o.repeated || !o.held || len(o.there) != 1 || !o.there[claim.IDs[1]] {
		t.Errorf("after one of three was accepted: %+v, %v", o, err)
	}
	accept(claim.IDs[0])
	accept(claim.IDs[2])
	if o, err = a.resume(ctx, o.claim, 2); err != nil || !o.repeated {
		t.Errorf("after all were accepted: %+v, %v", o, err)
	}
	if held, won, err := store.Claim(ctx, claim); err != nil || won || !held.Done {
		t.Errorf("the claim is not settled: %+v, %v, %v", held, won, err)
	}
}

// A request that was answered with a fault can be sent again at once, by one of
// those who do. One that may still be at work cannot.
func TestARequestThatMetAFaultIsTakenUpAtOnce(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	store := openStore(t)
	now := time.Now()
	a := &API{Config: Config{Store: store, Now: func() time.Time { return now }, Log: slog.New(slog.DiscardHandler)}, tries: newTries()}
	send := func() (once, error) {
		r := &request{Request: httptest.NewRequestWithContext(ctx, http.MethodPost, "/emails", nil), by: domain.Authority{Account: "acme"}}
		r.Header.Set("Idempotency-Key", "k")
		return a.claim(ctx, r, "POST /emails", "a mail", []uuid.UUID{newID()})
	}
	first, err := send()
	if err != nil || !first.held {
		t.Fatalf("%+v, %v", first, err)
	}
	if _, err := send(); !errors.Is(err, errConcurrent) {
		t.Errorf("beside the first: %v", err)
	}
	a.finish(ctx, first, eventstore.ErrUnavailable)
	// The log was so far away that not even that is in it.
	if first, err = send(); err != nil || !first.held {
		t.Fatalf("%+v, %v", first, err)
	}
	a.tries.end(first.claim.Try)
	var again, refused atomic.Int64
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			switch o, err := send(); {
			case errors.Is(err, errConcurrent):
				refused.Add(1)
			case err != nil || !o.held || o.claim.IDs[0] != first.claim.IDs[0]:
				t.Errorf("%+v, %v; want the ids of the first", o, err)
			default:
				again.Add(1)
			}
		})
	}
	all.Wait()
	if again.Load() != 1 || refused.Load() != 19 {
		t.Errorf("of 20 requests %d go on, and %d are told that one does", again.Load(), refused.Load())
	}
	now = now.Add(abandoned + time.Second) // and that one has died
	last, err := send()
	if err != nil || !last.held {
		t.Fatalf("%+v, %v", last, err)
	}
	a.finish(ctx, last, nil)
	if o, err := send(); err != nil || !o.repeated {
		t.Errorf("after it was answered: %+v, %v", o, err)
	}
}
