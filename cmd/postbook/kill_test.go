package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"postbook.dev/postbook/domain/catalogue"
	"postbook.dev/postbook/domain/email"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/internal/testenv"
)

// The process is killed at random moments under load, and started again on the
// same data. Every mail that was accepted is delivered; what is delivered twice is
// said to be possible by the log. The seal, which was killed as well, fits the log,
// and covers no less than before.
func TestKilledUnderLoad(t *testing.T) {
	rounds := 5
	if os.Getenv("POSTBOOK_TEST_LONG") != "" {
		rounds = 100
	} else {
		t.Parallel()
	}
	sink := testenv.StartSink(t)
	i := launch(t, "POSTBOOK_DELIVERY=relay", "POSTBOOK_RELAY_URL=smtp://"+sink.Addr)
	accepted := map[string]bool{}
	unanswered := 0
	sealed := int64(0)
	for round := range rounds {
		ids, lost := i.loadUntilKilled(round, time.Duration(rand.IntN(500))*time.Millisecond)
		for _, id := range ids {
			accepted[id] = true
		}
		unanswered += lost
		now := i.sealedEntries(t)
		if now < sealed {
			t.Errorf("round %d: %d entries are sealed, and before it were %d", round, now, sealed)
		}
		sealed = now
		i.start("--quiet")
	}

	// A recipient whose attempt was interrupted is tried again after about a minute.
	var history map[string]outcome
	testenv.Eventually(t, 4*time.Minute, func() error {
		out, err := i.postbook("events", "check", "--json")
		if err != nil {
			return fmt.Errorf("check: %w\n%s", err, out)
		}
		if !strings.Contains(strings.ReplaceAll(out, " ", ""), `"open":0,`) {
			return fmt.Errorf("emails are open: %s", out)
		}
		return nil
	})
	i.stop()
	if now := i.sealedEntries(t); now <= sealed {
		t.Errorf("in the end %d entries are sealed, and before it were %d", now, sealed)
	}
	history = outcomes(t, filepath.Join(i.dir, "log"))

	taken := map[string]int{}
	for key, times := range sink.Taken() {
		id, _, _ := strings.Cut(key, "@") // of the Message-ID
		taken[id] += times
	}
	duplicates := 0
	for id := range accepted {
		n, h := taken[id], history[id]
		switch {
		case n == 0:
			t.Errorf("%s was accepted and never delivered; failed: %t", id, h.failed)
		case n > 1+h.unknown:
			t.Errorf("%s was delivered %d times, and the log knows of %d unknown outcomes", id, n, h.unknown)
		}
		duplicates += max(0, n-1)
	}
	unknown, shared := 0, 0
	for _, h := range history {
		unknown += h.unknown
		shared += h.shared
	}
	if shared == 0 {
		t.Error("no two emails shared a message of the log with what became of them: there was no load")
	}
	t.Logf("%d kills: %d mails accepted, %d requests without an answer, %d deliveries, %d unknown outcomes, %d duplicates; %d records shared messages",
		rounds, len(accepted), unanswered, sink.Total(), unknown, duplicates, shared)
}

// sealedEntries holds the logs against the seal, without a server, and says how many
// entries that covers.
func (i *instance) sealedEntries(t *testing.T) int64 {
	t.Helper()
	out, err := i.postbook("verify", "--log", "--json")
	if err != nil {
		t.Fatalf("verify: %v\n%s", err, out)
	}
	sealed := int64(0)
	for dec := json.NewDecoder(strings.NewReader(out)); dec.More(); {
		var report struct{ Sealed int64 }
		if err := dec.Decode(&report); err != nil {
			t.Fatal(err)
		}
		sealed += report.Sealed
	}
	return sealed
}

// enough mails were accepted in a round to call it load.
const enough = 10

// loadUntilKilled sends from eight clients until the process is killed, a while after
// enough mails were accepted, and returns the ids that were answered.
func (i *instance) loadUntilKilled(round int, after time.Duration) (ids []string, unanswered int) {
	var mu sync.Mutex
	var clients sync.WaitGroup
	var begun sync.Once
	loaded := make(chan struct{})
	ctx, cancel := context.WithCancel(i.t.Context())
	defer cancel()
	for c := range 8 {
		clients.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				to := fmt.Sprintf("r%d-c%d-n%d", round, c, n)
				got, err := i.sendSome(ctx, to, n == 0)
				mu.Lock()
				if err != nil {
					unanswered++
					mu.Unlock()
					return
				}
				if ids = append(ids, got...); len(ids) >= enough {
					begun.Do(func() { close(loaded) })
				}
				mu.Unlock()
			}
		})
	}
	<-loaded
	time.Sleep(after) // at any moment of its work: no state is waited for
	i.kill()
	clients.Wait()
	return ids, unanswered
}

// sendSome sends a mail, or as many at once as have their records share messages.
func (i *instance) sendSome(ctx context.Context, to string, many bool) (ids []string, err error) {
	if !many {
		r, err := i.try(ctx, "POST", "/emails", hello(to+"@rcpt.test"))
		if err != nil {
			return nil, err
		}
		return []string{r.id(i.t)}, nil
	}
	batch := make([]any, 10)
	for n := range batch {
		batch[n] = hello(fmt.Sprintf("%s-%d@rcpt.test", to, n))
	}
	r, err := i.try(ctx, "POST", "/emails/batch", batch)
	if err != nil {
		return nil, err
	}
	var said struct{ Data []struct{ ID string } }
	r.decode(i.t, &said)
	for _, d := range said.Data {
		ids = append(ids, d.ID)
	}
	if len(ids) != len(batch) {
		i.t.Errorf("a batch of %d was answered %s", len(batch), r)
	}
	return ids, nil
}

// outcome is what the log says about an email.
type outcome struct {
	unknown int
	failed  bool
	shared  int // of its records after the first, those beside another email's
}

func outcomes(t *testing.T, dir string) map[string]outcome {
	t.Helper()
	c := eventstore.Config{Dir: dir, Registry: catalogue.Registry(), Log: slog.New(slog.DiscardHandler)}
	older, err := openArchive(Config{DataDir: filepath.Dir(dir)})
	if err != nil {
		t.Fatal(err)
	}
	if older != nil {
		c.Archive = older
	}
	store, err := eventstore.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	return outcomesOf(t, store)
}

func outcomesOf(t testing.TB, store *eventstore.Store) map[string]outcome {
	t.Helper()
	all := map[string]outcome{}
	for _, log := range store.MailLogs() {
		head, err := store.Head(t.Context(), log)
		if err != nil {
			t.Fatal(err)
		}
		if head == 0 {
			continue
		}
		err = store.Follow(t.Context(), eventstore.Following{Log: log, StopAt: head}, func(_ context.Context, entries []eventstore.Entry) error {
			for _, e := range entries {
				alone := len(e.Commits()) == 1
				for _, rec := range e.Events {
					o := all[rec.Stream.ID]
					if !alone && rec.Prev > 0 {
						o.shared++
					}
					switch rec.Event.(type) {
					case email.Unresolved:
						o.unknown++
					case email.Failed:
						o.unknown++
						o.failed = true
					}
					all[rec.Stream.ID] = o
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}
