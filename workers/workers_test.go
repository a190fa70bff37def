package workers

import (
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/catalogue"
	"postbook.dev/postbook/domain/directory"
	"postbook.dev/postbook/domain/email"
	"postbook.dev/postbook/domain/sender"
	"postbook.dev/postbook/eventstore"
)

var start = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func waiting(account string, due time.Time) *mail {
	return &mail{id: uuid.New(), account: account, due: due, expires: due.Add(time.Hour), place: -1}
}

// A small account waits for one email of a large one, and not for all.
func TestAgendaGoesRoundTheAccounts(t *testing.T) {
	a := newAgenda()
	for range 100 {
		a.add(waiting("large", start), start)
	}
	a.add(waiting("small", start.Add(time.Second)), start.Add(time.Second))
	everybody := func(string) bool { return true }
	if m, _ := a.next(start, everybody); m == nil || m.account != "large" {
		t.Fatalf("got %v", m)
	}
	now := start.Add(time.Second)
	var order []string
	for range 3 {
		m, _ := a.next(now, everybody)
		order = append(order, m.account)
	}
	if !strings.Contains(strings.Join(order, " "), "small") {
		t.Errorf("the small account was not among the next three: %v", order)
	}
	if a.active["large"] < 3 {
		t.Errorf("%d attempts of the large account are counted", a.active["large"])
	}
}

// What is not due waits; what is blocked waits and expires.
func TestAgendaWaits(t *testing.T) {
	a := newAgenda()
	a.add(waiting("acme", start.Add(time.Hour)), start.Add(time.Hour))
	if m, due := a.next(start, func(string) bool { return true }); m != nil || !due.Equal(start.Add(time.Hour)) {
		t.Errorf("got %v and %v", m, due)
	}
	nobody := func(string) bool { return false }
	if m, _ := a.next(start.Add(2*time.Hour), nobody); m != nil {
		t.Error("a blocked account's email was handed out")
	}
	if e := a.takeExpired(start.Add(90 * time.Minute)); len(e) != 0 {
		t.Errorf("%d have expired too early", len(e))
	}
	if e := a.takeExpired(start.Add(3 * time.Hour)); len(e) != 1 || a.active["acme"] != 1 {
		t.Errorf("%d have expired, %d are counted", len(e), a.active["acme"])
	}
}

func TestSnapshotIsReadBack(t *testing.T) {
	s := snapshot{seq: 7, open: []opened{{uuid.New(), 3}, {uuid.New(), 9}}}
	got, err := parseSnapshot(s.marshal())
	if err != nil || got.seq != 7 || len(got.open) != 2 || got.open[1] != s.open[1] {
		t.Errorf("%+v, %v", got, err)
	}
}

// What a snapshot knew of an email is not folded again, no event of it, when the log
// is read from before: tries would count twice. An acceptance that comes a second time
// changes nothing either.
func TestWhatTheSnapshotKnewIsFoldedOnce(t *testing.T) {
	id := uuid.Must(uuid.NewV7())
	of := email.Stream("acme", id)
	entry := func(seq uint64, events ...domain.Event) eventstore.Entry {
		e := eventstore.Entry{Position: domain.Position{Log: "MAIL_00", Seq: seq}}
		for i, event := range events {
			e.Events = append(e.Events, domain.Recorded{Stream: of, Position: e.Position, Index: i, Time: start, Event: event})
		}
		return e
	}
	accepted := email.Accepted{Expires: start.Add(time.Hour), Recipients: []email.Recipient{{Kind: email.To}}}
	history := []eventstore.Entry{
		entry(1, accepted),
		entry(2, email.Prepared{}, email.Attempted{Attempt: 1, Recipients: []int{0}}),
		entry(3, email.Unresolved{Attempt: 1, Recipient: 0}),
		entry(4, accepted),
	}
	p := &partition{open: map[uuid.UUID]*mail{}}
	for range 2 {
		if err := p.foldAll(history); err != nil {
			t.Fatal(err)
		}
		r := p.open[id].state.Recipients[0]
		if r.Tries != 1 || r.Unknown != 1 || r.Status != email.Waiting {
			t.Errorf("the recipient is %+v", r)
		}
	}
	if p.open[id].last != 4 || p.seq != 4 {
		t.Errorf("it is known up to %d, and the log up to %d", p.open[id].last, p.seq)
	}
}

// While it is not known whether something was recorded, memory is noted nowhere: the
// next owner would skip what the log has.
func TestADoubtfulMemoryIsNotNoted(t *testing.T) {
	store, err := eventstore.Open(t.Context(), eventstore.Config{Dir: t.TempDir(), Registry: catalogue.Registry(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	snapshots, err := store.Bucket(t.Context(), "open-emails")
	if err != nil {
		t.Fatal(err)
	}
	p := newPartition(NewDispatcher(Config{Store: store, Snapshots: snapshots, Log: slog.New(slog.DiscardHandler)}), 0)
	p.seq = 5
	p.unsure.Store(true)
	if err := p.saveSnapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := snapshots.Get(t.Context(), p.name); !errors.Is(err, eventstore.ErrNoEntry) {
		t.Errorf("a snapshot was written: %v", err)
	}
	p.unsure.Store(false)
	if err := p.saveSnapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := snapshots.Get(t.Context(), p.name); err != nil {
		t.Errorf("no snapshot was written: %v", err)
	}
}

// An email that was moved to a later time does not expire at its old one, also while
// its account is not let through.
func TestAMovedEmailExpiresLater(t *testing.T) {
	p := &partition{open: map[uuid.UUID]*mail{}, agenda: newAgenda(), woke: make(chan struct{}, 1)}
	m := waiting("acme", start)
	p.agenda.add(m, start)
	if got, _ := p.agenda.next(start, func(string) bool { return false }); got != nil {
		t.Fatal("a blocked account's email was handed out")
	}
	m.state = email.State{Accepted: true, Expires: start.Add(240 * time.Hour), Recipients: make([]email.RecipientState, 1)}
	p.replan(m)
	if e := p.agenda.takeExpired(start.Add(3 * time.Hour)); len(e) != 0 {
		t.Errorf("%d have expired", len(e))
	}
	if e := p.agenda.takeExpired(start.Add(241 * time.Hour)); len(e) != 1 {
		t.Errorf("%d have expired in the end", len(e))
	}
}

func FuzzParseSnapshot(f *testing.F) {
	f.Add(snapshot{seq: 7, open: []opened{{uuid.UUID{1}, 3}}}.marshal())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := parseSnapshot(data)
		if err == nil && string(s.marshal()) != string(data) {
			t.Errorf("%x is read as %+v", data, s)
		}
	})
}

// What DNS holds, and what is said about it.
func TestMismatch(t *testing.T) {
	const key = "MIIBIjAN"
	from := directory.Sender{Name: "acme.test", PublicKey: key}
	expected := sender.Expected{SPF: "v=spf1 include:spf.mail.test ~all", MX: "feedback.mail.test"}
	for name, c := range map[string]struct {
		check string
		found []string
		says  string // part of what is wrong; empty if nothing is
	}{
		"the key":                       {sender.RecordDKIM, []string{"p=" + key}, ""},
		"the key with other tags":       {sender.RecordDKIM, []string{"v=DKIM1; k=rsa; p=MIIB IjAN"}, ""},
		"the key beside another record": {sender.RecordDKIM, []string{"x", "p=" + key}, ""},
		"another key":                   {sender.RecordDKIM, []string{"p=AAAA"}, "another key"},
		"a key that was revoked":        {sender.RecordDKIM, []string{"p="}, "another key"},
		"the policy":                    {sender.RecordSPF, []string{"v=spf1 include:spf.mail.test ~all"}, ""},
		"the policy among others' ways": {sender.RecordSPF, []string{"v=spf1 ip4:192.0.2.1 include:spf.mail.test -all"}, ""},
		"another policy":                {sender.RecordSPF, []string{"v=spf1 include:spf.other.test ~all"}, "include:spf.mail.test"},
		"two policies":                  {sender.RecordSPF, []string{"v=spf1 include:spf.mail.test ~all", "v=spf1 -all"}, "several"},
		"no policy":                     {sender.RecordSPF, []string{"hello"}, "no SPF policy"},
		"the host":                      {sender.RecordMX, []string{"feedback.mail.test"}, ""},
		"another host":                  {sender.RecordMX, []string{"mx.other.test"}, "another host"},
		"another host beside it":        {sender.RecordMX, []string{"feedback.mail.test", "mx.other.test"}, "other MX records"},
		"a DMARC policy":                {sender.RecordDMARC, []string{"v=DMARC1; p=none"}, ""},
		"no DMARC policy":               {sender.RecordDMARC, []string{"p=none"}, "no DMARC"},
	} {
		got := mismatch(sender.Record{Check: c.check}, from, expected, c.found)
		if c.says == "" && got != "" || c.says != "" && !strings.Contains(got, c.says) {
			t.Errorf("%s: %q, want %q", name, got, c.says)
		}
	}
}

// A domain that is pending is looked at often at first, and for 72 hours.
// What lies in DNS may have been put there to break whoever keeps it.
func TestRecordsAreKeptAsTexts(t *testing.T) {
	for txt, want := range map[string]string{
		"v=spf1 ~all": "v=spf1 ~all",
		"a\x00b\xff":  "a\uFFFDb\uFFFD",
		strings.Repeat("x", 2047) + "ä and more": strings.Repeat("x", 2047) + "\uFFFD",
	} {
		if got := kept(txt); got != want {
			t.Errorf("%q is kept as %q", txt, got)
		}
	}
}

func TestLooksBecomeRarer(t *testing.T) {
	pending := sender.State{Name: "acme.test", Status: sender.Pending, Requested: start}
	last := time.Duration(0)
	for _, age := range []time.Duration{0, 5 * time.Minute, 30 * time.Minute, 3 * time.Hour, 48 * time.Hour, 80 * time.Hour} {
		wait, ok := nextLook(pending, start.Add(age))
		if !ok || wait < last {
			t.Errorf("after %s: %s, %v", age, wait, ok)
		}
		last = wait
	}
	for name, s := range map[string]sender.State{"removed": {Removed: true}, "vouched for": {Vouched: true}, "failed": {Status: sender.NotFound}} {
		if _, ok := nextLook(s, start); ok {
			t.Errorf("a domain that is %s is looked at again", name)
		}
	}
}
