package archive_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"postbook.dev/postbook/archive"
	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/catalogue"
	"postbook.dev/postbook/domain/email"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/internal/testenv"
	"postbook.dev/postbook/notary"
	"postbook.dev/postbook/seal"
)

const mail = "MAIL_00"

var quiet = slog.New(slog.DiscardHandler)

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// instance is a log, its seal and its archive.
type instance struct {
	dir   string
	place string
	keys  *seal.Keys
	mark  []byte
	held  *archive.Archive
	store *eventstore.Store
	notes *notary.Notary
	stop  func()
}

func start(t testing.TB) *instance {
	t.Helper()
	i := &instance{dir: t.TempDir(), place: t.TempDir(), mark: []byte("the platform's mark")}
	i.keys = must(seal.OpenKeys(filepath.Join(i.dir, "signing.keys"), time.Now()))(t)
	i.open(t)
	t.Cleanup(func() { i.close(t) })
	return i
}

// open opens the log with its archive, and seals.
func (i *instance) open(t testing.TB) {
	t.Helper()
	i.held = archive.New(must(archive.Open(i.place))(t), i.keys.Instance)
	i.store = must(eventstore.Open(t.Context(), eventstore.Config{
		Dir: filepath.Join(i.dir, "log"), Partitions: 1, MarkKey: i.mark, Archive: i.held, Durability: eventstore.Interval, Registry: catalogue.Registry(), Log: quiet,
	}))(t)
	i.notes = notary.New(notary.Config{
		Store: i.store, Dir: i.sealDir(), Keys: i.keys, MarkKey: i.mark, Now: time.Now, Log: quiet, SignEvery: 10 * time.Millisecond,
		Found: func(_ context.Context, f seal.Finding) { t.Errorf("found: %s", f) },
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = i.notes.Run(ctx) // ends with ctx
	}()
	i.stop = func() {
		cancel()
		<-ended
	}
}

func (i *instance) close(t testing.TB) {
	t.Helper()
	if i.store == nil {
		return
	}
	i.stop()
	must(0, i.store.Close())(t)
	i.store = nil
}

func (i *instance) record() string { return filepath.Join(i.dir, "archive.held") }

func (i *instance) sealDir() string { return filepath.Join(i.dir, "seal") }

func (i *instance) trusted(t testing.TB) seal.Verifiers {
	return must(seal.ParseVerifiers(i.keys.Public(), nil))(t)
}

// sealed waits until everything of a log is.
func (i *instance) sealed(t testing.TB, log string) {
	t.Helper()
	head := must(i.store.Head(t.Context(), log))(t)
	testenv.Eventually(t, 20*time.Second, func() error {
		for _, st := range i.notes.Status() {
			if st.Log == log && st.Size >= int64(head) {
				return nil
			}
		}
		return fmt.Errorf("%s is not sealed up to %d", log, head)
	})
}

// archiver works in small pieces. change may set what a test is about.
func (i *instance) archiver(t testing.TB, change ...func(*archive.Config)) *archive.Archiver {
	t.Helper()
	c := archive.Config{
		Store: i.store, Archive: i.held, SealDir: i.sealDir(), Trusted: i.trusted(t), Lock: filepath.Join(i.dir, "archive.lock"), Record: i.record(),
		SegmentEntries: 100, SegmentBytes: 1 << 20, SegmentAge: time.Hour, Spare: 50, Now: time.Now, Log: quiet,
	}
	for _, with := range change {
		with(&c)
	}
	return archive.NewArchiver(c)
}

// trimming lets everything go that may.
func trimming(c *archive.Config) { c.HotAge = time.Nanosecond }

func (i *instance) pass(t testing.TB, change ...func(*archive.Config)) {
	t.Helper()
	if err := i.archiver(t, change...).Pass(t.Context(), true); err != nil {
		t.Fatal(err)
	}
}

func accept(body string) eventstore.Commit {
	id := uuid.Must(uuid.NewV7())
	return eventstore.Commit{
		Stream: email.Stream("acme", id),
		By: domain.Authority{
			Actor: domain.Actor{Kind: domain.APIKey, ID: "key"}, Account: "acme", Via: domain.ViaAPI, Auth: domain.KeyAuth, At: time.Now(), Command: id,
		},
		Events: []domain.Event{email.Accepted{Sender: "s", MessageID: id.String(), Envelope: domain.Sealed(body)}},
	}
}

// fill accepts n mails and seals them.
func (i *instance) fill(t testing.TB, n int) [][]domain.Recorded {
	t.Helper()
	var all [][]domain.Recorded
	for at := 0; at < n; at += 100 {
		var commits []eventstore.Commit
		for range min(100, n-at) {
			commits = append(commits, accept(strings.Repeat("x", rand.IntN(600))))
		}
		all = append(all, must(i.store.Accept(t.Context(), commits))(t)...)
	}
	i.sealed(t, mail)
	return all
}

// everything reads a log through Follow.
func (i *instance) everything(t testing.TB, f eventstore.Following) []eventstore.Entry {
	t.Helper()
	if f.StopAt == 0 {
		f.StopAt = must(i.store.Head(t.Context(), f.Log))(t)
	}
	var all []eventstore.Entry
	err := i.store.Follow(t.Context(), f, func(_ context.Context, entries []eventstore.Entry) error {
		for _, e := range entries {
			if e.Err != nil {
				return e.Err
			}
			e.Raw, e.Header = bytes.Clone(e.Raw), bytes.Clone(e.Header)
			all = append(all, e)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func (i *instance) verify(t testing.TB, log string, stream notary.Sums) *seal.Report {
	t.Helper()
	v := seal.Verification{Log: log, Dir: filepath.Join(i.sealDir(), log), Origin: seal.Origin(i.keys.Instance, log), Trusted: i.trusted(t)}
	held := archive.New(must(archive.Open(i.place))(t), i.keys.Instance) // as a command opens it
	return must(v.Verify(t.Context(), held.Sums(log, stream, i.mark)))(t)
}

// live reads the stream alone, as another process does.
func (i *instance) live(t testing.TB, log string) notary.Sums {
	t.Helper()
	beside := must(eventstore.Open(t.Context(), eventstore.Config{URL: i.store.URL(), Registry: catalogue.Registry(), Log: quiet}))(t)
	t.Cleanup(func() { _ = beside.Close() })
	return notary.Live(beside, log, i.mark)
}

func (i *instance) atRest(log string) notary.Sums {
	return notary.AtRest(filepath.Join(i.dir, "log"), log, i.mark)
}

func same(a, b eventstore.Entry) bool {
	return a.Position == b.Position && a.Subject == b.Subject && a.Time.Equal(b.Time) && bytes.Equal(a.Raw, b.Raw) && bytes.Equal(a.Header, b.Header)
}

// After trimming, each way of reading gives what it gave before.
func TestReadingGoesOnWhereTheStreamBegins(t *testing.T) {
	t.Parallel()
	i := start(t)
	ctx := t.Context()
	recorded := i.fill(t, 350)
	refs, wait, err := i.store.PutContent(ctx, "acme", [][]byte{[]byte("a body"), bytes.Repeat([]byte("b"), 900<<10)})
	if err != nil {
		t.Fatal(err)
	}
	must(0, wait(ctx))(t)
	for n := range 200 {
		_, wait, err := i.store.PutContent(ctx, "acme", [][]byte{fmt.Appendf(nil, "another body %d", n)})
		must(0, errors.Join(err, wait(ctx)))(t)
	}
	// A mail whose history begins in the archive and ends in the stream.
	owner := must(i.store.Own(ctx, 0, "dispatcher"))(t)
	first := recorded[3][0]
	by := domain.Following(first, "dispatcher", "", time.Now())
	by.Command = uuid.New()
	later := must(owner.Append(ctx, eventstore.Commit{Stream: first.Stream, By: by, Prev: first.Seq, Events: []domain.Event{email.Attempted{Attempt: 1, Recipients: []int{0}}}}))(t)
	i.fill(t, 100)
	i.sealed(t, eventstore.Ledger)

	before := i.everything(t, eventstore.Following{Log: mail, Undecoded: true})
	decoded := i.everything(t, eventstore.Following{Log: mail})
	middle := before[120].Time
	at := must(i.store.Before(ctx, mail, middle))(t)
	i.pass(t, trimming)

	stats := must(i.store.Stats(ctx, mail))(t)
	if stats.Hot < 250 || stats.First != 1 || stats.Entries != uint64(len(before)) || stats.Last != uint64(len(before)) || !stats.From.Equal(before[0].Time) {
		t.Fatalf("after trimming: %+v, of %d entries", stats, len(before))
	}
	if content := must(i.store.Stats(ctx, eventstore.Content))(t); content.Hot < 100 {
		t.Errorf("content was not trimmed: %+v", content)
	}
	if got := i.everything(t, eventstore.Following{Log: mail, Undecoded: true}); !slices.EqualFunc(got, before, same) {
		t.Errorf("%d entries undecoded, and they are not the %d there were", len(got), len(before))
	}
	got := i.everything(t, eventstore.Following{Log: mail, MaxBatch: 7})
	if !slices.EqualFunc(got, decoded, func(a, b eventstore.Entry) bool {
		return a.Seq == b.Seq && len(a.Events) == len(b.Events) && (len(a.Events) == 0 || a.Events[0].ID == b.Events[0].ID)
	}) {
		t.Error("decoded entries are not those there were")
	}
	if got := i.everything(t, eventstore.Following{Log: mail, After: 40, StopAt: 120}); len(got) != 80 || got[0].Seq != 41 || got[79].Seq != 120 {
		t.Errorf("41 to 120 are %d entries", len(got))
	}
	claims := i.everything(t, eventstore.Following{Log: mail, Subjects: []string{"mail.*.owner"}, StopAt: owner.Seq()})
	if len(claims) != 1 || claims[0].Seq != owner.Seq() {
		t.Errorf("the claims are %v", claims)
	}
	for _, seq := range []uint64{1, 77, 100, 101, stats.Hot - 1, stats.Hot, stats.Last} {
		if e := must(i.store.Read(ctx, mail, seq))(t); !bytes.Equal(e.Raw, before[seq-1].Raw) || e.Seq != seq || !e.Time.Equal(before[seq-1].Time) {
			t.Errorf("%d is not what it was", seq)
		}
	}
	if _, err := i.store.Read(ctx, mail, stats.Last+1); !errors.Is(err, eventstore.ErrNoEntry) {
		t.Errorf("an entry that is not there: %v", err)
	}
	if chain := must(i.store.Chain(ctx, mail, later[0][0].Seq, first.Stream.ID))(t); len(chain) != 2 || chain[0].ID != first.ID {
		t.Errorf("the mail's history is %v", chain)
	}
	if got := must(i.store.Before(ctx, mail, middle))(t); got != at {
		t.Errorf("before the entry of the middle is %d, and it was %d", got, at)
	}
	for n, want := range []int{6, 900 << 10} {
		if blob := must(i.store.Content(ctx, refs[n]))(t); len(blob) != want {
			t.Errorf("content %d has %d bytes", n, len(blob))
		}
	}
	// What the owner appends rests on its claim, which has stayed.
	by.Command = uuid.New()
	must(owner.Append(ctx, eventstore.Commit{Stream: first.Stream, By: by, Prev: later[0][0].Seq, Events: []domain.Event{email.Delivered{Attempt: 1}}}))(t)
	if got := must(i.store.Last(ctx, mail, "mail.00.nobody"))(t); got != stats.Hot-1 {
		t.Errorf("what has left the stream ends at %d for a subject that has none in it, want %d", got, stats.Hot-1)
	}

	if r := i.verify(t, mail, i.live(t, mail)); !r.OK() || r.Entries < stats.Last {
		t.Errorf("verify, live: %d entries, %v", r.Entries, r.Findings)
	}
	i.sealed(t, mail)
	i.close(t)
	for _, log := range []string{mail, eventstore.Ledger} {
		if r := i.verify(t, log, i.atRest(log)); !r.OK() {
			t.Errorf("verify %s, at rest: %v", log, r.Findings)
		}
	}
	// A restart goes on, with the archive and also, for what is new, without it.
	i.open(t)
	if got := i.everything(t, eventstore.Following{Log: mail, Undecoded: true}); len(got) != int(stats.Last)+1 {
		t.Errorf("after a restart there are %d entries", len(got))
	}
	if renewed := must(i.store.Own(ctx, 0, "dispatcher"))(t); renewed.Seq() != stats.Last+2 {
		t.Errorf("sequences go on with %d", renewed.Seq())
	}
}

// Followers are not left behind by the archiver: those that are slow, and those
// that wait for more.
func TestTrimmingUnderFollowers(t *testing.T) {
	t.Parallel()
	i := start(t)
	const rounds, each = 12, 150
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	turn := make(chan struct{}, rounds)
	var following sync.WaitGroup
	follow := func(f eventstore.Following, want int, slow bool) {
		following.Go(func() {
			var last uint64
			seen := 0
			err := i.store.Follow(ctx, f, func(ctx context.Context, entries []eventstore.Entry) error {
				for _, e := range entries {
					if e.Seq <= last {
						return fmt.Errorf("%d comes after %d", e.Seq, last)
					}
					last = e.Seq
					seen++
				}
				if slow && seen < want-each {
					select { // it goes on when something more was trimmed
					case <-turn:
					case <-ctx.Done():
						return ctx.Err()
					}
				}
				if seen >= want {
					return errDone
				}
				return nil
			})
			if !errors.Is(err, errDone) || seen != want {
				t.Errorf("a follower of %v (slow: %v) has seen %d of %d: %v", f.Subjects, slow, seen, want, err)
			}
		})
	}
	follow(eventstore.Following{Log: mail, MaxBatch: 100}, rounds*each, false)
	follow(eventstore.Following{Log: mail, MaxBatch: 100, Undecoded: true}, rounds*each, true)
	follow(eventstore.Following{Log: mail, MaxBatch: 100, Subjects: []string{"mail.00.acme"}}, rounds*each, false)
	archiver := i.archiver(t, trimming)
	for range rounds {
		i.fill(t, each)
		if err := archiver.Pass(ctx, true); err != nil {
			t.Error(err)
		}
		turn <- struct{}{}
	}
	close(turn)
	following.Wait()
	if st := must(i.store.Stats(ctx, mail))(t); st.Hot < (rounds-2)*each {
		t.Errorf("the stream begins at %d: nothing was trimmed under the followers", st.Hot)
	}
}

var errDone = errors.New("done")

// What is appended while the stream is trimmed does not push out what is not
// archived.
func TestTrimmingUnderLoad(t *testing.T) {
	t.Parallel()
	i := start(t)
	i.fill(t, 1500)
	var writing sync.WaitGroup
	for range 4 {
		writing.Go(func() {
			for range 500 {
				if _, err := i.store.Accept(t.Context(), []eventstore.Commit{accept("y"), accept("z")}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	written := make(chan struct{})
	go func() {
		writing.Wait()
		close(written)
	}()
	a := i.archiver(t, trimming, func(c *archive.Config) { c.SegmentEntries, c.Spare = 300, 300 })
	for done := false; !done; {
		select {
		case <-written:
			done = true
		default:
		}
		must(0, a.Pass(t.Context(), true))(t)
		st := must(i.store.Stats(t.Context(), mail))(t)
		if _, last, _ := i.held.Extent(t.Context(), mail); st.Hot > last+1 {
			t.Fatalf("the stream begins at %d, and the archive ends at %d", st.Hot, last)
		}
	}
	i.sealed(t, mail)
	got := i.everything(t, eventstore.Following{Log: mail, Undecoded: true})
	if head := must(i.store.Head(t.Context(), mail))(t); uint64(len(got)) != head {
		t.Errorf("%d of %d entries are there", len(got), head)
	}
}

// Nothing leaves the stream whose segment does not read back as it should.
func TestNothingGoesThatCannotBeReadBack(t *testing.T) {
	t.Parallel()
	i := start(t)
	i.fill(t, 300)
	i.pass(t) // archives, and trims nothing
	segments := i.files(t, mail, ".seg")
	damage(t, segments[1])
	a := i.archiver(t, trimming)
	made := a.Done()
	err := a.Pass(t.Context(), true)
	if err == nil || !strings.Contains(err.Error(), "before it leaves the stream") {
		t.Errorf("a damaged segment is answered with %v", err)
	}
	if !a.Done().Equal(made) {
		t.Error("a pass that failed counts as done")
	}
	if st := must(i.store.Stats(t.Context(), mail))(t); st.Hot != 1 {
		t.Errorf("the stream begins at %d", st.Hot)
	}
	// A segment without its manifest does not count: it is written again.
	for n := range segments {
		must(0, os.Remove(strings.TrimSuffix(segments[n], ".seg")+".json"))(t)
	}
	must(0, os.Remove(i.record()))(t)
	must(0, a.Pass(t.Context(), true))(t)
	if !a.Done().After(made) {
		t.Error("a pass that succeeded does not count as done")
	}
	if st := must(i.store.Stats(t.Context(), mail))(t); st.Hot <= 100 {
		t.Errorf("the stream begins at %d", st.Hot)
	}
	if r := i.verify(t, mail, i.live(t, mail)); !r.OK() {
		t.Error(r.Findings)
	}
	if _, err := i.store.Trim(t.Context(), eventstore.Ledger, 1); err == nil {
		t.Error("the ledger was trimmed")
	}
}

// A place that is not mounted, or is another, looks empty. Nothing is put there, and
// nothing leaves the stream, whether or not it is known how far the archive went.
func TestAnArchiveThatIsAwayIsNotBegunAgain(t *testing.T) {
	t.Parallel()
	for name, forget := range map[string]bool{"known by the record": false, "known by the stream": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			i := start(t)
			i.fill(t, 300)
			i.pass(t, trimming)
			hot := must(i.store.Stats(t.Context(), mail))(t).Hot
			i.fill(t, 300)
			i.close(t)

			mounted := i.place
			i.place = filepath.Join(t.TempDir(), "not-mounted")
			i.open(t)
			i.sealed(t, mail)
			if forget {
				must(0, os.Remove(i.record()))(t)
			}
			err := i.archiver(t, trimming).Pass(t.Context(), true)
			if err == nil || !strings.Contains(err.Error(), "does not hold") {
				t.Errorf("an archive that is away is answered with %v", err)
			}
			if st := must(i.store.Stats(t.Context(), mail))(t); st.Hot != hot {
				t.Errorf("the stream began at %d, and begins at %d", hot, st.Hot)
			}
			if left, err := filepath.Glob(filepath.Join(i.place, "*", mail, "*")); len(left) > 0 || err != nil {
				t.Errorf("%v was written (%v)", left, err)
			}
			i.close(t)

			i.place = mounted
			i.open(t)
			i.sealed(t, mail)
			i.pass(t, trimming)
			if got, head := i.everything(t, eventstore.Following{Log: mail}), must(i.store.Head(t.Context(), mail))(t); uint64(len(got)) != head {
				t.Errorf("%d of %d entries are there", len(got), head)
			}
		})
	}
}

// What lies between two segments is in none, and stays in the stream.
func TestAGapBetweenSegmentsLeavesTheStreamAlone(t *testing.T) {
	t.Parallel()
	i := start(t)
	i.fill(t, 500)
	i.pass(t)
	lost := i.files(t, mail, ".json")[1]
	must(0, os.Rename(lost, lost+".aside"))(t)
	i.close(t)
	i.open(t)
	err := i.archiver(t, trimming).Pass(t.Context(), true)
	if err == nil || !strings.Contains(err.Error(), "between two segments") {
		t.Errorf("a gap is answered with %v", err)
	}
	if st := must(i.store.Stats(t.Context(), mail))(t); st.Hot != 1 {
		t.Errorf("the stream begins at %d", st.Hot)
	}
}

func (i *instance) files(t testing.TB, log, suffix string) []string {
	t.Helper()
	files := must(filepath.Glob(filepath.Join(i.place, i.keys.Instance, log, "*"+suffix)))(t)
	if len(files) < 3 {
		t.Fatalf("there are %d segments", len(files))
	}
	return files
}

// damage turns a bit in the middle of a file.
func damage(t testing.TB, file string) {
	t.Helper()
	data := must(os.ReadFile(file))(t)
	data[len(data)/2] ^= 4
	must(0, os.WriteFile(file, data, 0o600))(t)
}

func sumOf(data []byte) string {
	h := sha256.Sum256(data)
	return hex.EncodeToString(h[:])
}
