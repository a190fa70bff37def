package main

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"postbook.dev/postbook/domain/catalogue"
	"postbook.dev/postbook/domain/email"
	"postbook.dev/postbook/eventstore"
)

// A batch of which only a part can be sent says the same when it is asked for again,
// and nothing that was refused is said to be sent. Where nothing was accepted,
// nothing is remembered either.
func TestARepeatedBatchSaysTheSame(t *testing.T) {
	t.Parallel()
	i := launch(t)
	stranger := hello("one@rcpt.test")
	stranger["from"] = "ada@not-verified.test"
	empty := map[string]any{"from": hello("x@rcpt.test")["from"], "to": "one@rcpt.test"}
	send := func(key string, batch ...any) reply {
		return i.ask("POST", "/emails/batch", batch, "Idempotency-Key", key, "X-Batch-Validation", "permissive")
	}
	type said struct {
		Data   []struct{ ID string }
		Errors []struct{ Index int }
	}
	first := send("mixed", stranger, hello("two@rcpt.test"), empty, hello("three@rcpt.test"))
	var got said
	first.decode(t, &got)
	if first.status != 200 || len(got.Data) != 2 || len(got.Errors) != 2 || got.Errors[0].Index != 0 || got.Errors[1].Index != 2 {
		t.Errorf("a batch of which two can be sent: %s", first)
	}
	for _, m := range got.Data {
		i.lastEvent(m.ID, "delivered")
	}
	if again := send("mixed", stranger, hello("two@rcpt.test"), empty, hello("three@rcpt.test")); again.String() != first.String() {
		t.Errorf("asked again, it says %s, and first it said %s", again, first)
	}
	if r := i.ask("POST", "/emails/batch", []any{stranger}, "Idempotency-Key", "mixed"); r.status != 409 {
		t.Errorf("another batch under the same key: %s", r)
	}
	for key, mail := range map[string]any{"refused": stranger, "invalid": empty} {
		for range 2 {
			r := send(key, mail)
			var got said
			r.decode(t, &got)
			if r.status != 200 || len(got.Data) != 0 || len(got.Errors) != 1 {
				t.Errorf("%s: %s", key, r)
			}
		}
		if r := send(key, hello("late@rcpt.test")); r.status != 200 || !strings.Contains(r.String(), `"data":[{`) {
			t.Errorf("%s: the key is still taken: %s", key, r)
		}
	}
	if list := i.ask("GET", "/emails", nil); strings.Count(list.String(), `"last_event"`) != 4 {
		t.Errorf("there are other emails than the four: %s", list)
	}
}

// The process is killed while it takes a batch in, and the client asks again with the
// same key, once it is there again: each email is in the log once.
func TestABatchIsTakenInOnceAcrossCrashes(t *testing.T) {
	t.Parallel()
	rounds := 2
	if os.Getenv("POSTBOOK_TEST_LONG") != "" {
		rounds = 30
	}
	i := launch(t)
	accepted := map[string]bool{}
	for round := range rounds {
		var batch []any
		for n := range 50 {
			batch = append(batch, hello(fmt.Sprintf("r%d-n%d@rcpt.test", round, n)))
		}
		key := fmt.Sprint("batch-", round)
		asked := make(chan struct{})
		go func() {
			defer close(asked)
			_, _ = i.try(context.Background(), "POST", "/emails/batch", batch, "Idempotency-Key", key)
		}()
		time.Sleep(rand.N(40 * time.Millisecond)) // at any moment: no state is waited for
		i.kill()
		<-asked
		i.start("--quiet")
		var said struct{ Data []struct{ ID string } }
		i.ask("POST", "/emails/batch", batch, "Idempotency-Key", key).decode(t, &said)
		if len(said.Data) != len(batch) {
			t.Errorf("round %d: %d emails were taken in", round, len(said.Data))
		}
		for _, m := range said.Data {
			accepted[m.ID] = true
		}
	}
	i.stop()
	store, err := eventstore.Open(t.Context(), eventstore.Config{Dir: i.dir + "/log", Registry: catalogue.Registry(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	times := map[string]int{}
	for _, log := range store.MailLogs() {
		head, err := store.Head(t.Context(), log)
		if err == nil && head > 0 {
			err = store.Follow(t.Context(), eventstore.Following{Log: log, StopAt: head}, func(_ context.Context, entries []eventstore.Entry) error {
				for _, e := range entries {
					for _, rec := range e.Events {
						if _, ok := rec.Event.(email.Accepted); ok {
							times[rec.Stream.ID]++
						}
					}
				}
				return nil
			})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for id := range accepted {
		if times[id] != 1 {
			t.Errorf("%s is in the log %d times", id, times[id])
		}
	}
	if len(times) != len(accepted) {
		t.Errorf("%d emails are in the log, and %d were said to be", len(times), len(accepted))
	}
}
