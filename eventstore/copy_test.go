package eventstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"testing"
	"time"
)

func ignore(_, _ uint64) {}

// copyAll copies every stream.
func copyAll(t *testing.T, s *Store) ([]StreamCopy, map[string][]byte) {
	t.Helper()
	var copies []StreamCopy
	data := map[string][]byte{}
	for _, name := range must(s.Streams(t.Context()))(t) {
		var b bytes.Buffer
		copies = append(copies, must(s.CopyStream(t.Context(), name, &b, ignore))(t))
		data[name] = b.Bytes()
	}
	return copies, data
}

func vacant(t *testing.T, dir string) *Vacant {
	t.Helper()
	v := must(OpenVacant(Config{Dir: dir, Log: slog.New(slog.DiscardHandler)}))(t)
	t.Cleanup(func() { _ = v.Close() })
	return v
}

// undecoded is everything in a log.
func undecoded(t *testing.T, s *Store, log string) []Entry {
	t.Helper()
	var all []Entry
	head := must(s.Head(t.Context(), log))(t)
	if head == 0 {
		return nil
	}
	err := s.Follow(t.Context(), Following{Log: log, StopAt: head, Undecoded: true}, func(_ context.Context, entries []Entry) error {
		all = append(all, entries...)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// A stream that was made from a copy has the same entries in the same places at
// the same times, and who has read it goes on where they were.
func TestACopyIsTheSameStream(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := open(t)
	appendKeys(t, s, 300)
	for p := range s.Partitions() {
		owner := must(s.Own(ctx, p, "a"))(t)
		for range 20 {
			of := emailIn(s, p)
			first := must(s.Accept(ctx, []Commit{accepted(of)}))(t)
			must(owner.Append(ctx, attempted(of, first[0][0].Seq, 1)))(t)
		}
	}
	b := must(s.Bucket(ctx, "keysets"))(t)
	secret := bytes.Repeat([]byte("the key that was destroyed "), 20)
	for n := range 10 {
		must(b.Put(ctx, fmt.Sprint("account-", n%3), append(secret, byte(n))))(t)
	}
	last := must(b.Put(ctx, "account-0", []byte("another")))(t)
	if err := b.Delete(ctx, "account-1", must(s.Last(ctx, "KV_keysets", "$KV.keysets.account-1"))(t)); err != nil {
		t.Fatal(err)
	}
	must(b.Put(ctx, "account-2", []byte("it has no key any more")))(t)
	blob := bytes.Repeat([]byte{7}, maxContent+100)
	refs, wait, err := s.PutContent(ctx, "acme", [][]byte{blob})
	if err = errors.Join(err, wait(ctx)); err != nil {
		t.Fatal(err)
	}
	// Half of what a worker has to do is done, and a timer will be due.
	topic := Ledger + "/" + LedgerSubject("")
	u := s.Subscriber(SubscriberConfig{Group: "workers", AckWait: time.Second})
	messages := subscribe(t, u, topic)
	done := map[string]bool{}
	for range 150 {
		m := soon(t, "an event", messages)
		done[m.Metadata.Get(MetaSeq)] = true
		m.Ack()
	}
	if err := u.Close(); err != nil {
		t.Fatal(err)
	}
	due := time.Now().Add(1500 * time.Millisecond)
	schedule(t, s, "verify", "later", due, "body")

	copies, data := copyAll(t, s)
	want := map[string][]Entry{}
	for _, log := range append(s.Logs(), Content) {
		want[log] = undecoded(t, s, log)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(data["KV_keysets"], []byte("destroyed")) {
		t.Error("a copy holds a keyset that was replaced")
	}

	dir := t.TempDir()
	v := vacant(t, dir)
	for _, c := range copies {
		if err := v.Restore(ctx, c, bytes.NewReader(data[c.Stream]), 0); err != nil {
			t.Fatal(err)
		}
		if err := v.Restore(ctx, c, bytes.NewReader(data[c.Stream]), 0); err == nil {
			t.Errorf("%s was restored over itself", c.Stream)
		}
	}
	if err := errors.Join(v.Close(), Settle(dir)); err != nil {
		t.Fatal(err)
	}

	s = open(t, in(dir))
	for log, entries := range want {
		if got := undecoded(t, s, log); !reflect.DeepEqual(got, entries) {
			t.Errorf("%s has %d entries that differ from the %d copied ones", log, len(got), len(entries))
		}
	}
	b = must(s.Bucket(ctx, "keysets"))(t)
	if value, revision, err := b.Get(ctx, "account-0"); err != nil || string(value) != "another" || revision != last {
		t.Errorf("the bucket reads %q at %d, %v; want %d", value, revision, err, last)
	}
	if _, _, err := b.Get(ctx, "account-1"); !errors.Is(err, ErrNoEntry) {
		t.Errorf("what was forgotten reads %v", err)
	}
	if got, err := s.Content(ctx, refs[0]); err != nil || !bytes.Equal(got, blob) {
		t.Errorf("content reads as %d bytes, %v", len(got), err)
	}
	ledger := must(s.js.Stream(ctx, Ledger))(t)
	if c := ledger.CachedInfo().Config; !c.DenyDelete || !c.DenyPurge || must(s.Last(ctx, Ledger, "ledger.>"))(t) != 300 {
		t.Errorf("the ledger can be edited: %+v", c)
	}
	messages = subscribe(t, s.Subscriber(SubscriberConfig{Group: "workers", AckWait: time.Second}), topic)
	for len(done) < 300 {
		m := soon(t, "the rest of the events", messages)
		if seq := m.Metadata.Get(MetaSeq); done[seq] {
			t.Errorf("%s was acknowledged, and comes again", seq)
		} else {
			done[seq] = true
		}
		m.Ack()
	}
	expect(t, fired(t, s, "verify"), "verify", "later", "body", due)
}

// A copy is as of one moment, whatever is written meanwhile.
func TestACopyUnderLoadIsOfOneMoment(t *testing.T) {
	t.Parallel()
	s := open(t, func(c *Config) { c.Partitions, c.Durability = 1, Interval })
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		for ctx.Err() == nil {
			commits := make([]Commit, 50)
			for i := range commits {
				commits[i] = accepted(newEmail())
			}
			if _, err := s.Accept(context.WithoutCancel(ctx), commits); err != nil {
				ended <- err
				return
			}
		}
		ended <- nil
	}()
	log := MailLog(0)
	for range 5 {
		before := must(s.Head(t.Context(), log))(t)
		var b bytes.Buffer
		c := must(s.CopyStream(t.Context(), log, &b, ignore))(t)
		after := must(s.Head(t.Context(), log))(t)
		var seqs []uint64
		err := ReadCopy(bytes.NewReader(b.Bytes()), log, func(e Entry) error {
			seqs = append(seqs, e.Seq)
			return nil
		})
		if err != nil || uint64(len(seqs)) != c.Last || c.Entries != c.Last || c.Last < before || c.Last > after {
			t.Errorf("the copy has %d entries up to %d, and the log had %d before and %d after; %v", len(seqs), c.Last, before, after, err)
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}

// A copy that was cut or changed is not read to an end that looks like one, and
// leaves no stream that looks like one.
func TestADamagedCopyIsRefused(t *testing.T) {
	t.Parallel()
	s := open(t)
	appendKeys(t, s, 200)
	var b bytes.Buffer
	c := must(s.CopyStream(t.Context(), Ledger, &b, ignore))(t)
	whole := b.Bytes()
	read := func(data []byte) error {
		return ReadCopy(bytes.NewReader(data), Ledger, func(Entry) error { return nil })
	}
	if err := read(whole); err != nil {
		t.Fatal(err)
	}
	damaged := [][]byte{nil, whole[:10], whole[:len(whole)/2], whole[:len(whole)-1]}
	for at := 20; at < len(whole); at += len(whole) / 10 {
		flipped := slices.Clone(whole)
		flipped[at] ^= 1
		damaged = append(damaged, flipped)
	}
	dir := t.TempDir()
	v := vacant(t, dir)
	for i, data := range damaged {
		if err := read(data); err == nil {
			t.Errorf("damage %d was not seen", i)
		}
		if i%4 != 0 {
			continue // each takes the server a moment
		}
		if err := v.Restore(t.Context(), c, bytes.NewReader(data), 0); err == nil {
			t.Errorf("damage %d was restored", i)
		}
		if err := v.Drop(t.Context(), Ledger); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.Restore(t.Context(), c, bytes.NewReader(whole), 0); err != nil {
		t.Errorf("the whole one, after the damaged ones: %v", err)
	}
}

// What a restore has left behind that did not end is not taken for a log.
func TestALogWithoutItsLedgerIsNotOpened(t *testing.T) {
	t.Parallel()
	s := open(t)
	appendKeys(t, s, 3)
	copies, data := copyAll(t, s)
	dir := t.TempDir()
	v := vacant(t, dir)
	for _, c := range copies {
		if c.Stream != Ledger {
			if err := v.Restore(t.Context(), c, bytes.NewReader(data[c.Stream]), 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	if half, err := Open(t.Context(), Config{Dir: dir, Registry: registry, Log: slog.New(slog.DiscardHandler)}); err == nil {
		_ = half.Close()
		t.Error("a log without a ledger was opened")
	}
}
