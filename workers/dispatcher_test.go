package workers_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"postbook.dev/postbook/delivery"
	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/account"
	"postbook.dev/postbook/domain/catalogue"
	"postbook.dev/postbook/domain/directory"
	"postbook.dev/postbook/domain/email"
	"postbook.dev/postbook/domain/sender"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/internal/testenv"
	"postbook.dev/postbook/workers"
)

// clock is a clock that a test moves.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) move(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// receiver answers as it is told, and keeps what it was sent.
type receiver struct {
	mu     sync.Mutex
	answer func(to string, try int) delivery.Result
	sent   map[string][]string
}

func (r *receiver) Send(_ context.Context, env delivery.Envelope, message []byte, before func() error) delivery.Result {
	if err := before(); err != nil {
		return delivery.Result{Outcome: delivery.Deferred, Phase: delivery.PhaseHeld, Text: err.Error()}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sent[env.To] = append(r.sent[env.To], env.From+"\n"+string(message))
	return r.answer(env.To, len(r.sent[env.To]))
}

func (r *receiver) tries(to string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.sent[to])
}

// open is a vault that seals nothing: what is tested here is when, not what.
type open struct{}

func (open) SealBeside(_ context.Context, _, _, _ string, _, plain []byte) (domain.Sealed, error) {
	return plain, nil
}

func (open) Open(_ context.Context, _, _, _ string, box []byte) ([]byte, error) { return box, nil }

type fixture struct {
	t         *testing.T
	dir       string
	clock     *clock
	receiver  *receiver
	sender    workers.Sender
	memory    int64
	directory *directory.Directory
	key       []byte
	store     *eventstore.Store
	stop      func()
}

func newFixture(t *testing.T, answer func(to string, try int) delivery.Result) *fixture {
	t.Helper()
	f := &fixture{t: t, dir: t.TempDir(), clock: &clock{at: time.Now()}, directory: directory.New(), receiver: &receiver{answer: answer, sent: map[string][]string{}}}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	if f.key, err = x509.MarshalPKCS8PrivateKey(key); err != nil {
		t.Fatal(err)
	}
	f.open(1, "acme")
	f.sender = f.receiver
	f.start()
	t.Cleanup(func() { f.stop() })
	return f
}

// open has an account that sends from its own domain.
func (f *fixture) open(seq uint64, name string) {
	f.directory.Apply(seq, []domain.Recorded{
		{Stream: account.Stream(name), Event: account.Opened{Name: name}},
		{Stream: sender.Stream(name, "s"), Event: sender.Added{Name: name + ".test", ReturnPath: "send", Selector: "postbook", PrivateKey: f.key}},
	})
}

func (f *fixture) start() {
	f.t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	store, err := eventstore.Open(f.t.Context(), eventstore.Config{Dir: f.dir, Registry: catalogue.Registry(), Log: quiet, Partitions: 1, Now: f.clock.now})
	if err != nil {
		f.t.Fatal(err)
	}
	snapshots, err := store.Bucket(f.t.Context(), "open-emails")
	if err != nil {
		f.t.Fatal(err)
	}
	f.store = store
	ctx, cancel := context.WithCancel(f.t.Context())
	done := make(chan struct{})
	d := workers.NewDispatcher(workers.Config{
		Store: store, Directory: f.directory, Vault: open{}, Sender: f.sender, VERP: delivery.VERP{Key: []byte("k")},
		Snapshots: snapshots, Now: f.clock.now, Random: func() float64 { return 0.5 }, Log: quiet, Memory: f.memory,
	})
	go func() {
		defer close(done)
		_ = d.Run(ctx)
	}()
	f.stop = func() {
		cancel()
		<-done
		if err := store.Close(); err != nil {
			f.t.Error(err)
		}
	}
}

func (f *fixture) accept(to string) uuid.UUID {
	f.t.Helper()
	return f.acceptFrom("acme", to)
}

func (f *fixture) acceptFrom(account, to string) uuid.UUID {
	f.t.Helper()
	return f.acceptBody(account, to, "Hello.")
}

func (f *fixture) acceptBody(account, to, text string) uuid.UUID {
	f.t.Helper()
	id := uuid.Must(uuid.NewV7())
	envelope, err := json.Marshal(email.Envelope{From: "ada@" + account + ".test", To: []string{to}, Subject: "Hello"})
	if err != nil {
		f.t.Fatal(err)
	}
	content, err := json.Marshal(email.Content{Text: text})
	if err != nil {
		f.t.Fatal(err)
	}
	refs, wait, err := f.store.PutContent(f.t.Context(), account, [][]byte{content})
	if err = errors.Join(err, wait(f.t.Context())); err != nil {
		f.t.Fatal(err)
	}
	by := domain.Authority{Actor: domain.Actor{Kind: domain.APIKey, ID: "k"}, Account: account, Role: domain.FullAccess, Via: domain.ViaAPI, At: f.clock.now(), Command: uuid.New()}
	_, err = f.store.Accept(f.t.Context(), []eventstore.Commit{{Stream: email.Stream(account, id), By: by, Events: []domain.Event{email.Accepted{
		Sender: "s", MessageID: id.String() + "@" + account + ".test", Expires: f.clock.now().Add(email.MaxAge), Envelope: envelope, Content: refs[0],
		Recipients: []email.Recipient{{Kind: email.To, Index: "i", Address: domain.Sealed(to)}},
	}}}})
	if err != nil {
		f.t.Fatal(err)
	}
	return id
}

// history is what the log says about an email.
func (f *fixture) history(id uuid.UUID) []string {
	f.t.Helper()
	head, err := f.store.Head(f.t.Context(), eventstore.MailLog(0))
	if err != nil {
		f.t.Fatal(err)
	}
	var types []string
	err = f.store.Follow(f.t.Context(), eventstore.Following{Log: eventstore.MailLog(0), StopAt: head}, func(_ context.Context, entries []eventstore.Entry) error {
		for _, e := range entries {
			for _, rec := range e.Events {
				if rec.Stream.ID == id.String() {
					types = append(types, rec.Type)
				}
			}
		}
		return nil
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return types
}

func (f *fixture) awaitLast(id uuid.UUID, want string) {
	f.t.Helper()
	testenv.Eventually(f.t, 20*time.Second, func() error {
		h := f.history(id)
		if len(h) == 0 || h[len(h)-1] != want {
			return fmt.Errorf("%s is awaited, and there is %v", want, h)
		}
		return nil
	})
}

func deferred(string, int) delivery.Result {
	return delivery.Result{Outcome: delivery.Deferred, Phase: delivery.PhaseRcpt, Code: 450, Enhanced: "4.2.0", Text: "later"}
}

// A recipient who is put off gets the same bytes from the same return path each
// time, also after a restart, and bounces after 72 hours.
func TestRetriesUntilItExpires(t *testing.T) {
	f := newFixture(t, deferred)
	id := f.accept("one@rcpt.test")
	f.awaitLast(id, "email.deferred")
	f.clock.move(30 * time.Second)
	if n := f.receiver.tries("one@rcpt.test"); n != 1 {
		t.Errorf("%d tries within the first minute", n)
	}
	for tries := 2; tries <= 4; tries++ {
		if tries == 3 {
			f.stop()
			f.start()
		}
		f.clock.move(time.Hour)
		testenv.Eventually(t, 20*time.Second, func() error {
			if n := f.receiver.tries("one@rcpt.test"); n < tries {
				return fmt.Errorf("%d tries", n)
			}
			return nil
		})
		f.awaitLast(id, "email.deferred")
	}
	f.clock.move(72 * time.Hour)
	testenv.Eventually(t, 20*time.Second, func() error {
		h := f.history(id)
		if last := h[len(h)-1]; last != "email.bounced" && last != "email.failed" {
			return fmt.Errorf("%v", h)
		}
		return nil
	})
	sent := f.receiver.sent["one@rcpt.test"]
	for n := range sent {
		if sent[n] != sent[0] {
			t.Errorf("try %d sends something else:\n%s\nthan the first:\n%s", n+1, sent[n], sent[0])
		}
	}
}

// An outcome that nobody knows is tried a few times more, and no further.
func TestUnknownTooOftenHasFailed(t *testing.T) {
	f := newFixture(t, func(string, int) delivery.Result {
		return delivery.Result{Outcome: delivery.Unknown, Phase: delivery.PhaseDot}
	})
	id := f.accept("one@rcpt.test")
	for n := 1; n < email.MaxUnknown; n++ {
		testenv.Eventually(t, 20*time.Second, func() error {
			if tried := f.receiver.tries("one@rcpt.test"); tried != n {
				return fmt.Errorf("tried %d times, not %d", tried, n)
			}
			return nil
		})
		f.awaitLast(id, "email.unresolved")
		f.clock.move(6 * time.Hour)
	}
	f.awaitLast(id, "email.failed")
	f.clock.move(time.Hour)
	f.awaitLast(f.accept("two@rcpt.test"), "email.unresolved")
	if n := f.receiver.tries("one@rcpt.test"); n != email.MaxUnknown {
		t.Errorf("it was sent %d times", n)
	}
}

// A receiver that does not answer holds its own mail, and nobody else's.
func TestASlowReceiverHoldsItsOwnMail(t *testing.T) {
	f := newFixture(t, func(string, int) delivery.Result { return delivery.Result{Outcome: delivery.Delivered, Code: 250} })
	f.stop()
	slow := &gate{Sender: f.receiver, hold: "slow@rcpt.test", release: make(chan struct{})}
	f.sender = slow
	f.start()
	for range 20 {
		f.accept("slow@rcpt.test")
	}
	for n := range 50 {
		f.awaitLast(f.accept(fmt.Sprintf("n%d@rcpt.test", n)), "email.delivered")
	}
	close(slow.release)
}

// However many accounts have receivers that do not answer, the next account's mail goes.
func TestSlowReceiversOfSomeAccountsLeaveRoomForOthers(t *testing.T) {
	f := newFixture(t, func(string, int) delivery.Result { return delivery.Result{Outcome: delivery.Delivered, Code: 250} })
	f.stop()
	slow := &gate{Sender: f.receiver, hold: "slow@rcpt.test", release: make(chan struct{})}
	f.sender = slow
	f.start()
	for n := range 4 {
		name := fmt.Sprintf("slow%d", n)
		f.open(uint64(n+2), name)
		for range 100 {
			f.acceptFrom(name, "slow@rcpt.test")
		}
	}
	testenv.Eventually(t, 20*time.Second, func() error {
		if n := slow.held.Load(); n < 240 {
			return fmt.Errorf("%d attempts are held up", n)
		}
		return nil
	})
	for n := range 30 {
		f.awaitLast(f.accept(fmt.Sprintf("n%d@rcpt.test", n)), "email.delivered")
	}
	close(slow.release)
}

// Large messages wait for each other to leave memory, and small ones for none of them.
func TestLargeMessagesAreHeldInTurn(t *testing.T) {
	f := newFixture(t, func(string, int) delivery.Result { return delivery.Result{Outcome: delivery.Delivered, Code: 250} })
	f.stop()
	slow := &gate{Sender: f.receiver, hold: "slow@rcpt.test", release: make(chan struct{})}
	f.sender, f.memory = slow, 5<<20
	f.start()
	body := strings.Repeat("A line of a large message.\n", 3<<20/27)
	var large []uuid.UUID
	for range 3 {
		large = append(large, f.acceptBody("acme", "slow@rcpt.test", body))
	}
	testenv.Eventually(t, 20*time.Second, func() error {
		if slow.held.Load() == 0 {
			return errors.New("no large message is on its way")
		}
		return nil
	})
	for n := range 5 {
		f.awaitLast(f.accept(fmt.Sprintf("n%d@rcpt.test", n)), "email.delivered")
	}
	if n := slow.held.Load(); n != 1 {
		t.Errorf("%d large messages are held", n)
	}
	close(slow.release)
	for _, id := range large {
		f.awaitLast(id, "email.delivered")
	}
}

type gate struct {
	workers.Sender
	hold    string
	held    atomic.Int32
	release chan struct{}
}

func (g *gate) Send(ctx context.Context, env delivery.Envelope, message []byte, before func() error) delivery.Result {
	if env.To == g.hold {
		g.held.Add(1)
		select {
		case <-g.release:
		case <-ctx.Done():
			return delivery.Result{Outcome: delivery.Deferred, Phase: delivery.PhaseConnect}
		}
	}
	return g.Sender.Send(ctx, env, message, before)
}
