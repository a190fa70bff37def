package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/account"
	"postbook.dev/postbook/domain/catalogue"
	"postbook.dev/postbook/domain/email"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/notary"
	"postbook.dev/postbook/seal"
)

type benchLoad struct {
	Events   int    `default:"1000000" help:"Events of emails to make."`
	Seed     uint64 `default:"1" help:"The same seed makes the same events, but for the times at which they are recorded."`
	Accounts int    `default:"100" help:"Accounts that they belong to."`
}

// Run fills the log of a data directory that no server uses, and seals it. What is
// sealed in the events cannot be opened: it is noise.
func (c benchLoad) Run(ctx context.Context, cfg Config, out output) error {
	if err := cfg.settle(false); err != nil {
		return err
	}
	if _, ok := found(cfg); ok {
		return errors.New("stop the server first: events are made in a data directory that nobody uses")
	}
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return fmt.Errorf("make the data directory: %w", err)
	}
	key, err := markKey(cfg)
	if err != nil {
		return err
	}
	tune(ctx, toolShare)
	store, err := eventstore.Open(ctx, eventstore.Config{
		Dir: cfg.path("log"), Durability: eventstore.Interval, Partitions: cfg.Partitions, MarkKey: key,
		Registry: catalogue.Registry(), Log: slog.New(slog.DiscardHandler),
		Recognise: time.Second, // nothing comes again, and a million ids would be most of what the collector has to look at
	})
	if err != nil {
		return err
	}
	defer store.Close()
	begun := time.Now()
	ids, err := c.openAccounts(ctx, store)
	if err != nil {
		return err
	}
	of, err := c.putContents(ctx, store, ids[0])
	if err != nil {
		return err
	}
	group, filling := errgroup.WithContext(ctx)
	parts := store.Partitions()
	progress := out.progress("events")
	for p := range parts {
		group.Go(func() error {
			share := c.Events / parts
			if p < c.Events%parts {
				share++
			}
			return c.fill(filling, store, p, share, ids, of, func(done int) {
				if p == 0 {
					progress(uint64(done*parts), uint64(c.Events))
				}
			})
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	filled := time.Since(begun)
	if err := sealAll(ctx, cfg, store, key); err != nil {
		return err
	}
	result := map[string]any{"events": c.Events, "seconds": filled.Seconds(), "sealing_seconds": (time.Since(begun) - filled).Seconds()}
	if printed, err := out.object(result); printed {
		return err
	}
	fmt.Printf("%d events in %s, %.0f a second; sealed in another %s\n", c.Events, filled.Round(time.Millisecond), float64(c.Events)/filled.Seconds(), (time.Since(begun) - filled).Round(time.Millisecond))
	return nil
}

func (c benchLoad) openAccounts(ctx context.Context, store *eventstore.Store) ([]string, error) {
	r := rand.New(rand.NewPCG(c.Seed, 0))
	ids := make([]string, c.Accounts)
	for i := range ids {
		ids[i] = randomID(r, loadBegins).String()
		by := operator(time.Now())
		_, err := eventstore.Execute(ctx, store, account.Decider, account.Stream(ids[i]), account.Command(account.Open{Authority: by, Name: fmt.Sprintf("Account %d of seed %d", i+1, c.Seed)}))
		if err != nil {
			return nil, err
		}
	}
	return ids, nil
}

// contents are what the emails of a load share: one body and one message, so that
// references lead somewhere, and the disk is not filled with noise.
type contents struct{ body, message domain.ContentRef }

func (c benchLoad) putContents(ctx context.Context, store *eventstore.Store, account string) (contents, error) {
	r := rand.New(rand.NewPCG(c.Seed, 1<<32))
	refs, onDisk, err := store.PutContent(ctx, account, [][]byte{noise(r, 1500), noise(r, 2400)})
	if err != nil {
		return contents{}, err
	}
	return contents{refs[0], refs[1]}, onDisk(ctx)
}

// loadBegins is when the first email of a load was accepted.
var loadBegins = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// randomID is a UUIDv7 of a time.
func randomID(r *rand.Rand, at time.Time) uuid.UUID {
	var id uuid.UUID
	fill(id[:], r)
	for i := range 6 { // 48 bits of milliseconds
		id[i] = byte(at.UnixMilli() >> (40 - 8*i))
	}
	id[6], id[8] = id[6]&0x0f|0x70, id[8]&0x3f|0x80
	return id
}

func noise(r *rand.Rand, n int) domain.Sealed {
	b := make([]byte, n)
	fill(b, r)
	return b
}

func fill(b []byte, r *rand.Rand) {
	var word uint64
	for i := range b {
		if i%8 == 0 {
			word = r.Uint64()
		}
		b[i], word = byte(word), word>>8
	}
}

// together is how many emails go through their life side by side.
const together = 500

// fill makes events in a partition: accepted, prepared, attempted, and in the end
// delivered or, for one of fifty, bounced.
func (c benchLoad) fill(ctx context.Context, store *eventstore.Store, partition, events int, accounts []string, of contents, progress func(done int)) error {
	r := rand.New(rand.NewPCG(c.Seed, uint64(partition)+1))
	owner, err := store.Own(ctx, partition, "load")
	if err != nil {
		return err
	}
	at := loadBegins
	for done := 0; done < events; {
		var life [3][]eventstore.Commit
		for len(life[0]) < together && done < events {
			at = at.Add(time.Duration(r.IntN(40)) * time.Millisecond)
			id := randomID(r, at)
			if store.Partition(id) != partition {
				continue
			}
			for n, commit := range lifeOf(r, id, accounts[r.IntN(len(accounts))], at, of) {
				if left := events - done; left < len(commit.Events) {
					commit.Events = commit.Events[:left]
				}
				if len(commit.Events) > 0 {
					life[n] = append(life[n], commit)
					done += len(commit.Events)
				}
			}
		}
		accepted, err := store.Accept(ctx, life[0])
		if err != nil {
			return err
		}
		last := accepted
		for _, commits := range life[1:] {
			if len(commits) == 0 {
				break
			}
			for i := range commits {
				commits[i].Prev = last[i][0].Seq
			}
			if last, err = owner.Append(ctx, commits...); err != nil {
				return err
			}
		}
		progress(done)
	}
	return nil
}

func lifeOf(r *rand.Rand, id uuid.UUID, acc string, at time.Time, of contents) [3]eventstore.Commit {
	stream := email.Stream(acc, id)
	by := func(kind domain.ActorKind, actor string, via domain.Via, at time.Time) domain.Authority {
		return domain.Authority{
			Actor: domain.Actor{Kind: kind, ID: actor}, Account: acc, Via: via, Auth: domain.KeyAuth, At: at, Command: randomID(r, at), Correlation: id,
		}
	}
	commit := func(by domain.Authority, events ...domain.Event) eventstore.Commit {
		if by.Actor.Kind == domain.System {
			by.Account = domain.Platform
		}
		return eventstore.Commit{Stream: stream, By: by, Events: events, At: by.At}
	}
	sent, answered := at.Add(time.Duration(r.IntN(2000))*time.Millisecond), at.Add(time.Duration(2000+r.IntN(3000))*time.Millisecond)
	var outcome domain.Event = email.Delivered{Attempt: 1, Reply: email.Reply{Phase: "data", Code: 250, Enhanced: "2.0.0", Text: noise(r, 70), Host: "mx.rcpt.test", IP: "192.0.2.7", Took: time.Duration(r.IntN(1e9))}}
	if r.IntN(50) == 0 {
		outcome = email.Bounced{Attempt: 1, Reply: email.Reply{Phase: "rcpt", Code: 550, Enhanced: "5.1.1", Text: noise(r, 90), Host: "mx.rcpt.test", IP: "192.0.2.7", Class: "Permanent", SubClass: "NoEmail"}}
	}
	return [3]eventstore.Commit{
		commit(by(domain.APIKey, "key", domain.ViaAPI, at), email.Accepted{
			Sender: "sender", MessageID: id.String() + "@load.test", Content: of.body, Expires: at.Add(48 * time.Hour), Envelope: noise(r, 230),
			Recipients: []email.Recipient{{Kind: email.To, Index: hex.EncodeToString(noise(r, 8)), Address: noise(r, 60)}},
		}),
		commit(by(domain.System, "dispatcher", domain.ViaWorker, sent), email.Prepared{Message: of.message, Digest: hex.EncodeToString(noise(r, 32)), Size: 2300, Selector: "resend"}, email.Attempted{Attempt: 1, Recipients: []int{0}}),
		commit(by(domain.System, "dispatcher", domain.ViaWorker, answered), outcome),
	}
}

// sealAll seals what is in the logs.
func sealAll(ctx context.Context, cfg Config, store *eventstore.Store, key []byte) error {
	keys, err := openSealKeys(cfg)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var wrong []seal.Finding
	notes := notary.New(notary.Config{
		Store: store, Dir: cfg.path(sealFolder), Keys: keys, MarkKey: key, Now: time.Now, Log: slog.New(slog.DiscardHandler),
		Found: func(_ context.Context, f seal.Finding) { wrong = append(wrong, f) },
	})
	ended := make(chan error, 1)
	go func() { ended <- notes.Run(ctx) }()
	for {
		behind := false
		for _, st := range notes.Status() {
			head, err := store.Head(ctx, st.Log)
			if err != nil {
				return err
			}
			behind = behind || uint64(st.Size) < head && !st.Broken
		}
		if !behind {
			break
		}
		select {
		case err := <-ended:
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		return err
	}
	if len(wrong) > 0 {
		return fmt.Errorf("the log is not as it was sealed: %s", wrong[0])
	}
	return nil
}
