package eventstore

import (
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/account"
	"postbook.dev/postbook/domain/apikey"
	"postbook.dev/postbook/domain/catalogue"
	"postbook.dev/postbook/domain/email"
)

// patience bounds how long a test waits for something that has to come. It is
// long because the machine may be busy, and is not spent unless the test fails.
const patience = 20 * time.Second

// registry is shared: making it is not what is tested here.
var registry = catalogue.Registry()

// open opens a log on a real embedded server and closes it at the end of the
// test. A test that needs a special configuration changes it in with.
func open(t testing.TB, with ...func(*Config)) *Store {
	t.Helper()
	c := Config{Registry: registry, Log: slog.New(slog.DiscardHandler)}
	for _, change := range with {
		change(&c)
	}
	if c.Dir == "" && c.URL == "" {
		c.Dir = t.TempDir()
	}
	s, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() }) // some tests have closed it already
	return s
}

// in opens a log in a directory that outlives it.
func in(dir string) func(*Config) { return func(c *Config) { c.Dir = dir } }

// at is a time that survives every encoding: UTC, without a monotonic clock.
var at = time.Date(2026, 3, 14, 15, 9, 26, 535_897_932, time.UTC)

// operator is an authority of the command line, with a command of its own.
func operator() domain.Authority {
	return domain.Authority{
		Actor: domain.Actor{Kind: domain.Operator, ID: "root"}, Account: domain.Platform, Reason: "a test asks for it",
		Via: domain.ViaCLI, Auth: domain.Internal, At: at, Command: uuid.New(), Correlation: uuid.New(),
	}
}

// worker is the authority of a part of this system.
func worker() domain.Authority {
	by := operator()
	by.Actor, by.Via = domain.Actor{Kind: domain.System, ID: "sender"}, domain.ViaWorker
	return by
}

func issue() apikey.Command {
	return apikey.Issue{Authority: operator(), Name: "Production", Permission: domain.FullAccess, Hash: "00ff", Hint: "re_1"}
}

func revoke() apikey.Command { return apikey.Revoke{Authority: operator()} }

// issued is a commit that starts an API key.
func issued(of domain.Stream) Commit {
	return Commit{Stream: of, By: operator(), At: at, Events: []domain.Event{
		apikey.Issued{Name: "Production", Permission: domain.FullAccess, Hash: "00ff", Hint: "re_1"},
	}}
}

// revoked is a commit that ends one.
func revoked(of domain.Stream) Commit {
	return Commit{Stream: of, By: operator(), At: at, Events: []domain.Event{apikey.Revoked{}}}
}

func newKey() domain.Stream { return apikey.Stream("acme", uuid.NewString()) }

func newEmail() domain.Stream {
	return domain.Stream{Account: "acme", Kind: "email", ID: uuid.NewString()}
}

// emailIn is an email of one partition.
func emailIn(s *Store, partition int) domain.Stream {
	for {
		if of := newEmail(); s.Partition(uuid.MustParse(of.ID)) == partition {
			return of
		}
	}
}

// accepted is the first commit of an email, about a kilobyte like a real one.
func accepted(of domain.Stream) Commit {
	return Commit{Stream: of, By: operator(), At: at, Events: []domain.Event{email.Accepted{
		Sender: "f3b1", MessageID: of.ID + "@acme.example", Envelope: make([]byte, 160),
		Recipients: []email.Recipient{{Kind: email.To, Index: "9f86d081884c7d65", Address: make([]byte, 48)}},
		Content:    domain.ContentRef{Parts: []domain.ContentPart{{Seq: 7, Len: 3000}}, SHA256: fmt.Sprintf("%064x", 7), Size: 3000},
		Expires:    at.Add(48 * time.Hour),
	}}}
}

// attempted is a later commit of an email.
func attempted(of domain.Stream, prev uint64, n int) Commit {
	return Commit{Stream: of, By: worker(), At: at, Prev: prev, Events: []domain.Event{email.Attempted{Attempt: n, Recipients: []int{0}}}}
}

// opened is a commit that starts an account.
func opened(id string) Commit {
	return Commit{Stream: account.Stream(id), By: operator(), At: at, Events: []domain.Event{account.Opened{Name: id}}}
}

// must is for what cannot go wrong unless the test has failed already.
func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// eventually waits for a state.
func eventually(t testing.TB, what string, reached func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !reached(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s in vain: %s", patience, what)
		}
	}
}

// soon receives what has to come.
func soon[T any](t testing.TB, what string, from <-chan T) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(patience):
		t.Fatalf("waited %s in vain: %s", patience, what)
		panic("unreachable")
	}
}

// blocks are the block files of a stream.
func blocks(t testing.TB, s *Store, stream string) []string {
	t.Helper()
	dir := s.local.blocks(stream)
	files := must(fs.Glob(os.DirFS(dir), "*.blk"))(t)
	if len(files) == 0 {
		t.Fatalf("there are no block files in %s: the server keeps them elsewhere now", dir)
	}
	for i, name := range files {
		files[i] = filepath.Join(dir, name)
	}
	return files
}

// onFile is everything in the block files of a stream.
func onFile(t testing.TB, s *Store, stream string) []byte {
	t.Helper()
	var all []byte
	for _, name := range blocks(t, s, stream) {
		all = append(all, must(os.ReadFile(name))(t)...)
	}
	return all
}
