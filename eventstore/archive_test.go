package eventstore

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"

	"postbook.dev/postbook/domain"
)

// What reads of a log go on with behind the stream is tested with the real
// archive, in its package.

func TestSubjectFits(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		filter, subject string
		fits            bool
	}{
		{"mail.00.acme", "mail.00.acme", true},
		{"mail.00.acme", "mail.00.acme.more", false},
		{"mail.00.acme.more", "mail.00.acme", false},
		{"mail.*.owner", "mail.07.owner", true},
		{"mail.*", "mail.07.owner", false},
		{"ledger.*.sender.*", "ledger.acme.sender.1", true},
		{"ledger.*.sender.*", "ledger.acme.account.1", false},
		{"ledger.acme.>", "ledger.acme.account.1", true},
		{"ledger.acme.>", "ledger.other.account.1", false},
		{"ledger.acme.>", "ledger.acme", false},
		{">", "anything", true},
	} {
		if subjectFits(c.filter, c.subject) != c.fits {
			t.Errorf("%s fits %s: want %v", c.filter, c.subject, c.fits)
		}
	}
}

// A claim is renewed under its owner's appends without disturbing them, and not
// when somebody else has claimed.
func TestClaimIsRenewed(t *testing.T) {
	t.Parallel()
	s := open(t)
	ctx := t.Context()
	owner := must(s.Own(ctx, 0, "dispatcher"))(t)
	begun := owner.Seq()
	working, stop := context.WithCancel(ctx)
	var writing sync.WaitGroup
	for range 4 {
		of := emailIn(s, 0)
		prev := must(s.Accept(ctx, []Commit{accepted(of)}))(t)[0][0].Seq
		writing.Go(func() {
			for n := 1; working.Err() == nil; n++ {
				recorded, err := owner.Append(ctx, attempted(of, prev, n))
				if err != nil {
					t.Error(err)
					return
				}
				prev = recorded[0][0].Seq
			}
		})
	}
	for range 20 {
		if err := owner.Renew(ctx); err != nil {
			t.Error(err)
		}
	}
	stop()
	writing.Wait()
	if owner.Seq() <= begun {
		t.Errorf("the claim is still at %d", owner.Seq())
	}
	must(s.Own(ctx, 0, "other"))(t)
	if err := owner.Renew(ctx); !errors.Is(err, ErrFenced) {
		t.Errorf("a claim that is not the latest is renewed with %v", err)
	}
}

// nothing is an archive without a segment.
type nothing struct{}

func (nothing) Extent(context.Context, string) (uint64, uint64, error) { return 0, 0, nil }

func (nothing) Entry(context.Context, string, uint64) (Entry, error) { return Entry{}, ErrNoEntry }

func (nothing) Scan(context.Context, string, uint64, uint64, func([]Entry) error) error {
	return errors.New("it holds nothing")
}

func archiving(c *Config) { c.Archive = nothing{} }

// What an archive bounds does not expire, also when somebody opens the log who
// does not know of the archive.
func TestNothingExpiresBesideAnArchive(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, c := range []struct {
		with []func(*Config)
		age  time.Duration
	}{
		{[]func(*Config){in(dir)}, 400 * day},
		{[]func(*Config){in(dir), archiving}, 0},
		{[]func(*Config){in(dir)}, 0},
	} {
		s := open(t, c.with...)
		for _, log := range []string{Access, Asked} {
			if got := must(s.js.Stream(t.Context(), log))(t).CachedInfo().Config.MaxAge; got != c.age {
				t.Errorf("%s is kept for %s, want %s", log, got, c.age)
			}
		}
		must(0, s.Close())(t)
	}
}

// A follower that should have what has left the stream, and that the archive does
// not have, hears of it. Logs that forget by themselves go on.
func TestWhatIsNowhereIsAnError(t *testing.T) {
	t.Parallel()
	s := open(t, archiving)
	ctx := t.Context()
	for range 20 {
		must(s.Accept(ctx, []Commit{accepted(emailIn(s, 0))}))(t)
		must(0, s.Record(ctx, Access, "acme", []Commit{{Stream: domain.Stream{Account: "acme", Kind: "key", ID: uuid.NewString()}, By: operator(), At: at, Events: opened("acme").Events}}, false))(t)
	}
	for _, log := range []string{MailLog(0), Access} {
		if first := must(s.Trim(ctx, log, 10))(t); first != 11 {
			t.Errorf("trimmed up to 10, %s begins at %d", log, first)
		}
		if _, err := s.Trim(ctx, log, 20); err == nil {
			t.Errorf("all of %s was trimmed", log)
		}
	}
	count := 0
	each := func(_ context.Context, entries []Entry) error {
		count += len(entries)
		return nil
	}
	if err := s.Follow(ctx, Following{Log: MailLog(0), StopAt: 20}, each); err == nil || count > 0 {
		t.Errorf("a follower of emails that are nowhere hears %v, after %d", err, count)
	}
	if err := s.Follow(ctx, Following{Log: Access, StopAt: 20}, each); err != nil || count != 10 {
		t.Errorf("a follower of accesses has %d entries, and %v", count, err)
	}
	if c := must(s.js.Stream(ctx, MailLog(0)))(t).CachedInfo().Config; c.Discard != jetstream.DiscardNew || c.MaxMsgs != -1 {
		t.Errorf("after trimming the stream is configured as %+v", c)
	}
}

// away is an archive that does not answer.
type away struct{ nothing }

func (away) Entry(context.Context, string, uint64) (Entry, error) {
	return Entry{}, errors.New("503 Slow Down")
}

// What has left the stream, and that the archive does not give, is out of reach for
// now; it is not taken for something that was never there.
func TestAnArchiveThatIsAwayIsNoMissingEntry(t *testing.T) {
	t.Parallel()
	for name, archive := range map[string]Archive{"it is away": away{}, "it is not all there": nothing{}} {
		s := open(t, func(c *Config) { c.Archive = archive })
		ctx := t.Context()
		for range 3 {
			_, wait, err := s.PutContent(ctx, "acme", [][]byte{[]byte("a body")})
			if err = errors.Join(err, wait(ctx)); err != nil {
				t.Fatal(err)
			}
		}
		must(s.Trim(ctx, Content, 2))(t)
		if _, err := s.Read(ctx, Content, 1); !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrNoEntry) {
			t.Errorf("%s: what has left the stream reads %v, want ErrUnavailable", name, err)
		}
	}
	s := open(t, archiving)
	if _, err := s.Read(t.Context(), Content, 7); !errors.Is(err, ErrNoEntry) {
		t.Errorf("what was never there reads %v, want ErrNoEntry", err)
	}
}
