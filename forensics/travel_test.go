package forensics

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"postbook.dev/postbook/domain/account"
	"postbook.dev/postbook/domain/apikey"
	"postbook.dev/postbook/domain/catalogue"
	"postbook.dev/postbook/domain/email"
	"postbook.dev/postbook/domain/retention"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/internal/testenv"
)

// at is how things were at a point that a text names.
func at(t *testing.T, r *Replay, point, of string) *State {
	t.Helper()
	return must(r.At(t.Context(), must(r.Resolve(t.Context(), point))(t), of))(t)
}

// The events of one commit happened one after the other: a point may lie between
// them.
func TestAPointMayLieWithinACommit(t *testing.T) {
	w := newWorld(t, 2)
	r := NewReplay(w.store, nil)
	due := time.Now().Add(time.Hour).UTC()
	accepted := w.accept("acme", email.Scheduled{Due: due})
	id := uuid.MustParse(accepted[0].Stream.ID)
	sent := w.decide(accepted[0].Stream, email.Prepared{}, email.Attempted{Attempt: 1, Recipients: []int{0}}, email.Delivered{Attempt: 1})

	for _, c := range []struct {
		point     string
		last      string
		scheduled bool
		events    int
	}{
		{accepted[0].ID.String(), "queued", false, 1},
		{accepted[1].ID.String(), "scheduled", true, 2},
		{fmt.Sprintf("%s/%d", accepted[0].Log, accepted[0].Seq), "scheduled", true, 2},
		{sent[0].ID.String(), "scheduled", true, 3},
		{sent[1].ID.String(), "sent", true, 4},
		{sent[2].ID.String(), "delivered", true, 5},
		{"now", "delivered", true, 5},
	} {
		e, ok := at(t, r, c.point, "acme").Email(id)
		if !ok || e.Last != c.last || (e.Scheduled != nil) != c.scheduled {
			t.Errorf("as of %s it is %+v, want %s", c.point, e, c.last)
		}
		h := must(r.Email(t.Context(), must(r.Resolve(t.Context(), c.point))(t), id))(t)
		if len(h.Events) != c.events {
			t.Errorf("as of %s it has %d events, want %d", c.point, len(h.Events), c.events)
		}
		if s := h.State.(email.State); s.Scheduled != c.scheduled || s.Started() != (c.events > 3) {
			t.Errorf("as of %s its state is %+v", c.point, s)
		}
	}
	// The time that is printed of a point is one that it can be asked for by.
	printed, _, _ := strings.Cut(must(r.Resolve(t.Context(), sent[2].ID.String()))(t).String(), " ")
	if e, ok := at(t, r, printed, "acme").Email(id); !ok || e.Last != "delivered" {
		t.Errorf("as of %s it is %+v", printed, e)
	}
	w.accept("acme")
	if h := must(r.Email(t.Context(), must(r.Resolve(t.Context(), "LEDGER/1"))(t), id))(t); len(h.Events) != 0 {
		t.Errorf("before it was accepted the email has %d events", len(h.Events))
	}
}

// What was recorded at the very instant has happened, also if the log stored it after
// that, as it does; a nanosecond before, it had not.
func TestAnInstantIncludesWhatHappenedAtIt(t *testing.T) {
	w := newWorld(t, 3)
	r := NewReplay(w.store, nil)
	rec := w.accept("acme")
	w.accept("acme")
	if stored := must(w.store.Read(t.Context(), rec[0].Log, rec[0].Seq))(t).Time; !rec[0].Time.Before(stored) {
		t.Fatalf("it was stored at %s, and recorded at %s", stored, rec[0].Time)
	}
	id := uuid.MustParse(rec[0].Stream.ID)
	if _, ok := at(t, r, rec[0].Time.Format(time.RFC3339Nano), "acme").Email(id); !ok {
		t.Error("at the instant at which it was recorded, the email is not there")
	}
	if _, ok := at(t, r, rec[0].Time.Add(-1).Format(time.RFC3339Nano), "acme").Email(id); ok {
		t.Error("a nanosecond before it was recorded, the email is there")
	}
	for _, point := range []string{"yesterday", "LEDGER/x", "LEDGER/999", "NOWHERE/1", uuid.NewString()} {
		if _, err := r.Resolve(t.Context(), point); !errors.Is(err, ErrNoPoint) {
			t.Errorf("%s: %v, want that there is no such point", point, err)
		}
	}
	if s := at(t, r, "2001-01-01T00:00:00Z", ""); s.Numbers.Emails+s.Numbers.Accounts != 0 {
		t.Errorf("before everything there are %+v", s.Numbers)
	}
}

// A block is seen while it holds, with who did it and why; and the difference between
// two points says what changed, field by field, and by which events.
func TestABlockBeforeBetweenAndAfter(t *testing.T) {
	w := newWorld(t, 4)
	r := NewReplay(w.store, nil)
	mail := w.accept("acme")
	before := fmt.Sprintf("LEDGER/%d", w.last[account.Stream("acme")])
	key := apikey.Stream("acme", "k1")
	w.append(key, apikey.Issued{Name: "Key", Hint: "re_"})
	issued := w.accept("acme")
	blocked := w.append(account.Stream("acme"), account.Blocked{Policy: "spam", Evidence: "412 complaints"})
	w.append(account.Stream("beta"), account.Blocked{Policy: "other", Evidence: "seen"})
	w.append(key, apikey.Revoked{})
	delivered := w.decide(mail[0].Stream, email.Attempted{Attempt: 1}, email.Delivered{Attempt: 1})
	unblocked := w.append(account.Stream("acme"), account.UnblockRequested{}, account.Unblocked{})

	if a := at(t, r, before, "acme").Accounts[0]; a.Blocked || a.Blocking != nil {
		t.Errorf("before, the account is %+v", a)
	}
	while := at(t, r, blocked[0].ID.String(), "acme")
	a := while.Accounts[0]
	if !a.Blocked || a.BlockedFor != "spam" || a.Evidence != "412 complaints" || a.Blocking.ID != blocked[0].ID || a.Blocking.Actor != "staff:ada" || a.Blocking.Reason != blocked[0].By.Reason {
		t.Errorf("while it is blocked, the account is %+v by %+v", a, a.Blocking)
	}
	if s := at(t, r, blocked[0].ID.String(), ""); s.Numbers.Blocked != 1 || s.Numbers.Accounts != len(accounts) || s.Numbers.Keys != 1 {
		t.Errorf("of the platform: %+v", s.Numbers)
	}
	if a := at(t, r, unblocked[0].ID.String(), "acme").Accounts[0]; !a.Blocked {
		t.Error("between the request and the approval, the account is not blocked")
	}
	after := at(t, r, "now", "acme")
	if a := after.Accounts[0]; a.Blocked || a.Blocking != nil {
		t.Errorf("after, the account is %+v", a)
	}

	d := must(r.Diff(t.Context(), while, after, 10))(t)
	acc := changeOf(t, d, "accounts", "acme")
	if acc.Kind != "changed" || fieldsIn(acc) != "blocked blocked_at blocked_for" || typesIn(acc) != "account.unblock_requested account.unblocked" {
		t.Errorf("the account: %+v", acc)
	}
	if c := changeOf(t, d, "api_keys", "k1"); c.Kind != "removed" || typesIn(c) != "apikey.revoked" || c.Events[0].Actor != "staff:ada" || c.Events[0].Reason == "" {
		t.Errorf("the key: %+v", c)
	}
	if c := changeOf(t, d, "emails", mail[0].Stream.ID); c.Kind != "changed" || fieldsIn(c) != "last_event last_seq" || typesIn(c) != "email.attempted email.delivered" {
		t.Errorf("the email: %+v", c)
	}
	if len(d.Changes) != 3 || !reflect.DeepEqual(d.Moves, []Move{{"queued", "delivered", 1}}) {
		t.Errorf("there are %d changes, and %v", len(d.Changes), d.Moves)
	}
	// From within the commit on, only what came after is to blame.
	half := must(r.Diff(t.Context(), at(t, r, delivered[0].ID.String(), "acme"), after, 10))(t)
	if c := changeOf(t, half, "emails", mail[0].Stream.ID); fieldsIn(c) != "last_event" || typesIn(c) != "email.delivered" {
		t.Errorf("from within the commit: %+v", c)
	}
	whole := must(r.Diff(t.Context(), at(t, r, "LEDGER/1", ""), at(t, r, "now", ""), 1))(t)
	if c := changeOf(t, whole, "api_keys", "k1"); c.Kind != "came and went" || typesIn(c) != "apikey.issued apikey.revoked" {
		t.Errorf("the key came and went: %+v", c)
	}
	if whole.More != 1 || changeOf(t, whole, "emails", issued[0].Stream.ID).Kind != "added" {
		t.Errorf("%d more emails than the newest", whole.More)
	}
	if _, err := r.Diff(t.Context(), after, while, 10); !errors.Is(err, ErrOrder) {
		t.Errorf("backwards: %v", err)
	}
}

// Whether data was on hold at some moment is asked as who was blocked is.
func TestAHoldBeforeAndAfter(t *testing.T) {
	w := newWorld(t, 6)
	r := NewReplay(w.store, nil)
	of, hold := retention.Stream("acme"), uuid.New()
	placed := w.append(of, retention.HoldPlaced{Hold: hold, Recipient: "index"})
	w.append(of, retention.HoldLifted{Hold: hold, Recipient: "index"})
	for when, want := range map[string]map[uuid.UUID]string{placed[0].ID.String(): {hold: "index"}, "now": {}} {
		h := must(r.Aggregate(t.Context(), must(r.Resolve(t.Context(), when))(t), of))(t)
		if state, ok := h.State.(retention.State); !ok || !maps.Equal(state.Holds, want) {
			t.Errorf("as of %s the state is %+v, want the holds %v", when, h.State, want)
		}
	}
}

// Every kind of aggregate has a state that is told. Its package has its kind's name.
func TestEachAggregateHasItsState(t *testing.T) {
	for _, f := range catalogue.Registry().Facts() {
		kind := path.Base(f.Go.PkgPath())
		if kind != "access" && states[kind] == nil { // which is no aggregate: it decides nothing
			t.Errorf("there is no state of a %s, which %s happens to", kind, f.Type)
		}
	}
}

func changeOf(t *testing.T, d *Difference, table, key string) Change {
	t.Helper()
	i := slices.IndexFunc(d.Changes, func(c Change) bool { return c.Table == table && c.Key == key })
	if i < 0 {
		t.Fatalf("%s %s is not among what changed: %+v", table, key, d.Changes)
	}
	return d.Changes[i]
}

func fieldsIn(c Change) string {
	var names []string
	for _, f := range c.Fields {
		names = append(names, f.Name)
	}
	return strings.Join(names, " ")
}

func typesIn(c Change) string {
	var types []string
	for _, e := range c.Events {
		types = append(types, e.Type)
	}
	return strings.Join(types, " ")
}

// same fails the test unless two states show the same.
func same(t *testing.T, what string, got, want *State) {
	t.Helper()
	if !reflect.DeepEqual(got.Numbers, want.Numbers) || !reflect.DeepEqual(got.Emails(-1), want.Emails(-1)) || !reflect.DeepEqual(got.Keys, want.Keys) {
		t.Errorf("%s: %+v, want %+v", what, got.Numbers, want.Numbers)
	}
}

// A snapshot that was edited anywhere, cut, swapped with another or made with another
// key is found, thrown away and made again.
func TestAnEditedSnapshotIsNotBelieved(t *testing.T) {
	w := newWorld(t, 5)
	for range 300 {
		w.step()
	}
	alone, snapshots := NewReplay(w.store, nil), smallSnapshots(t)
	r := NewReplay(w.store, snapshots)
	want := at(t, alone, "now", "")
	if s := at(t, r, "now", ""); s.Work.Written == 0 {
		t.Fatal("no snapshots were made")
	}
	path, other := snapshots.path("MAIL_00", 0), snapshots.path("MAIL_00", 1)
	sound := must(os.ReadFile(path))(t)
	edits := map[string]func(){
		"another's":   func() { must(0, os.WriteFile(path, must(os.ReadFile(other))(t), 0o600))(t) },
		"another log": func() { must(0, os.WriteFile(path, must(os.ReadFile(snapshots.path("MAIL_01", 0)))(t), 0o600))(t) },
		"another key": func() {
			forged := OpenSnapshots(snapshots.dir, []byte("of somebody else"))
			forged.every = snapshots.every
			must(0, forged.write(0, newStretch("MAIL_00", ""), eventstore.Entry{}))(t)
		},
		"longer": func() { must(0, os.WriteFile(path, append(bytes.Clone(sound), 'x'), 0o600))(t) },
	}
	for n := 0; n < len(sound); n += 1 + len(sound)/60 {
		edits[fmt.Sprint("bit at ", n)] = func() {
			data := bytes.Clone(sound)
			data[n] ^= 4
			must(0, os.WriteFile(path, data, 0o600))(t)
		}
		edits[fmt.Sprint("cut at ", n)] = func() { must(0, os.WriteFile(path, sound[:n], 0o600))(t) }
	}
	for name, edit := range edits {
		edit()
		said := newStretch("MAIL_00", "")
		if err := snapshots.load(0, said); !errors.Is(err, errUnbelieved) {
			t.Errorf("%s: it is believed, %v", name, err)
		}
		if len(said.accounts) > 0 {
			t.Errorf("%s: something of it was taken in", name)
		}
	}
	got := at(t, r, "now", "")
	same(t, "after an edit", got, want)
	if got.Work.Discarded != 1 || got.Work.Written != 1 {
		t.Errorf("one was edited: %+v", got.Work)
	}
	if again := must(os.ReadFile(path))(t); !bytes.Equal(again, sound) {
		t.Error("made again, the snapshot is another")
	}
	if info := must(os.Stat(path))(t); info.Mode().Perm() != 0o600 {
		t.Errorf("its mode is %04o", info.Mode().Perm())
	}
	must(0, os.RemoveAll(snapshots.dir))(t)
	same(t, "after all were deleted", at(t, r, "now", ""), want)
}

// Snapshots of a log that has been put back to an earlier state, and gone on from
// there in another way, do not count.
func TestSnapshotsOfAnotherHistoryDoNotCount(t *testing.T) {
	snapshots := smallSnapshots(t)
	for seed := range uint64(2) {
		w := newWorld(t, seed+10)
		for range 200 {
			w.step()
		}
		r := NewReplay(w.store, snapshots)
		got := at(t, r, "now", "")
		if (got.Work.Discarded > 0) != (seed == 1) {
			t.Errorf("world %d: %+v", seed, got.Work)
		}
		same(t, "in a world of its own", got, at(t, NewReplay(w.store, nil), "now", ""))
	}
}

// However often the program is killed while it makes snapshots, what they say then is
// what the log says.
func TestKilledWhileSnapshotsAreWritten(t *testing.T) {
	if dir := os.Getenv("POSTBOOK_TEST_SNAPSHOTS"); dir != "" {
		makeSnapshotsFor(t, dir)
		return
	}
	rounds := 4
	if os.Getenv("POSTBOOK_TEST_LONG") != "" {
		rounds = 50
	}
	w := newWorld(t, 6)
	for range 500 {
		w.step()
	}
	want := at(t, NewReplay(w.store, nil), "now", "")
	dir := t.TempDir()
	killed := 0
	for round := range rounds {
		must(0, os.RemoveAll(dir))(t)
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilledWhileSnapshotsAreWritten$")
		cmd.Env = append(os.Environ(), "POSTBOOK_TEST_SNAPSHOTS="+dir, "POSTBOOK_TEST_NATS="+w.store.URL())
		must(0, cmd.Start())(t)
		// It is killed when some are there, and others are not.
		testenv.Eventually(t, 30*time.Second, func() error {
			if n := countFiles(dir); n < 1+round%7 {
				return fmt.Errorf("there are %d snapshots", n)
			}
			return nil
		})
		if cmd.Process.Kill() == nil && cmd.Wait() != nil {
			killed++
		}
		snapshots := OpenSnapshots(dir, []byte("a key"))
		snapshots.every = 16
		got := at(t, NewReplay(w.store, snapshots), "now", "")
		same(t, "after a kill", got, want)
		if got.Work.Discarded > 0 || got.Work.Snapshots == 0 {
			t.Errorf("after a kill: %+v", got.Work)
		}
	}
	if killed != rounds {
		t.Errorf("%d of %d were killed", killed, rounds)
	}
}

// makeSnapshotsFor makes snapshots over and over, until it is killed.
func makeSnapshotsFor(t *testing.T, dir string) {
	store := must(eventstore.Open(t.Context(), eventstore.Config{URL: os.Getenv("POSTBOOK_TEST_NATS"), Registry: registry, Log: quiet}))(t)
	snapshots := OpenSnapshots(dir, []byte("a key"))
	snapshots.every = 16
	r := NewReplay(store, snapshots)
	for n := uint64(0); ; n++ {
		must(r.Extend(t.Context()))(t)
		// One is missing the next time, and is written again while the others stay.
		must(0, snapshots.discard("MAIL_00", n%3))(t)
	}
}

func countFiles(dir string) int {
	n := 0
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.HasSuffix(path, ".folded") {
			n++
		}
		return nil
	})
	return n
}

// A log whose oldest entries are gone is replayed from what there is, and from the
// snapshots that were made while they were there.
func TestALogWithoutItsBeginning(t *testing.T) {
	w := newWorld(t, 7)
	for range 300 {
		w.step()
	}
	snapshots := smallSnapshots(t)
	r := NewReplay(w.store, snapshots)
	whole := at(t, r, "now", "")
	trim(t, w.store, "MAIL_00", 20)

	s := at(t, r, "now", "")
	same(t, "with the snapshots of then", s, whole)
	first := must(w.store.Stats(t.Context(), "MAIL_00"))(t).First
	if first < 10 {
		t.Fatalf("the log begins at %d", first)
	}
	alone := at(t, NewReplay(w.store, nil), "now", "")
	for _, e := range alone.Emails(-1) {
		if e.Log == "MAIL_00" && e.Accepted < first {
			t.Errorf("%+v was accepted in what is gone", e)
		}
		if was, ok := whole.Email(e.ID); !ok || !reflect.DeepEqual(was, e) {
			t.Errorf("%+v was %+v", e, was)
		}
	}
	if n := alone.Numbers.Emails; n == 0 || n >= whole.Numbers.Emails {
		t.Errorf("%d of %d emails are left", n, whole.Numbers.Emails)
	}
	// What is incomplete makes no snapshot.
	must(0, os.RemoveAll(snapshots.dir))(t)
	same(t, "with snapshots of what is left", at(t, r, "now", ""), alone)
	for n := range first / snapshots.every {
		if snapshots.has("MAIL_00", n) {
			t.Errorf("there is a snapshot of stretch %d, and the log begins at %d", n, first)
		}
	}
	same(t, "from these again", at(t, r, "now", ""), alone)
}

// trim takes away all but the newest entries of a log.
func trim(t *testing.T, store *eventstore.Store, log string, keep int64) {
	t.Helper()
	nc := must(nats.Connect(store.URL()))(t)
	defer nc.Close()
	js := must(jetstream.New(nc))(t)
	config := must(js.Stream(t.Context(), log))(t).CachedInfo().Config
	config.Discard, config.MaxMsgs = jetstream.DiscardOld, keep
	must(js.UpdateStream(t.Context(), config))(t)
	config.Discard, config.MaxMsgs = jetstream.DiscardNew, -1
	must(js.UpdateStream(t.Context(), config))(t)
}
