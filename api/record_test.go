package api

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/access"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/internal/testenv"
)

// What was answered while the log of accesses had lost its server is on record when
// there is another, each answer once.
func TestAccessIsOnRecordAfterAServerWasLost(t *testing.T) {
	t.Parallel()
	cluster := testenv.StartNATSCluster(t)
	store := storeOf(t, eventstore.Config{URL: cluster.URL()})
	r := newRecorder(store, slog.New(slog.DiscardHandler))
	const each = 20
	paths := map[string]bool{}
	answer := func(wait bool) {
		path := fmt.Sprint("/emails/", len(paths))
		by := domain.Authority{Actor: domain.Actor{Kind: domain.APIKey, ID: "k"}, Account: "acme", Via: domain.ViaAPI, At: time.Now(), Command: newID()}
		err := r.record(t.Context(), by, access.Answered{Route: "POST /emails", Method: "POST", Path: path, Status: 200}, wait)
		if err == nil {
			paths[path] = true // whoever waits is told if it is not
		}
	}
	for n := range each {
		answer(n == 0)
	}
	cluster.Kill(cluster.Leader(eventstore.Access))
	for range each {
		answer(false)
	}
	testenv.Eventually(t, time.Minute, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		head, err := store.Head(ctx, eventstore.Access)
		if err != nil {
			return err
		}
		seen := map[string]int{}
		err = store.Follow(ctx, eventstore.Following{Log: eventstore.Access, StopAt: head}, func(_ context.Context, entries []eventstore.Entry) error {
			for _, e := range entries {
				for _, rec := range e.Events {
					seen[rec.Event.(access.Answered).Path]++
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		var wrong []string
		for path := range paths {
			if seen[path] != 1 {
				wrong = append(wrong, fmt.Sprintf("%s %d times", path, seen[path]))
			}
		}
		if len(wrong) > 0 {
			return fmt.Errorf("on record are %s", strings.Join(wrong, ", "))
		}
		return nil
	})
	r.close()
}
