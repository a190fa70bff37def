package workers_test

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/catalogue"
	"postbook.dev/postbook/domain/email"
	"postbook.dev/postbook/domain/retention"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/keyring"
	"postbook.dev/postbook/workers"
)

// keysets are those of a real log.
type keysets struct{ *eventstore.Slate }

func (k keysets) Load(ctx context.Context, account string) ([]byte, uint64, error) {
	blob, revision, err := k.Get(ctx, account)
	if errors.Is(err, eventstore.ErrNoEntry) {
		err = keyring.ErrNotFound
	}
	return blob, revision, err
}

func (k keysets) Save(ctx context.Context, account string, blob []byte, revision uint64) (uint64, error) {
	return k.Update(ctx, account, blob, revision)
}

func (k keysets) Accounts(ctx context.Context) ([]string, error) { return k.Keys(ctx) }

// An erasure that was interrupted, wherever, is carried out from the beginning and
// comes to the same end. It closes emails from before boxes were about people, too.
func TestAnErasureIsTakenUpAgain(t *testing.T) {
	ctx := t.Context()
	store, err := eventstore.Open(ctx, eventstore.Config{Dir: t.TempDir(), Registry: catalogue.Registry(), Log: slog.New(slog.DiscardHandler), Partitions: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	slate, err := store.Slate(ctx, eventstore.Keysets)
	if err != nil {
		t.Fatal(err)
	}
	root, err := keyring.OpenRoot(ctx, filepath.Join(t.TempDir(), "root.key"))
	if err != nil {
		t.Fatal(err)
	}
	ring := keyring.New(keysets{slate}, root, keyring.Options{})
	if err := ring.Create(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	operator := func() domain.Authority {
		return domain.Authority{Actor: domain.Actor{Kind: domain.Operator, ID: "root"}, Account: domain.Platform, Via: domain.ViaCLI, Reason: "they asked", At: time.Now(), Command: uuid.New()}
	}
	accept := func(about bool, to ...string) (string, email.Accepted) {
		keys, err := ring.Account(ctx, "acme")
		if err != nil {
			t.Fatal(err)
		}
		id := uuid.Must(uuid.NewV7())
		accepted := email.Accepted{MessageID: id.String() + "@acme.test", Expires: time.Now().Add(time.Hour)}
		for _, index := range to {
			address, err := keys.Seal(keyring.Recipient, index, []byte(index), nil)
			if err != nil {
				t.Fatal(err)
			}
			accepted.Recipients = append(accepted.Recipients, email.Recipient{Kind: email.To, Index: index, Address: address})
		}
		if about {
			accepted.Envelope, err = keys.SealAbout(keyring.Envelope, id.String(), to, []byte("x"), nil)
		} else {
			accepted.Envelope, err = keys.Seal(keyring.Envelope, id.String(), []byte("x"), nil)
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := store.Accept(ctx, []eventstore.Commit{{Stream: email.Stream("acme", id), By: operator(), Events: []domain.Event{accepted}}}); err != nil {
			t.Fatal(err)
		}
		return id.String(), accepted
	}
	type sent struct {
		id       string
		accepted email.Accepted
	}
	var closed, open []sent
	keep := func(list *[]sent, about bool, to ...string) {
		id, accepted := accept(about, to...)
		*list = append(*list, sent{id, accepted})
	}
	keep(&closed, true, "ada")
	keep(&closed, true, "grace", "ada")
	keep(&closed, false, "ada") // as it was sealed before
	keep(&open, true, "grace")
	keep(&open, false, "grace")

	interrupted := errors.New("interrupted")
	removed := map[string]bool{}
	fails := true
	eraser := &workers.Eraser{Store: store, Ring: ring, By: operator, Log: slog.New(slog.DiscardHandler), Inbox: func(emails map[string]bool) (int, error) {
		if fails {
			return 0, interrupted
		}
		removed = emails
		return len(emails), nil
	}}
	if n, err := eraser.Readable(ctx, "acme", "ada"); n != 3 || err != nil {
		t.Fatalf("%d emails can be read, %v", n, err)
	}
	request := operator()
	ask := retention.EraseRecipient{Authority: request, Known: true, Recipient: "ada", Emails: 3}
	if _, err := eventstore.Execute(ctx, store, retention.Decider, retention.Stream("acme"), retention.Command(ask)); err != nil {
		t.Fatal(err)
	}
	// A crash between destroying the keys and the rest, and an email that was on its
	// way meanwhile: sealed before, recorded after.
	if _, err := ring.ForgetRecipient(ctx, "acme", "ada", 0); err != nil {
		t.Fatal(err)
	}
	if err := eraser.Erase(ctx, "acme", request.Command); !errors.Is(err, interrupted) {
		t.Fatalf("got %v", err)
	}
	keep(&open, true, "ada") // of the next generation
	fails = false
	running, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- eraser.Run(running) }()
	var state retention.State
	for deadline := time.Now().Add(20 * time.Second); ; {
		if state, _, err = eventstore.Load(ctx, store, retention.Decider, retention.Stream("acme")); err != nil {
			t.Fatal(err)
		}
		if state.Erased["ada"] {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the erasure is not finished")
		}
		time.Sleep(5 * time.Millisecond) // and look again
	}
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := eraser.Erase(ctx, "acme", request.Command); err != nil {
		t.Errorf("what is finished: %v", err)
	}
	history, err := store.History(ctx, retention.Stream("acme"))
	if err != nil || len(history) != 2 {
		t.Fatalf("%d events, %v", len(history), err)
	}
	want := retention.Erased{Erasure: request.Command, Recipient: "ada", Keys: 3, Emails: 3, Inbox: 3}
	if history[1].Event != domain.Event(want) {
		t.Errorf("it ended as %+v, want %+v", history[1].Event, want)
	}
	keys, err := keyring.New(keysets{slate}, root, keyring.Options{}).Account(ctx, "acme")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range closed {
		if _, err := keys.Open(ctx, keyring.Envelope, s.id, s.accepted.Envelope, nil); !errors.Is(err, domain.ErrErased) || !removed[s.id] {
			t.Errorf("an email to ada and %d others opens: %v", len(s.accepted.Recipients)-1, err)
		}
	}
	for _, s := range open {
		if _, err := keys.Open(ctx, keyring.Envelope, s.id, s.accepted.Envelope, nil); err != nil || removed[s.id] {
			t.Errorf("an email to %s does not open: %v", s.accepted.Recipients[0].Index, err)
		}
	}
}
