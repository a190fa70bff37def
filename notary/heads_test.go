package notary_test

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"postbook.dev/postbook/domain/catalogue"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/internal/testenv"
	"postbook.dev/postbook/notary"
	"postbook.dev/postbook/seal"
)

// host is one of several processes that seal one log.
type host struct {
	t     testing.TB
	store *eventstore.Store
	dir   string
	keys  *seal.Keys
	heads *eventstore.Bucket

	mu    sync.Mutex
	found []seal.Finding
	notes *notary.Notary
	stop  func()
}

func (h *host) start() {
	h.t.Helper()
	ctx, cancel := context.WithCancel(h.t.Context())
	h.notes = notary.New(notary.Config{
		Store: h.store, Dir: h.dir, Keys: h.keys, Now: time.Now, Log: quiet, SignEvery: 50 * time.Millisecond, Heads: h.heads,
		Found: func(_ context.Context, f seal.Finding) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.found = append(h.found, f)
		},
	})
	ended := make(chan error, 1)
	notes := h.notes
	go func() { ended <- notes.Run(ctx) }()
	h.stop = sync.OnceFunc(func() {
		cancel()
		<-ended
	})
	h.t.Cleanup(h.stop)
}

func (h *host) size() int64 { return sealedUpTo(h.notes, log) }

func (h *host) verify() *seal.Report {
	h.t.Helper()
	v := seal.Verification{
		Log: log, Dir: filepath.Join(h.dir, log), Origin: seal.Origin(h.keys.Instance, log),
		Trusted: must(seal.ParseVerifiers(h.keys.Public(), nil))(h.t),
	}
	shared, _, err := h.heads.Get(h.t.Context(), log)
	v.Shared = must(shared, err)(h.t)
	v.Copies = []seal.Copy{{Place: "elsewhere", Note: shared}}
	return must(v.Verify(h.t.Context(), notary.Live(h.store, log, nil)))(h.t)
}

// hosts are n that have the same keys, on one log.
func hosts(t testing.TB, n int) []*host {
	t.Helper()
	server := must(eventstore.Open(t.Context(), eventstore.Config{Dir: t.TempDir(), Partitions: 1, Durability: eventstore.Interval, Registry: catalogue.Registry(), Log: quiet}))(t)
	t.Cleanup(func() { server.Close() })
	keys := must(seal.OpenKeys(filepath.Join(t.TempDir(), "signing.keys"), time.Now()))(t)
	all := make([]*host, n)
	for i := range all {
		store := must(eventstore.Open(t.Context(), eventstore.Config{URL: server.URL(), Registry: catalogue.Registry(), Log: quiet}))(t)
		t.Cleanup(func() { store.Close() })
		all[i] = &host{t: t, store: store, dir: t.TempDir(), keys: keys, heads: must(store.Bucket(t.Context(), "seal-heads"))(t)}
		all[i].start()
	}
	return all
}

func (h *host) write(n int) {
	h.t.Helper()
	for range n {
		must(h.store.Accept(h.t.Context(), []eventstore.Commit{accept("hello")}))(h.t)
	}
}

func (h *host) reaches(size int64) {
	h.t.Helper()
	testenv.Eventually(h.t, 20*time.Second, func() error {
		if h.size() < size {
			return fmt.Errorf("%d entries are sealed, and %d are awaited", h.size(), size)
		}
		return nil
	})
}

// Processes seal one history together: each folder of theirs holds heads of it, one
// goes on where the other has stopped, and one that has lagged catches up.
func TestSeveralProcessesSealOneHistory(t *testing.T) {
	t.Parallel()
	all := hosts(t, 3)
	sealedUpTo := int64(0)
	for round := range 6 {
		down := all[round%3]
		for _, h := range all {
			h.write(10)
		}
		sealedUpTo += 30
		for _, h := range all {
			h.reaches(sealedUpTo)
		}
		down.stop()
		all[(round+1)%3].write(20)
		sealedUpTo += 20
		all[(round+1)%3].reaches(sealedUpTo)
		all[(round+2)%3].reaches(sealedUpTo)
		// The folder that has lagged is of the same history.
		if r := down.verify(); !r.OK() || r.Sealed < sealedUpTo || r.Copies != 1 {
			t.Errorf("round %d: the folder that has lagged: %+v", round, r)
		}
		down.start()
	}
	for n, h := range all {
		h.reaches(sealedUpTo)
		h.stop()
		if r := h.verify(); !r.OK() || r.Sealed < sealedUpTo {
			t.Errorf("host %d: %+v", n, r)
		}
		if len(h.found) > 0 {
			t.Errorf("host %d has found %v", n, h.found)
		}
	}
}

// A process whose tree is not that of the head that is shared does not sign, and
// says so; neither does one with other keys.
func TestASecondHistoryIsNotSigned(t *testing.T) {
	t.Parallel()
	all := hosts(t, 1)
	all[0].write(10)
	all[0].reaches(10)

	other := hosts(t, 1)[0] // another log, sealed with other keys
	other.write(10)
	other.reaches(10)
	other.stop()
	forked := &host{t: t, store: other.store, dir: t.TempDir(), keys: all[0].keys, heads: all[0].heads}
	forked.start()
	stranger := &host{t: t, store: all[0].store, dir: t.TempDir(), keys: other.keys, heads: all[0].heads}
	stranger.start()
	for name, h := range map[string]*host{"of another history": forked, "with other keys": stranger} {
		testenv.Eventually(t, 20*time.Second, func() error {
			for _, st := range h.notes.Status() {
				if st.Log == log && st.Broken {
					return nil
				}
			}
			return fmt.Errorf("the one %s goes on sealing", name)
		})
		h.stop()
	}
	all[0].write(10)
	all[0].reaches(20)
	if r := all[0].verify(); !r.OK() {
		t.Errorf("the first: %+v", r)
	}
}

// A server that was cut off from its cluster knows of fewer entries than were sealed, for
// some seconds. Only what lasts is believed.
func TestMissingEntriesAreBelievedWhenTheyLast(t *testing.T) {
	t.Parallel()
	long, short := hosts(t, 1)[0], hosts(t, 1)[0]
	long.write(20)
	short.write(10)
	long.start()
	long.reaches(20)
	long.stop()
	var later atomic.Int64
	looked := make(chan struct{}, 100)
	found := make(chan seal.Finding, 1)
	notes := notary.New(notary.Config{
		Store: short.store, Dir: long.dir, Keys: long.keys, Heads: short.heads, SignEvery: 50 * time.Millisecond,
		Now: func() time.Time { return time.Now().Add(time.Duration(later.Load())) },
		Log: slog.New(tells{quiet.Handler(), looked}), Found: func(_ context.Context, f seal.Finding) { found <- f },
	})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- notes.Run(ctx) }()
	defer func() {
		stop()
		<-ended
	}()
	for range 2 { // it looks, and looks again
		select {
		case <-looked:
		case f := <-found:
			t.Fatalf("what a server may not know yet is taken for gone: %s", f)
		}
	}
	later.Store(int64(time.Minute))
	if f := <-found; f.Kind != seal.Unsealed || f.Log != log {
		t.Errorf("found %+v", f)
	}
}

// tells says that something was logged about the log that the tests seal.
type tells struct {
	slog.Handler
	of chan struct{}
}

func (h tells) Enabled(context.Context, slog.Level) bool { return true }

func (h tells) WithAttrs(attrs []slog.Attr) slog.Handler {
	if len(attrs) > 0 && attrs[0].Value.String() == log {
		return h
	}
	return h.Handler
}

func (h tells) Handle(context.Context, slog.Record) error {
	h.of <- struct{}{}
	return nil
}
