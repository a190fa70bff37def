package main

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/access"
	"postbook.dev/postbook/domain/catalogue"
	"postbook.dev/postbook/eventstore"
)

// What was opened while the log could not be written is on record when it can be, with
// what was opened since, each once.
func TestOpeningsAreOnRecordLater(t *testing.T) {
	t.Parallel()
	store, err := eventstore.Open(t.Context(), eventstore.Config{Dir: t.TempDir(), Registry: catalogue.Registry(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	v := newVault(nil, store, slog.New(slog.DiscardHandler))
	away, cancel := context.WithCancel(t.Context())
	cancel()
	by := domain.Within(t.Context(), operator(time.Now()))
	v.count(by, "acme", "body")
	v.count(by, "beta", "body")
	v.flush(away)
	v.count(by, "acme", "body")
	v.flush(away)
	v.count(by, "acme", "body")
	for range 2 {
		v.flush(t.Context())
	}
	head, err := store.Head(t.Context(), eventstore.Access)
	if err != nil {
		t.Fatal(err)
	}
	opened := map[string]int{}
	err = store.Follow(t.Context(), eventstore.Following{Log: eventstore.Access, StopAt: head}, func(_ context.Context, entries []eventstore.Entry) error {
		for _, e := range entries {
			for _, rec := range e.Events {
				opened[rec.Stream.Account] += rec.Event.(access.Unsealed).Count
			}
		}
		return nil
	})
	if err != nil || opened["acme"] != 3 || opened["beta"] != 1 {
		t.Errorf("on record are %v, want 3 openings of acme and 1 of beta; %v", opened, err)
	}
}
