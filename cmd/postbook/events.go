package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/forensics"
	"postbook.dev/postbook/notary"
	"postbook.dev/postbook/seal"
	"postbook.dev/postbook/workers"
)

type eventsCommand struct {
	Tail  eventsTail  `cmd:"" help:"Print events as they happen."`
	List  eventsList  `cmd:"" help:"Print the events of a time, of all accounts or of one, as they followed each other, and end."`
	Show  eventsShow  `cmd:"" help:"Print one event, or all events of one email, account or other aggregate."`
	Stats eventsStats `cmd:"" help:"Say how much is in each log."`
	Check eventsCheck `cmd:"" help:"List emails that do not have exactly one final state."`
}

type eventsTail struct {
	Logs  []string `arg:"" optional:"" help:"LEDGER, MAIL, ACCESS or ASKED. Without any: LEDGER and MAIL."`
	Since uint64   `help:"Begin after this sequence of each log. Without it: now." default:"0"`
	All   bool     `help:"Begin at the beginning."`
}

// Run prints events until it is stopped.
func (c eventsTail) Run(ctx context.Context, cfg Config, out output) error {
	store, logs, err := openChosen(ctx, cfg, c.Logs)
	if err != nil {
		return err
	}
	defer store.Close()
	var mu sync.Mutex
	errs := make(chan error, len(logs))
	for _, log := range logs {
		after := c.Since
		if after == 0 && !c.All {
			if after, err = store.Head(ctx, log); err != nil {
				return err
			}
		}
		go func() {
			errs <- store.Follow(ctx, eventstore.Following{Log: log, After: after}, func(_ context.Context, entries []eventstore.Entry) error {
				mu.Lock()
				defer mu.Unlock()
				return out.entries(entries)
			})
		}()
	}
	return untilStopped(ctx, <-errs)
}

type eventsList struct {
	Logs    []string  `arg:"" optional:"" help:"LEDGER, MAIL, ACCESS or ASKED. Without any: LEDGER and MAIL."`
	Account string    `help:"Only what is of this account."`
	From    time.Time `help:"Only events from this time on, such as 2026-01-09T04:47:00Z."`
	To      time.Time `help:"Only events up to this time."`
}

// entered is how long after it was recorded an event is in its log at the latest.
const entered = time.Minute

// Run prints the events.
func (c eventsList) Run(ctx context.Context, cfg Config, out output) error {
	if !c.To.IsZero() && c.To.Before(c.From) {
		return errors.New("--to is before --from")
	}
	store, logs, err := openChosen(ctx, cfg, c.Logs)
	if err != nil {
		return err
	}
	defer store.Close()
	if c.Account != "" {
		if err := checkAccount(ctx, store, c.Account); err != nil {
			return err
		}
	}
	reading, readCtx := errgroup.WithContext(ctx)
	heads := make([]<-chan domain.Recorded, len(logs))
	for n, log := range logs {
		events := make(chan domain.Recorded, 100)
		heads[n] = events
		reading.Go(func() error {
			defer close(events)
			return c.read(readCtx, store, log, events)
		})
	}
	reading.Go(func() error { return merged(readCtx, heads, out.event) })
	return reading.Wait()
}

var errOver = errors.New("what comes next is later")

// read sends the events that are asked for of a log.
func (c eventsList) read(ctx context.Context, store *eventstore.Store, log string, events chan<- domain.Recorded) error {
	subject := ">"
	f := eventstore.Following{Log: log}
	if c.Account != "" {
		subject = eventstore.AccountSubject(log, c.Account)
		f.Subjects = []string{subject}
	}
	var err error
	if f.StopAt, err = store.Last(ctx, log, subject); err != nil || f.StopAt == 0 {
		return err
	}
	if !c.From.IsZero() {
		if f.After, err = store.Before(ctx, log, c.From); err != nil || f.After >= f.StopAt {
			return err
		}
	}
	to := forensics.AsPrinted(c.To)
	err = store.Follow(ctx, f, func(ctx context.Context, entries []eventstore.Entry) error {
		for _, e := range entries {
			if e.Err != nil {
				return e.Err
			}
			if !c.To.IsZero() && e.Time.Sub(to) > entered {
				return errOver
			}
			for _, rec := range e.Events {
				if rec.Time.Before(c.From) || !c.To.IsZero() && rec.Time.After(to) {
					continue
				}
				select {
				case events <- rec:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		}
		return nil
	})
	if errors.Is(err, errOver) {
		return nil
	}
	return err
}

// merged hands over what several logs hold in the order of its times. Each log stays in
// its own order.
func merged(ctx context.Context, logs []<-chan domain.Recorded, each func(domain.Recorded) error) error {
	next := make([]*domain.Recorded, len(logs))
	for {
		first := -1
		for n := range logs {
			if next[n] == nil && logs[n] != nil {
				select {
				case rec, ok := <-logs[n]:
					if !ok {
						logs[n] = nil
						continue
					}
					next[n] = &rec
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			if next[n] != nil && (first < 0 || next[n].Time.Before(next[first].Time)) {
				first = n
			}
		}
		if first < 0 {
			return nil
		}
		if err := each(*next[first]); err != nil {
			return err
		}
		next[first] = nil
	}
}

func (o output) entries(entries []eventstore.Entry) error {
	for _, e := range entries {
		if e.Err != nil {
			return e.Err
		}
		for _, rec := range e.Events {
			if err := o.event(rec); err != nil {
				return err
			}
		}
	}
	return nil
}

// openChosen opens the log, and finds the logs that are named.
func openChosen(ctx context.Context, cfg Config, names []string) (*eventstore.Store, []string, error) {
	store, err := openLog(ctx, &cfg)
	if err != nil {
		return nil, nil, err
	}
	logs, err := chosen(store, names)
	if err != nil {
		return nil, nil, errors.Join(err, store.Close())
	}
	return store, logs, nil
}

func chosen(store *eventstore.Store, names []string) ([]string, error) {
	if len(names) == 0 {
		names = []string{eventstore.Ledger, "MAIL"}
	}
	var logs []string
	for _, n := range names {
		n = strings.ToUpper(n)
		switch {
		case n == "MAIL":
			logs = append(logs, store.MailLogs()...)
		case slices.Contains(store.Logs(), n):
			logs = append(logs, n)
		default:
			return nil, fmt.Errorf("there is no log %q: choose from %s", n, strings.Join(store.Logs(), ", "))
		}
	}
	return logs, nil
}

type eventsShow struct {
	What  string `arg:"" help:"LOG/SEQUENCE, the id of an email or an account, or an aggregate such as ACCOUNT.sender.ID."`
	Proof string `type:"path" help:"Also write the proof that LOG/SEQUENCE is in the sealed log to this file. postbook-proof checks it."`
}

// Run prints the events.
func (c eventsShow) Run(ctx context.Context, cfg Config, out output) error {
	store, err := openLog(ctx, &cfg)
	if err != nil {
		return err
	}
	defer store.Close()
	recorded, err := c.find(ctx, store)
	if err != nil {
		return err
	}
	if len(recorded) == 0 {
		return fmt.Errorf("the log holds nothing of %s", c.What)
	}
	if c.Proof != "" {
		if err := c.prove(ctx, cfg, store); err != nil {
			return err
		}
	}
	if out.json {
		for _, rec := range recorded {
			if _, err := out.object(lineOf(rec)); err != nil {
				return err
			}
		}
		return nil
	}
	for _, rec := range recorded {
		if err := out.event(rec); err != nil {
			return err
		}
		enc := json.NewEncoder(os.Stdout)
		enc.SetIndent("    ", "  ")
		fmt.Print("    ")
		if err := enc.Encode(rec.Event); err != nil {
			return err
		}
	}
	return nil
}

// prove writes the proof that an entry is in the log.
func (c eventsShow) prove(ctx context.Context, cfg Config, store *eventstore.Store) error {
	log, text, ok := strings.Cut(strings.ToUpper(c.What), "/")
	seq, err := strconv.ParseUint(text, 10, 64)
	if !ok || err != nil {
		return errors.New("--proof is of one entry: name it as LOG/SEQUENCE")
	}
	if err := cfg.settle(false); err != nil {
		return err
	}
	keys, err := os.ReadFile(cfg.sealPath(publicKeys))
	if err != nil {
		return fmt.Errorf("find the public keys of the seal: %w", err)
	}
	trusted, err := seal.ParseVerifiers(strings.Fields(string(keys)), nil)
	if err != nil {
		return err
	}
	dir := cfg.sealPath(log)
	head, err := seal.ReadNewest(dir, trusted, seal.Origin(trusted.Log[0].Name(), log), seq)
	if err != nil {
		return err
	}
	var entry seal.Entry
	err = store.Follow(ctx, eventstore.Following{Log: log, After: seq - 1, StopAt: seq, Undecoded: true, MaxBatch: 1}, func(_ context.Context, entries []eventstore.Entry) error {
		entry = notary.EntryOf(entries[0])
		return nil
	})
	if err != nil {
		return err
	}
	proof, err := seal.Prove(dir, head, entry)
	if err != nil {
		return err
	}
	return seal.WriteFile(c.Proof, proof, 0o644)
}

func (c eventsShow) find(ctx context.Context, store *eventstore.Store) ([]domain.Recorded, error) {
	if log, seq, ok := strings.Cut(c.What, "/"); ok {
		n, err := strconv.ParseUint(seq, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%q is not a sequence", seq)
		}
		logs, err := chosen(store, []string{log})
		if err != nil {
			return nil, err
		}
		if len(logs) > 1 {
			return nil, fmt.Errorf("%q is several logs: choose from %s", log, strings.Join(logs, ", "))
		}
		e, err := store.Read(ctx, logs[0], n)
		return e.Events, errors.Join(err, e.Err)
	}
	if of := strings.Split(c.What, "."); len(of) == 3 {
		return store.History(ctx, domain.Stream{Account: of[0], Kind: of[1], ID: of[2]})
	}
	id, err := uuid.Parse(c.What)
	if err != nil {
		return nil, fmt.Errorf("%q is neither LOG/SEQUENCE, nor an id, nor an aggregate", c.What)
	}
	history, err := emailHistory(ctx, store, id)
	if err != nil || len(history) > 0 {
		return history, err
	}
	return store.AccountHistory(ctx, id.String())
}

// emailHistory finds an email's events by reading its partition from about the
// time on that is in its id.
func emailHistory(ctx context.Context, store *eventstore.Store, id uuid.UUID) ([]domain.Recorded, error) {
	log := eventstore.MailLog(store.Partition(id))
	head, err := store.Head(ctx, log)
	if err != nil || head == 0 {
		return nil, err
	}
	sec, nsec := id.Time().UnixTime()
	after, err := store.Before(ctx, log, time.Unix(sec, nsec).Add(-10*time.Minute))
	if err != nil {
		return nil, err
	}
	var history []domain.Recorded
	err = store.Follow(ctx, eventstore.Following{Log: log, After: after, StopAt: head}, func(_ context.Context, entries []eventstore.Entry) error {
		for _, e := range entries {
			for _, rec := range e.Events {
				if rec.Stream.ID == id.String() {
					history = append(history, rec)
				}
			}
		}
		return nil
	})
	return history, err
}

type eventsStats struct{}

// Run prints how much is in each log.
func (eventsStats) Run(ctx context.Context, cfg Config, out output) error {
	store, err := openLog(ctx, &cfg)
	if err != nil {
		return err
	}
	defer store.Close()
	var all []eventstore.Stats
	var rows [][]string
	for _, log := range append(store.Logs(), eventstore.Content, eventstore.Dead) {
		st, err := store.Stats(ctx, log)
		if err != nil {
			return err
		}
		all = append(all, st)
		rows = append(rows, []string{st.Log, strconv.FormatUint(st.Entries, 10), fmt.Sprintf("%.1f MB", float64(st.Bytes)/1e6), strconv.FormatUint(st.First, 10), strconv.FormatUint(st.Hot, 10), strconv.FormatUint(st.Last, 10)})
	}
	if done, err := out.object(all); done {
		return err
	}
	return out.table([]string{"LOG", "ENTRIES", "SIZE", "FIRST", "FIRST IN STREAM", "LAST"}, rows)
}

type eventsCheck struct {
	OlderThan time.Duration `help:"How long after it has expired an email may still be open." default:"1h"`
}

// Run checks the promise that each accepted email reaches exactly one final
// state for each of its recipients.
func (c eventsCheck) Run(ctx context.Context, cfg Config, out output) error {
	store, err := openLog(ctx, &cfg)
	if err != nil {
		return err
	}
	defer store.Close()
	report, err := workers.Check(ctx, store, workers.CheckOptions{OlderThan: c.OlderThan, Now: time.Now()})
	if err != nil {
		return err
	}
	if done, err := out.object(report); !done {
		fmt.Printf("%d emails, %d final, %d open, %d recipients with an unknown attempt, %d problems\n", report.Emails, report.Final, report.Open, report.Unknown, len(report.Problems))
		for _, p := range report.Problems {
			fmt.Printf("  %s  %s\n", p.Email, p.What)
		}
	} else if err != nil {
		return err
	}
	if len(report.Problems) > 0 {
		return errUnsound
	}
	return nil
}
