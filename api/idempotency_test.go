package api

import (
	"log/slog"
	"testing"
	"time"

	"github.com/google/uuid"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/catalogue"
	"postbook.dev/postbook/domain/email"
	"postbook.dev/postbook/eventstore"
)

// A request that died after some of its emails were accepted is taken up where it
// ended: what is in the log is not accepted again, however long ago that was.
func TestARequestThatDiedIsTakenUp(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	store, err := eventstore.Open(ctx, eventstore.Config{Dir: t.TempDir(), Registry: catalogue.Registry(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	// The clock of the host that took the request was ahead of the log's.
	a := &API{Config: Config{Store: store, Now: time.Now}}
	claim := eventstore.Claim{Account: "acme", Key: "c0ffee", Digest: "d1", IDs: []uuid.UUID{newID(), newID(), newID()}, At: time.Now().Add(10 * time.Minute)}
	claim, _, err = store.Claim(ctx, claim)
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
	o, err := a.resume(ctx, claim)
	if err != nil || o.repeated || !o.held || len(o.there) != 1 || !o.there[claim.IDs[1]] {
		t.Errorf("after one of three was accepted: %+v, %v", o, err)
	}
	accept(claim.IDs[0])
	accept(claim.IDs[2])
	if o, err = a.resume(ctx, claim); err != nil || !o.repeated {
		t.Errorf("after all were accepted: %+v, %v", o, err)
	}
	if held, won, err := store.Claim(ctx, claim); err != nil || won || !held.Done {
		t.Errorf("the claim is not settled: %+v, %v, %v", held, won, err)
	}
}
